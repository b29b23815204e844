"""Streams at full look-ahead: how their tokens become flights of a wavefront, and what has landed their mel.

Knows nothing of vocoders, nor of streams that look less far ahead.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sf_lightning.flow.noise import block_noise
from sf_lightning.flow.solver import SolverState
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.layout import Layout
from sf_lightning.model.streamflow import StreamFlow
from sf_lightning.streaming.runs import Run, condition_of
from sf_lightning.streaming.state import DecodeConfig, StreamState
from sf_lightning.streaming.wavefront import Flight, Front, Wavefront


def looks_fully_ahead(config: DecodeConfig, layout: Layout) -> bool:
    """Returns whether a stream looks so far ahead that nothing of it need be provisional."""
    assert config.lookahead is not None
    return config.mode == "cached" and 0 < layout.field.ahead * config.num_evaluations <= config.lookahead


class Waves:
    """Advances any number of streams that are decoded alike, each with a `Front`.

    Args:
        model: On the device where to compute.
        config: How they are decoded.
        times: Of all evaluations, on that device.
        tables: Their modulations, `DiT.modulate(times)`.
    """

    def __init__(self, model: StreamFlow, config: DecodeConfig, times: Tensor, tables: list[Tensor]) -> None:
        self.model, self.config = model, config
        self.wavefront = Wavefront(model, config.solver, config.guidance, times, tables)
        self.reach = int(model.layout.field.ahead) * config.num_evaluations

    def open(self) -> Front:
        """Returns the wave of a stream that begins."""
        return self.wavefront.open()

    def moving(self, states: Sequence[StreamState]) -> list[StreamState]:
        """Returns the streams with tokens that must still run in before their next chunk is through."""
        moving = []
        for state in states:
            # Beyond the end of a stream nothing arrives, and what is on its way runs out.
            there = math.inf if state.ended else state.num_blocks
            end = min(state.config.chunk_end(state.emitted), state.num_blocks)
            if _front(state).arrived < min(there, end + self.reach) and end > state.emitted:
                moving.append(state)
        return moving

    def advance(self, states: Sequence[StreamState]) -> int:
        """Lets one block of each stream run in; returns blocks times layers that the network computed."""
        arriving = [_front(state).arrived < state.num_blocks for state in states]
        flights = iter(self._take_off([state for state, some in zip(states, arriving, strict=True) if some]))
        fronts = [_front(state) for state in states]
        return self.wavefront.arrive(fronts, [next(flights) if some else None for some in arriving])

    def land(self, state: StreamState, guesses: int) -> tuple[Tensor, Tensor]:
        """Takes a chunk that is through off the wave.

        Args:
            state: Whose; `emitted` moves on.
            guesses: Blocks after it that the vocoder looks at.

        Returns:
            Its frames, and a guess at those after it, [T, F].
        """
        front, end = _front(state), state.chunk_end
        final = [front.flights.pop(number) for number in range(state.emitted, end)]
        ahead = [front.flights[number] for number in range(end, front.arrived) if number in front.flights]
        mel = torch.cat([flight.progress.x[: flight.length] for flight in final])
        after = torch.cat([*(self.wavefront.guess(flight) for flight in ahead[:guesses]), mel[:0]])
        state.emitted = end
        state.forget(0)
        return self.model.to_mel(mel.float()), self.model.to_mel(after.float())

    def _take_off(self, states: Sequence[StreamState]) -> list[Flight]:
        """Makes the next block of each stream ready for the wave."""
        if not states:
            return []
        model, size, device = self.model, self.model.layout.block_size, self.wavefront.device
        runs = []
        for state in states:
            number = _front(state).arrived
            runs.append(Run(state.tokens_of(number, number + 1), number, state.speaker, state.config.seed))
        lengths = [len(run.tokens) * model.dit.config.frames_per_token for run in runs]
        blocks = Blocks.from_lengths(lengths, size).to(device)
        conditions = [condition_of(model, runs, blocks)]
        if self.config.guidance:
            conditions.append(model.null_condition(blocks))
        bands = model.dit.config.num_bands
        noise = [self.config.temperature * block_noise(run.seed, run.first, 1, size, bands)[0] for run in runs]
        parts = (torch.stack(conditions, dim=1), blocks.valid, lengths, noise)
        # Copies: a view would keep what belongs to the other streams.
        return [
            Flight(condition.clone(), valid.clone(), length, SolverState(x_0.to(device)))
            for condition, valid, length, x_0 in zip(*parts, strict=True)
        ]


def _front(state: StreamState) -> Front:
    assert state.front is not None
    return state.front
