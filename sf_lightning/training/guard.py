"""Steps whose gradient is not finite change no weight: they are skipped, named and counted.

The decision falls on the device, from the norm of the gradient that all ranks share, so they all skip the same
step and none waits for its host. The host reads it one step later.
"""

import logging
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor
from torch.distributed import get_rank, is_initialized

from sf_lightning.training.ranks import gather_over_ranks

log = logging.getLogger(__name__)


def skip_unless_finite(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """Has a fused optimizer, which reads `found_inf` on the device, skip its next step for a bad norm."""
    optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]


@dataclass
class _Step:
    """A step on its way to the host: flags [1 + M], the gradient's and those of the blocks' losses."""

    number: int
    finite: Tensor
    utterance: Tensor
    keys: list[str]
    copied: torch.cuda.Event | None


class NonFiniteGuard:
    """Skips steps with a non-finite gradient, names their samples, and stops after several in a row.

    Args:
        limit: Training stops at so many in a row.

    Attributes:
        skipped: Steps skipped so far.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.skipped = self._in_a_row = 0
        self._batches: list[tuple[Tensor, Tensor, list[str]]] = []
        self._last: _Step | None = None

    def state_dict(self) -> dict[str, int]:
        """What a run that goes on must know, the last step looked at; all ranks must ask."""
        self.check_last_step()
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes it back."""
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]

    def add_losses(self, losses: Tensor, utterance: Tensor, keys: list[str]) -> None:
        """Notes the losses of a batch; several batches make a step where gradients accumulate.

        Args:
            losses: Of its blocks or segments, [M].
            utterance: To which utterance each belongs, [M].
            keys: The clip of each utterance, [U].
        """
        self._batches.append((losses.detach(), utterance, keys))

    def guard_step(self, optimizer: torch.optim.Optimizer, norm: Tensor, step: int) -> None:
        """Tells an optimizer whether to skip the step that follows; checks the one before.

        Args:
            optimizer: A fused one: it reads `found_inf` on the device.
            norm: Of the gradient over all ranks, a scalar.
            step: Its number.

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
        """Looks at the last step watched; call it once more at the end.

        Raises:
            FloatingPointError: if it was one too many in a row.
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
        # A neighbour in the pack may be named too: what is masked still counts as 0 x NaN.
        bad = dict.fromkeys(step.keys[u] for u in step.utterance.cpu()[~step.finite[1:]].tolist())
        # All ranks are here, for they all saw this norm; which of them had the clip, none knows but it.
        mine = list(bad), [key for key in step.keys if key]
        names, everyone = (list(chain.from_iterable(gather_over_ranks(keys))) for keys in mine)
        where = f"the loss of {', '.join(names)}" if names else f"the gradient (of {', '.join(everyone)})"
        if not is_initialized() or get_rank() == 0:
            log.warning("step %d skipped: not finite: %s", step.number, where)
        if self._in_a_row >= self.limit:
            raise FloatingPointError(
                f"{self._in_a_row} steps in a row had a gradient that is not finite, the last one {step.number} by "
                f"{where}: look at these samples; raise --model.optimizer.max_bad_steps above {self.limit}; or "
                "lower --model.optimizer.learning_rate, in a run that begins anew with --model.init_from"
            )
