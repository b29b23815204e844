"""The programs `sf-fit` and `sf-sweep`: they listen for signals before anything is imported that takes long."""

import signal
import sys
from typing import Any

from sf_lightning.training import stop


def main() -> None:
    """Listens, then runs the command line."""
    stop.watch_signals()
    from sf_lightning.cli.fit import main as fit

    try:
        fit()
    finally:
        if stop.EXITING.is_set():  # a handler would be gone before the interpreter is
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def sweep() -> None:
    """Listens, then runs `sf-sweep`; whatever asks it to stop, its trials save themselves first."""
    heard = [0]

    def hear(number: int, _: Any) -> None:
        heard[0] = number
        stop.REQUESTED.set()

    stop.watch_signals()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hear)
    from sf_lightning.cli.sweep import main as sweeps

    sweeps()
    if stop.REQUESTED.is_set():
        sys.exit(128 + heard[0] if heard[0] else stop.EXIT_CODE)
