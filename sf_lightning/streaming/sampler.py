"""From tokens to mel by the flow, for ranges of blocks that are decoded with the same settings.

`Sampler` prepares conditions and noise for every schedule; `integrate_ranges` carries ranges from noise to mel in
one batch, which is the schedule of all streams except those at full look-ahead (see `wavefront`). Independent of
chunks and audio.

Letters: R block ranges, M blocks, W frames of a block, K tokens of a block, E network evaluations, G guidance
branches, F mel bands, H heads, D width, Dh head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sf_lightning.flow.guidance import guided
from sf_lightning.flow.noise import block_noise
from sf_lightning.flow.solver import Solver
from sf_lightning.model.attention import CachedContext, KVCache
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.streamflow import StreamFlow
from sf_lightning.streaming.state import DecodeConfig


@dataclass
class BlockRange:
    """Consecutive blocks of one utterance.

    Attributes:
        tokens: Tokens of the blocks, int64 [L]; the last block may be partial.
        first: Absolute number of the first block, which keys the noise.
        speaker: Speaker embedding [S], or None for no speaker (null embedding).
        seed: Seed of the noise.
        num_final: Number of blocks, counted from the first, after which the next range will start.
        cache: Keys and values of the block before the first, as in `StreamState.cache`; after integration those of
            the last final block. None if there is no such block or nothing is cached.
    """

    tokens: Tensor
    first: int
    speaker: Tensor | None
    seed: int
    num_final: int = 0
    cache: Tensor | None = None


class TimeGrid(NamedTuple):
    """Constants of a solver on the device: times of its evaluations [E], and their modulations by layer."""

    times: Tensor
    modulations: list[Tensor]

    @classmethod
    @torch.inference_mode()
    def compute(cls, model: StreamFlow, solver: Solver) -> "TimeGrid":
        """Returns the constants of a solver on the device of the model."""
        times = solver.times.to(model.dit.from_mel.weight.device)
        return cls(times, model.dit.modulate(times))


class RangeBatch(NamedTuple):
    """Block ranges laid out one after the other, ready for the network.

    Attributes:
        blocks: Utterance, position and padding of the blocks; each range counts as an utterance.
        counts: Blocks of each range.
        lengths: Valid frames of each range.
        condition: Condition, [M, W, D].
        null: Null condition, [M, W, D]; None without guidance.
        x_0: Noise, [M, W, F].
    """

    blocks: Blocks
    counts: list[int]
    lengths: list[int]
    condition: Tensor
    null: Tensor | None
    x_0: Tensor


class Sampler:
    """The network with the settings of a decode config: what every schedule shares.

    Args:
        model: Decoder, on the device that computes.
        config: How to decode; chunks and seed are not used.
        grid: Constants of the config's solver.
    """

    def __init__(self, model: StreamFlow, config: DecodeConfig, grid: TimeGrid) -> None:
        self.model, self.config, self.solver, self.grid = model, config, config.solver, grid
        self.device = model.dit.from_mel.weight.device
        self.num_branches = 2 if config.guidance else 1
        self.layers_back = [i for i, span in enumerate(model.layout.spans) if span.back]

    def modulations(self, evaluation: int) -> list[Tensor]:
        """Returns the modulations of one evaluation, [1, 6 D] for each layer and [1, 2 D] for the output."""
        return [table[evaluation : evaluation + 1] for table in self.grid.modulations]

    def empty_cache(self) -> Tensor:
        """Returns a zero cache of one stream, [E, G, layers that look back, 2, H, W, Dh]."""
        config, weight = self.model.dit.config, self.model.dit.from_mel.weight
        shape = (self.solver.num_evaluations, self.num_branches, len(self.layers_back), 2, config.num_heads)
        return weight.new_zeros(*shape, self.model.layout.block_size, config.head_width)

    def prepare(self, ranges: Sequence[BlockRange]) -> RangeBatch:
        """Returns the layout, conditions and noise of block ranges."""
        model, size = self.model, self.model.layout.block_size
        per_block = size // model.dit.config.frames_per_token
        lengths = [len(block_range.tokens) * model.dit.config.frames_per_token for block_range in ranges]
        counts = [-(-length // size) for length in lengths]
        blocks = Blocks.from_lengths(lengths, size).to(self.device)
        tokens = [pad(r.tokens, (0, -len(r.tokens) % per_block)).view(-1, per_block) for r in ranges]
        no_speaker = model.encoder.null()
        speaker = torch.stack([no_speaker if r.speaker is None else r.speaker for r in ranges])
        keep = torch.zeros(len(ranges), dtype=torch.bool, device=self.device)
        condition = model.dit.condition(torch.cat(tokens).to(self.device), speaker, blocks, keep)
        null = model.null_condition(blocks) if self.config.guidance else None
        bands = model.dit.config.num_bands
        noise = [block_noise(r.seed, r.first, n, size, bands) for r, n in zip(ranges, counts, strict=True)]
        x_0 = self.config.temperature * torch.cat(noise).to(self.device)
        return RangeBatch(blocks, counts, lengths, condition, null, x_0)


@torch.inference_mode()
def integrate_ranges(sampler: Sampler, ranges: Sequence[BlockRange], cached: bool) -> tuple[list[Tensor], int]:
    """Carries block ranges from noise to mel in one batch.

    Args:
        sampler: Network and settings.
        ranges: Ranges to integrate; their caches are replaced if `cached`.
        cached: Whether ranges continue from their caches and fill them, instead of starting without a past.

    Returns:
        The log-mel [T, F] of each range, and the number of block evaluations, guidance branches counted once.
    """
    model, solver = sampler.model, sampler.solver
    batch = sampler.prepare(ranges)
    caches = _RangeCaches(sampler, ranges, batch.counts) if cached else None

    def network(x: Tensor, evaluation: int, condition: Tensor, blocks: Blocks) -> Tensor:
        modulations = sampler.modulations(evaluation)
        if caches is None:
            output = model.dit.evaluate(x, modulations, condition, blocks)
        else:
            layers = caches.by_layer(evaluation)
            output = model.dit.evaluate(x, modulations, condition, blocks, caches.context, layers)
            caches.store(evaluation, layers)
        return model.to_velocity(output, x, sampler.grid.times[evaluation])

    velocity = guided(network, batch.condition, batch.null, batch.blocks, sampler.config.guidance)
    mel = model.to_mel(solver.integrate(velocity, batch.x_0).float())
    if caches is not None:
        caches.write_back(ranges)
    parts = zip(mel.split(batch.counts), batch.lengths, strict=True)
    return [part.flatten(0, 1)[:length] for part, length in parts], len(batch.blocks) * solver.num_evaluations


class _RangeCaches:
    """Key-value caches of a batch of ranges, by evaluation and layer: G R ranges, those of the null branch last."""

    def __init__(self, sampler: Sampler, ranges: Sequence[BlockRange], counts: Sequence[int]) -> None:
        self.layers, self.num_branches = sampler.layers_back, sampler.num_branches
        device = sampler.device
        starts = list(accumulate(counts, initial=0))
        total = starts.pop()
        offsets = torch.arange(self.num_branches)[:, None] * total
        first = torch.tensor(starts)
        last = first + torch.tensor([max(1, block_range.num_final) for block_range in ranges]) - 1
        first, last = ((offsets + index).flatten().to(device) for index in (first, last))
        continued = torch.tensor([block_range.cache is not None for block_range in ranges], device=device)
        left = torch.zeros(self.num_branches * total, dtype=torch.bool, device=device)
        left[first] = continued.repeat(self.num_branches)
        self.context = CachedContext(first, last, left)
        empty = sampler.empty_cache()
        # [R, E, G, layers, 2, H, W, Dh]
        self.caches = torch.stack(
            [empty if block_range.cache is None else block_range.cache for block_range in ranges]
        )

    def by_layer(self, evaluation: int) -> dict[int, KVCache]:
        """Returns the cache of each layer that looks back, of [G R, 2, H, W, Dh]."""
        left = self.caches[:, evaluation].transpose(0, 1).flatten(0, 1)
        return {layer: KVCache(left[:, i]) for i, layer in enumerate(self.layers)}

    def store(self, evaluation: int, caches: dict[int, KVCache]) -> None:
        """Stores the updated caches of the layers."""
        if caches:
            left = torch.stack([caches[layer].left for layer in self.layers], dim=1)  # type: ignore[misc]
            left = left.unflatten(0, (self.num_branches, -1)).transpose(0, 1)
            self.caches[:, evaluation] = left.to(self.caches)

    def write_back(self, ranges: Sequence[BlockRange]) -> None:
        """Gives each range its cache."""
        for block_range, cache in zip(ranges, self.caches, strict=True):
            block_range.cache = cache.clone()
