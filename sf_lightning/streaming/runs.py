"""Runs of blocks carried from noise to mel together, each going on from where its stream remembers to be.

Knows nothing of chunks, tokens that are still to come, and sound.

Letters: R runs, M blocks, W frames of a block, K tokens of a block, F mel bands, H heads, Dh head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad

from sf_lightning.flow.guidance import guided
from sf_lightning.flow.noise import block_noise
from sf_lightning.flow.solver import Solver
from sf_lightning.model.attention import Edges, Memory
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.streamflow import StreamFlow


@dataclass
class Run:
    """A row of blocks of one utterance.

    Attributes:
        tokens: Of its blocks, int64 [L]; the last one may be partial.
        first: Absolute number of its first block, which keys the noise.
        speaker: Embedding [S], or None for nobody's voice.
        seed: Of the noise.
        final: Blocks, counted from the first, after which the stream will go on.
        memory: Of the block before the first, as `StreamState.memory` has it; afterwards that of the last
            final block. None where there is no such block, or nothing is remembered.
    """

    tokens: Tensor
    first: int
    speaker: Tensor | None
    seed: int
    final: int = 0
    memory: Tensor | None = None


@torch.inference_mode()
def integrate(
    model: StreamFlow,
    runs: Sequence[Run],
    solver: Solver,
    times: Tensor,
    tables: list[Tensor],
    guidance: float,
    temperature: float,
    remember: bool,
) -> tuple[list[Tensor], int]:
    """Carries runs from noise to mel, all of them in one batch.

    Args:
        model: On the device where to compute.
        runs: What to carry; their memories are replaced if `remember`.
        solver: How.
        times: Of all evaluations, on that device: constants of the solver.
        tables: Their modulations, `DiT.modulate(times)`, likewise.
        guidance: Strength w; 0 leaves the null branch out.
        temperature: Scale of the noise.
        remember: Whether runs go on from their memories, and remember.

    Returns:
        The log-mel [T, F] of each run, and the blocks that went through the network, branches counted once.
    """
    dit, size = model.dit, model.layout.block_size
    device = dit.from_mel.weight.device
    lengths = [len(run.tokens) * dit.config.frames_per_token for run in runs]
    counts = [-(-length // size) for length in lengths]
    blocks = Blocks.from_lengths(lengths, size).to(device)
    condition = condition_of(model, runs, blocks)
    branches = 2 if guidance else 1
    trajectory = _Trajectory(model, runs, counts, branches, solver.num_evaluations) if remember else None

    def network(x: Tensor, number: int, condition: Tensor, blocks: Blocks) -> Tensor:
        modulations = [table[number : number + 1] for table in tables]
        if trajectory is None:
            answer = dit.run(x, modulations, condition, blocks)
        else:
            memories = trajectory.memories(number)
            answer = dit.run(x, modulations, condition, blocks, trajectory.edges_of_runs, memories)
            trajectory.keep(number, memories)
        return model.to_velocity(answer, x, times[number])

    noise = [
        block_noise(run.seed, run.first, n, size, dit.config.num_bands) for run, n in zip(runs, counts, strict=True)
    ]
    x_0 = temperature * torch.cat(noise).to(device)
    velocity = guided(network, condition, model.null_condition(blocks), blocks, guidance)
    mel = model.to_mel(solver.integrate(velocity, x_0).float())
    if trajectory is not None:
        trajectory.hand_back(runs)
    mels = [each.flatten(0, 1)[:length] for each, length in zip(mel.split(counts), lengths, strict=True)]
    return mels, len(blocks) * solver.num_evaluations


def condition_of(model: StreamFlow, runs: Sequence[Run], blocks: Blocks) -> Tensor:
    """Returns the condition [M, W, D] of runs whose blocks are laid one after the other."""
    per_block = model.layout.block_size // model.dit.config.frames_per_token
    tokens = [pad(run.tokens, (0, -len(run.tokens) % per_block)).view(-1, per_block) for run in runs]
    nobody = model.encoder.null()
    speaker = torch.stack([nobody if run.speaker is None else run.speaker for run in runs])
    kept = torch.zeros(len(runs), dtype=torch.bool, device=nobody.device)
    return model.dit.condition(torch.cat(tokens).to(nobody.device), speaker, blocks, kept)


class _Trajectory:
    """The memories of a batch of runs, sorted by evaluation and layer and put back.

    Args:
        model: Whose layers remember.
        runs: Whose memories they are.
        counts: Blocks of each run.
        branches: Of guidance.
        num_evaluations: NFE.

    Attributes:
        edges_of_runs: Which blocks go on from a memory.
    """

    def __init__(
        self, model: StreamFlow, runs: Sequence[Run], counts: Sequence[int], branches: int, num_evaluations: int
    ) -> None:
        self.layers = [i for i, span in enumerate(model.layout.spans) if span.back]
        config, weight = model.dit.config, model.dit.from_mel.weight
        self.branches = branches
        starts = list(accumulate(counts, initial=0))
        total = starts.pop()
        offsets = torch.arange(branches)[:, None] * total
        first = torch.tensor(starts)
        last = first + torch.tensor([max(1, run.final) for run in runs]) - 1
        self.first, self.last = ((offsets + each).flatten().to(weight.device) for each in (first, last))
        goes_on = torch.tensor([run.memory is not None for run in runs], device=weight.device).repeat(branches)
        continued = torch.zeros(branches * total, dtype=torch.bool, device=weight.device)
        continued[self.first] = goes_on
        self.edges_of_runs = Edges(continued)
        shape = (num_evaluations, branches, len(self.layers), 2, config.num_heads)
        nothing = weight.new_zeros(*shape, model.layout.block_size, config.head_width)
        # [R, NFE, branches, layers, 2, H, W, Dh]
        self.edges = torch.stack([nothing if run.memory is None else run.memory for run in runs])

    def memories(self, number: int) -> dict[int, Memory]:
        """The memory of each layer in an evaluation; runs of one branch follow those of the other."""
        edges = self.edges[:, number].transpose(0, 1).flatten(0, 1)
        return {layer: Memory(self.first, self.last, edges[:, i]) for i, layer in enumerate(self.layers)}

    def keep(self, number: int, memories: dict[int, Memory]) -> None:
        """Takes what the layers remember now."""
        if memories:
            edges = torch.stack([memories[layer].edge for layer in self.layers], dim=1)  # type: ignore[misc]
            self.edges[:, number] = edges.unflatten(0, (self.branches, -1)).transpose(0, 1).to(self.edges)

    def hand_back(self, runs: Sequence[Run]) -> None:
        """Gives each run its memory."""
        for run, edges in zip(runs, self.edges, strict=True):
            run.memory = edges.clone()
