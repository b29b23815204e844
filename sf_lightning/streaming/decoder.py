"""Tokens in, sound out, chunk by chunk, while they arrive.

A *chunk* is decoded together with A blocks of look-ahead that are provisional and computed again with the next
chunk; the past is remembered (see `DecodeConfig.mode`). Noise is a function of the absolute block number and
chunk edges follow absolute block numbers, so the same tokens give the same wave however they are pushed.

Knows nothing of training. All state of a stream is one `StreamState`; the decoder itself remembers nothing,
and any number of streams advance in one batched call.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sf_lightning.flow.noise import block_noise
from sf_lightning.flow.solver import Progress, Solver
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.streamflow import StreamFlow
from sf_lightning.streaming.runs import Run, condition_of, integrate
from sf_lightning.streaming.sound import alike, extend, num_waiting
from sf_lightning.streaming.state import Account, Chunk, DecodeConfig, StreamState
from sf_lightning.streaming.stream import Stream
from sf_lightning.streaming.wavefront import Flight, Wavefront
from sf_lightning.vocoder.base import Vocoder

MAX_TABLES = 8
"""Time grids whose modulations are kept; at the paper's size a table of ten evaluations takes 6 MB."""


class Grid(NamedTuple):
    """The constants of a solver on the device: times of its evaluations [NFE], and their modulations."""

    times: Tensor
    tables: list[Tensor]


