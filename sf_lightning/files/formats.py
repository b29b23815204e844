"""Numbers of the formats of everything that is stored, and the check that a reader makes first.

A change that older readers would misread, or that has no default which restores the old meaning, raises a number.
"""

from sf_lightning import __version__

CHECKPOINT_FORMAT = 1
"""Format of a checkpoint of `sf-fit`, of a decoder or of a vocoder."""

EXPORT_FORMAT = 1
"""Format of the folder of a decoder that `sf-export` writes."""

SHARDS_FORMAT = 3
"""Format of a shard set's `manifest.json`."""

EVALUATION_FORMAT = 2
"""Format of the folder that `sf-eval` writes."""


def require_format(owner: object, found: object, newest: int, *, oldest: int = 1, remedy: str = "") -> None:
    """Checks a stored format number.

    Args:
        owner: What has the number, for errors; usually a path.
        found: The stored number.
        newest: The newest format that this version reads.
        oldest: The oldest one.
        remedy: What the user can do about a format that is too old, for errors.

    Raises:
        ValueError: if it is not a format number, newer, or older.

    >>> require_format("last.ckpt", 7, newest=1)
    Traceback (most recent call last):
    ValueError: last.ckpt has format 7, sf-lightning 0.1.0 reads up to 1: install a newer version
    """
    if type(found) is not int or found < 1:
        raise ValueError(f"{owner} has {found!r} as its format: expected an integer from 1 to {newest}")
    if found > newest:
        raise ValueError(
            f"{owner} has format {found}, sf-lightning {__version__} reads up to {newest}: install a newer version"
        )
    if found < oldest:
        raise ValueError(f"{owner} has format {found}, sf-lightning {__version__} reads from {oldest} on: {remedy}")
