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
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock

import torch
from torch import Tensor

from sf_lightning.flow.noise import block_noise
from sf_lightning.flow.solver import Progress, Solver
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.streamflow import StreamFlow
from sf_lightning.streaming.runs import Run, condition_of, integrate
from sf_lightning.streaming.sound import alike, extend
from sf_lightning.streaming.state import Account, Chunk, DecodeConfig, StreamState
from sf_lightning.streaming.wavefront import Flight, Wavefront
from sf_lightning.vocoder.base import Vocoder


@dataclass
class StreamingDecoder:
    """Decodes streams of tokens with a model and a vocoder.

    Args:
        model: The decoder's weights; they are used as they are, so call `eval()` and move it first.
        vocoder: On the same device.
        config: How to decode, where a stream does not say otherwise.
        account: Where costs are added up. On a GPU reading the clock waits for the device.

    Raises:
        ValueError: if the vocoder was made for another mel.
    """

    model: StreamFlow
    vocoder: Vocoder
    config: DecodeConfig = DecodeConfig()
    account: Account = field(default_factory=Account)

    _tables: dict[Solver, list[Tensor]] = field(default_factory=dict, init=False, repr=False)

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

    def open(self, speaker: Tensor | None = None, config: DecodeConfig | None = None) -> "Stream":
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
        if self._is_full(state.config):
            state.front = self._wavefront(state.config).open()
        return Stream(self, state)

    @torch.inference_mode()
    def step(self, streams: "Sequence[Stream]") -> list[Chunk]:
        """Advances every stream by one chunk, if enough of its tokens are there, in as few calls as can be.

        A stream whose chunk is not finite is stopped: its next `push` raises, the others go on.
        """
        states = [stream.state for stream in streams]
        chunks = [Chunk(state.mel[:0], state.wave[:0]) for state in states]
        ready = [i for i, state in enumerate(states) if not state.error and self._chunk_end(state) > state.emitted]
        waves = [state for state in states if state.front is not None and not state.error]
        for same in alike(range(len(waves)), lambda i: _how(waves[i].config)):
            self._run_waves([waves[i] for i in same])
        for same in alike(ready, lambda i: _how(states[i].config)):
            members = [states[i] for i in same]
            made = [self._land(state) for state in members] if members[0].front else self._integrate(members)
            good = [(i, mels) for i, mels in zip(same, made, strict=True) if not states[i].error]
            sounds = self._sound([states[i] for i, _ in good], [mels for _, mels in good])
            for (i, _), chunk in zip(good, sounds, strict=True):
                chunks[i] = chunk
        return chunks

    @torch.inference_mode()
    def offline(self, tokens: Sequence[Tensor], speakers: Sequence[Tensor | None]) -> list[Chunk]:
        """Decodes whole utterances, all blocks integrated together: what streaming is held against.

        Args:
            tokens: One int64 [L] per utterance.
            speakers: One embedding [S], or None, per utterance.

        Raises:
            ValueError: if an utterance has no tokens or wrong ones, or an embedding is wrong.
        """
        for each in tokens:
            self.check(each)
            if len(each) == 0:
                raise ValueError("an utterance of no tokens cannot be decoded")
        seed = self.config.seed
        runs = [Run(each.cpu(), 0, self._checked(who), seed) for each, who in zip(tokens, speakers, strict=True)]
        mels = self._carry(runs, self.config, remember=False)
        return [Chunk(mel, self.vocoder.decode(mel[None])[0]) for mel in mels]

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
            FloatingPointError: if a mel is not finite.
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
        if end + state.config.lookahead <= known:
            return end
        return min(end, known) if state.ended else state.emitted

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
        mels = self._carry(runs, config, remember=config.mode == "cached")
        made = []
        for state, run, end, mel in zip(states, runs, ends, mels, strict=True):
            final, after = mel[: (end - state.first) * size], mel[(end - state.first) * size :]
            made.append((final[(state.emitted - state.first) * size :], after))
            if not mel.isfinite().all():
                state.error = f"the mel of its blocks {state.emitted} to {end - 1} has NaN or infinity in it"
            state.memory, state.emitted = run.memory, end
            self._forget(state)
        return made

    def _carry(self, runs: Sequence[Run], config: DecodeConfig, remember: bool) -> list[Tensor]:
        clock = self._clock()
        how = (config.solver, self._table(config.solver), config.guidance, config.temperature)
        mels, evaluations = integrate(self.model, runs, *how, remember)
        self.account.block_evaluations += evaluations
        self.account.network_seconds += self._clock() - clock
        return mels

    @torch.inference_mode()
    def _table(self, solver: Solver) -> list[Tensor]:
        """The modulations of a solver's evaluations: they depend on flow time alone, so they are made once."""
        if solver not in self._tables:
            self._tables[solver] = self.model.dit.modulate(solver.times.to(self.device))
        return self._tables[solver]

    # -- the wave at full look-ahead ------------------------------------------------------------------

    def _is_full(self, config: DecodeConfig) -> bool:
        """Whether a stream looks so far ahead that nothing of it need be provisional."""
        ahead = self.model.layout.field.ahead
        assert config.lookahead is not None
        return config.mode == "cached" and 0 < ahead * config.num_evaluations <= config.lookahead

    def _wavefront(self, config: DecodeConfig) -> Wavefront:
        return Wavefront(self.model, config.solver, config.guidance, self._table(config.solver))

    def _run_waves(self, states: Sequence[StreamState]) -> None:
        """Lets blocks of tokens that are there run in, as far as the next chunk needs."""
        clock = self._clock()
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
                break
            flights = self._take_off([state for state in moving if self._arrives(state)])
            fronts = [state.front for state in moving if state.front is not None]
            layers = wavefront.arrive(fronts, [next(flights) if self._arrives(s) else None for s in moving])
            self.account.block_evaluations += layers / self.model.layout.num_layers
        self.account.network_seconds += self._clock() - clock

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
        return (
            Flight(condition, valid, Progress(x_0.to(self.device)))
            for condition, valid, x_0 in zip(torch.stack(conditions, dim=1), blocks.valid, noise, strict=True)
        )

    def _land(self, state: StreamState) -> tuple[Tensor, Tensor]:
        """Returns the frames of a chunk that is through the wave, and a guess at those after it, [T, F]."""
        front, wavefront, end = state.front, self._wavefront(state.config), self._chunk_end(state)
        assert front is not None
        final = [front.flights.pop(number) for number in range(state.emitted, end)]
        ahead = [front.flights[number] for number in range(end, front.arrived) if number in front.flights]
        frames = [flight.progress.x[flight.valid] for flight in final]
        enough = -(-self.vocoder.right // self.model.layout.block_size)
        after = [wavefront.guess(flight)[flight.valid] for flight in ahead[:enough]]
        mel = self.model.to_mel(torch.cat(frames).float())
        if not mel.isfinite().all():
            state.error = f"the mel of its blocks {state.emitted} to {end - 1} has NaN or infinity in it"
        state.emitted = end
        self._forget(state)
        return mel, self.model.to_mel(torch.cat([*after, mel[:0]]).float())

    def _forget(self, state: StreamState) -> None:
        """Drops the tokens that no later chunk needs."""
        back = self.model.layout.field.back if state.config.mode == "windowed" else 0
        first = max(0, state.emitted - int(back)) if math.isfinite(back) else 0
        state.tokens = state.tokens[(first - state.first) * self.tokens_per_block :]
        state.first = first

    def _sound(self, states: Sequence[StreamState], mels: Sequence[tuple[Tensor, Tensor]]) -> list[Chunk]:
        clock = self._clock()
        waves = extend(self.vocoder, states, mels, [self.is_finished(state) for state in states])
        self.account.vocoder_seconds += self._clock() - clock
        return [Chunk(final, wave) for (final, _), wave in zip(mels, waves, strict=True)]

    def is_finished(self, state: StreamState) -> bool:
        """Whether the mel of everything that will ever come is final."""
        return state.ended and self.num_blocks(state) == state.emitted

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass
class Stream:
    """One utterance on its way: push tokens, hear what is ready, flush at the end."""

    decoder: StreamingDecoder
    state: StreamState
    _busy: Lock = field(default_factory=Lock, repr=False, compare=False)

    def feed(self, tokens: Tensor) -> None:
        """Takes tokens [L] without decoding; `StreamingDecoder.step` decodes.

        Raises:
            ValueError: if a token is outside the vocabulary, or the stream was flushed.
            FloatingPointError: if the stream was stopped because its mel was not finite.
        """
        if self.state.ended:
            raise ValueError("tokens were pushed to a stream that was flushed: open a new one")
        self.require_sound()
        self.decoder.check(tokens)
        self.state.tokens = torch.cat([self.state.tokens, tokens.cpu().long()])

    def end(self) -> None:
        """Says that no more tokens will come."""
        self.state.ended = True

    @property
    def finished(self) -> bool:
        """Whether everything has been heard that will be."""
        return self.state.error is not None or self.decoder.is_finished(self.state)

    def push(self, tokens: Tensor) -> Tensor:
        """Takes tokens [L], any number of them, and returns the wave [N] that has become ready.

        Raises:
            ValueError, FloatingPointError: as `feed`.
            RuntimeError: if another thread is using the stream.
        """
        with self._alone():
            self.feed(tokens)
            return self._drain()

    def flush(self) -> Tensor:
        """Ends the stream and returns the rest of its wave [N].

        Raises:
            FloatingPointError: as `feed`.
            RuntimeError: if another thread is using the stream.
        """
        with self._alone():
            self.end()
            return self._drain()

    def _drain(self) -> Tensor:
        waves, emitted = [self.state.wave[:0]], -1
        while emitted != self.state.emitted:
            emitted = self.state.emitted
            waves.append(self.decoder.step([self])[0].wave)
            self.require_sound()
        return torch.cat(waves)

    def require_sound(self) -> None:
        """Raises FloatingPointError if the stream was stopped because its mel was not finite."""
        if self.state.error:
            raise FloatingPointError(f"this stream was stopped: {self.state.error}; are the weights broken?")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this stream is in use by another thread: give each thread a stream of its own")
        try:
            yield
        finally:
            self._busy.release()


def _how(config: DecodeConfig) -> DecodeConfig:
    """What streams must have in common to go through the network together: all but the noise and the chunks."""
    return replace(config, seed=0, chunk=1, first_chunk=1, exact_vocoder=False)
