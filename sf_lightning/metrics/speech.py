"""All that is measured of one way to make speech: perceptual scores, mel error, seam."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from sf_lightning.audio.seam import seam_db
from sf_lightning.metrics.perceptual import PESQWB, STOI, ViSQOL, update_together


class SpeechScores:
    """Gathers scores over clips; means leave clips out that have no score, and count them.

    Args:
        sample_rate: Of all waves, 16000.

    Raises:
        RuntimeError: if ViSQOL would run without its lattice model.
    """

    def __init__(self, sample_rate: int) -> None:
        self.perceptual = {
            "pesq_wb": PESQWB(sample_rate),
            "stoi": STOI(sample_rate),
            "visqol": ViSQOL(sample_rate),
        }
        self.mel_l1, self.seam = MeanMetric(nan_strategy="ignore"), MeanMetric(nan_strategy="ignore")

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
            self.mel_l1.update((mel - reference).abs().mean().cpu(), len(mel))
            self.seam.update(seam_db(wave.cpu(), edge.cpu()))

    def compute(self) -> dict[str, float]:
        """Returns the means, and under `no_score` how many scores were undefined."""
        scores = {name: float(metric.compute()) for name, metric in self.perceptual.items()}
        scores |= {"mel_l1": float(self.mel_l1.compute()), "seam_db": float(self.seam.compute())}
        scores["no_score"] = float(sum(int(metric.num_nan) for metric in self.perceptual.values()))
        return scores


def gap(streamed: Sequence[Tensor], offline: Sequence[Tensor]) -> float:
    """Returns the mean absolute difference of log-mels [T, F], streamed from offline, over all frames."""
    return float(torch.cat([(a - b).abs().mean(1) for a, b in zip(streamed, offline, strict=True)]).mean())
