"""BigVGAN (arXiv 2206.04658), built from the classes of the `bigvgan` package.

It is convolutional: a stream equals the whole when each chunk is given the context that the layers depend on.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import torch
from bigvgan import BigVGAN
from bigvgan.activations import Snake, SnakeBeta
from bigvgan.env import AttrDict
from torch import Tensor, nn

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.torch_files import weight_mismatches, weights_digest
from sf_lightning.vocoder.files import read_generator
from sf_lightning.vocoder.generator import context_frames, mel_hyperparameters, require_buildable

ToInput = Callable[[Tensor], Tensor]


class BigVGANVocoder(nn.Module):
    """Converts log-mels [B, T, F] to waves [B, T * hop].

    Args:
        h: The package's hyperparameters, as in its `config.json`; `sampling_rate` is the mel's.
        mel: The mel that it is given.
        sample_rate: Sample rate of the waves in Hz, by default the mel's.
        to_input: Function from a log-mel to the input of the generator, by default the log-mel itself.

    Raises:
        ValueError: if `h` describes another mel, or the upsampling rates do not multiply to the hop length at the
            rate of the waves.
    """

    def __init__(
        self, h: dict, mel: MelConfig, sample_rate: int | None = None, to_input: ToInput | None = None
    ) -> None:
        super().__init__()
        for name, expected in mel_hyperparameters(mel).items():
            value = h.get(name)
            if value != expected and not (name == "fmax" and value is None and expected == mel.sample_rate / 2):
                raise ValueError(f"its {name} is {value}, the mel of this run has {expected}")
        rate = mel.sample_rate if sample_rate is None else sample_rate
        product, hop = math.prod(h["upsample_rates"]), rate * mel.hop_length / mel.sample_rate
        if product != hop:
            raise ValueError(f"upsample_rates multiply to {product}, the hop length is {hop:g} at {rate} Hz")
        self.h, self.mel, self.sample_rate, self.hop, self.to_input = h, mel, rate, product, to_input
        self.left = self.right = context_frames(h)
        self.digest = ""
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # about torch's weight_norm
            self.generator = BigVGAN(AttrDict(h))

    @classmethod
    def from_checkpoint(cls, path: Path, mel: MelConfig) -> "BigVGANVocoder":
        """Returns the vocoder in a checkpoint, in eval mode.

        Args:
            path: As in `read_generator`.
            mel: The mel that it is given.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if the checkpoint was trained on another mel, or is damaged.
        """
        vocoder, _ = cls._read(path, mel)
        remove_weight_norm(vocoder.generator)
        return vocoder.eval()

    def load_generator(self, path: Path) -> str:
        """Loads the weights of a generator of the same sizes and mel, to continue training them.

        Args:
            path: As in `read_generator`.

        Returns:
            Where the weights come from, in words.

        Raises:
            FileNotFoundError, ValueError: as `from_checkpoint`, and if its sizes differ.
        """
        other, origin = self._read(path, self.mel)
        for name in self.h.keys() - mel_hyperparameters(self.mel).keys():
            # The package's first version has no entries for its fixed settings.
            if (value := other.h.get(name, True)) != self.h[name]:
                raise ValueError(f"{path} has {name} {value}, this run has {self.h[name]}: expected equal")
        self.generator.load_state_dict(other.generator.state_dict())
        return origin

    @classmethod
    def _read(cls, path: Path, mel: MelConfig) -> tuple["BigVGANVocoder", str]:
        """Returns the vocoder in a checkpoint as it is trained, and where its weights come from."""
        h, weights, origin = read_generator(path)
        try:
            require_buildable(h, len(weights))
            with torch.device("meta"):  # compares sizes before it allocates any
                expected = cls(h, mel).generator.state_dict()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if mismatches := weight_mismatches(weights, expected):
            raise ValueError(f"{path}: {mismatches[0]} by its configuration")
        vocoder = cls(h, mel)
        vocoder.generator.load_state_dict(weights)
        # Digest of the weights as read, because folding their norms rounds differently on each machine.
        vocoder.digest = weights_digest(weights, repr(h))
        return vocoder, origin

    def compile_activations(self) -> None:
        """Compiles the periodic activations: one pass over memory instead of five.

        They are compiled once for each width, for all lengths; the waves are equal to rounding.
        """
        for module in self.generator.modules():
            if isinstance(module, Snake | SnakeBeta):
                module.compile(dynamic=True)

    def decode(self, mel: Tensor) -> Tensor:
        """Returns the waves [B, T * hop] of mels [B, T, F]."""
        mel = mel if self.to_input is None else self.to_input(mel)
        return self.generator(mel.transpose(1, 2))[:, 0]

    def extend(self, mel: Tensor, past: Tensor, num_new: int) -> Tensor:
        """Returns the next [B, num_new * hop] samples; only the length of `past` is used."""
        start = past.shape[1]
        return self.decode(mel)[:, start : start + num_new * self.hop]


def remove_weight_norm(generator: BigVGAN) -> None:
    """Folds the weight norms into the weights; the line that the package prints is dropped."""
    with redirect_stdout(None):
        generator.remove_weight_norm()
