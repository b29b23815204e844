"""Checks that a resumed run reads the samples that the interrupted one would have read."""

from collections.abc import Mapping
from typing import Any

from sf_lightning.files.text import get_logger

ORDER_VERSION = 2
"""Number that increases with every change of the keys or groups that the order of samples follows from."""

log = get_logger(__name__)


def require_same_order(stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Checks that the positions of the lanes in a checkpoint are valid in this run.

    Args:
        stored: Settings of the data module in the checkpoint, by name.
        current: Settings of the data module of this run.

    Raises:
        ValueError: if the number of lanes or of training sets, the kind of mels, or the block size differs.
    """
    if stored["lanes"] != current["lanes"]:
        raise ValueError(
            f"data.lanes is {current['lanes']} but the checkpoint was trained with {stored['lanes']}: lanes cannot "
            "change on resume"
        )
    if len(stored["train"]) != len(current["train"]):
        raise ValueError(
            f"data.train has {len(current['train'])} training sets but the checkpoint was trained with "
            f"{len(stored['train'])}: give the same sets to resume"
        )
    if stored["mels"] != current["mels"]:
        raise ValueError(
            f"with data.mels and data.decoder mels are {current['mels']}, but the checkpoint was trained on mels "
            f"that are {stored['mels']}: give the same values, or start a new run with --model.init_from"
        )
    if stored["block_size"] != current["block_size"]:
        raise ValueError(
            f"a block has {current['block_size']} frames but the checkpoint was trained with {stored['block_size']}"
            ": block sizes cannot change on resume"
        )


def warn_about_order(stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Warns of settings that change the order of samples only; arguments as in `require_same_order`."""
    effect = "in this epoch, samples are repeated or skipped"
    if stored.get("version") != current["version"]:
        log.warning("the checkpoint was written by a version with another order of samples: %s", effect)
    for name in (name for name in stored if name != "version" and stored[name] != current[name]):
        log.warning(
            "data.%s differs from the checkpoint (%s, now %s): %s", name, stored[name], current[name], effect
        )
