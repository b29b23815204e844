"""Parsers of the commands: options from signatures and docstrings, errors with option, value and expectation.

jsonargparse reports errors as text of several lines. The parsers here chain a `UsageError` to them, which names the
option that was being parsed; `sf_lightning.cli.errors` turns it into one line.
"""

import os
import sys
import types
import typing
from argparse import Action, ArgumentError
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal

import docstring_parser
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from sf_lightning import __version__

set_parsing_settings(add_print_completion_argument=True)


class UsageError(TypeError):
    """A mistake of the user: what was given, what is expected and which option to change.

    Args:
        message: Complete message in one line, without the option of an enclosing parser.
        option: Option that is wrong, as the user types it; empty if the message names it.
    """

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message)
        self.option = option


class CommandParser(ArgumentParser):
    """jsonargparse's parser whose errors chain a `UsageError`; also a mixin for parsers derived from it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **({"allow_abbrev": False, "exit_on_error": False} | kwargs))
        self._current: tuple[Action, Any] | None = None

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Parses arguments; a value that begins with ~/, of an option or a config, is in the home directory."""
        given = sys.argv[1:] if args is None else args
        parsed = super().parse_args([_expand_home(argument) for argument in given], *rest, **kwargs)
        return _expand_homes(parsed)

    def _parse_known_args_internal(  # type: ignore[override]
        self, args: Any = None, namespace: Any = None, *, argcomplete: bool = False
    ) -> tuple[Any, list[str]]:
        """Reports unknown options, a missing subcommand, and the option at which parsing failed."""
        self._current = None
        try:
            namespace, unknown = super()._parse_known_args_internal(args, namespace, argcomplete=argcomplete)
        except TypeError as error:
            if self._current is None or isinstance(error, UsageError):
                raise
            raise _wrong_value(*self._current) from error
        if unknown and not argcomplete:
            raise self._unknown_option(unknown[0])
        command = self._subcommands_action
        if command is not None and command.required and namespace.get(command.dest) is None and not argcomplete:
            raise UsageError(f"no command was given; expected {_alternatives(command.choices)}")
        return namespace, unknown

    def _get_values(self, action: Action, arg_strings: list[str]) -> Any:
        """Stores which option is being parsed, for errors."""
        self._current = action, " ".join(arg_strings)
        try:
            return super()._get_values(action, arg_strings)  # type: ignore[misc]
        except ArgumentError as error:
            if action.choices is None:
                raise
            raise UsageError(f"{arg_strings[0]} is unknown; expected {_alternatives(action.choices)}") from error

    def _check_value_key(self, action: Action, value: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        """Reports which option has a wrong value, also where a config file has it."""
        try:
            return super()._check_value_key(action, value, key, *args, **kwargs)
        except TypeError as error:
            if action is self._subcommands_action:
                raise
            raise _wrong_value(action, value) from error

    def validate(self, namespace: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Reports unknown keys of config files and missing options.

        Raises:
            UsageError: If a value is wrong, a key is unknown or a required option is missing.
        """
        try:
            super().validate(namespace, *args, **kwargs)
        except KeyError as error:
            known = self.strip_unknown(namespace)
            for key in namespace.keys():
                if key not in known:
                    raise self._unknown_option(f"--{key}") from error
            raise
        except TypeError as error:
            if not isinstance(error, UsageError) and (missing := [*self._missing_options(namespace)]):
                raise UsageError(f"required: {', '.join(missing)}; see --help") from error
            raise

    def _missing_options(self, namespace: Namespace) -> Iterator[str]:
        """Yields the required options that have no value."""
        for action in self._actions:
            if action.required and action is not self._subcommands_action and namespace.get(action.dest) is None:
                yield _option_name(action)
        if (command := self._subcommands_action) is not None and (chosen := namespace.get(command.dest)):
            yield from command.choices[chosen]._missing_options(namespace[chosen])

    def _unknown_option(self, text: str) -> UsageError:
        """Returns the error for an option that does not exist, with the most similar one that does."""
        name = text.partition("=")[0]
        similar = get_close_matches(name, self._option_string_actions, n=1, cutoff=0.75)
        hint = f"did you mean {similar[0]}?" if similar else "see --help for the options"
        return UsageError(
            f"{name} is no option; {hint}" if name.startswith("-") else f"{text} is unexpected; {hint}"
        )


def command_parser(
    prog: str, function: Callable[..., Any], flags: Iterable[str] = (), lists: Iterable[str] = (), **kwargs: Any
) -> CommandParser:
    """Returns a parser whose options are the parameters of a function and whose help is its docstring.

    Args:
        prog: Name of the command.
        function: Function that the command calls; its docstring has a section "Args".
        flags: Boolean parameters that are switched on by their option alone.
        lists: Parameters that take several values, after one option or each after its own.
        kwargs: Further arguments of jsonargparse's `add_function_arguments`.
    """
    doc = docstring_parser.parse(function.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    parser = CommandParser(prog=prog, description=doc.description, version=__version__)
    skip = {*flags, *lists, *kwargs.pop("skip", ())}
    parser.add_function_arguments(function, as_group=False, skip=skip, **kwargs)
    descriptions = {parameter.arg_name: parameter.description for parameter in doc.params}
    hints = typing.get_type_hints(function)
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true", help=descriptions[name])
    for name in lists:
        element = next(typing.get_args(kind)[0] for kind in typing.get_args(hints[name]) if typing.get_args(kind))
        parser.add_argument(f"--{name}", type=element, nargs="+", action="extend", help=descriptions[name])
    return parser


def _expand_home(argument: str) -> str:
    option, equals, value = argument.partition("=")
    return f"{option}{equals}{_expand_path(value)}"


def _expand_path(text: str) -> str:
    """Returns text in which ~ at the beginning of a path is the home directory.

    Raises:
        UsageError: if there is no home directory.
    """
    if not text.startswith("~/"):
        return text
    expanded = os.path.expanduser(text)
    if expanded == text:
        raise UsageError(f"{text} is in the home directory, which is unknown; set HOME or give another path")
    return expanded


def _expand_homes(value: Any) -> Any:
    """Expands ~ in all texts within a value, in place where it is a collection."""
    if isinstance(value, str):
        return _expand_path(value)
    if isinstance(value, list):
        value[:] = map(_expand_homes, value)
    elif isinstance(value, dict | Namespace):
        for name in [*vars(value)] if isinstance(value, Namespace) else [*value]:
            value[name] = _expand_homes(value[name])
    return value


def _wrong_value(action: Action, value: Any) -> UsageError:
    given = str(getattr(value, "val", value))
    shown = given if len(given) <= 80 else f"{given[:77]}..."
    return UsageError(f"{_option_name(action)} is {shown}; expected {_expectation(action)}", _option_name(action))


def _option_name(action: Action) -> str:
    return action.option_strings[0] if action.option_strings else action.dest.upper()


def _expectation(action: Action) -> str:
    """Returns what an option accepts, in words."""
    kind = getattr(action, "_typehint", None) or action.type
    if action.choices is not None:
        return _alternatives(action.choices)
    return describe_type(kind) if kind is not None else "a YAML file or {name: value, ...}"


def describe_type(kind: Any) -> str:
    """Returns what values of a type look like, in words.

    >>> describe_type(int | None), describe_type(Literal["a", "b", "c"]), describe_type(list[float] | bool)
    ('an integer', 'a, b or c', 'a list of numbers or true or false')
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return _alternatives(arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe_type(kind) for kind in arguments if kind is not type(None)))
    if isinstance(origin, type) and issubclass(origin, Iterable) and not issubclass(origin, Mapping):
        return f"a list of {_PLURALS.get(arguments[0], 'values')}"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return words.get(kind) or str(getattr(kind, "__name__", kind))


_PLURALS = {int: "integers", float: "numbers", str: "names"}


def _alternatives(choices: Iterable[Any]) -> str:
    *first, last = map(str, choices)
    return f"{', '.join(first)} or {last}" if first else last
