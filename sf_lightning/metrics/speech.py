"""All that is measured of one way to make speech: perceptual scores, mel error, seam."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import MeanMetric, SumMetric

from sf_lightning.audio.seam import seam_db
from sf_lightning.metrics.perceptual import (
    PESQWB,
    STOI,
    PerceptualMetric,
    PeriodicityError,
    ViSQOL,
    update_together,
)
from sf_lightning.metrics.spectral import stft_distance


class SpeechScores:
    """Gathers scores over clips, on all ranks; means leave clips out that have no score, and count them.

    Args:
        sample_rate: Of all waves, 16000.
        device: Where the scores are kept: that of the process group, which gathers them.
        copies: Whether the waves are made of what the references say, sample by sample: then they are also
            judged by multi-resolution STFT distance and periodicity.

    Raises:
        RuntimeError: if ViSQOL would run without its lattice model.
    """

    def __init__(self, sample_rate: int, device: torch.device | str = "cpu", copies: bool = False) -> None:
        perceptual: dict[str, PerceptualMetric] = {
            "pesq_wb": PESQWB(sample_rate),
            "stoi": STOI(sample_rate),
            "visqol": ViSQOL(sample_rate),
        }
        if copies:
            perceptual["periodicity"] = PeriodicityError(sample_rate)
        self.perceptual = {name: metric.to(device) for name, metric in perceptual.items()}
        self.device, self.copies = torch.device(device), copies
        self.mel_l1, self.seam, self.mr_stft = (MeanMetric(nan_strategy="ignore").to(device) for _ in range(3))

    def update(
        self,
        waves: Sequence[Tensor],
        references: Sequence[Tensor],
        mels: Sequence[Tensor],
        reference_mels: Sequence[Tensor],
        edges: Sequence[Tensor],
    ) -> None:
        """Adds clips.

        Args:
            waves: What was made, each [N].
            references: What was said, each [N].
            mels: The log-mels that were made, each [T, F].
            reference_mels: The log-mels of what was said, each [T, F].
            edges: Sample numbers at which chunks meet, each [E].
        """
        update_together(self.perceptual.values(), list(waves), list(references))
        for mel, reference, wave, edge in zip(mels, reference_mels, waves, edges, strict=True):
            self.mel_l1.update((mel - reference).abs().mean().to(self.device), len(mel))
            self.seam.update(seam_db(wave.cpu(), edge.cpu()).to(self.device))
        for wave, reference in zip(waves, references, strict=True) if self.copies else ():
            self.mr_stft.update(stft_distance(wave, reference).to(self.device), len(wave))

    def compute(self) -> dict[str, float]:
        """Returns the means, and under `no_score` how many scores were undefined."""
        no_score = SumMetric().to(self.device)
        no_score.update(sum(metric.num_nan for metric in self.perceptual.values()))
        metrics = self.perceptual | {"mel_l1": self.mel_l1, "seam_db": self.seam, "no_score": no_score}
        if self.copies:
            metrics["mr_stft"] = self.mr_stft
        return {name: float(metric.compute()) for name, metric in metrics.items()}


def gap(streamed: Sequence[Tensor], offline: Sequence[Tensor]) -> float:
    """Returns the mean absolute difference of log-mels [T, F], streamed from offline, over all frames."""
    mean = MeanMetric().to(streamed[0].device)
    for a, b in zip(streamed, offline, strict=True):
        mean.update((a - b).abs().mean(), len(a))
    return float(mean.compute())
