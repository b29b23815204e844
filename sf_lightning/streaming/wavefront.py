"""Schedule at full look-ahead: every block goes through the network exactly once in each evaluation.

With q layers that look ahead, evaluation e of a block can proceed to the j-th of these layers when e q + j blocks
after it have arrived, because the next block has then proceeded far enough to provide its keys and values. So when
a block arrives, the block before it proceeds by one stretch of layers, the one before that by another, and so on: a
wavefront runs through the unfinished blocks, and the last of them is finished. This takes E block evaluations for
every block instead of E (c + A), and the result is that of offline decoding.

Independent of vocoders and of streams with less look-ahead.

Letters: E evaluations, G guidance branches, A look-ahead and c chunk in blocks, W frames of a block, H heads, Dh
head width, D width, F mel bands.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sf_lightning.flow.guidance import mix
from sf_lightning.flow.solver import SolverState
from sf_lightning.model.attention import CachedContext, KVCache
from sf_lightning.model.blocks import Blocks
from sf_lightning.streaming.sampler import BlockRange, Sampler
from sf_lightning.streaming.state import StreamState, WavefrontBlock, WavefrontState


class Wavefront:
    """Advances the wavefronts of any number of streams that are decoded with the same settings.

    Args:
        sampler: Network and settings.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.model, self.solver = sampler, sampler.model, sampler.solver
        spans = self.model.layout.spans
        ahead = [i for i, span in enumerate(spans) if span.ahead]
        # Stretches of an evaluation: up to the first layer that looks ahead, from it to the next one, to the end.
        self.stretches = [range(*pair) for pair in pairwise([0, *ahead, len(spans)])]
        self.reach = len(ahead) * self.solver.num_evaluations

    def open(self) -> WavefrontState:
        """Returns the state of a new stream."""
        return WavefrontState(self.sampler.empty_cache())

    def unfinished(self, states: Sequence[StreamState]) -> list[StreamState]:
        """Returns the streams that must accept more of their blocks before their next chunk is finished."""
        unfinished = []
        for state in states:
            # After the end of a stream nothing arrives, and the blocks on their way are finished.
            available = math.inf if state.ended else state.num_blocks
            end = min(state.config.chunk_end(state.emitted), state.num_blocks)
            if _wavefront(state).entered < min(available, end + self.reach) and end > state.emitted:
                unfinished.append(state)
        return unfinished

    def advance(self, states: Sequence[StreamState]) -> int:
        """Adds the next block of each stream, or processes its end, and advances the blocks before it.

        Returns:
            Number of blocks times layers that the network computed.
        """
        self._add_blocks([state for state in states if _wavefront(state).entered < state.num_blocks])
        wavefronts = [_wavefront(state) for state in states]
        for wavefront in wavefronts:
            wavefront.entered += 1
        last, layers = len(self.stretches) - 1, 0
        for lag in range(self.solver.num_evaluations * last + 1):
            members = [(f, f.entered - 1 - lag) for f in wavefronts if f.entered - 1 - lag in f.blocks]
            evaluation, stretch = divmod(lag, last)
            if not members:
                continue
            if stretch == 0 and evaluation > 0:
                layers += self._run_stretch(members, evaluation - 1, last)
            if evaluation < self.solver.num_evaluations:
                layers += self._run_stretch(members, evaluation, stretch)
        return layers

    def collect_chunk(self, state: StreamState, num_after: int) -> tuple[Tensor, Tensor]:
        """Removes the finished blocks of the next chunk from a stream's wavefront and advances `emitted`.

        Args:
            state: State of the stream.
            num_after: Number of blocks after the chunk to extrapolate for the vocoder.

        Returns:
            The log-mel of the chunk and the extrapolated log-mel after it, [T, F].
        """
        wavefront, end = _wavefront(state), state.chunk_end
        final = [wavefront.blocks.pop(number) for number in range(state.emitted, end)]
        after = [wavefront.blocks[number] for number in range(end, wavefront.entered) if number in wavefront.blocks]
        mel = torch.cat([block.solver.x[: block.length] for block in final])
        mel_after = torch.cat([*(self.extrapolate(block) for block in after[:num_after]), mel[:0]])
        state.emitted = end
        state.drop_tokens(0)
        return self.model.to_mel(mel.float()), self.model.to_mel(mel_after.float())

    def extrapolate(self, block: WavefrontBlock) -> Tensor:
        """Returns the end point [length, F] of an unfinished block if its velocity stayed constant.

        Before its first evaluation a block has no velocity and the result is empty, [0, F].
        """
        solver = block.solver
        if block.velocity is None:
            return solver.x[:0]
        if solver.evaluations == self.solver.num_evaluations:
            return solver.x[: block.length]
        t = self.solver.grid[solver.evaluations * self.solver.steps // self.solver.num_evaluations]
        return (solver.x + (1 - t) * block.velocity)[: block.length]

    def _add_blocks(self, states: Sequence[StreamState]) -> None:
        """Adds the next block of each stream to its wavefront."""
        if not states:
            return
        numbers = [_wavefront(state).entered for state in states]
        ranges = [
            BlockRange(state.block_tokens(number, number + 1), number, state.speaker, state.config.seed)
            for state, number in zip(states, numbers, strict=True)
        ]
        batch = self.sampler.prepare(ranges)
        branches = [batch.condition] if batch.null is None else [batch.condition, batch.null]
        conditions = torch.stack(branches, dim=1)
        for i, (state, number) in enumerate(zip(states, numbers, strict=True)):
            # Copies: a view would keep the memory of the other streams alive.
            valid, solver = batch.blocks.valid[i].clone(), SolverState(batch.x_0[i].clone())
            block = WavefrontBlock(conditions[i].clone(), valid, batch.lengths[i], solver)
            _wavefront(state).blocks[number] = block

    def _run_stretch(self, members: list[tuple[WavefrontState, int]], evaluation: int, stretch: int) -> int:
        """Runs one block of each stream through a stretch of layers; returns blocks times layers."""
        dit, count = self.model.dit, len(members)
        blocks = [wavefront.blocks[number] for wavefront, number in members]
        numbers = self.stretches[stretch]
        modulations = self.sampler.modulations(evaluation)
        layout = self._list_blocks(blocks)
        if stretch == 0:
            x = self._points(blocks)
            h = dit.embed(self._repeat(x), _stack_by_branch([block.condition for block in blocks]))
        else:
            h = _stack_by_branch([block.h for block in blocks])
        next_blocks = [wavefront.blocks.get(number + 1) for wavefront, number in members] if stretch else []
        context, caches = self._neighbors(members, evaluation, numbers, next_blocks)
        h = dit.run_layers(numbers, h, modulations, layout, context, caches)
        for i, layer in enumerate(self.sampler.layers_back):
            if layer in numbers:
                left = caches[layer].left
                assert left is not None
                for member, (wavefront, _) in enumerate(members):
                    wavefront.cache[evaluation, :, i] = left[member::count]
        if stretch < len(self.stretches) - 1:
            kv = dit.keys_and_values(numbers.stop, h, modulations, layout)
            for member, block in enumerate(blocks):
                # Copies: a view would keep the memory of the other streams alive.
                block.h, block.kv = h[member::count].clone(), kv[member::count].clone()
        else:
            self._finish_evaluation(blocks, dit.project_out(h, modulations, layout), evaluation)
        return count * len(numbers)

    def _finish_evaluation(self, blocks: list[WavefrontBlock], output: Tensor, evaluation: int) -> None:
        x = self._repeat(self._points(blocks))
        velocity = self.model.to_velocity(output, x, self.sampler.grid.times[evaluation])
        if self.sampler.config.guidance:
            conditional, null = velocity.chunk(2)
            velocity = mix(conditional, null, self.sampler.config.guidance)
        for block, own_velocity in zip(blocks, velocity.unbind(), strict=True):
            block.velocity, block.h, block.kv = own_velocity.clone(), None, None
            self.solver.advance(block.solver, block.velocity)

    def _neighbors(
        self,
        members: list[tuple[WavefrontState, int]],
        evaluation: int,
        numbers: range,
        next_blocks: list[WavefrontBlock | None],
    ) -> tuple[CachedContext, dict[int, KVCache]]:
        """Returns the neighbors of one block of each stream, for each layer of a stretch that attends to them."""
        device, branches = self.sampler.device, self.sampler.num_branches
        index = torch.arange(branches * len(members), device=device)
        left = torch.ones(len(index), dtype=torch.bool, device=device)
        if any(number == 0 for _, number in members):  # rare, because on a GPU it waits for the device
            left = torch.tensor([number > 0 for _, number in members], device=device).repeat(branches)
        right = None
        if next_blocks:
            none = torch.zeros(self.model.layout.block_size, dtype=torch.bool, device=device)
            valid = [none if block is None else block.valid for block in next_blocks]
            right = torch.stack(valid).repeat(branches, 1)
        caches = {}
        for i, layer in enumerate(self.sampler.layers_back):
            if layer in numbers:
                caches[layer] = KVCache(
                    _stack_by_branch([wavefront.cache[evaluation, :, i] for wavefront, _ in members])
                )
        provided = [None if block is None else block.kv for block in next_blocks]
        example = next((kv for kv in provided if kv is not None), None)
        if example is not None:
            cache = caches.setdefault(numbers.start, KVCache())
            cache.right = _stack_by_branch([torch.zeros_like(example) if kv is None else kv for kv in provided])
        return CachedContext(index, index, left, right), caches

    def _list_blocks(self, blocks: list[WavefrontBlock]) -> Blocks:
        """Returns a list of one block of each stream and branch, none of which is a neighbor of another."""
        index = torch.arange(self.sampler.num_branches * len(blocks), device=self.sampler.device)
        valid = torch.stack([block.valid for block in blocks]).repeat(self.sampler.num_branches, 1)
        return Blocks(index, torch.zeros_like(index), valid, len(index), 1)

    def _points(self, blocks: list[WavefrontBlock]) -> Tensor:
        """Returns the points at which the network is evaluated, [M, W, F]."""
        return torch.stack([self.solver.point(block.solver) for block in blocks])

    def _repeat(self, x: Tensor) -> Tensor:
        """Repeats x [M, W, F] for each branch, [G M, W, F]."""
        return x.repeat(self.sampler.num_branches, 1, 1)


def _wavefront(state: StreamState) -> WavefrontState:
    assert state.wavefront is not None
    return state.wavefront


def _stack_by_branch(parts: Sequence[Tensor | None]) -> Tensor:
    """Stacks [G, ...] of every stream to [G streams, ...], one branch after the other."""
    return torch.stack([part for part in parts if part is not None], dim=1).flatten(0, 1)
