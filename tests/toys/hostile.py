"""Objects and files that would run code, or take gigabytes, where they are opened carelessly."""

from pathlib import Path


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)
