"""PESQ-WB, STOI and ViSQOL as torchmetrics metrics of whole batches, computed on all cores.

Independent of models, streaming and the source of clips. `scorers.py` scores one clip, `pool.py` many in parallel.

A clip whose score is undefined (silent, too short, not finite) counts in `num_nan` and not in the mean.

Letters: B clips of a batch, N samples of a clip.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sf_lightning.metrics.pool import shared_pool
from sf_lightning.metrics.scorers import SAMPLE_RATE, pesq_wb, require_visqol_lattice, stoi, visqol

Clips: TypeAlias = Tensor | Sequence[Tensor]
"""`[B, N]`, or B tensors `[N]` of any lengths. Metrics score padding as sound: remove it first."""


class PerceptualMetric(Metric):
    """Mean of a perceptual score over clips; clips whose score is undefined are left out and counted.

    Subclasses define the scorer. `compute()` is a scalar, NaN if no clip has a score.

    Args:
        sample_rate: Sample rate of the clips in Hz; only 16,000 is defined.
        kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: if the sample rate is another one.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    @staticmethod
    @abstractmethod
    def scorer(reference: np.ndarray, degraded: np.ndarray) -> float:
        """Scores one clip [N] against its reference."""

    def __init__(self, sample_rate: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if sample_rate != SAMPLE_RATE:
            name = type(self).__name__
            raise ValueError(f"{name} got {sample_rate} Hz, but is defined at {SAMPLE_RATE} Hz: resample the clips")
        # The name differs by class: a MetricCollection merges metrics whose states have equal names and are equal
        # after the first update, as two lists are if that batch was empty.
        self._state = f"{type(self).__name__.lower()}_scores"
        self.add_state(self._state, default=[], dist_reduce_fx="cat")

    def update(self, preds: Clips, target: Clips) -> None:
        """Scores a batch and stores its scores.

        Args:
            preds: Clips to score, on any device.
            target: Their references; the longer clip of each pair is truncated to the shorter.

        Raises:
            ValueError: if `preds` and `target` hold different numbers of clips, or no clips.
            RuntimeError: if a worker failed.
        """
        scores = shared_pool().map(type(self).scorer, _to_arrays(target), _to_arrays(preds))
        getattr(self, self._state).append(torch.tensor(scores, dtype=torch.float32, device=self.device))

    def compute(self) -> Tensor:
        """Returns the mean over the clips that have a score, a scalar."""
        return self.scores.nanmean()

    @property
    def scores(self) -> Tensor:
        """Scores of all clips [clips], in the order of the updates; of this rank alone unless synced."""
        state = getattr(self, self._state)
        return dim_zero_cat(state) if len(state) else torch.empty(0, device=self.device)

    @property
    def num_nan(self) -> int:
        """Number of clips without a score."""
        return int(self.scores.isnan().sum())


class PESQWB(PerceptualMetric):
    """Mean wide-band PESQ (ITU-T P.862.2), about 1 to 4.64; arguments and errors as for `PerceptualMetric`.

    >>> clean = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0)) / 10
    >>> metric = PESQWB(sample_rate=16000)
    >>> metric.update(preds=clean, target=clean)
    >>> round(float(metric.compute()), 2)
    4.64
    """

    scorer = staticmethod(pesq_wb)


class STOI(PerceptualMetric):
    """Mean short-time objective intelligibility (Taal et al. 2011), at most 1; see `PerceptualMetric`.

    >>> clean = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0)) / 10
    >>> metric = STOI(sample_rate=16000)
    >>> metric.update(preds=clean, target=clean)
    >>> round(float(metric.compute()), 2)
    1.0
    """

    scorer = staticmethod(stoi)


class ViSQOL(PerceptualMetric):
    """Mean ViSQOL v3 (speech mode, lattice model), 1 to 5; see `PerceptualMetric`.

    Raises:
        RuntimeError: if the lattice model or its runtime is missing.

    >>> noise = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)) / 10
    >>> metric = ViSQOL(sample_rate=16000)
    >>> metric.update(preds=torch.zeros(1, 16000), target=noise)
    >>> metric.num_nan  # silence has no score
    1
    """

    scorer = staticmethod(visqol)

    def __init__(self, sample_rate: int, **kwargs: Any) -> None:
        super().__init__(sample_rate, **kwargs)
        require_visqol_lattice()


def _to_arrays(batch: Clips) -> list[np.ndarray]:
    """Returns a batch as B arrays [N] of float32 on the CPU."""
    if isinstance(batch, Tensor):
        if batch.ndim != 2:
            raise ValueError(f"got a batch of shape {tuple(batch.shape)}: expected [B, N] or a list of [N]")
        return [*batch.detach().to("cpu", torch.float32).numpy()]
    for clip in batch:
        if clip.ndim != 1:
            raise ValueError(f"got a clip of shape {tuple(clip.shape)}: expected [B, N] or a list of [N]")
    return [clip.detach().to("cpu", torch.float32).numpy() for clip in batch]
