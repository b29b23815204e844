"""Means of clip scores over the clips of all ranks, as a training run logs them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import CatMetric, MeanMetric, SumMetric

PERCEPTUAL = ("pesq_wb", "stoi", "visqol")
"""Scores that perceptual models give a clip against its recording."""

COUNTED = (*PERCEPTUAL, "periodicity")
"""Scores whose undefined values are counted."""

OVER_FRAMES = ("mel_l1", "gap")
"""Scores whose means are over frames: the weight of a clip is its length. All others weigh clips alike."""

WORST = {"pesq_wb": 1.0, "stoi": 0.0, "visqol": 1.0}
"""Score of an unintelligible clip."""


def scores_within_latency(scores: Mapping[str, float], wait_ms: float, bound_ms: float) -> dict[str, float]:
    """Returns the perceptual scores if the wait is within the bound on latency, else the worst scores.

    >>> scores_within_latency({"stoi": 0.7, "mel_l1": 0.5}, wait_ms=480, bound_ms=500)
    {'stoi': 0.7}
    >>> scores_within_latency({"stoi": 0.7}, wait_ms=720, bound_ms=500)
    {'stoi': 0.0}
    """
    return {name: scores[name] if wait_ms <= bound_ms else worst for name, worst in WORST.items() if name in scores}


class ScoreMeans:
    """Means of scores over clips and ranks; undefined scores (NaN) are left out, and the perceptual ones counted.

    Args:
        names: Names of the scores; the same on all ranks.
        device: Device of the sums; that of the process group's backend.
    """

    def __init__(self, names: Sequence[str], device: torch.device | str = "cpu") -> None:
        self.means = {
            name: (CatMetric("disable") if name in COUNTED else MeanMetric("ignore")).to(device) for name in names
        }
        self.undefined = SumMetric().to(device)

    def update(self, scores: Mapping[str, float], num_frames: int) -> None:
        """Adds a clip of `num_frames` mel frames; scores of other names are ignored."""
        for name, mean in self.means.items():
            # A vector, not a scalar: ranks with one clip gather from ranks with several.
            score = torch.tensor([scores[name]], device=mean.device)
            if isinstance(mean, CatMetric):
                mean.update(score)
                self.undefined.update(score.isnan().float())
            else:
                mean.update(score, num_frames if name in OVER_FRAMES else 1)

    def compute(self) -> dict[str, float]:
        """Returns the means, NaN where no clip has the score, and as `no_score` how many scores are undefined.

        A collective operation where ranks are distributed.
        """
        values = {name: float(torch.as_tensor(mean.compute()).nanmean()) for name, mean in self.means.items()}
        return values | {"no_score": float(self.undefined.compute())}


def mel_gap(
    streamed: Sequence[Tensor], offline: Sequence[Tensor], sync_device: torch.device | None = None
) -> float:
    """Returns the mean absolute difference of log-mels [T, F] over all frames, streamed from offline.

    Args:
        streamed: Log-mels of streamed clips.
        offline: Log-mels of the same clips, decoded offline.
        sync_device: Device of the process group's backend, for the mean over the clips of all ranks (a collective
            operation); None for the mean over these clips alone.
    """
    mean = MeanMetric(sync_on_compute=sync_device is not None).to(sync_device or streamed[0].device)
    for a, b in zip(streamed, offline, strict=True):
        mean.update((a - b).abs().mean().to(mean.device), len(a))
    return float(mean.compute())
