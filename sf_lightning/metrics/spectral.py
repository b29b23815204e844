"""How far a wave's spectrogram is from its original's, at several resolutions. Knows nothing of pitch or hearing.

Letters: N samples.
"""

import torch
from torch import Tensor

RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""Lengths of transform, hop and window in samples: those of Parallel WaveGAN (arXiv 1910.11480)."""


def stft_distance(wave: Tensor, reference: Tensor) -> Tensor:
    """Returns the multi-resolution STFT distance of a wave [N] from its original [N], a scalar; 0 is no difference.

    As auraloss has it, by which BigVGAN's authors judge theirs: the mean over `RESOLUTIONS` of spectral
    convergence (the norm of the difference of magnitudes over that of the original's) and the mean difference of
    log-magnitudes. NaN where the longest transform cannot be mirrored at the edges: for 1024 samples or fewer.
    """
    length = min(len(wave), len(reference))
    if length <= max(n_fft for n_fft, _, _ in RESOLUTIONS) // 2:
        return wave.new_tensor(float("nan"))
    pair = torch.stack([wave[:length], reference[:length]]).float()
    total = pair.new_zeros(())
    for n_fft, hop, window in RESOLUTIONS:
        hann = torch.hann_window(window, device=pair.device)
        spectrum = torch.stft(pair, n_fft, hop, window, hann, return_complex=True)
        made, real = (spectrum.real.square() + spectrum.imag.square()).clamp(min=1e-8).sqrt()
        convergence = torch.linalg.matrix_norm(real - made) / torch.linalg.matrix_norm(real)
        total = total + convergence + (real.log() - made.log()).abs().mean()
    return total / len(RESOLUTIONS)
