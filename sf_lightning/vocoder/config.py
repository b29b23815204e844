"""Which vocoder, chosen by configuration."""

from dataclasses import dataclass
from pathlib import Path

from sf_lightning.audio.mel import MelConfig
from sf_lightning.vocoder.base import Vocoder
from sf_lightning.vocoder.griffin_lim import GriffinLim


@dataclass(frozen=True)
class VocoderConfig:
    """Which vocoder turns mels into waves.

    Args:
        checkpoint: A checkpoint of `sf-fit --trains=vocoder`, of which the averaged weights are used; a BigVGAN
            checkpoint of the package's (a file with its `config.json` beside it, or their folder); or the
            folder, a safetensors file or a state dict of Qwen2.5-Omni, whose BigVGAN speaks at 24 kHz;
            without one, Griffin-Lim, which needs no weights.
        iterations: Steps of Griffin-Lim.
    """

    checkpoint: str | None = None
    iterations: int = 32

    def make(self, mel: MelConfig) -> Vocoder:
        """Makes the vocoder for a mel.

        Raises:
            FileNotFoundError: if the checkpoint is not there.
            ValueError: if it was made for another mel, or is broken.
        """
        if self.checkpoint is None:
            return GriffinLim(mel, self.iterations)
        # The package pulls in librosa and numba: only where a checkpoint is used.
        from sf_lightning.vocoder.bigvgan import BigVGANVocoder
        from sf_lightning.vocoder.qwen import is_qwen, load_qwen

        path = Path(self.checkpoint)
        return load_qwen(path, mel) if is_qwen(path) else BigVGANVocoder.from_checkpoint(path, mel)
