"""Which vocoder, chosen by configuration."""

from dataclasses import dataclass
from pathlib import Path

from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.pretrained import is_export
from sf_lightning.vocoder.base import Vocoder
from sf_lightning.vocoder.griffin_lim import GriffinLim

SHIPPED = Path(__file__).parent / "weights"
"""Folders of the vocoders that come with the package, each a name for `VocoderConfig.checkpoint`."""

DEFAULT: str | None = None
"""What speaks where nothing is said: the name of a shipped one, or None for Griffin-Lim."""

GRIFFIN_LIM = "griffin_lim"
"""The name of Griffin-Lim on command lines, where None is nothing said."""


@dataclass(frozen=True)
class VocoderConfig:
    """Which vocoder turns mels into waves.

    Args:
        checkpoint: The name of a vocoder that comes with the package (`vocoder/weights`; `./NAME` is a folder of
            yours); a checkpoint of `sf-fit --trains=vocoder`, of which the averaged weights are used, or the folder
            that `sf-export` made of it; a BigVGAN checkpoint of the package's (a file with its `config.json` beside
            it, or their folder); or the folder, a safetensors file or a state dict of Qwen2.5-Omni, whose BigVGAN
            speaks at 24 kHz. None (null, or "griffin_lim") is Griffin-Lim, which needs no weights.
        iterations: Steps of Griffin-Lim.
    """

    checkpoint: str | None = DEFAULT
    iterations: int = 32

    def make(self, mel: MelConfig) -> Vocoder:
        """Makes the vocoder for a mel.

        Raises:
            FileNotFoundError: if the checkpoint is not there.
            ValueError: if it was made for another mel, or is broken.
        """
        if self.checkpoint in (None, GRIFFIN_LIM):
            return GriffinLim(mel, self.iterations)
        assert self.checkpoint is not None
        # The package pulls in librosa and numba: only where a checkpoint is used.
        from sf_lightning.vocoder.bigvgan import BigVGANVocoder
        from sf_lightning.vocoder.qwen import is_qwen, load_qwen

        path = located(self.checkpoint)
        if is_export(path):
            raise ValueError(f"vocoder: {path} is the export of a decoder, wanted a vocoder")
        try:
            return load_qwen(path, mel) if is_qwen(path) else BigVGANVocoder.from_checkpoint(path, mel)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; or a name: {' or '.join([GRIFFIN_LIM, *shipped()])}") from error
        except ValueError as error:
            if self.checkpoint != DEFAULT:
                raise
            raise ValueError(f"{error}; it is the default, {GRIFFIN_LIM} takes any mel") from error


def located(checkpoint: str) -> Path:
    """Returns where a vocoder lies: the name of one that comes with the package, `./NAME` is a folder of yours."""
    return SHIPPED / checkpoint if is_shipped(checkpoint) else Path(checkpoint)


def is_shipped(checkpoint: str | None) -> bool:
    """Returns whether a vocoder of this name comes with the package."""
    return checkpoint is not None and checkpoint in shipped()


def shipped() -> list[str]:
    """Returns the names of the vocoders that come with the package."""
    return sorted(path.name for path in SHIPPED.iterdir() if path.is_dir()) if SHIPPED.is_dir() else []
