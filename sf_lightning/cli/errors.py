"""A user's mistake ends in one line that says what came, what was wanted and which knob to turn."""

import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable
from functools import wraps
from typing import Any

from jsonargparse import ArgumentParser, Namespace


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a command so that a mistake prints one line and exits with 2; SF_TRACEBACK=1 shows where."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:  # the boundary of the command: whatever it is, the user gets one line
            if os.environ.get("SF_TRACEBACK"):
                raise
            kinds = ArgumentError | ValueError | OSError | RuntimeError | ImportError | ArithmeticError
            expected = isinstance(error, kinds)
            hint = "" if expected else f" ({type(error).__name__}; SF_TRACEBACK=1 shows where)"
            print(f"error: {one_line(error)}{hint}", file=sys.stderr)
            sys.exit(2)

    return wrapped


def parsed(parser: ArgumentParser, args: list[str] | None, usage: str) -> Namespace:
    """Parses arguments of which some have places instead of names.

    Args:
        parser: Of the command.
        args: As they were given.
        usage: What is said where one of those is missing.

    Raises:
        ValueError: if one is missing.
        ArgumentError: if something else is wrong.
    """
    try:
        return parser.parse_args(args)
    except ArgumentError as error:
        if "arguments are required" in str(error):
            raise ValueError(f"wanted {usage}") from error
        raise


def one_line(error: BaseException) -> str:
    """Returns the message of an error in one line.

    >>> one_line(RuntimeError("Caught RuntimeError in DataLoader worker process 0.\\nOriginal Traceback\\n"
    ...     "  File x\\nRuntimeError: all broken"))
    'all broken'
    >>> one_line(ArgumentError(None, "Parser key \\"width\\": Does not validate against any of the Union\\n"
    ...     "subtypes\\nSubtypes: [<class 'int'>, <class 'NoneType'>]\\nErrors:\\n  - Expected a <class 'int'>\\n"
    ...     "  - Expected a <class 'NoneType'>\\nGiven value type: <class 'str'>\\nGiven value: wide"))
    '--width is wide: wanted int'
    >>> one_line(ArgumentError(None, "Parser key \\"kind\\": Expected a typing.Literal['a', 'b']. Got value: c"))
    '--kind is c: wanted a or b'
    >>> one_line(ArgumentError(None, "Parser key \\"layout\\": Unable to load config 'no' - and so on"))
    '--layout: no: wanted a file of settings that can be read, or settings'
    >>> one_line(ArgumentError(None, "the following arguments are required: build.audio, fit.data.train"))
    'missing: --audio, --data.train'
    >>> one_line(ArgumentError(None, "unrecognized arguments: --nfe 3"))
    'no such option: --nfe 3: --help lists those that there are'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught ") and "worker" in lines[0]:
        return lines[-1].split(": ", 1)[-1]
    return _of_parser(" ".join(lines)) or " ".join(lines)


def _of_parser(text: str) -> str | None:
    """Says in a few words what jsonargparse says in many of a value or a file that it cannot take."""
    if file := re.match(r"""Parser key "(.+?)": Unable to load config ['"](.+?)['"]""", text):
        return f"--{file[1]}: {file[2]}: wanted a file of settings that can be read, or settings"
    if needed := re.fullmatch(r"the following arguments are required: (.+)", text):
        commands = r"^(fit|validate|build|verify|inspect|sample|demo)\."
        return "missing: " + ", ".join(f"--{re.sub(commands, '', name)}" for name in needed[1].split(", "))
    if unknown := re.fullmatch(r"unrecognized arguments: (.+)", text):
        return f"no such option: {unknown[1]}: --help lists those that there are"
    if option := re.match(
        r"""Parser key "(.+?)": .*?given class_path '(.+?)': Option '(.+?)' is not accepted""", text
    ):
        return f"--{option[1]}: {option[2].rpartition('.')[2]} has no option {option[3]}"
    found = re.fullmatch(r'Parser key "(.+?)": (Expected a .+?)\. Got value: (.*)', text) or re.fullmatch(
        r'Parser key "(.+?)": Does not validate .* Errors: - (.*) Given value type: .*: (.*)', text
    )
    if found is None or not all(re.match("Expected (a |<)", each) for each in found[2].split(" - ")):
        return None
    kinds = re.findall(r"<class '(?!NoneType)(.+?)'>", found[2])
    for choices in re.findall(r"Literal\[(.+?)\]", found[2]):
        kinds += [each.strip(" '") for each in choices.split(",")]
    return f"--{found[1]} is {found[3]}: wanted {' or '.join(kinds)}"
