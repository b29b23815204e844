"""At full look-ahead nothing provisional need be computed: every block goes through the network once an evaluation.

With q layers that look ahead, evaluation e of a block can be carried to the j-th of them when e q + j blocks
after it have arrived, for then the next block has been carried so far that its keys and values are there. So when
a block arrives, the one before it goes a stretch further, the one before that another, and so on: a wave that
runs through the blocks on their way, and the last of them is done. NFE block evaluations for every block
instead of NFE (c + A), and the result is that of offline decoding.

Letters: E evaluations, G guidance branches, W frames of a block, H heads, Dh head width, D width, F mel bands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from sf_lightning.flow.guidance import mix
from sf_lightning.flow.solver import Solver, SolverState
from sf_lightning.model.attention import Edges, Memory
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.streamflow import StreamFlow


@dataclass(eq=False)
class Flight:
    """A block on its way from noise to mel.

    Attributes:
        condition: Of each branch, [G, W, D].
        valid: Its frames that are speech, bool [W]; the first `length` of them.
        length: Known without asking the device.
        progress: How far it has come in the flow.
        h: What the layer at which it waits will be given, [G, W, D].
        seen: What that layer shows of it to the block before, [G, 2, H, W, Dh].
        velocity: The last one, [W, F].
    """

    condition: Tensor
    valid: Tensor
    length: int
    progress: SolverState
    h: Tensor | None = None
    seen: Tensor | None = None
    velocity: Tensor | None = None


@dataclass(eq=False)
class Front:
    """The wave of one stream.

    Attributes:
        memory: Keys and values of the last block that passed each layer that looks back, in each evaluation,
            [E, G, layers, 2, H, W, Dh].
        arrived: Blocks that have arrived.
        flights: Those on their way, by absolute number.
    """

    memory: Tensor
    arrived: int = 0
    flights: dict[int, Flight] = field(default_factory=dict)


class Wavefront:
    """Carries the waves of any number of streams that are decoded alike.

    Args:
        model: On the device where to compute.
        solver: How to integrate.
        guidance: Strength w; 0 leaves the null branch out.
        times: Of all evaluations, on that device.
        tables: Their modulations, `DiT.modulate(times)`.
    """

    def __init__(
        self, model: StreamFlow, solver: Solver, guidance: float, times: Tensor, tables: list[Tensor]
    ) -> None:
        self.model, self.solver, self.guidance = model, solver, guidance
        self.device = model.dit.from_mel.weight.device
        self.branches = 2 if guidance else 1
        spans = model.layout.spans
        self.back = [i for i, span in enumerate(spans) if span.back]
        ahead = [i for i, span in enumerate(spans) if span.ahead]
        # The stretches of an evaluation: to the first layer that looks ahead, from it to the next, to the end.
        self.stretches = [range(*pair) for pair in pairwise([0, *ahead, len(spans)])]
        self.times, self.tables = times, tables

    def open(self) -> Front:
        """Returns the wave of a stream that begins."""
        config, weight = self.model.dit.config, self.model.dit.from_mel.weight
        shape = (self.solver.num_evaluations, self.branches, len(self.back), 2, config.num_heads)
        return Front(weight.new_zeros(*shape, self.model.layout.block_size, config.head_width))

    def arrive(self, fronts: Sequence[Front], flights: Sequence[Flight | None]) -> int:
        """Takes one block of each stream and lets the waves run; None stands for no more blocks.

        Returns:
            Blocks times layers that they went through.
        """
        for front, flight in zip(fronts, flights, strict=True):
            if flight is not None:
                front.flights[front.arrived] = flight
            front.arrived += 1
        last, layers = len(self.stretches) - 1, 0
        for lag in range(self.solver.num_evaluations * last + 1):
            members = [(f, f.arrived - 1 - lag) for f in fronts if f.arrived - 1 - lag in f.flights]
            evaluation, stretch = divmod(lag, last)
            if not members:
                continue
            if stretch == 0 and evaluation > 0:
                layers += self._carry(members, evaluation - 1, last)
            if evaluation < self.solver.num_evaluations:
                layers += self._carry(members, evaluation, stretch)
        return layers

    def done(self, front: Front, number: int) -> bool:
        """Whether a block has its mel."""
        flight = front.flights.get(number)
        return flight is not None and flight.progress.evaluations == self.solver.num_evaluations

    def guess(self, flight: Flight) -> Tensor:
        """Returns where a block that is on its way would end if it went straight on, [length, F].

        Of one that has no velocity yet nothing is known: [0, F].
        """
        progress = flight.progress
        if flight.velocity is None:
            return progress.x[:0]
        if progress.evaluations == self.solver.num_evaluations:
            return progress.x[: flight.length]
        done = self.solver.grid[progress.evaluations * self.solver.steps // self.solver.num_evaluations]
        return (progress.x + (1 - done) * flight.velocity)[: flight.length]

    def _carry(self, members: list[tuple[Front, int]], evaluation: int, stretch: int) -> int:
        """Carries one block of each stream over a stretch of layers; returns blocks times layers."""
        dit = self.model.dit
        flights = [front.flights[number] for front, number in members]
        numbers = self.stretches[stretch]
        modulations = [table[evaluation : evaluation + 1] for table in self.tables]
        blocks = self._blocks(flights)
        if stretch == 0:
            x = torch.stack([self.solver.point(flight.progress) for flight in flights])
            h = dit.enter(x.repeat(self.branches, 1, 1), _by_branch([flight.condition for flight in flights]))
        else:
            h = _by_branch([flight.h for flight in flights])
        nexts = [front.flights.get(number + 1) for front, number in members] if stretch else []
        edges, memories = self._surroundings(members, evaluation, numbers, nexts)
        h = dit.through(numbers, h, modulations, blocks, edges, memories)
        for place, layer in enumerate(self.back):
            if layer in numbers:
                edge = memories[layer].edge
                assert edge is not None
                for i, (front, _) in enumerate(members):
                    front.memory[evaluation, :, place] = edge[i :: len(members)]
        if stretch < len(self.stretches) - 1:
            seen = dit.seen_by_neighbours(numbers.stop, h, modulations, blocks)
            for i, flight in enumerate(flights):
                # Copies: a view would keep what belongs to the other streams.
                flight.h, flight.seen = h[i :: len(members)].clone(), seen[i :: len(members)].clone()
        else:
            self._finish(flights, dit.leave(h, modulations, blocks), evaluation)
        return len(members) * len(numbers)

    def _finish(self, flights: list[Flight], answer: Tensor, evaluation: int) -> None:
        x = torch.stack([self.solver.point(flight.progress) for flight in flights])
        velocity = self.model.to_velocity(answer, x.repeat(self.branches, 1, 1), self.times[evaluation])
        if self.guidance:
            conditional, null = velocity.chunk(2)
            velocity = mix(conditional, null, self.guidance)
        for flight, each in zip(flights, velocity.unbind(), strict=True):
            each = each.clone()
            self.solver.advance(flight.progress, each)
            flight.velocity, flight.h, flight.seen = each, None, None

    def _surroundings(
        self, members: list[tuple[Front, int]], evaluation: int, numbers: range, nexts: list[Flight | None]
    ) -> tuple[Edges, dict[int, Memory]]:
        """What lies before and after the blocks, for each layer of a stretch that looks there."""
        everyone = torch.arange(self.branches * len(members), device=self.device)
        size = self.model.layout.block_size
        begun = torch.ones(len(everyone), dtype=torch.bool, device=self.device)
        if any(number == 0 for _, number in members):  # seldom, for on a GPU it waits for the device
            begun = torch.tensor([number > 0 for _, number in members], device=self.device).repeat(self.branches)
        nothing = torch.zeros(size, dtype=torch.bool, device=self.device)
        followed = [nothing if each is None else each.valid for each in nexts]
        edges = Edges(begun, torch.stack(followed).repeat(self.branches, 1) if nexts else None)
        memories = {}
        for place, layer in enumerate(self.back):
            if layer in numbers:
                before = _by_branch([front.memory[evaluation, :, place] for front, _ in members])
                memories[layer] = Memory(everyone, everyone, before)
        if nexts:
            shown = [None if each is None else each.seen for each in nexts]
            some = next((each for each in shown if each is not None), None)
            if some is not None:
                memory = memories.setdefault(numbers.start, Memory(everyone, everyone, None))
                memory.beyond = _by_branch([torch.zeros_like(some) if each is None else each for each in shown])
        return edges, memories

    def _blocks(self, flights: list[Flight]) -> Blocks:
        """Blocks that are no neighbours, one of each stream and branch."""
        everyone = torch.arange(self.branches * len(flights), device=self.device)
        valid = torch.stack([flight.valid for flight in flights]).repeat(self.branches, 1)
        return Blocks(everyone, torch.zeros_like(everyone), valid, len(everyone), 1)


def _by_branch(each: Sequence[Tensor | None]) -> Tensor:
    """Stacks [G, ...] of every stream to [G streams, ...], one branch after the other."""
    return torch.stack([x for x in each if x is not None], dim=1).flatten(0, 1)
