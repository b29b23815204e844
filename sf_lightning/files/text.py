"""Words of others in terminals, logs, Markdown and CSV: names and keys are shown, and never obeyed.

Names in foreign shard sets, checkpoints and ratings may hold escape sequences, markup, formulas, or passwords.
"""

import logging
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sf_lightning.files.digest import digest_of

MAX_NAME_BYTES = 200
"""Longest name that `file_name` returns: file systems allow 255 bytes, with every suffix."""

HIDDEN = "***"
"""What stands in place of a password or token."""

_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emojis need them
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Categories of Unicode that are shown escaped: control and format characters, halves of pairs, line separators."""

_PASSWORD = re.compile(r"(://)(?!\$[\w{}]+(?::\$[\w{}]+)?@)[^\s/'\"]+(?=@)")
"""What precedes the password of a URL, and the password with its user."""

_SECRET = (
    r"(?:pass(?:word|wd)?|pwd|token|secret|signature|sig|credential|authorization|bearer|(?:api|access)[_-]?key)"
)
_SECRETS = (
    # What precedes a secret, and the secret, which is no variable of the shell.
    re.compile(rf"(?i)([\w-]*{_SECRET}[\w-]*[\"']?\s*+[:=]\s*+(?:(?:bearer|basic|token)\s+)?+)(?!\$)[^\s&'\";,]+"),
    re.compile(rf"(?i)((?<!\S)--?[\w-]*{_SECRET}[\w-]*\s++[\"']?+)(?!\$)[^\s'\"]+"),
    re.compile(r"((?<!\S)(?:-u|--user)[\s=]*+[\"']?+)(?!\$)[^\s'\"]+:[^\s'\"]+"),
)


def printable(text: object) -> str:
    """Returns text in one line that a terminal shows as it is: control and invisible characters are escaped.

    >>> printable("clip\\x1b]0;title\\x07 名前 \\u202e")
    'clip\\\\x1b]0;title\\\\x07 名前 \\\\u202e'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(_escape(letter) if _is_invisible(letter) else letter for letter in text)


def _is_invisible(letter: str) -> bool:
    return unicodedata.category(letter) in _INVISIBLE and letter not in _JOINERS


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def redacted(text: object) -> str:
    """Returns text with `***` in place of passwords in URLs.

    In an address or command (which starts with `https://`, `pipe:` or the like) that is also done with tokens in
    queries, headers and options. Variables of the shell are kept: `pipe:` commands can take secrets from them.

    >>> redacted("https://ann:1234@host/set?token=abc&part=2")
    'https://***@host/set?token=***&part=2'
    >>> redacted("pipe:curl -H 'Authorization: Bearer abc' https://host/{}")
    "pipe:curl -H 'Authorization: Bearer ***' https://host/{}"
    >>> redacted("pipe:curl -H 'Authorization: Bearer $KEY' https://host/{}")
    "pipe:curl -H 'Authorization: Bearer $KEY' https://host/{}"
    """
    text = _PASSWORD.sub(rf"\g<1>{HIDDEN}", str(text))
    if re.match(r"pipe:|\w+://", text):
        for pattern in _SECRETS:
            text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text


def redact_values(value: Any) -> Any:
    """Returns plain values (dicts, lists, and those in them) with every text redacted; see `redacted`."""
    if isinstance(value, dict):
        return {name: redact_values(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(redact_values, value))
    return redacted(value) if isinstance(value, str) else value


@contextmanager
def redacted_arguments() -> Iterator[None]:
    """Hides passwords in the command line of this process while the block runs, as W&B records it."""
    original = sys.argv
    sys.argv = ["=".join(map(redacted, argument.split("=", 1))) for argument in original]
    try:
        yield
    finally:
        sys.argv = original  # Lightning starts further ranks with it


def markdown_text(text: object) -> str:
    """Returns text in one line that Markdown shows as it is, in a table too: no links, pictures or HTML.

    >>> markdown_text("a|b <script> ![x](y)"), markdown_text("0.9 [0.8, 1.0]")
    ('a\\\\|b \\\\<script> !\\\\[x](y)', '0.9 [0.8, 1.0]')
    """
    return re.sub(r"([\\|<]|\[(?=.*\][(\[:]))", r"\\\1", printable(text))


def csv_cell(value: object) -> object:
    """Returns a value for CSV; text that a spreadsheet would compute gets an apostrophe in front.

    >>> csv_cell("=1+1"), csv_cell("-0.5"), csv_cell("-a"), csv_cell(None)
    ("'=1+1", '-0.5', "'-a", None)
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("=", "+", "-", "@"):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def file_name(key: str) -> str:
    """Returns a name for the files of a sample: safe in every folder, at most 200 bytes, another for another key.

    >>> file_name("名前-voice0_clip001"), file_name("a/b.c")
    ('名前-voice0_clip001', 'a_b-c-c0620514')
    """
    clean = "".join("_" if letter in "/\\" or _is_invisible(letter) else letter for letter in key)
    clean = re.sub(r"\s", "_", clean).replace(".", "-")
    if clean == key and 0 < len(key.encode()) <= MAX_NAME_BYTES:
        return key
    beginning = clean.encode()[: MAX_NAME_BYTES - 9].decode(errors="ignore")
    return f"{beginning}-{digest_of(key.encode(errors='backslashreplace'), 8)}"


def get_logger(name: str) -> logging.Logger:
    """Returns the logger of a module, whose messages are printable and redacted."""
    log = logging.getLogger(name)
    log.addFilter(_make_printable)
    return log


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(redacted(record.getMessage())), None
    return True
