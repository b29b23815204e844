"""Sentences of the demo corpus, drawn from the grammars in `grammar.yaml`. Independent of audio."""

import random
import re
from collections.abc import Mapping
from importlib import resources

import yaml

GRAMMARS: dict[str, dict[str, str]] = yaml.safe_load(
    resources.files("sf_lightning.data").joinpath("grammar.yaml").read_text(encoding="utf-8")
)
"""Grammars of English ("en") and Mandarin ("cmn"): alternatives of each slot, separated by `|`."""


def draw_sentence(grammar: Mapping[str, str], rng: random.Random) -> str:
    """Returns a random sentence: an alternative of `sentence`, its `{slots}` filled in the same way.

    >>> draw_sentence({"sentence": "the {animal} sleeps", "animal": "cat"}, random.Random(0))
    'The cat sleeps.'
    """

    def draw(symbol: str) -> str:
        alternative = rng.choice(grammar[symbol].split("|")).strip()
        return re.sub(r"{(\w+)}", lambda slot: draw(slot[1]), alternative)

    text = draw("sentence")
    return text[0].upper() + text[1:] + ("" if text.endswith(("?", "。", "？")) else ".")
