"""Whether a run can go on with its samples: what came before, and in which order, against what comes now."""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)


def require_order(was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that lanes can be taken up where they stood.

    Args:
        was: What the order of a checkpoint's run followed from, by name.
        now: What it follows from in this run.

    Raises:
        ValueError: if the run had another number of lanes or of training sets, other mels or other blocks.
    """
    if was["lanes"] != now["lanes"]:
        raise ValueError(
            f"the checkpoint stands in {was['lanes']} lanes, data.lanes is {now['lanes']}: a run has the same "
            "lanes for its whole life"
        )
    if len(was["train"]) != len(now["train"]):
        raise ValueError(
            f"the checkpoint stands in {len(was['train'])} training sets, data.train has {len(now['train'])}: give "
            "the same sets to go on"
        )
    if was["mels"] != now["mels"]:
        raise ValueError(
            f"the run has learnt from mels that are {was['mels']}, by data.mels and data.decoder they are "
            f"{now['mels']}: give what it was begun with, or begin another run with --model.init_from"
        )
    if was["block_size"] != now["block_size"]:
        raise ValueError(
            f"the checkpoint stands at a block of {was['block_size']} frames, now they have {now['block_size']}"
        )


def warn_of_order(was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warns of what only changes the order of samples; arguments as in `require_order`."""
    for name in (name for name in was if was[name] != now[name]):
        log.warning(
            "data.%s is not what it was (%s, now %s): some samples come twice in this epoch, some not at all",
            name,
            was[name],
            now[name],
        )
