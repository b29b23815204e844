"""Weights in shards over all ranks (FSDP2) or those of a node (HSDP): how a network is sharded, and made whole."""

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
    """FSDP2: `--trainer.strategy=fsdp2` or `hsdp`. Every rank saves its shards; a checkpoint is a folder.

    Args:
        within_nodes: Whether the ranks of each node have shards of all weights, and nodes replicas of each other
            (HSDP); else all ranks share them.
    """

    def __init__(self, within_nodes: bool = False) -> None:
        super().__init__()
        self.within_nodes = within_nodes

    def setup_environment(self) -> None:
        """Lays the ranks out as replicas times shards, under the names that Lightning has for the two."""
        replicas = self.num_nodes if self.within_nodes else 1
        self._data_parallel_size = replicas
        self._tensor_parallel_size = self.num_nodes * self.num_processes // replicas
        super().setup_environment()

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every rank has data of its own."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

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


StrategyRegistry.register("fsdp2", ShardedStrategy, "FSDP2 over all ranks", override=True)
StrategyRegistry.register("hsdp", ShardedStrategy, "FSDP2 within nodes, replicas across", True, within_nodes=True)


def shard_weights(model: StreamFlow, mesh: DeviceMesh) -> None:
    """Shards the weights of a network: layer by layer, and the rest together.

    Args:
        model: The network.
        mesh: Ranks, [shards] or, with names, [replicas, shards].
    """
    if mesh.ndim == 2 and mesh.size(0) == 1:
        mesh = mesh[mesh.mesh_dim_names[-1]]  # type: ignore[index]
    for layer in model.dit.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether its weights are in shards."""
    return isinstance(next(model.parameters()), DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns a tensor that may be in shards as a whole one; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_full_weights(model: nn.Module, into: StreamFlow) -> StreamFlow:
    """Copies weights that are in shards into a network that is not; every rank must ask."""
    own = dict(into.named_parameters())
    for name, parameter in model.named_parameters():
        own[name].copy_(full_tensor(parameter))
    return into.requires_grad_(False)
