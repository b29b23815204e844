"""Entry points of `sf-fit` and `sf-sweep`: signal handlers are installed before slow imports."""

import signal
import sys
from typing import Any

from sf_lightning.training import stop


def main() -> None:
    """Installs the signal handlers, then runs `sf-fit`."""
    stop.watch_signals()
    from sf_lightning.cli.fit import main as run_fit

    try:
        run_fit()
    finally:
        if stop.EXITING.is_set():  # the interpreter removes handlers before it exits
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def sweep() -> None:
    """Installs the signal handlers, then runs `sf-sweep`; on SIGINT, SIGTERM or SIGHUP its trials save first."""
    received = [0]

    def request_stop(number: int, _: Any) -> None:
        received[0] = number
        stop.REQUESTED.set()

    stop.watch_signals()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, request_stop)
    from sf_lightning.cli.sweep import main as run_sweep

    run_sweep()
    if stop.REQUESTED.is_set():
        sys.exit(128 + received[0] if received[0] else stop.EXIT_CODE)