@dataclass
class StreamingDecoder:
    """Decodes streams of tokens with a model and a vocoder.

    Args:
        model: The decoder's weights; they are used as they are, so call `eval()`, cast and move it first.
        vocoder: On the same device.
        config: How to decode, where a stream does not say otherwise.
        timed: Whether costs are added up; on a GPU reading the clock waits for the device.

    Attributes:
        account: What all streams have cost.

    Raises:
        ValueError: if the vocoder was made for another mel.
    """

    model: StreamFlow
    vocoder: Vocoder
    config: DecodeConfig = DecodeConfig()
    timed: bool = True
    account: Account = field(default_factory=Account, init=False)

    _grids: dict[Solver, Grid] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.vocoder.mel != self.model.mel.config:
            raise ValueError(f"the vocoder's mel is {self.vocoder.mel}, the decoder's is {self.model.mel.config}")
        self.config = self.config.of(self.model.layout)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.model.dit.from_mel.weight.device

    @property
    def tokens_per_block(self) -> int:
        """K."""
        return self.model.layout.block_size // self.model.dit.config.frames_per_token

    def open(self, speaker: Tensor | None = None, config: DecodeConfig | None = None) -> Stream:
        """Opens a stream.

        Args:
            speaker: Embedding [S] from `StreamFlow.encode_speaker`, or None for nobody's voice.
            config: How to decode this stream, noise and all; by default as the decoder says.

        Raises:
            ValueError: if the embedding has another width, or is not finite.
        """
        empty = torch.zeros(0, self.vocoder.mel.num_bands, device=self.device)
        state = StreamState(
            speaker=self._checked(speaker),
            config=config.of(self.model.layout) if config else self.config,
            tokens=torch.zeros(0, dtype=torch.long),
            mel=empty,
            wave=empty.new_zeros(0),
        )
        self._grid(state.config.solver)
        if self._is_full(state.config):
            state.front = self._wavefront(state.config).open()
        return Stream(self, state)

    @torch.inference_mode()
    def step(self, streams: Sequence[Stream]) -> list[Chunk]:
        """Advances every stream by one chunk, if enough of its tokens are there, in as few calls as can be.

        A stream that fails, or whose chunk is not finite, is stopped: its next `push` raises, the others go on.

        Raises:
            RuntimeError: if a stream is in use by another thread, or there twice.
            ValueError: if a stream is another decoder's.
        """
        if any(stream.decoder is not self for stream in streams):
            raise ValueError("a stream of another decoder was given: step it with the decoder that opened it")
        with ExitStack() as locks:
            for stream in streams:
                locks.enter_context(stream.alone())
            return self.advance(streams)

    def advance(self, streams: Sequence[Stream]) -> list[Chunk]:
        """As `step`, for streams that the caller has for itself."""
        for stream in streams:
            stream.take()
        states = [stream.state for stream in streams]
        chunks = [Chunk(state.mel[:0], state.wave[:0]) for state in states]
        for same in alike(range(len(states)), lambda i: _how(states[i].config)):
            members = [i for i in same if states[i].error is None]
            try:
                for i, chunk in self._step_alike(members, states):
                    chunks[i] = chunk
            except Exception as error:  # whatever it is, the streams that are decoded otherwise go on
                for i in members:
                    states[i].error = error
        return chunks

    def _step_alike(self, members: list[int], states: Sequence[StreamState]) -> Iterator[tuple[int, Chunk]]:
        """Advances streams that are decoded alike; yields what those that are ready emit."""
        waves = [states[i] for i in members if states[i].front is not None]
        if waves:
            self._run_waves(waves)
        ready = [i for i in members if self._chunk_end(states[i]) > states[i].emitted]
        # All mel is there, but an exact vocoder has held the last of its sound back.
        rest = [i for i in members if i not in ready and self._is_whole(states[i]) and self._waiting(states[i])]
        empty = self.vocoder.mel.num_bands
        mels = [(states[i].mel.new_zeros(0, empty), states[i].mel.new_zeros(0, empty)) for i in rest]
        if ready:
            some = [states[i] for i in ready]
            mels = (self._land(some) if some[0].front else self._integrate(some)) + mels
        if sounding := ready + rest:
            yield from zip(sounding, self._sound([states[i] for i in sounding], mels), strict=True)

    def offline(self, tokens: Sequence[Tensor], speakers: Sequence[Tensor | None]) -> list[Chunk]:
        """Decodes whole utterances, all blocks integrated together: what streaming is held against.

        Args:
            tokens: One int64 [L] per utterance.
            speakers: One embedding [S], or None, per utterance.

        Raises:
            ValueError: if an utterance has no tokens or wrong ones, or an embedding is wrong.
            FloatingPointError: if a mel or a wave is not finite.
        """
        if any(len(each) == 0 for each in tokens):
            raise ValueError("an utterance of no tokens cannot be decoded")
        return self.streamed(tokens, speakers, replace(self.config, mode="offline"))

    def streamed(
        self, tokens: Sequence[Tensor], speakers: Sequence[Tensor | None], config: DecodeConfig | None = None
    ) -> list[Chunk]:
        """Decodes whole utterances as streams, side by side, chunk by chunk, and joins what each emitted.

        Args:
            tokens: One int64 [L] per utterance.
            speakers: One embedding [S], or None, per utterance.
            config: How; by default as the decoder says.

        Raises:
            ValueError: if tokens or embeddings are wrong.
            FloatingPointError: if a mel or a wave is not finite.
        """
        streams = [self.open(speaker, config) for speaker in speakers]
        for stream, each in zip(streams, tokens, strict=True):
            stream.feed(each)
            stream.end()
        emitted: list[list[Chunk]] = [[] for _ in streams]
        while not all(stream.finished for stream in streams):
            for parts, chunk in zip(emitted, self.step(streams), strict=True):
                parts.append(chunk)
        for stream in streams:
            stream.require_sound()
        return [Chunk(torch.cat([c.mel for c in parts]), torch.cat([c.wave for c in parts])) for parts in emitted]

    def check(self, tokens: Tensor) -> None:
        """Raises ValueError if tokens are not [L] codes of the vocabulary."""
        vocabulary = self.model.dit.config.vocabulary
        if tokens.ndim != 1 or tokens.is_floating_point():
            raise ValueError(f"tokens of shape {list(tokens.shape)} and {tokens.dtype}: wanted whole numbers [L]")
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            wrong = int(tokens.max()) if int(tokens.max()) >= vocabulary else int(tokens.min())
            raise ValueError(
                f"token {wrong} is outside the vocabulary of {vocabulary} codes: were these tokens made by the "
                "tokenizer this model was trained with?"
            )

    def _checked(self, speaker: Tensor | None) -> Tensor | None:
        """Returns the embedding on the device, or raises ValueError if it is not [S] or not finite."""
        if speaker is None:
            return None
        width = self.model.dit.config.speaker_width
        if speaker.shape != (width,):
            raise ValueError(f"speaker embedding of shape {list(speaker.shape)}: wanted [{width}]")
        if not speaker.isfinite().all():
            raise ValueError("speaker embedding with NaN or infinity in it")
        return speaker.to(self.device)

    # -- the flow -------------------------------------------------------------------------------------

    def num_blocks(self, state: StreamState) -> int:
        """Blocks known so far: whole ones, and at the end of a stream also the partial last one."""
        count = len(state.tokens) / self.tokens_per_block
        return state.first + (math.ceil(count) if state.ended else math.floor(count))

    def _chunk_end(self, state: StreamState) -> int:
        """Where the next chunk ends, or `state.emitted` if it must wait."""
        assert state.config.lookahead is not None
        known, end = self.num_blocks(state), state.config.chunk_end(state.emitted)
        if state.config.mode == "offline":
            return known if state.ended else state.emitted
        if end + state.config.lookahead <= known:
            return end
        return min(end, known) if state.ended else state.emitted

    def _is_whole(self, state: StreamState) -> bool:
        """Whether the mel of everything that will ever come is final."""
        return state.ended and self.num_blocks(state) == state.emitted

    def _waiting(self, state: StreamState) -> int:
        return num_waiting(self.vocoder, state)

    def is_finished(self, state: StreamState) -> bool:
        """Whether everything has been heard that will be."""
        return state.error is not None or (self._is_whole(state) and not self._waiting(state))

    def _integrate(self, states: Sequence[StreamState]) -> list[tuple[Tensor, Tensor]]:
        """Advances the flow of streams that are ready and decoded alike.

        Returns:
            Of each stream, the frames that are final now and the provisional ones after them, [T, F].
        """
        config, size = states[0].config, self.model.layout.block_size
        assert config.lookahead is not None
        ends = [self._chunk_end(state) for state in states]
        runs = []
        for state, end in zip(states, ends, strict=True):
            # Never more look-ahead than asked for, even if it is there: the wave must not depend on the pushes.
            stop = min(end + config.lookahead, self.num_blocks(state))
            tokens = state.tokens[: (stop - state.first) * self.tokens_per_block]
            runs.append(Run(tokens, state.first, state.speaker, state.config.seed, end - state.first, state.memory))
        with self._timed(states, "network_seconds"):
            how = (config.solver, *self._grid(config.solver), config.guidance, config.temperature)
            mels, evaluations = integrate(self.model, runs, *how, remember=config.mode == "cached")
        self.account.block_evaluations += evaluations
        made = []
        for state, run, end, mel in zip(states, runs, ends, mels, strict=True):
            final, after = mel[: (end - state.first) * size], mel[(end - state.first) * size :]
            made.append((final[(state.emitted - state.first) * size :], after))
            state.memory, state.emitted = run.memory, end
            self._forget(state)
        return made

    @torch.inference_mode()
    def _grid(self, solver: Solver) -> Grid:
        """The constants of a solver: modulations depend on flow time alone, so they are made once."""
        if solver not in self._grids:
            while len(self._grids) >= MAX_TABLES:
                self._grids.pop(next(iter(self._grids)))
            times = solver.times.to(self.device)
            self._grids[solver] = Grid(times, self.model.dit.modulate(times))
        return self._grids[solver]

    # -- the wave at full look-ahead ------------------------------------------------------------------

    def _is_full(self, config: DecodeConfig) -> bool:
        """Whether a stream looks so far ahead that nothing of it need be provisional."""
        ahead = self.model.layout.field.ahead
        assert config.lookahead is not None
        return config.mode == "cached" and 0 < ahead * config.num_evaluations <= config.lookahead

    def _wavefront(self, config: DecodeConfig) -> Wavefront:
        return Wavefront(self.model, config.solver, config.guidance, *self._grid(config.solver))

    def _run_waves(self, states: Sequence[StreamState]) -> None:
        """Lets blocks of tokens that are there run in, as far as the next chunk needs."""
        wavefront = self._wavefront(states[0].config)
        reach = int(self.model.layout.field.ahead) * states[0].config.num_evaluations
        while True:
            moving = []
            for state in states:
                assert state.front is not None
                # Beyond the end of a stream nothing arrives, and what is on its way runs out.
                there = math.inf if state.ended else self.num_blocks(state)
                end = min(state.config.chunk_end(state.emitted), self.num_blocks(state))
                if state.front.arrived < min(there, end + reach) and end > state.emitted:
                    moving.append(state)
            if not moving:
                return
            with self._timed(moving, "network_seconds"):
                flights = self._take_off([state for state in moving if self._arrives(state)])
                fronts = [state.front for state in moving if state.front is not None]
                layers = wavefront.arrive(fronts, [next(flights) if self._arrives(s) else None for s in moving])
            self.account.block_evaluations += layers / self.model.layout.num_layers

    def _arrives(self, state: StreamState) -> bool:
        return state.front is not None and state.front.arrived < self.num_blocks(state)

    def _take_off(self, states: Sequence[StreamState]) -> Iterator[Flight]:
        """Makes the next block of each stream ready for the wave."""
        if not states:
            return iter(())
        model, size, each = self.model, self.model.layout.block_size, self.tokens_per_block
        runs = []
        for state in states:
            assert state.front is not None
            place = (state.front.arrived - state.first) * each
            runs.append(
                Run(state.tokens[place : place + each], state.front.arrived, state.speaker, state.config.seed)
            )
        lengths = [len(run.tokens) * model.dit.config.frames_per_token for run in runs]
        blocks = Blocks.of_lengths(lengths, size).to(self.device)
        conditions = [condition_of(model, runs, blocks)]
        if states[0].config.guidance:
            conditions.append(model.null_condition(blocks))
        temperature, bands = states[0].config.temperature, model.dit.config.num_bands
        noise = [temperature * block_noise(run.seed, run.first, 1, size, bands)[0] for run in runs]
        parts = (torch.stack(conditions, dim=1), blocks.valid, lengths, noise)
        # Copies: a view would keep what belongs to the other streams.
        return (
            Flight(condition.clone(), valid.clone(), length, Progress(x_0.to(self.device)))
            for condition, valid, length, x_0 in zip(*parts, strict=True)
        )

    def _land(self, states: Sequence[StreamState]) -> list[tuple[Tensor, Tensor]]:
        """Returns, of each stream, the frames of a chunk that is through, and a guess at those after it, [T, F]."""
        wavefront, made = self._wavefront(states[0].config), []
        enough = -(-self.vocoder.right // self.model.layout.block_size)
        for state in states:
            front, end = state.front, self._chunk_end(state)
            assert front is not None
            final = [front.flights.pop(number) for number in range(state.emitted, end)]
            ahead = [front.flights[number] for number in range(end, front.arrived) if number in front.flights]
            mel = torch.cat([flight.progress.x[: flight.length] for flight in final])
            after = torch.cat([*(wavefront.guess(flight) for flight in ahead[:enough]), mel[:0]])
            made.append((self.model.to_mel(mel.float()), self.model.to_mel(after.float())))
            state.emitted = end
            self._forget(state)
        return made

    def _forget(self, state: StreamState) -> None:
        """Drops the tokens that no later chunk needs."""
        back = self.model.layout.field.back if state.config.mode == "windowed" else 0
        first = max(0, state.emitted - int(back)) if math.isfinite(back) else 0
        state.tokens = state.tokens[(first - state.first) * self.tokens_per_block :]
        state.first = first

    # -- the sound ------------------------------------------------------------------------------------

    def _sound(self, states: Sequence[StreamState], mels: Sequence[tuple[Tensor, Tensor]]) -> list[Chunk]:
        """Makes sound of what is final; a stream whose mel or wave is not finite is stopped and emits nothing."""
        with self._timed(states, "vocoder_seconds"):
            waves = extend(self.vocoder, states, mels, [self._is_whole(state) for state in states])
        chunks = [Chunk(final, wave) for (final, _), wave in zip(mels, waves, strict=True)]
        # One question for all streams: on a GPU each one waits for the device.
        sound = torch.stack([chunk.mel.isfinite().all() & chunk.wave.isfinite().all() for chunk in chunks]).tolist()
        for i, state in enumerate(states):
            if not sound[i]:
                state.error = FloatingPointError(
                    "this stream was stopped: there is NaN or infinity in the mel or the wave that ends with "
                    f"block {state.emitted - 1}; are the weights broken?"
                )
                chunks[i] = Chunk(state.mel[:0], state.wave[:0])
        return chunks

    @contextmanager
    def _timed(
        self, states: Sequence[StreamState], what: Literal["network_seconds", "vocoder_seconds"]
    ) -> Iterator[None]:
        """Adds the time of a call to the account, and to those of its streams in equal shares."""
        if not self.timed:
            yield
            return
        start = self._clock()
        yield
        spent = self._clock() - start
        for account, share in [(self.account, spent), *((s.account, spent / len(states)) for s in states)]:
            setattr(account, what, getattr(account, what) + share)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _how(config: DecodeConfig) -> DecodeConfig:
    """What streams must have in common to go through the network together: all but the noise and the chunks."""
    return replace(config, seed=0, chunk=1, first_chunk=1, exact_vocoder=False)
