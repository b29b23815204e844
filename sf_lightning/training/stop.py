"""The request to stop a run: SIGUSR1, which Slurm sends before a time limit or a preemption.

The signal is blocked in every thread, and one thread waits for it. So no handler interrupts a collective, and
every process that is started later inherits a mask under which the signal cannot kill it.
This module imports nothing slow: until `watch_signals` is called, the signal ends the program.
"""

import os
import signal
import threading
from typing import Any

REQUESTED = threading.Event()
"""Set once the signal has come."""

EXITING = threading.Event()
"""Set once everything is saved and the program is about to exit."""

EXIT_CODE = 75
"""Exit code of a run that has saved its state and should be restarted: EX_TEMPFAIL of sysexits.h."""


def watch_signals() -> None:
    """Starts to watch for the signal; called in the main thread, before it starts others."""
    signal.signal(signal.SIGTERM, exit_on_sigterm)  # Lightning restores this one when it is done
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    threading.Thread(target=_wait, name="stop", daemon=True).start()


def exit_on_sigterm(*_: Any) -> None:
    """Handles SIGTERM: ends the program at once, unless everything is saved and it is exiting.

    In that case the signal comes from `srun`, which sends it to the other ranks as soon as one has ended.
    """
    if not EXITING.is_set():
        os._exit(128 + signal.SIGTERM)


def _wait() -> None:
    signal.sigwait({signal.SIGUSR1})
    REQUESTED.set()
