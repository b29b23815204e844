"""Whether a run can go on with its samples: what came before, and in which order, against what comes now."""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)


def require_order(was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that lanes can be taken up where they stood; warns of what only changes the order.

    Args:
        was: What the order of a checkpoint's run followed from, by name.
        now: What it follows from in this run.

    Raises:
        ValueError: if the run had another number of lanes, other mels or other blocks.
    """
    if was["lanes"] != now["lanes"]:
        raise ValueError(
            f"the checkpoint stands in {was['lanes']} lanes, data.lanes is {now['lanes']}: a run has the same "
            "lanes for its whole life"
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
    for name in (name for name in was if was[name] != now[name]):
        log.warning(
            "data.%s is not what it was (%s, now %s): some samples come twice in this epoch, some not at all",
            name,
            was[name],
            now[name],
        )
