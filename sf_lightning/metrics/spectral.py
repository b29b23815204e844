"""Multi-resolution STFT distance between a wave and its original. Independent of pitch and perception.

Letters: N samples.
"""

import torch
from torch import Tensor

RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""Lengths of transform, hop and window in samples, as in Parallel WaveGAN (arXiv 1910.11480)."""


def stft_distance(wave: Tensor, reference: Tensor) -> Tensor:
    """Returns the multi-resolution STFT distance of a wave [N] from its original [N], a scalar; 0 is no difference.

    As in auraloss, which BigVGAN's authors report: the mean over `RESOLUTIONS` of spectral convergence (norm of the
    difference of magnitudes over norm of the original's magnitudes) plus the mean difference of log-magnitudes.
    NaN for 1024 samples or fewer, where the longest transform cannot be padded by reflection.
    """
    length = min(len(wave), len(reference))
    if length <= max(n_fft for n_fft, _, _ in RESOLUTIONS) // 2:
        return wave.new_tensor(float("nan"))
    pair = torch.stack([wave[:length], reference[:length]]).float()
    total = pair.new_zeros(())
    for n_fft, hop, window in RESOLUTIONS:
        hann = torch.hann_window(window, device=pair.device)
        spectrum = torch.stft(pair, n_fft, hop, window, hann, return_complex=True)
        estimated, real = (spectrum.real.square() + spectrum.imag.square()).clamp(min=1e-8).sqrt()
        convergence = torch.linalg.matrix_norm(real - estimated) / torch.linalg.matrix_norm(real)
        total = total + convergence + (real.log() - estimated.log()).abs().mean()
    return total / len(RESOLUTIONS)
