"""Hears that a run is to stop: SIGUSR1, which Slurm sends before a time limit or a preemption.

The signal is blocked in every thread, and one thread waits for it. So nothing is ever interrupted by a handler, a
collective least of all, and whatever processes are started later, and by whom, inherit a mask under which it cannot
end them. Imports nothing that takes long: until `watch_signals`, the signal ends the program.
"""

import os
import signal
import threading
from typing import Any

REQUESTED = threading.Event()
"""Set from when the signal has come."""

EXITING = threading.Event()
"""Set from when all is saved and the program is about to end."""

EXIT_CODE = 75
"""With which a program ends that has saved its state and is to be started again: EX_TEMPFAIL of sysexits.h."""


def watch_signals() -> None:
    """Begins to listen. For the main thread, before it starts others."""
    signal.signal(signal.SIGTERM, exit_on_sigterm)  # what Lightning puts back when it is done
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    threading.Thread(target=_wait, name="stop", daemon=True).start()


def exit_on_sigterm(*_: Any) -> None:
    """Handles SIGTERM: ends the program at once, unless it is leaving with everything saved.

    Then it comes from `srun`, which sends it to the other ranks as soon as one has ended.
    """
    if not EXITING.is_set():
        os._exit(128 + signal.SIGTERM)


def _wait() -> None:
    signal.sigwait({signal.SIGUSR1})
    REQUESTED.set()
