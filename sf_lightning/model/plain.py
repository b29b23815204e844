"""Dataclasses from the plain values of a config file or a checkpoint. Knows nothing of where they come from."""

from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


def from_plain(kind: type[Kind], values: object, what: str) -> Kind:
    """Makes a dataclass, and those within it, of what a config file holds.

    Args:
        kind: The dataclass.
        values: Names and values; what is left out is the default.
        what: Name of the whole, for errors.

    Raises:
        ValueError: if a value is unknown, missing or of another type, or is refused by the dataclass.

    >>> from sf_lightning.model.streamflow import MelScale
    >>> from_plain(MelScale, {"mean": -4.5}, "scale")
    MelScale(mean=-4.5, std=2.4)
    >>> from_plain(MelScale, {"mean": "low"}, "scale")
    Traceback (most recent call last):
    ValueError: scale.mean is 'low': wanted float
    """
    if not isinstance(values, dict):
        raise ValueError(f"{what} is {values!r:.60}: wanted names and values")
    hints = get_type_hints(kind)
    made: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        if each.name not in values and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{what}.{each.name} is missing")
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{what}.{name} is unknown to this version")
        if is_dataclass(hint := hints[name]):
            value = from_plain(hint, value, f"{what}.{name}")  # type: ignore[arg-type]
        elif not _fits(value, hint):
            raise ValueError(f"{what}.{name} is {value!r:.60}: wanted {getattr(hint, '__name__', hint)}")
        made[name] = value
    return kind(**made)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is what an annotation says; a list may stand for a tuple, a whole number for a float."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(each, inner[0]) for each in value)
    return type(value) in ((int, float) if hint is float else (hint,))
