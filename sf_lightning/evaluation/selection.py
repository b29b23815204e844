"""Which clips are evaluated, which of them are kept as sound and pictures, and which are still to be decoded."""

import itertools

from sf_lightning.data.lanes import DrawnClip
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.evaluation.clips import ClipSource
from sf_lightning.evaluation.results import Results
from sf_lightning.evaluation.systems import SystemGroup


def spread_order(count: int) -> list[int]:
    """Returns the numbers below `count` in an order whose every beginning is spread evenly over the range.

    >>> spread_order(10)
    [0, 8, 4, 2, 6, 1, 9, 5, 3, 7]
    """
    bits = count.bit_length()
    return sorted(range(count), key=lambda number: f"{number:0{bits}b}"[::-1])


def kept_clips(count: int, keep: int) -> list[int]:
    """Returns the numbers of the clips that are kept as sound and pictures; a larger `keep` keeps these too.

    >>> [kept_clips(10, keep) for keep in (1, 2, 3)]
    [[0], [0, 8], [0, 4, 8]]
    """
    return sorted(spread_order(count)[:keep])


class ClipSelection:
    """The clips of an evaluation, read once for all candidates with the same requirements.

    Args:
        source: Source of the clips.
        count: Number of clips, spread evenly over the source.
    """

    def __init__(self, source: ClipSource, count: int) -> None:
        self.source, self.count = source, count
        self._known: dict[ClipRequirements, list[DrawnClip]] = {}

    def clips(self, group: SystemGroup) -> list[DrawnClip]:
        """Returns the clips for the candidate of a group.

        Raises:
            ValueError: if no clip can be used.
        """
        description = group.candidate.description
        requirements = ClipRequirements.from_config(description.model, description.tokenizer)
        if requirements not in self._known:
            self._known[requirements] = self.source.draw(requirements, self.count)
            if not self._known[requirements]:
                raise ValueError("--data has no clip that can be used: see the warnings above")
        return self._known[requirements]

    def kept_keys(self, group: SystemGroup, keep: int) -> set[str]:
        """Returns the keys of the clips that are kept; those whose speaker has another clip are preferred."""
        clips = self.clips(group)
        preferred = sorted((clips[i] for i in spread_order(len(clips))), key=lambda clip: clip.is_own_reference)
        return {clip.clip.key for clip in preferred[:keep]}

    def missing(self, group: SystemGroup, results: Results, keep: int) -> set[tuple[str, str]]:
        """Returns the pairs of system id and clip key that lack scores, or lack a sound to keep."""
        pairs = {(system.id, clip.clip.key) for system in group.systems for clip in self.clips(group)}
        kept = itertools.product(group.systems, self.kept_keys(group, keep))
        without_sound = {(s.id, key) for s, key in kept if not results.sound_path(s, key).is_file()}
        return pairs - results.rows.keys() | without_sound
