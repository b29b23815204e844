"""Dataclasses from the plain values of a config file, a checkpoint or a JSON file."""

import json
import reprlib
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def from_plain(kind: type[Record], values: object, name: str) -> Record:
    """Returns a dataclass, with the dataclasses in its fields, built from plain values.

    Args:
        kind: The dataclass.
        values: Values by the name of their field; a field that is left out has its default.
        name: Name of the whole, for errors.

    Raises:
        ValueError: if a value is unknown, missing or of another type, or if the dataclass refuses it.

    >>> from sf_lightning.model.streamflow import MelScale
    >>> from_plain(MelScale, {"mean": -4.5}, "scale")
    MelScale(mean=-4.5, std=2.4)
    >>> from_plain(MelScale, {"mean": "low"}, "scale")
    Traceback (most recent call last):
    ValueError: scale.mean is 'low': expected float
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {shown(values)}: expected names and values")
    hints = _field_types(kind)  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name}.{field.name} is missing")
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"{name}.{key!s:.60} is unknown to this version")
        if is_dataclass(hint := hints[key]):
            value = from_plain(hint, value, f"{name}.{key}")  # type: ignore[arg-type]
        elif _holds_dataclasses(hint) and isinstance(value, list | tuple):
            value = tuple(from_plain(get_args(hint)[0], item, f"{name}.{key}[{i}]") for i, item in enumerate(value))
        elif not _matches(value, hint):
            raise ValueError(f"{name}.{key} is {shown(value)}: expected {_type_in_words(hint)}")
        arguments[key] = value
    return kind(**arguments)


def parse_json(content: bytes | str) -> Any:
    """Returns the value of a JSON text.

    Raises:
        ValueError: if it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def to_plain(value: Any) -> Any:
    """Returns dataclasses as dicts and tuples as lists, at every depth: what a config file can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def shown(value: object) -> str:
    """Returns a value as Python writes it, cut to 60 characters; only what is shown is written.

    >>> shown(["a" * 10**6] * 10**6)[:20]
    "['aaaaaaaaaaaaaaaaaa"
    """
    return _SHORT.repr(value)[:60]


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 60, 60

_field_types = cache(get_type_hints)
"""Types of the fields of a dataclass by name; a manifest has a record for each of thousands of shards."""


def _holds_dataclasses(hint: Any) -> bool:
    """Returns whether a type is a tuple of dataclasses of one kind."""
    return get_origin(hint) is tuple and is_dataclass(get_args(hint)[0])


def _type_in_words(hint: Any) -> str:
    """Returns a type as errors name it."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)


def _matches(value: object, hint: Any) -> bool:
    """Returns whether a value has the annotated type; a list may stand for a tuple, an integer for a float."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_matches(value, option) for option in inner)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if origin is dict:
        return isinstance(value, dict) and all(
            _matches(key, inner[0]) and _matches(item, inner[1]) for key, item in value.items()
        )
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_matches(item, inner[0]) for item in value)
    if hint is float:  # neither infinite nor NaN
        return isinstance(value, int | float) and type(value) is not bool and abs(value) < 1e300
    if hint is int:
        return isinstance(value, int) and type(value) is not bool and abs(value) < 2**63
    return type(value) is hint
