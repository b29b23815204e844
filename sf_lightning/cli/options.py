"""Options of commands: read, checked, and named where they are wrong."""

from pathlib import Path

import torch


def require_positive(**values: int | None) -> None:
    """Refuses an option that is given and below 1."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: wanted 1 or more")


def require_device(device: str) -> None:
    """Refuses a device that is not there."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that was built without CUDA
        reason = str(error).partition(". ")[0]
        raise ValueError(
            f"--device is {device}: wanted cpu, or a device that this machine has ({reason})"
        ) from error


def part_of(text: str) -> tuple[int, int]:
    """Reads which part of how many, such as 3/64."""
    try:
        number, of = (int(each) for each in text.split("/"))
    except ValueError:
        raise ValueError(f"--slice is {text!r}: wanted two numbers, such as 3/64") from None
    if of < 1:
        raise ValueError(f"--slice is {text}: wanted at least one part, such as 1/1")
    if not 1 <= number <= of:
        raise ValueError(f"--slice is {text}: wanted 1/{of} to {of}/{of}")
    return number, of


def listed(names: list[str] | str | None) -> tuple[str, ...]:
    """A list that was given as one, or as words with commas between them."""
    given = names.split(",") if isinstance(names, str) else names or []
    return tuple(name.strip() for name in given if name.strip())


def names_in(path: str | None) -> frozenset[str]:
    """Reads the speakers that are left out."""
    if path is None:
        return frozenset()
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}: give speakers, one to a line, with --blocked_speakers")
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--blocked_speakers {path}: wanted text in UTF-8, one speaker to a line ({error})"
        ) from error
    return frozenset(line.strip() for line in lines if line.strip())
