"""All that is measured of one way to make speech: perceptual scores, mel error, seam."""

from collections.abc import Mapping, Sequence

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

WORST = {"pesq_wb": 1.0, "stoi": 0.0, "visqol": 1.0}
"""What each score is where nothing is understood."""


def within(scores: Mapping[str, float], wait_ms: float, bound_ms: float) -> dict[str, float]:
    """Returns scores under a bound on latency: as they are if the wait lies within it, else the worst.

    >>> within({"stoi": 0.7, "mel_l1": 0.5}, wait_ms=480, bound_ms=500)
    {'stoi': 0.7}
    >>> within({"stoi": 0.7}, wait_ms=720, bound_ms=500)
    {'stoi': 0.0}
    """
    return {name: scores[name] if wait_ms <= bound_ms else worst for name, worst in WORST.items() if name in scores}


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
        self._clips: list[dict[str, float]] = []

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
            error, seam = (mel - reference).abs().mean().to(self.device), seam_db(wave.cpu(), edge.cpu())
            self.mel_l1.update(error, len(mel))
            self.seam.update(seam.to(self.device))
            self._clips.append({"mel_l1": float(error), "seam_db": float(seam), "frames": len(mel)})
        for wave, reference in zip(waves, references, strict=True) if self.copies else ():
            self.mr_stft.update(stft_distance(wave, reference).to(self.device))

    @property
    def clips(self) -> list[dict[str, float]]:
        """The scores of each clip of this rank, in the order of the updates; NaN where one is undefined."""
        columns = {name: metric.scores.tolist() for name, metric in self.perceptual.items()}
        heard = [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]
        return [one | other for one, other in zip(heard, self._clips, strict=True)]

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
