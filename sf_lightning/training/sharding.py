"""Weights in shards, one on each rank (FSDP2): how a network is sharded, and made whole again."""

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from sf_lightning.model.streamflow import StreamFlow
from sf_lightning.training.saving import settled


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks: `--trainer.strategy=fsdp2`. Every rank saves its shards; a checkpoint is a folder."""

    def __init__(self) -> None:
        super().__init__()

    def setup_environment(self) -> None:
        """Takes all ranks for data: none share a tensor."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Has every rank save its shards; the folder has its name when all of them are there.

        Raises:
            OSError: if this rank cannot write.
        """
        path = Path(self.broadcast(filepath))
        fresh = path.with_name(f".{path.name}.writing")
        if self.is_global_zero:
            shutil.rmtree(fresh, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, fresh, storage_options)
        self.barrier()
        if self.is_global_zero:
            settled(fresh, path)
        self.barrier()


StrategyRegistry.register("fsdp2", ShardedStrategy, description="FSDP2 over all ranks", override=True)


def shard(model: StreamFlow, mesh: DeviceMesh) -> None:
    """Shards the weights of a network over the ranks of a mesh: layer by layer, and the rest together."""
    for layer in model.dit.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether its weights are in shards."""
    return isinstance(next(model.parameters()), DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor that may be in shards as a whole one; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def gathered(model: nn.Module, into: StreamFlow) -> StreamFlow:
    """Copies weights that are in shards into a network that is not; every rank must ask."""
    own = dict(into.named_parameters())
    for name, parameter in model.named_parameters():
        own[name].copy_(whole(parameter))
    return into.requires_grad_(False)
