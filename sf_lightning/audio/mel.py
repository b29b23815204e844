"""Log-mel spectrograms with BigVGAN's recipe.

Letters: B waves, N samples, T frames, F mel bands.
"""

from dataclasses import dataclass

import torch
from librosa.filters import mel as librosa_mel
from torch import Tensor, nn
from torch.nn import functional

MAX_SAMPLE_RATE = 384_000
"""Largest accepted sample rate in Hz; a file with a larger one would cost gigabytes."""

MAX_FFT = 2**16
"""Largest accepted length of the Fourier transform in samples."""


@dataclass(frozen=True)
class MelConfig:
    """Settings of the mel spectrogram, shared by shards, network and vocoder.

    Args:
        sample_rate: Samples per second of every wave.
        n_fft: Length of the Fourier transform in samples.
        num_bands: Mel bands F.
        hop_length: Samples between frames; 160 at 16 kHz gives 100 frames per second.
        win_length: Length of the Hann window in samples.
        f_min: Lower edge of the lowest band in Hz.
        f_max: Upper edge of the highest band in Hz.

    Raises:
        ValueError: if lengths or edges are not in order, or a setting is out of its range.

    >>> MelConfig().frame_rate
    100.0
    """

    sample_rate: int = 16000
    n_fft: int = 1024
    num_bands: int = 80
    hop_length: int = 160
    win_length: int = 640
    f_min: float = 0.0
    f_max: float = 8000.0

    def __post_init__(self) -> None:
        if not 0 < self.hop_length <= self.win_length <= self.n_fft:
            raise ValueError(
                f"mel: hop_length {self.hop_length}, win_length {self.win_length}, n_fft {self.n_fft}: "
                "expected 0 < hop_length <= win_length <= n_fft"
            )
        if not (1 <= self.sample_rate <= MAX_SAMPLE_RATE and self.n_fft <= MAX_FFT):
            raise ValueError(
                f"mel: sample_rate {self.sample_rate}, n_fft {self.n_fft}: expected at most "
                f"{MAX_SAMPLE_RATE} Hz and {MAX_FFT} samples"
            )
        if not 1 <= self.num_bands <= self.n_fft // 2 + 1:
            raise ValueError(
                f"mel.num_bands is {self.num_bands}: expected 1 to {self.n_fft // 2 + 1}, the bins of mel.n_fft "
                f"{self.n_fft}"
            )
        if not 0 <= self.f_min < self.f_max:
            raise ValueError(
                f"mel.f_min is {self.f_min} Hz: expected 0 or more, and less than mel.f_max {self.f_max}"
            )
        if self.f_max > self.sample_rate / 2:
            raise ValueError(
                f"mel.f_max is {self.f_max} Hz: expected at most half of mel.sample_rate {self.sample_rate}"
            )

    @property
    def pad(self) -> int:
        """Samples by which the transform of a frame extends beyond its hop on each side."""
        return (self.n_fft - self.hop_length) // 2

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length


class MelSpectrogram(nn.Module):
    """Computes log-mels [B, N // hop_length, F] of waves [B, N].

    The recipe is BigVGAN's: reflect padding of `MelConfig.pad` samples on each side, `center=False`, Hann
    window, `sqrt(|X|^2 + 1e-9)`, Slaney filters, `log(max(., 1e-5))`.

    >>> MelSpectrogram(MelConfig())(torch.zeros(1, 16000)).shape
    torch.Size([1, 100, 80])
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        # librosa's filters, as in BigVGAN: torchaudio computes them in float32, which changes log-mels by 1e-5.
        filters = librosa_mel(
            sr=config.sample_rate,
            n_fft=config.n_fft,
            n_mels=config.num_bands,
            fmin=config.f_min,
            fmax=config.f_max,
        )
        self.register_buffer("window", torch.hann_window(config.win_length), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters.T.copy()), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """Returns the log-mel [B, N // hop_length, F] of waves [B, N] with |wave| <= 1.

        Raises:
            ValueError: if a wave is too short for the reflection at its edges.
        """
        pad = self.config.pad
        if wave.shape[-1] <= pad:
            raise ValueError(f"wave has {wave.shape[-1]} samples: a mel needs at least {pad + 1}")
        return self.frames(functional.pad(wave[:, None], (pad, pad), mode="reflect")[:, 0])

    def frames(self, padded: Tensor) -> Tensor:
        """Returns the log-mel [B, T, F] of waves [B, pad + T * hop_length + pad] that include context.

        Pieces of a wave with `pad` samples of context on each side give exactly the frames of the whole wave: this
        is how blocks are transformed on the device without their utterance.
        """
        config = self.config
        # Always fp32: under autocast a bf16 mel would lose the quiet bands.
        with torch.autocast(padded.device.type, enabled=False):
            spectrum = torch.stft(
                padded.float(),
                config.n_fft,
                config.hop_length,
                config.win_length,
                self.window,
                center=False,
                return_complex=True,
            )
            magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)
            return (magnitude.transpose(1, 2) @ self.filters).clamp(min=1e-5).log()
