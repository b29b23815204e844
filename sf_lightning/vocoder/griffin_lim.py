"""Griffin-Lim: estimates phases by iteration, without weights.

Whole utterances use the fast variant (Perraudin, Balazs & Sondergaard, 2013). A stream is continued by the same
iteration with one more projection: after every step, the samples that were already output are restored, so that the
phases of the new frames continue the old ones and no cross-fade is needed.
"""

import torch
from torch import Tensor, nn

from sf_lightning.audio.mel import MelConfig, MelSpectrogram


class GriffinLim(nn.Module):
    """Inverts log-mels [B, T, F] to waves [B, T * hop_length].

    Args:
        mel: The mel to invert.
        iterations: Number of iterations of the phase estimation.
        momentum: Momentum of the fast variant; 0 is the original algorithm.
        left: Past frames that a stream passes in; 4 cover the window, more stabilize the phases.
        right: Future frames that a stream passes in if it has them.
    """

    filters: Tensor
    magnitude_of_mel: Tensor
    window: Tensor

    def __init__(
        self, mel: MelConfig, iterations: int = 32, momentum: float = 0.99, left: int = 8, right: int = 8
    ) -> None:
        super().__init__()
        self.mel = mel
        self.sample_rate = mel.sample_rate
        self.iterations, self.momentum, self.left, self.right = iterations, momentum, left, right
        self.digest = ""
        filters = MelSpectrogram(mel).filters  # [bins, F]
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("magnitude_of_mel", torch.linalg.pinv(filters.double()).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(mel.win_length), persistent=False)

    @property
    def hop(self) -> int:
        """Number of samples of one mel frame."""
        return self.mel.hop_length

    def decode(self, mel: Tensor) -> Tensor:
        """Returns the waves [B, T * hop] of mels [B, T, F]."""
        return self._invert(mel, mel.new_zeros(len(mel), 0))

    def extend(self, mel: Tensor, past: Tensor, num_new: int) -> Tensor:
        """Returns the next [B, num_new * hop] samples; see `Vocoder.extend`."""
        start = past.shape[1]
        return self._invert(mel, past)[:, start : start + num_new * self.hop]

    def _magnitudes(self, mel: Tensor) -> Tensor:
        """Returns linear magnitudes [B, bins, T + 2] with the given mel [B, T, F]; the edge frames are repeated."""
        target = mel.float().exp()
        magnitude = (target @ self.magnitude_of_mel).clamp(min=1e-8)
        # Multiplicative updates keep the magnitudes positive, which the pseudo-inverse does not.
        for _ in range(8):
            ratio = (target @ self.filters.T) / ((magnitude @ self.filters) @ self.filters.T).clamp(min=1e-12)
            magnitude = magnitude * ratio
        return torch.cat([magnitude[:, :1], magnitude, magnitude[:, -1:]], dim=1).transpose(1, 2)

    def _invert(self, mel: Tensor, past: Tensor) -> Tensor:
        # A mel frame is centered half a hop after its start, a frame of `torch.stft(center=True)` at its start:
        # with one more frame at each edge, the wave starts half a hop into the output of `istft`.
        inset, known = self.hop // 2, past.shape[1]
        magnitude = self._magnitudes(mel)
        size = (magnitude.shape[2] - 1) * self.hop
        generator = torch.Generator().manual_seed(0)
        phase = torch.rand(magnitude.shape[1:], generator=generator).to(magnitude) * (2 * torch.pi)
        spectrum = torch.polar(magnitude, phase.expand_as(magnitude))
        if known:
            padded = torch.nn.functional.pad(past, (inset, size - inset - known))
            num_frames = (inset + known) // self.hop
            spectrum[:, :, :num_frames] = self._with_phase(magnitude, self._stft(padded))[:, :, :num_frames]
        before = torch.zeros_like(spectrum)
        for _ in range(self.iterations):
            wave = self._istft(spectrum, size)
            wave[:, inset : inset + known] = past
            now = self._stft(wave)
            spectrum = self._with_phase(magnitude, now + self.momentum * (now - before))
            before = now
        wave = self._istft(spectrum, size)
        return wave[:, inset : inset + mel.shape[1] * self.hop]

    def _stft(self, wave: Tensor) -> Tensor:
        sizes = (self.mel.n_fft, self.hop, self.mel.win_length)
        return torch.stft(wave, *sizes, self.window, pad_mode="constant", return_complex=True)

    def _istft(self, spectrum: Tensor, size: int) -> Tensor:
        return torch.istft(spectrum, self.mel.n_fft, self.hop, self.mel.win_length, self.window, length=size)

    @staticmethod
    def _with_phase(magnitude: Tensor, spectrum: Tensor) -> Tensor:
        return magnitude * spectrum / spectrum.abs().clamp(min=1e-9)
