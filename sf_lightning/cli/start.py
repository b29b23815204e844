"""The program `sf-fit`: listens for the signal to stop before anything is imported that takes long."""

from sf_lightning.training import stop


def main() -> None:
    """Listens, then runs the command line."""
    stop.listen()
    from sf_lightning.cli.fit import main as fit

    fit()
