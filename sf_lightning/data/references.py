"""Which crop of a speaker's voice stands beside a clip. Knows nothing of lanes."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sf_lightning.audio.wave import Wave
from sf_lightning.data.sample import BadSample, Clip, RawSample, crop_wave


class SampleName(NamedTuple):
    """Which sample of a set."""

    shard: int
    key: str


class References:
    """Reference crops in a group of shuffled samples: of the clip of the same speaker that came last.

    So each clip is decoded once, and yet the crop is a pure function of the order: after a resume the clip is
    looked up again. A speaker's first clip takes its crop from the second, and a single one from itself.

    Args:
        raws: Samples that could be read.
        decode: Makes a clip of one, or raises BadSample.
        order: The samples as they are shuffled, each with its speaker.
        where: Of each, where its crop begins, between 0 and 1, [len(order)].
        crop_samples: Length of a crop; 0 takes none.
    """

    def __init__(
        self,
        raws: Mapping[SampleName, RawSample],
        decode: Callable[[RawSample], Clip],
        order: Sequence[tuple[SampleName, str]],
        where: NDArray[np.float64],
        crop_samples: int,
    ) -> None:
        self.raws, self.decode, self.order, self.where = raws, decode, order, where
        self.crop_samples = crop_samples
        self.places: dict[str, list[int]] = defaultdict(list)
        for place, (_, speaker) in enumerate(order):
            self.places[speaker].append(place)
        self.last: dict[str, Wave] = {}

    def crop_for(self, place: int, clip: Clip) -> Wave:
        """Returns the crop for the clip at a place, and keeps one of the clip for the speaker's next."""
        speaker = self.order[place][1]
        own = self._crop(clip.wave, place)
        reference = self.last.get(speaker)
        if reference is None and len(own):
            mine = self.places[speaker]
            here = mine.index(place)
            others = [*reversed(mine[:here]), *mine[here + 1 :]]
            reference = next((crop for each in others if (crop := self._decoded(each)) is not None), own)
        self.last[speaker] = own
        return own if reference is None else reference

    def _decoded(self, place: int) -> Wave | None:
        """The crop of the clip at another place, or None if it is broken."""
        raw = self.raws.get(self.order[place][0])
        try:
            return None if raw is None else self._crop(self.decode(raw).wave, place)
        except BadSample:
            return None

    def _crop(self, wave: Wave, place: int) -> Wave:
        return crop_wave(wave, self.crop_samples, float(self.where[place]))
