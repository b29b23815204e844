"""The program `sf-fit`: listens for the signal to stop before anything is imported that takes long."""

import signal

from sf_lightning.training import stop


def main() -> None:
    """Listens, then runs the command line."""
    stop.listen()
    from sf_lightning.cli.fit import main as fit

    try:
        fit()
    finally:
        if stop.LEAVING.is_set():  # a handler would be gone before the interpreter is
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
