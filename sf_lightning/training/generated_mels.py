"""The trained decoder whose mels a vocoder learns from: loaded once, and what it wants of the data."""

from dataclasses import replace
from functools import cached_property

from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.teacher import Teacher
from sf_lightning.files.records import from_plain
from sf_lightning.files.torch_files import weights_digest
from sf_lightning.model.pretrained import Pretrained
from sf_lightning.streaming.loading import load_pretrained
from sf_lightning.streaming.state import DecodeConfig


class GeneratedMels:
    """The decoder of `--data.decoder`.

    Args:
        path: As in `load_decoder`.
        seed: Of the mels that it makes.
    """

    def __init__(self, path: str, seed: int) -> None:
        self.path, self.seed = path, seed

    @cached_property
    def trained(self) -> Pretrained:
        """The decoder.

        Raises:
            FileNotFoundError, ValueError: as `load_pretrained`.
        """
        return load_pretrained(self.path)

    @cached_property
    def digest(self) -> str:
        """Of all of the decoder that its mels follow from."""
        description = self.trained.description
        said = (description.model, description.decode["guidance"], self.seed)
        return weights_digest(self.trained.model.state_dict(), repr(said))

    @cached_property
    def teacher(self) -> Teacher:
        """What makes the mels, guided as the decoder is when it decodes."""
        decode = from_plain(DecodeConfig, self.trained.description.decode, "decode")
        return Teacher(self.trained.model, decode.guidance, self.seed)

    def clip_requirements(self, vocoder: ClipRequirements) -> ClipRequirements:
        """Returns what both want of the data.

        Args:
            vocoder: What the module wants that is trained.

        Raises:
            ValueError: if it is a decoder itself, or hears another mel.
        """
        if vocoder.tokens is not None:
            raise ValueError("data.mels is generated: that is for --trains=vocoder, decoders learn from true ones")
        description = self.trained.description
        requirements = ClipRequirements.from_config(description.model, description.tokenizer)
        if requirements.mel != vocoder.mel:
            raise ValueError(
                f"data.decoder {self.path} makes mel {requirements.mel}, the vocoder hears {vocoder.mel}"
            )
        return replace(requirements, min_frames=vocoder.min_frames)
