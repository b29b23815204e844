"""PESQ-WB, STOI and ViSQOL of whole batches, as torchmetrics metrics, on all cores at once.

Knows nothing of models, of streaming or of where clips come from. How one clip is scored is in `scorers.py`,
how many are scored side by side in `pool.py`.

A clip whose score is undefined (silent, too short, not finite) counts in `num_nan` and not in the mean.

B clips of a batch, N samples of a clip.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sf_lightning.metrics.pool import gather, shared_pool
from sf_lightning.metrics.scorers import (
    SAMPLE_RATE,
    periodicity_error,
    pesq_wb,
    require_visqol_lattice,
    stoi,
    visqol,
)

Clips: TypeAlias = Tensor | Sequence[Tensor]
"""`[B, N]`, or B tensors `[N]` of any lengths. Padding is sound to a metric: cut it off first."""


class PerceptualMetric(Metric):
    """Means a perceptual score over clips, leaving out (and counting) those for which it is undefined.

    Subclasses name their scorer. `compute()` is a scalar, NaN where no clip could be scored.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    @staticmethod
    @abstractmethod
    def scorer(reference: np.ndarray, degraded: np.ndarray) -> float:
        """Score one clip `[N]` against its reference; what a subclass is made of."""

    def __init__(self, sample_rate: int, **kwargs: Any) -> None:
        """Check the rate; nothing is started yet.

        Args:
            sample_rate: Hz of the clips to come. Only 16,000 is defined: resample before.
            kwargs: Those of `torchmetrics.Metric`.

        Raises:
            ValueError: Another rate.
        """
        super().__init__(**kwargs)
        if sample_rate != SAMPLE_RATE:
            name = type(self).__name__
            raise ValueError(f"{name} is defined at {SAMPLE_RATE} Hz, got {sample_rate} Hz: resample first")
        # A name of its own for each class: a MetricCollection merges metrics whose states have the same names
        # and look the same after the first update, as two lists do when that batch was empty.
        self._state = f"{type(self).__name__.lower()}_scores"
        self.add_state(self._state, default=[], dist_reduce_fx="cat")

    def start(self, preds: Clips, target: Clips) -> list[Future[float]]:
        """Queue all clips for scoring and return at once; hand the result to `update`."""
        degradeds, references = _clips(preds), _clips(target)
        if len(degradeds) != len(references):
            raise ValueError(f"got {len(degradeds)} clips in preds but {len(references)} in target")
        scorer = type(self).scorer
        return [shared_pool().submit(scorer, *pair) for pair in zip(references, degradeds, strict=True)]

    def update(self, preds: Clips, target: Clips, started: list[Future[float]] | None = None) -> None:
        """Score a batch, on all cores, and keep its scores.

        Args:
            preds: The clips to judge, on any device.
            target: Their references. Of each pair the longer is cut to the shorter.
            started: What `start` returned for these very clips, if it was called before.

        Raises:
            ValueError: `preds` and `target` hold different numbers of clips, or something else than clips.
            RuntimeError: A worker failed.
        """
        scores = gather(self.start(preds, target) if started is None else started)
        getattr(self, self._state).append(torch.tensor(scores, dtype=torch.float32, device=self.device))

    def compute(self) -> Tensor:
        """Return the mean over the clips that have a score, a scalar."""
        return self.scores.nanmean()

    @property
    def scores(self) -> Tensor:
        """The score of each clip `[clips]`, in the order of the updates; until synced, this rank's."""
        state = getattr(self, self._state)
        return dim_zero_cat(state) if len(state) else torch.empty(0, device=self.device)

    @property
    def num_nan(self) -> int:
        """How many of the clips have no score."""
        return int(self.scores.isnan().sum())


class PESQWB(PerceptualMetric):
    """Means wide-band PESQ (ITU-T P.862.2), about 1 to 4.64, over clips."""

    scorer = staticmethod(pesq_wb)


class STOI(PerceptualMetric):
    """Means short-time objective intelligibility (Taal et al. 2011), at most 1, over clips."""

    scorer = staticmethod(stoi)


class ViSQOL(PerceptualMetric):
    """Means ViSQOL v3 (speech mode, lattice model), 1 to 5, over clips."""

    scorer = staticmethod(visqol)

    def __init__(self, sample_rate: int, **kwargs: Any) -> None:
        """Check the rate and that the lattice model is there.

        Args:
            sample_rate: Hz of the clips to come. Only 16,000 is defined.
            kwargs: Those of `torchmetrics.Metric`.

        Raises:
            ValueError: Another rate.
            RuntimeError: The lattice model or its runtime is missing.
        """
        super().__init__(sample_rate, **kwargs)
        require_visqol_lattice()


class PeriodicityError(PerceptualMetric):
    """Means how far the periodicity of clips is from their references', 0 to 1."""

    higher_is_better = False
    scorer = staticmethod(periodicity_error)


def update_together(metrics: Iterable[Metric], preds: Clips, target: Clips) -> None:
    """Update several metrics with one batch in a single parallel pass over clips × metrics.

    The same as updating one after the other, but no core idles while a metric waits for its last clip. For a
    `MetricCollection` give its `.values()`.

    Raises:
        TypeError: One of them is no `PerceptualMetric`.
    """
    started: list[tuple[PerceptualMetric, list[Future[float]]]] = []
    for metric in metrics:
        if not isinstance(metric, PerceptualMetric):
            raise TypeError(f"only perceptual metrics share the pool, got {type(metric).__name__}")
        started.append((metric, metric.start(preds, target)))
    for started_metric, futures in started:
        started_metric.update(preds, target, futures)


def _clips(batch: Clips) -> list[np.ndarray]:
    """Bring a batch to the CPU, as B arrays `[N]` of float32."""
    if isinstance(batch, Tensor) and batch.ndim != 2:
        raise ValueError(f"a batch is [B, N] or a list of [N], got {tuple(batch.shape)}")
    clips = batch.detach().to("cpu", torch.float32) if isinstance(batch, Tensor) else batch
    for clip in clips:
        if clip.ndim != 1:
            raise ValueError(f"a batch is [B, N] or a list of [N], got a clip of {tuple(clip.shape)}")
    return [clip.detach().to("cpu", torch.float32).numpy() for clip in clips]
