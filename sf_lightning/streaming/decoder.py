"""Tokens in, sound out, chunk by chunk, while they arrive.

A *chunk* is decoded together with A blocks of look-ahead that are provisional and computed again with the next
chunk; the past is remembered (see `DecodeConfig.mode`). Noise is a function of the absolute block number and
chunk edges follow absolute block numbers, so the same tokens give the same wave however they are pushed.

Knows nothing of training. All state of a stream is one `StreamState`; the decoder itself remembers nothing,
and any number of streams advance in one batched call.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sf_lightning.flow.solver import Solver
from sf_lightning.model.streamflow import StreamFlow
from sf_lightning.streaming.runs import Run, integrate
from sf_lightning.streaming.state import Chunk, DecodeConfig, DecodeCost, StreamState
from sf_lightning.streaming.stream import Stream
from sf_lightning.streaming.vocoding import alike, extend, num_waiting
from sf_lightning.streaming.waves import Waves, looks_fully_ahead
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
        cost: What all streams have cost.

    Raises:
        ValueError: if the vocoder was made for another mel.

    >>> from sf_lightning import load_decoder
    >>> decoder = load_decoder("tests/model/exports/format-1")
    >>> streams = [decoder.open(), decoder.open(config=DecodeConfig(steps=2, seed=1))]
    >>> for stream in streams:
    ...     stream.feed(torch.arange(6))
    ...     stream.end()
    >>> [len(chunk.wave) for chunk in decoder.step(streams)]  # a chunk of each stream: 12 frames of 160 samples
    [1920, 1920]
    """

    model: StreamFlow
    vocoder: Vocoder
    config: DecodeConfig = DecodeConfig()
    timed: bool = True
    cost: DecodeCost = field(default_factory=DecodeCost, init=False)

    _grids: dict[Solver, Grid] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.vocoder.mel != self.model.mel.config:
            raise ValueError(f"the vocoder's mel is {self.vocoder.mel}, the decoder's is {self.model.mel.config}")
        self.config = self.config.resolve(self.model.layout)

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
            config=config.resolve(self.model.layout) if config else self.config,
            tokens_per_block=self.tokens_per_block,
            tokens=torch.zeros(0, dtype=torch.long),
            mel=empty,
            wave=empty.new_zeros(0),
        )
        self._grid(state.config.solver)
        if looks_fully_ahead(state.config, self.model.layout):
            state.front = self._waves(state.config).open()
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
        ready = [i for i in members if states[i].chunk_end > states[i].emitted]
        # All mel is there, but an exact vocoder has held the last of its sound back.
        rest = [i for i in members if i not in ready and states[i].is_whole and self._waiting(states[i])]
        empty = self.vocoder.mel.num_bands
        mels = [(states[i].mel.new_zeros(0, empty), states[i].mel.new_zeros(0, empty)) for i in rest]
        if ready:
            some = [states[i] for i in ready]
            mels = (self._land(some) if some[0].front else self._integrate(some)) + mels
        if sounding := ready + rest:
            yield from zip(sounding, self._sound([states[i] for i in sounding], mels), strict=True)

    def decode_offline(self, tokens: Sequence[Tensor], speakers: Sequence[Tensor | None]) -> list[Chunk]:
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
        return self.decode(tokens, speakers, replace(self.config, mode="offline"))

    def decode(
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

    def _waiting(self, state: StreamState) -> int:
        return num_waiting(self.vocoder, state)

    def is_finished(self, state: StreamState) -> bool:
        """Whether everything has been heard that will be."""
        return state.error is not None or (state.is_whole and not self._waiting(state))

    def _integrate(self, states: Sequence[StreamState]) -> list[tuple[Tensor, Tensor]]:
        """Advances the flow of streams that are ready and decoded alike.

        Returns:
            Of each stream, the frames that are final now and the provisional ones after them, [T, F].
        """
        config, size = states[0].config, self.model.layout.block_size
        assert config.lookahead is not None
        ends = [state.chunk_end for state in states]
        runs = []
        for state, end in zip(states, ends, strict=True):
            # Never more look-ahead than asked for, even if it is there: the wave must not depend on the pushes.
            stop = min(end + config.lookahead, state.num_blocks)
            tokens = state.tokens_of(state.first, stop)
            runs.append(Run(tokens, state.first, state.speaker, state.config.seed, end - state.first, state.memory))
        with self._timed(states, "network_seconds"):
            how = (config.solver, *self._grid(config.solver), config.guidance, config.temperature)
            mels, evaluations = integrate(self.model, runs, *how, remember=config.mode == "cached")
        self.cost.block_evaluations += evaluations
        made = []
        for state, run, end, mel in zip(states, runs, ends, mels, strict=True):
            final, after = mel[: (end - state.first) * size], mel[(end - state.first) * size :]
            made.append((final[(state.emitted - state.first) * size :], after))
            state.memory, state.emitted = run.memory, end
            state.forget(self.model.layout.field.back if config.mode == "windowed" else 0)
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

    def _waves(self, config: DecodeConfig) -> Waves:
        """What advances streams at full look-ahead."""
        return Waves(self.model, config, *self._grid(config.solver))

    def _run_waves(self, states: Sequence[StreamState]) -> None:
        """Lets blocks of tokens that are there run in, as far as the next chunk needs."""
        waves = self._waves(states[0].config)
        while moving := waves.moving(states):
            with self._timed(moving, "network_seconds"):
                layers = waves.advance(moving)
            self.cost.block_evaluations += layers / self.model.layout.num_layers

    def _land(self, states: Sequence[StreamState]) -> list[tuple[Tensor, Tensor]]:
        """Returns, of each stream, the frames of a chunk that is through, and a guess at those after it, [T, F]."""
        waves, guesses = self._waves(states[0].config), -(-self.vocoder.right // self.model.layout.block_size)
        return [waves.land(state, guesses) for state in states]

    # -- the sound ------------------------------------------------------------------------------------

    def _sound(self, states: Sequence[StreamState], mels: Sequence[tuple[Tensor, Tensor]]) -> list[Chunk]:
        """Makes sound of what is final; a stream whose mel or wave is not finite is stopped and emits nothing."""
        with self._timed(states, "vocoder_seconds"):
            waves = extend(self.vocoder, states, mels, [state.is_whole for state in states])
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
        for cost, share in [(self.cost, spent), *((s.cost, spent / len(states)) for s in states)]:
            setattr(cost, what, getattr(cost, what) + share)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _how(config: DecodeConfig) -> DecodeConfig:
    """What streams must have in common to go through the network together: all but the noise and the chunks."""
    return replace(config, seed=0, chunk=1, first_chunk=1, exact_vocoder=False)
