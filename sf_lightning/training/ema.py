"""An exponential moving average of weights, kept by parameter name: what is decoded, judged and shipped."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages the parameters of a module; no deep copy, so any module will do.

    Args:
        module: Whose parameters are averaged; its current values are the beginning.
        decay: Weight of the past at each update; lower at first, (1 + n) / (10 + n) after n updates.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}
        self._raw: dict[str, Tensor] | None = None

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the average towards the module's parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = dict(module.named_parameters())
        torch._foreach_lerp_(
            list(self.average.values()), [current[name].detach() for name in self.average], 1 - decay
        )

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrites the module's parameters by their averages."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.average[name])

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """Lends the averages to the module, and gives the raw parameters back whatever happens."""
        raw = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(raw[name])

    def state_dict(self) -> dict[str, object]:
        """What `load_state_dict` needs."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        """Takes what `state_dict` gave.

        Raises:
            ValueError: if it belongs to another network.
        """
        if state["average"].keys() != self.average.keys():
            odd = sorted(state["average"].keys() ^ self.average.keys())
            raise ValueError(f"the averaged weights are of another network: {odd[0]} is in only one of them")
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)
