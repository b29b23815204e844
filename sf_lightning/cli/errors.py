"""What a command prints: one line for an error, and nothing that other libraries add."""

import os
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from sf_lightning.cli.parser import UsageError
from sf_lightning.files.text import printable, redacted
from sf_lightning.terminal import silence_libraries


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a command: messages of other libraries are filtered, and an error prints one line and exits with 2.

    SF_TRACEBACK=1 shows the traceback.
    """

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        silence_libraries()
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:  # the boundary of the command: any error becomes one line
            if os.environ.get("SF_TRACEBACK"):
                raise
            kinds = ArgumentError | ValueError | OSError | RuntimeError | ImportError | ArithmeticError
            expected = isinstance(error, kinds)
            hint = "" if expected else f" ({type(error).__name__}; SF_TRACEBACK=1 shows the traceback)"
            print(f"error: {one_line(error)}{hint}", file=sys.stderr)
            sys.exit(2)

    return wrapped


def one_line(error: BaseException) -> str:
    """Returns the message of an error in one line, printable and without passwords.

    >>> one_line(RuntimeError("Caught RuntimeError in DataLoader worker process 0.\\nOriginal Traceback\\n"
    ...     "  File x\\nRuntimeError: all broken"))
    'all broken'
    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.npy"))
    'a.npy: no such file or directory'
    """
    return printable(redacted(_message(error)))


def _message(error: BaseException) -> str:
    if isinstance(error, ArgumentError):
        return _usage(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught ") and "worker" in lines[0]:  # as PyTorch's DataLoader wraps errors
        return lines[-1].split(": ", 1)[-1]
    return " ".join(lines)


def _usage(error: ArgumentError) -> str:
    """Returns the line for an error of a parser: its innermost `UsageError`, with the option that contains it."""
    mistakes = [cause for cause in _causes(error) if isinstance(cause, UsageError)]
    if not mistakes:
        named = [cause for cause in _causes(error) if isinstance(cause, ArgumentError) and cause.argument_name]
        if named:
            return f"{str(named[-1].argument_name).partition('/')[0]}: {named[-1].message}"
        return " ".join(str(error).split())
    outer, inner = mistakes[0].option, mistakes[-1]
    return f"{outer}: {str(inner).removeprefix('--')}" if outer and outer not in str(inner) else str(inner)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
