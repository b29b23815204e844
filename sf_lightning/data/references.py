"""The reference crop of each clip: a piece of another clip of the same speaker. Independent of lanes."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sf_lightning.audio.wave import Wave
from sf_lightning.data.groups import SampleName
from sf_lightning.data.sample import BadSample, Clip, RawSample, crop_wave


class References:
    """Reference crops in a group of shuffled samples: of the previous clip of the same speaker in that order.

    Each clip is decoded only once, and yet the crop is a pure function of the order: after a resume the previous
    clip is decoded again. The first clip of a speaker gets a crop of the second; the only one, of itself.

    Args:
        raws: Samples that could be read; those before the clip may be missing, unless a lane has just resumed.
        decode: Function that decodes a sample, or raises BadSample.
        order: The samples in shuffled order, each with its speaker.
        positions: Relative start of the crop of each sample, between 0 and 1, [len(order)].
        crop_samples: Length of a crop; 0 for empty ones.
        short: Whether each sample is too short to be drawn; such samples are no references, [len(order)].
    """

    def __init__(
        self,
        raws: Mapping[SampleName, RawSample],
        decode: Callable[[RawSample], Clip],
        order: Sequence[tuple[SampleName, str]],
        positions: NDArray[np.float64],
        crop_samples: int,
        short: Sequence[bool],
    ) -> None:
        self.raws, self.decode, self.order, self.positions = raws, decode, order, positions
        self.crop_samples = crop_samples
        self.samples_of_speaker: dict[str, list[int]] = defaultdict(list)
        for number, (_, speaker) in enumerate(order):
            if not short[number]:
                self.samples_of_speaker[speaker].append(number)
        self.previous: dict[str, Wave] = {}

    def crop_for(self, number: int, clip: Clip) -> Wave:
        """Returns the reference crop of clip `number` in the order, and keeps one for the speaker's next clip."""
        speaker = self.order[number][1]
        own = self._crop(clip.wave, number)
        reference = self.previous.get(speaker)
        if reference is None and len(own):
            numbers = self.samples_of_speaker[speaker]
            here = numbers.index(number)
            others = [*reversed(numbers[:here]), *numbers[here + 1 :]]
            crops = (self._decode_crop(other) for other in others)
            reference = next((crop for crop in crops if crop is not None), own)
        self.previous[speaker] = own
        return own if reference is None else reference

    def _decode_crop(self, number: int) -> Wave | None:
        """Returns a crop of another clip, or None if that is broken."""
        raw = self.raws.get(self.order[number][0])
        try:
            return None if raw is None else self._crop(self.decode(raw).wave, number)
        except BadSample:
            return None

    def _crop(self, wave: Wave, number: int) -> Wave:
        return crop_wave(wave, self.crop_samples, float(self.positions[number]))
