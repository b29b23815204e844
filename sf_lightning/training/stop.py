"""Hears that a run is to stop: SIGUSR1, which Slurm sends before a time limit or a preemption.

The signal is blocked in every thread, and one thread waits for it. So nothing is ever interrupted by a handler, a
collective least of all, and whatever processes are started later, and by whom, inherit a mask under which it cannot
end them. Imports nothing that takes long: until `listen`, the signal ends the program.
"""

import signal
import threading

REQUESTED = threading.Event()
"""Set from when the signal has come."""

EXIT_CODE = 75
"""With which a program ends that has saved its state and is to be started again: EX_TEMPFAIL of sysexits.h."""


def listen() -> None:
    """Begins to listen. For the main thread, before it starts others."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    threading.Thread(target=_wait, name="stop", daemon=True).start()


def _wait() -> None:
    signal.sigwait({signal.SIGUSR1})
    REQUESTED.set()
