"""BigVGAN (arXiv 2206.04658), built from the `bigvgan` package's own classes; from its checkpoints on disk.

Convolutional, so a stream equals the whole when each piece comes with the context that the layers reach.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from bigvgan import BigVGAN
from bigvgan.activations import Snake, SnakeBeta
from bigvgan.env import AttrDict
from torch import Tensor, nn

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.torch_files import weight_mismatches, weights_digest
from sf_lightning.vocoder.files import read_generator
from sf_lightning.vocoder.generator import context_frames, mel_hyperparameters


def as_it_is(mel: Tensor) -> Tensor:
    """Returns the log-mel itself: what the package's generators were trained on."""
    return mel


class BigVGANVocoder(nn.Module):
    """Turns log-mels [B, T, F] into waves [B, T * hop].

    Args:
        h: The package's hyperparameters, as in its `config.json`; `sampling_rate` is the mel's.
        mel: The mel it will be given.
        sample_rate: Of the waves in Hz, by default the mel's.
        to_input: What the generator wants to see of a log-mel.

    Raises:
        ValueError: if the two describe different mels, or the upsampling does not multiply to the samples
            of a frame at the rate of the waves.
    """

    def __init__(
        self,
        h: dict,
        mel: MelConfig,
        sample_rate: int | None = None,
        to_input: Callable[[Tensor], Tensor] = as_it_is,
    ) -> None:
        super().__init__()
        for name, wanted in mel_hyperparameters(mel).items():
            came = h.get(name)
            if came != wanted and not (name == "fmax" and came is None and wanted == mel.sample_rate / 2):
                raise ValueError(f"vocoder: its {name} is {came}, the mel of this run has {wanted}")
        rate = mel.sample_rate if sample_rate is None else sample_rate
        product, hop = math.prod(h["upsample_rates"]), rate * mel.hop_length / mel.sample_rate
        if product != hop:
            raise ValueError(
                f"vocoder: upsample_rates multiply to {product}, the hop length is {hop:g} at {rate} Hz"
            )
        self.h, self.mel, self.sample_rate, self.hop, self.to_input = h, mel, rate, product, to_input
        self.left = self.right = context_frames(h)
        self.digest = ""
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of the way it norms weights
            self.generator = BigVGAN(AttrDict(h))

    @classmethod
    def from_checkpoint(cls, path: Path, mel: MelConfig) -> "BigVGANVocoder":
        """Loads a generator, however it was saved.

        Args:
            path: As `read_generator` takes it.
            mel: The mel it will be given.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if the checkpoint was made for another mel, or is broken.
        """
        vocoder, _ = cls._read(path, mel)
        remove_weight_norm(vocoder.generator)
        return vocoder.eval()

    def take(self, path: Path) -> str:
        """Takes the weights of a generator of the same sizes and mel, however it was saved, to train them further.

        Returns:
            What they are, in words.

        Raises:
            FileNotFoundError, ValueError: as `from_checkpoint`, and if its sizes are others.
        """
        other, of = self._read(path, self.mel)
        for name in self.h.keys() - mel_hyperparameters(self.mel).keys():
            if (came := other.h.get(name, True)) != self.h[name]:  # what its first version does not say is so
                raise ValueError(f"vocoder: {path} has {name} {came}, this run {self.h[name]}: wanted the same")
        self.generator.load_state_dict(other.generator.state_dict())
        return of

    @classmethod
    def _read(cls, path: Path, mel: MelConfig) -> tuple["BigVGANVocoder", str]:
        """A generator, and what its weights are."""
        h, weights, of = read_generator(path)
        vocoder = cls(h, mel)
        if mismatches := weight_mismatches(weights, vocoder.generator.state_dict()):
            raise ValueError(f"vocoder: {path}: {mismatches[0]} by its configuration")
        vocoder.generator.load_state_dict(weights)
        # Of the weights as they were read: folding their norms rounds differently on each machine.
        vocoder.digest = weights_digest(weights, repr(h))
        return vocoder, of

    def compile_activations(self) -> None:
        """Compiles the periodic activations, each of which is one pass over memory then instead of five.

        Once for each width, of whatever length; the sound is the same to rounding.
        """
        for each in self.generator.modules():
            if isinstance(each, Snake | SnakeBeta):
                each.compile(dynamic=True)

    def decode(self, mel: Tensor) -> Tensor:
        """Returns the waves [B, T * hop] of mels [B, T, F]."""
        return self.generator(self.to_input(mel).transpose(1, 2))[:, 0]

    def extend(self, mel: Tensor, past: Tensor, num_new: int) -> Tensor:
        """Returns the next [B, num_new * hop] samples; of the past, only its length is needed."""
        start = past.shape[1]
        return self.decode(mel)[:, start : start + num_new * self.hop]


def remove_weight_norm(generator: BigVGAN) -> None:
    """Folds the norms of the weights in, without the package's word about it."""
    with redirect_stdout(None):
        generator.remove_weight_norm()
