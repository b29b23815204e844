"""Weights sharded over all ranks (FSDP2) or over those of a node (HSDP): the strategy, sharding and gathering."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from sf_lightning.files.atomic import rename_synced, temporary_path
from sf_lightning.files.identify import SHARDED_META
from sf_lightning.files.sharded import load_shards
from sf_lightning.files.torch_files import read_torch
from sf_lightning.model.streamflow import StreamFlow
from sf_lightning.training.lightning_internals import set_mesh_sizes


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2: `--trainer.strategy=fsdp2` or `hsdp`. Every rank saves its shards; a checkpoint is a folder.

    Args:
        within_nodes: Whether the ranks of each node hold shards of all weights, and the nodes replicas of each
            other (HSDP); otherwise all ranks share one set of weights.
    """

    def __init__(self, within_nodes: bool = False) -> None:
        super().__init__()
        self.within_nodes = within_nodes

    def setup_environment(self) -> None:
        """Arranges the ranks as replicas times shards, the two dimensions of the mesh."""
        replicas = self.num_nodes if self.within_nodes else 1
        set_mesh_sizes(self, replicas, self.num_nodes * self.num_processes // replicas)
        super().setup_environment()

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Rank and number of ranks: every rank reads its own data."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Saves the shards of all ranks in a folder, which gets its name when all of them are complete.

        Raises:
            OSError: if this rank cannot write.
        """
        path = Path(self.broadcast(filepath))
        temporary = self.broadcast(temporary_path(path))
        super().save_checkpoint(checkpoint, temporary, storage_options)
        self.barrier()
        if self.is_global_zero:
            rename_synced(temporary, path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads the shards of all ranks as Lightning does, but runs no code in them.

        Raises:
            ValueError: if a file is missing or damaged, or holds anything but tensors and plain values.
        """
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_dir():
            return super().load_checkpoint(path, True)
        assert self.model is not None and self.lightning_module is not None
        weights = {"state_dict": get_model_state_dict(self.model)}
        load_shards(weights, path, collective=True)
        self.model.load_state_dict(weights["state_dict"], strict=self.lightning_module.strict_loading)
        for number, optimizer in enumerate(self.optimizers):
            name = f"optimizer_{number}"
            states = {name: get_optimizer_state_dict(self.model, optimizer)}
            load_shards(states, path, collective=True)
            options = StateDictOptions(cpu_offload=True)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=states[name], options=options)
        return read_torch(path / SHARDED_META)


StrategyRegistry.register("fsdp2", ShardedStrategy, "FSDP2 over all ranks", override=True)
StrategyRegistry.register("hsdp", ShardedStrategy, "FSDP2 within nodes, replicas across", True, within_nodes=True)


def shard_weights(model: StreamFlow, mesh: DeviceMesh) -> None:
    """Shards the weights of a network in place, layer by layer and the rest together.

    `mesh` holds the ranks, [shards] or, with names, [replicas, shards].
    """
    if mesh.ndim == 2 and mesh.size(0) == 1:
        mesh = mesh[mesh.mesh_dim_names[-1]]  # type: ignore[index]
    for layer in model.dit.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Returns whether the weights of a network are sharded."""
    return isinstance(next(model.parameters()), DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns a tensor gathered from its shards, or itself if it has none; a collective operation."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_full_weights(model: nn.Module, target: StreamFlow) -> StreamFlow:
    """Gathers sharded weights into a network without shards and returns that; a collective operation."""
    own = dict(target.named_parameters())
    for name, parameter in model.named_parameters():
        own[name].copy_(full_tensor(parameter))
    return target.requires_grad_(False)
