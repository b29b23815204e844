"""Checks and conversions of option values, with the option named in every error."""

from pathlib import Path

import torch


def require_positive(**values: int | None) -> None:
    """Raises ValueError for an option, named by keyword, that is given (not None) and below 1."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; expected 1 or more")


def require_device(device: str) -> None:
    """Raises ValueError for a device that this machine does not have."""
    try:
        known = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"--device is {device}; expected cpu, cuda or another device of PyTorch") from error
    try:
        torch.empty(1, device=known)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that was built without CUDA
        reason = str(error).partition(". ")[0]
        raise ValueError(f"--device is {device}; expected cpu or a device of this machine ({reason})") from error


def parse_slice(text: str) -> tuple[int, int]:
    """Returns number and count of a slice such as 3/64: the third of 64.

    Raises:
        ValueError: If it is not of this form, or the number exceeds the count.
    """
    try:
        number, count = map(int, text.split("/"))
    except ValueError:
        raise ValueError(f"--slice is {text!r}; expected two integers such as 3/64") from None
    if not 1 <= number <= count:
        last = f"1/{count} to {count}/{count}" if count > 0 else "at least one slice, such as 1/1"
        raise ValueError(f"--slice is {text}; expected {last}")
    return number, count


def split_list(names: list[str | bool] | str | None) -> tuple[str, ...]:
    """Returns the names in a list, or in a text with commas between them.

    >>> split_list("en, no"), split_list("[en, 'no']"), split_list(["en", False])
    (('en', 'no'), ('en', 'no'), ('en', 'no'))

    Raises:
        ValueError: If one is the boolean true, which YAML makes of y, yes and on.
    """
    given = names.strip().removeprefix("[").removesuffix("]").split(",") if isinstance(names, str) else names or []
    if True in given:
        raise ValueError(f"{given} has a boolean; expected names, in quotes where YAML takes one for a boolean")
    found = ("no" if name is False else str(name).strip().strip("'\"") for name in given)  # YAML's Norwegian
    return tuple(name for name in found if name)


def read_names(path: str | None, option: str) -> frozenset[str]:
    """Returns the lines of the UTF-8 file that `option` names, without empty ones; none without a path.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not text in UTF-8.
    """
    if path is None:
        return frozenset()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{option} {path}: no such file; expected a text file, one name a line")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{option} {path} is not UTF-8 text; expected one name a line ({error})") from error
    return frozenset(line.strip() for line in lines if line.strip())
