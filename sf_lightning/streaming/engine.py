"""Decoding of stream states: chunks of mel by the flow, audio by the vocoder, in as few batched calls as possible.

A *chunk* is decoded together with A blocks of look-ahead that are provisional and computed again with the next
chunk; the past is cached (see `DecodeConfig.mode`). Noise is a function of the absolute block number and
chunk edges follow absolute block numbers, so the same tokens give the same wave however they are pushed.

The engine stores nothing of a stream, whose whole state is one `StreamState`. Independent of threads and of how
tokens arrive.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from sf_lightning.flow.solver import Solver
from sf_lightning.model.streamflow import StreamFlow
from sf_lightning.streaming.sampler import BlockRange, Sampler, TimeGrid, integrate_ranges
from sf_lightning.streaming.state import Chunk, DecodeConfig, DecodeCost, StreamState, VocoderState
from sf_lightning.streaming.vocoding import MelPiece, extend_waves, group_by_key
from sf_lightning.streaming.wavefront import Wavefront
from sf_lightning.vocoder.base import Vocoder

MAX_GRIDS = 8
"""Time grids whose modulations are kept; at the paper's size those of ten evaluations take 6 MB."""


@dataclass(eq=False)
class Engine:
    """Advances states of streams with a model and a vocoder.

    Args:
        model: Decoder, in eval mode, on the device that computes.
        vocoder: Vocoder, on the same device.
        timed: Whether times are added to the costs, for which a GPU is synchronized.

    Attributes:
        cost: Cost of all streams.
    """

    model: StreamFlow
    vocoder: Vocoder
    timed: bool = True
    cost: DecodeCost = field(default_factory=DecodeCost, init=False)

    _grids: dict[Solver, TimeGrid] = field(default_factory=dict, init=False, repr=False)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.dit.from_mel.weight.device

    @property
    def tokens_per_block(self) -> int:
        """K, tokens of a block."""
        return self.model.layout.block_size // self.model.dit.config.frames_per_token

    def open(self, speaker: Tensor | None, config: DecodeConfig) -> StreamState:
        """Returns the state of a new stream of a speaker embedding [S], or None; the config must be resolved.

        Raises:
            ValueError: if the embedding has another width or is not finite.
        """
        mel = torch.zeros(0, self.vocoder.mel.num_bands, device=self.device)
        state = StreamState(
            speaker=self._checked_speaker(speaker),
            config=config,
            tokens_per_block=self.tokens_per_block,
            tokens=torch.zeros(0, dtype=torch.long),
            vocoder=VocoderState(mel, mel.new_zeros(0), config.exact_vocoder),
        )
        sampler = self.sampler(config)
        if config.is_fully_ahead(self.model.layout):
            state.wavefront = Wavefront(sampler).open()
        return state

    def sampler(self, config: DecodeConfig) -> Sampler:
        """Returns the network with the settings of a config; the constants of its solver are computed once."""
        solver = config.solver
        if solver not in self._grids:
            while len(self._grids) >= MAX_GRIDS:
                self._grids.pop(next(iter(self._grids)))
            self._grids[solver] = TimeGrid.compute(self.model, solver)
        return Sampler(self.model, config, self._grids[solver])

    def is_finished(self, state: StreamState) -> bool:
        """Returns whether a stream has emitted all its audio or was stopped by an error."""
        return state.error is not None or (state.is_complete and not self._num_pending(state))

    @torch.inference_mode()
    def advance(self, states: Sequence[StreamState]) -> list[Chunk]:
        """Advances each stream by one chunk if enough of its tokens have arrived.

        A stream that fails, or whose chunk is not finite, is stopped with its `error` set; the others continue.
        """
        chunks = [self._empty_chunk(state) for state in states]
        for group in group_by_key(range(len(states)), lambda i: _batch_key(states[i].config)):
            members = [i for i in group if states[i].error is None]
            try:
                for i, chunk in self._advance_group(members, states):
                    chunks[i] = chunk
            except Exception as error:  # streams that are decoded with other settings continue
                for i in members:
                    states[i].error = error
        return chunks

    def check_tokens(self, tokens: Tensor) -> None:
        """Raises ValueError if tokens are not [L] codes of the vocabulary."""
        vocabulary = self.model.dit.config.vocabulary
        if tokens.ndim != 1 or tokens.is_floating_point():
            raise ValueError(f"tokens have shape {list(tokens.shape)} and {tokens.dtype}: expected integers [L]")
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            wrong = int(tokens.max()) if int(tokens.max()) >= vocabulary else int(tokens.min())
            raise ValueError(
                f"token {wrong} is outside the vocabulary of {vocabulary} codes: use tokens of the tokenizer with "
                "which the model was trained"
            )

    def _checked_speaker(self, speaker: Tensor | None) -> Tensor | None:
        if speaker is None:
            return None
        width = self.model.dit.config.speaker_width
        if speaker.shape != (width,):
            raise ValueError(f"speaker embedding has shape {list(speaker.shape)}: expected [{width}]")
        if not speaker.isfinite().all():
            raise ValueError("speaker embedding contains NaN or infinity: expected finite values")
        return speaker.to(self.device)

    def _num_pending(self, state: StreamState) -> int:
        return state.vocoder.num_pending(self.vocoder.hop)

    def _empty_chunk(self, state: StreamState) -> Chunk:
        return Chunk(state.vocoder.mel[:0], state.vocoder.wave[:0])

    def _advance_group(self, members: list[int], states: Sequence[StreamState]) -> Iterator[tuple[int, Chunk]]:
        """Advances streams that are decoded with the same settings; yields the chunks of those that are ready."""
        if fully_ahead := [states[i] for i in members if states[i].wavefront is not None]:
            self._run_wavefront(fully_ahead)
        ready = [i for i in members if states[i].chunk_end > states[i].emitted]
        # Streams whose mel is complete but whose last audio an exact vocoder has delayed.
        delayed = [i for i in members if i not in ready and states[i].is_complete and self._num_pending(states[i])]
        mels = [(self._empty_chunk(states[i]).mel,) * 2 for i in delayed]
        if ready:
            ready_states = [states[i] for i in ready]
            mels = (self._collect(ready_states) if fully_ahead else self._integrate(ready_states)) + mels
        if vocoded := ready + delayed:
            yield from zip(vocoded, self._vocode([states[i] for i in vocoded], mels), strict=True)

    def _integrate(self, states: Sequence[StreamState]) -> list[tuple[Tensor, Tensor]]:
        """Returns, for each stream, the final frames of its next chunk and provisional ones after them, [T, F]."""
        config, layout = states[0].config, self.model.layout
        assert config.lookahead is not None
        ends = [state.chunk_end for state in states]
        ranges = []
        for state, end in zip(states, ends, strict=True):
            # Never more look-ahead than configured, even if it has arrived: the wave must not depend on the pushes.
            tokens = state.block_tokens(state.first, min(end + config.lookahead, state.num_blocks))
            seed, num_final = state.config.seed, end - state.first
            ranges.append(BlockRange(tokens, state.first, state.speaker, seed, num_final, state.cache))
        with self._timed(states, "network_seconds"):
            mels, evaluations = integrate_ranges(self.sampler(config), ranges, cached=config.mode == "cached")
        self.cost.block_evaluations += evaluations
        results = []
        for state, block_range, end, mel in zip(states, ranges, ends, mels, strict=True):
            start, stop = (n * layout.block_size for n in (state.emitted - state.first, end - state.first))
            results.append((mel[:stop][start:], mel[stop:]))
            state.cache, state.emitted = block_range.cache, end
            state.drop_tokens(layout.field.back if config.mode == "windowed" else 0)
        return results

    def _run_wavefront(self, states: Sequence[StreamState]) -> None:
        """Adds blocks whose tokens have arrived to the wavefronts, as many as the next chunk needs."""
        wavefront = Wavefront(self.sampler(states[0].config))
        while unfinished := wavefront.unfinished(states):
            with self._timed(unfinished, "network_seconds"):
                layers = wavefront.advance(unfinished)
            self.cost.block_evaluations += layers / self.model.layout.num_layers

    def _collect(self, states: Sequence[StreamState]) -> list[tuple[Tensor, Tensor]]:
        """Returns, for each stream, the frames of a finished chunk and extrapolated frames after them, [T, F]."""
        wavefront = Wavefront(self.sampler(states[0].config))
        num_after = -(-self.vocoder.right // self.model.layout.block_size)
        return [wavefront.collect_chunk(state, num_after) for state in states]

    def _vocode(self, states: Sequence[StreamState], mels: Sequence[tuple[Tensor, Tensor]]) -> list[Chunk]:
        """Turns final mel into audio; a stream whose mel or wave is not finite is stopped and emits nothing."""
        pieces = [
            MelPiece(*mel, is_last=state.is_complete, reaches_end=state.ended)
            for mel, state in zip(mels, states, strict=True)
        ]
        with self._timed(states, "vocoder_seconds"):
            waves = extend_waves(self.vocoder, [state.vocoder for state in states], pieces)
        chunks = [Chunk(final, wave) for (final, _), wave in zip(mels, waves, strict=True)]
        # One check for all streams: on a GPU every check synchronizes with the device.
        finite = [chunk.mel.isfinite().all() & chunk.wave.isfinite().all() for chunk in chunks]
        for i, is_finite in enumerate(torch.stack(finite).tolist()):
            if not is_finite:
                states[i].error = FloatingPointError(
                    "this stream was stopped: the mel or the wave that ends with block "
                    f"{states[i].emitted - 1} contains NaN or infinity; check the weights"
                )
                chunks[i] = self._empty_chunk(states[i])
        return chunks

    @contextmanager
    def _timed(
        self, states: Sequence[StreamState], name: Literal["network_seconds", "vocoder_seconds"]
    ) -> Iterator[None]:
        """Adds the time of a call to the cost, and to that of its streams in equal shares."""
        if not self.timed:
            yield
            return
        start = self._clock()
        yield
        seconds = self._clock() - start
        for cost, share in [(self.cost, seconds), *((state.cost, seconds / len(states)) for state in states)]:
            setattr(cost, name, getattr(cost, name) + share)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _batch_key(config: DecodeConfig) -> DecodeConfig:
    """Returns the settings that streams in one batch must share: all but noise, chunks and vocoder delay."""
    return replace(config, seed=0, chunk=1, first_chunk=1, exact_vocoder=False)
