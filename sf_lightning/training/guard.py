"""Skips, reports and counts steps whose gradient is not finite, so that they change no weight.

The device decides, from the norm of the gradient that all ranks share: all skip the same step, and none waits for
its host. The host reads the decision one step later.
"""

from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor
from torch.distributed import get_rank, is_initialized

from sf_lightning.files.text import get_logger
from sf_lightning.training.ranks import gather_over_ranks

log = get_logger(__name__)


def skip_unless_finite(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """Makes a fused optimizer skip its next step if the norm is not finite, without waiting for the device."""
    optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]


@dataclass
class _Step:
    """A step whose flags [1 + M] are being copied to the host: of the gradient, and of the loss of each block."""

    number: int
    finite: Tensor
    utterance: Tensor
    keys: list[str]
    copied: torch.cuda.Event | None


class NonFiniteGuard:
    """Skips steps with a non-finite gradient, reports their clips, and stops after several consecutive ones.

    Args:
        limit: Number of consecutive skipped steps at which training stops.

    Attributes:
        skipped: Number of steps skipped so far.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.skipped = self._in_a_row = 0
        self._batches: list[tuple[Tensor, Tensor, list[str]]] = []
        self._last: _Step | None = None

    def state_dict(self) -> dict[str, int]:
        """Returns the counts, the last step included; a collective operation."""
        self.check_last_step()
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the counts."""
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]

    def add_losses(self, losses: Tensor, utterance: Tensor, keys: list[str]) -> None:
        """Records the losses of a batch; a step has several batches where gradients accumulate.

        Args:
            losses: Losses of the blocks or segments, [M].
            utterance: Index of the utterance of each loss, [M].
            keys: Key of the clip of each utterance, [U].
        """
        self._batches.append((losses.detach(), utterance, keys))

    def guard_step(self, optimizer: torch.optim.Optimizer, norm: Tensor, step: int) -> None:
        """Makes an optimizer skip the next step if the norm is not finite; checks the step before.

        Args:
            optimizer: A fused optimizer, which reads `found_inf` on the device.
            norm: Norm of the gradient over all ranks, a scalar.
            step: Number of the step.

        Raises:
            FloatingPointError: as `check_last_step`.
        """
        self.check_last_step()
        skip_unless_finite(optimizer, norm)
        finite = norm.isfinite()
        flags = [finite[None], *(losses.isfinite() for losses, _, _ in self._batches)]
        first = list(accumulate((len(keys) for _, _, keys in self._batches), initial=0))
        self._last = _Step(
            step,
            torch.cat(flags).to("cpu", non_blocking=True),
            torch.cat([u + start for (_, u, _), start in zip(self._batches, first, strict=False)]),
            [key for _, _, keys in self._batches for key in keys],
            None,
        )
        self._batches.clear()
        if norm.device.type == "cuda":
            self._last.copied = torch.cuda.Event()
            self._last.copied.record()

    def check_last_step(self) -> None:
        """Counts and reports the last step if it was skipped; called once more after the last step.

        Raises:
            FloatingPointError: if `limit` consecutive steps were skipped.
        """
        step, self._last = self._last, None
        if step is None:
            return
        if step.copied:
            step.copied.synchronize()
        if step.finite[0]:
            self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        # Another clip of the pack may be reported too: a masked NaN still counts as 0 x NaN.
        bad = dict.fromkeys(step.keys[u] for u in step.utterance.cpu()[~step.finite[1:]].tolist())
        # All ranks reach this, because they share the norm; only one of them knows the clip.
        own = list(bad), [key for key in step.keys if key]
        names, everything = (list(chain.from_iterable(gather_over_ranks(keys))) for keys in own)
        where = f"the loss of {', '.join(names)}" if names else f"the gradient (of {', '.join(everything)})"
        if not is_initialized() or get_rank() == 0:
            log.warning("step %d skipped: not finite: %s", step.number, where)
        if self._in_a_row >= self.limit:
            raise FloatingPointError(
                f"{self._in_a_row} steps in a row had a non-finite gradient, the last one {step.number}, due "
                f"to {where}: check these clips; raise --model.optimizer.max_bad_steps above {self.limit}; or "
                "start a new run with --model.init_from and a lower --model.optimizer.learning_rate"
            )
