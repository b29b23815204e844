"""Tokens in, sound out, chunk by chunk, while they arrive.

A *chunk* is decoded in a window: p blocks of past, the chunk, and A blocks of look-ahead, integrated
together from noise that is a function of the absolute block number; the middle is kept. Chunk edges follow
absolute block numbers, so the same tokens give the same wave however they are pushed.

Knows nothing of training. All state of a stream is one `StreamState`; the decoder itself remembers nothing,
and any number of streams advance in one batched call.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from sf_lightning.flow.guidance import guided
from sf_lightning.flow.noise import block_noise
from sf_lightning.flow.solver import EVALUATIONS, Method, integrate, sway_grid
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.streamflow import StreamFlow
from sf_lightning.vocoder.base import Vocoder


@dataclass(frozen=True)
class DecodeConfig:
    """How a stream is decoded.

    Args:
        steps: Solver steps from noise to mel.
        method: Solver: "euler", "midpoint" (2 evaluations a step) or "rk4" (4).
        sway: Sway of the time grid; -1 puts more steps near the noise, 0 is even.
        guidance: Strength w of classifier-free guidance; 0 turns it off and halves the cost.
        temperature: Scale of the noise at the start; below 1 gives plainer, safer speech.
        chunk: Blocks decoded together and emitted at once.
        lookahead: Blocks waited for beyond a chunk; by default as many as the layout looks ahead (one
            where it looks ahead without bound).
        seed: Of the noise.
    """

    steps: int = 10
    method: Method = "euler"
    sway: float = -1.0
    guidance: float = 0.5
    temperature: float = 1.0
    chunk: int = 1
    lookahead: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.chunk < 1:
            raise ValueError(f"decode: steps {self.steps} and chunk {self.chunk} must be at least 1")
        if self.lookahead is not None and self.lookahead < 0:
            raise ValueError(f"decode.lookahead is {self.lookahead}: wanted 0 or more blocks")
        if self.method not in EVALUATIONS:
            raise ValueError(f"decode.method is {self.method!r}: wanted one of {', '.join(EVALUATIONS)}")

    @property
    def num_evaluations(self) -> int:
        """Network evaluations (NFE) of a chunk."""
        return self.steps * EVALUATIONS[self.method]


@dataclass
class StreamState:
    """All that a stream remembers; its size does not grow with the stream.

    Attributes:
        speaker: Embedding [S], or None for nobody's voice.
        seed: Of the noise.
        tokens: Tokens still needed, from block `first` on, int64 [L].
        first: Absolute number of the block that `tokens` begin with.
        emitted: Blocks already heard.
        ended: Whether the last token has come.
        mel: The last frames heard, [P, F], for the vocoder.
        wave: Their wave, [P * hop].
    """

    speaker: Tensor | None
    seed: int
    tokens: Tensor
    mel: Tensor
    wave: Tensor
    first: int = 0
    emitted: int = 0
    ended: bool = False


@dataclass
class Chunk:
    """What one step of a stream emits: mel [T, F] and wave [T * hop]; both empty if it had to wait."""

    mel: Tensor
    wave: Tensor


@dataclass
class Account:
    """What decoding cost, added up over calls.

    Attributes:
        network_seconds: Time in the flow: conditions, network and solver.
        vocoder_seconds: Time in the vocoder.
        block_evaluations: Blocks that went through the network, guidance branches counted once.
    """

    network_seconds: float = 0.0
    vocoder_seconds: float = 0.0
    block_evaluations: int = 0


@dataclass(frozen=True)
class _Window:
    """A run of blocks to integrate together."""

    tokens: Tensor
    first: int
    speaker: Tensor | None
    seed: int


@dataclass
class StreamingDecoder:
    """Decodes streams of tokens with a model and a vocoder.

    Args:
        model: The decoder's weights; they are used as they are, so call `eval()` and move it first.
        vocoder: On the same device.
        config: How to decode.
        account: Where costs are added up. On a GPU reading the clock waits for the device.

    Raises:
        ValueError: if the vocoder was made for another mel.
    """

    model: StreamFlow
    vocoder: Vocoder
    config: DecodeConfig = DecodeConfig()
    account: Account = field(default_factory=Account)

    def __post_init__(self) -> None:
        if self.vocoder.mel != self.model.mel.config:
            raise ValueError(f"the vocoder's mel is {self.vocoder.mel}, the decoder's is {self.model.mel.config}")
        self._grid = sway_grid(self.config.steps, self.config.sway)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.model.dit.from_mel.weight.device

    @property
    def lookahead(self) -> int:
        """A, blocks waited for beyond a chunk."""
        return self.model.layout.lookahead if self.config.lookahead is None else self.config.lookahead

    @property
    def tokens_per_block(self) -> int:
        """K."""
        return self.model.layout.block_size // self.model.dit.config.frames_per_token

    def open(self, speaker: Tensor | None = None, seed: int | None = None) -> "Stream":
        """Opens a stream.

        Args:
            speaker: Embedding [S] from `StreamFlow.encode_speaker`, or None for nobody's voice.
            seed: Of the noise; by default `DecodeConfig.seed`.

        Raises:
            ValueError: if the embedding has another width, or is not finite.
        """
        empty = torch.zeros(0, self.vocoder.mel.num_bands, device=self.device)
        state = StreamState(
            speaker=self._checked(speaker),
            seed=self.config.seed if seed is None else seed,
            tokens=torch.zeros(0, dtype=torch.long),
            mel=empty,
            wave=empty.new_zeros(0),
        )
        return Stream(self, state)

    @torch.inference_mode()
    def step(self, streams: "Sequence[Stream]") -> list[Chunk]:
        """Advances every stream by one chunk, if enough of its tokens are there, in one batched call."""
        states = [stream.state for stream in streams]
        chunks = [Chunk(state.mel[:0], state.wave[:0]) for state in states]
        ready = [i for i, state in enumerate(states) if self._chunk_end(state) > state.emitted]
        if not ready:
            return chunks
        windows = [self._window(states[i]) for i in ready]
        mels = self._integrate(windows)
        clock = self._clock()
        frames = [self._cut(states[i], window, mel) for i, window, mel in zip(ready, windows, mels, strict=True)]
        for i, chunk in zip(ready, self._vocode([states[i] for i in ready], frames), strict=True):
            chunks[i] = chunk
        self.account.vocoder_seconds += self._clock() - clock
        for i in ready:
            self._advance(states[i], chunks[i])
        return chunks

    @torch.inference_mode()
    def offline(
        self, tokens: Sequence[Tensor], speakers: Sequence[Tensor | None], seed: int | None = None
    ) -> list[Chunk]:
        """Decodes whole utterances, all blocks integrated together: what streaming is held against.

        Args:
            tokens: One int64 [L] per utterance.
            speakers: One embedding [S], or None, per utterance.
            seed: Of the noise; by default `DecodeConfig.seed`.

        Raises:
            ValueError: if an utterance has no tokens or wrong ones, or an embedding is wrong.
        """
        seed = self.config.seed if seed is None else seed
        for each in tokens:
            self.check(each)
            if len(each) == 0:
                raise ValueError("an utterance of no tokens cannot be decoded")
        windows = [
            _Window(each.cpu(), 0, self._checked(who), seed) for each, who in zip(tokens, speakers, strict=True)
        ]
        mels = self._integrate(windows)
        return [Chunk(mel, self.vocoder.decode(mel[None])[0]) for mel in mels]

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

    def _num_blocks(self, state: StreamState) -> int:
        """Blocks known so far: whole ones, and at the end of a stream also the partial last one."""
        count = len(state.tokens) / self.tokens_per_block
        return state.first + (math.ceil(count) if state.ended else math.floor(count))

    def _chunk_end(self, state: StreamState) -> int:
        """Where the next chunk ends, or `state.emitted` if it must wait."""
        known, end = self._num_blocks(state), state.emitted + self.config.chunk
        if end + self.lookahead <= known:
            return end
        return min(end, known) if state.ended else state.emitted

    def _window(self, state: StreamState) -> _Window:
        # Never more look-ahead than asked for, even if it is there: the wave must not depend on the pushes.
        end = min(self._chunk_end(state) + self.lookahead, self._num_blocks(state))
        tokens = state.tokens[: (end - state.first) * self.tokens_per_block]
        return _Window(tokens, state.first, state.speaker, state.seed)

    def _integrate(self, windows: list[_Window]) -> list[Tensor]:
        """Returns the log-mel [T, F] of each window, all windows in one batch."""
        clock = self._clock()
        dit, config = self.model.dit, self.config
        size, device = self.model.layout.block_size, self.device
        lengths = [len(window.tokens) * dit.config.frames_per_token for window in windows]
        blocks = Blocks.of_lengths(lengths, size).to(device)
        counts = [-(-length // size) for length in lengths]
        tokens = torch.cat([self._by_block(window.tokens) for window in windows]).to(device)
        nobody = self.model.encoder.null()
        speaker = torch.stack([nobody if w.speaker is None else w.speaker for w in windows])
        kept = torch.zeros(len(windows), dtype=torch.bool, device=device)
        condition = dit.condition(tokens, speaker, blocks, kept)
        velocity = guided(
            self.model.velocity, condition, self.model.null_condition(blocks), blocks, config.guidance
        )
        noise = [
            block_noise(window.seed, window.first, count, size, dit.config.num_bands)
            for window, count in zip(windows, counts, strict=True)
        ]
        x_0 = config.temperature * torch.cat(noise).to(device)
        mel = self.model.to_mel(integrate(velocity, x_0, self._grid, config.method).float())
        self.account.block_evaluations += len(blocks) * config.num_evaluations
        self.account.network_seconds += self._clock() - clock
        return [each.flatten(0, 1)[:length] for each, length in zip(mel.split(counts), lengths, strict=True)]

    def _by_block(self, tokens: Tensor) -> Tensor:
        missing = -len(tokens) % self.tokens_per_block
        return torch.nn.functional.pad(tokens, (0, missing)).view(-1, self.tokens_per_block)

    def _cut(self, state: StreamState, window: _Window, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the chunk's own frames and the provisional ones after it."""
        size = self.model.layout.block_size
        start, end = (number - window.first for number in (state.emitted, self._chunk_end(state)))
        after = mel[end * size :][: self.vocoder.right]
        return mel[start * size : end * size], after

    def _vocode(self, states: list[StreamState], frames: list[tuple[Tensor, Tensor]]) -> list[Chunk]:
        """Extends each stream's wave; streams whose pieces have the same lengths go through together."""

        def shape(i: int) -> tuple[int, int, int]:
            return len(states[i].mel), len(frames[i][0]), len(frames[i][1])

        chunks: dict[int, Chunk] = {}
        for (_, num_new, _), same in groupby(sorted(range(len(states)), key=shape), key=shape):
            group = list(same)
            mel = torch.stack([torch.cat([states[i].mel, *frames[i]]) for i in group])
            past = torch.stack([states[i].wave for i in group])
            for i, wave in zip(group, self.vocoder.extend(mel, past, num_new), strict=True):
                chunks[i] = Chunk(frames[i][0], wave)
        return [chunks[i] for i in range(len(states))]

    def _advance(self, state: StreamState, chunk: Chunk) -> None:
        """Moves the stream past a chunk and forgets what no later window needs."""
        state.emitted = self._chunk_end(state)
        keep = self.vocoder.left
        state.mel = _last(torch.cat([state.mel, chunk.mel]), keep)
        state.wave = _last(torch.cat([state.wave, chunk.wave]), keep * self.vocoder.hop)
        back = self.model.layout.field.back
        first = max(0, state.emitted - int(back)) if math.isfinite(back) else 0
        state.tokens = state.tokens[(first - state.first) * self.tokens_per_block :]
        state.first = first

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass
class Stream:
    """One utterance on its way: push tokens, hear what is ready, flush at the end."""

    decoder: StreamingDecoder
    state: StreamState

    def feed(self, tokens: Tensor) -> None:
        """Takes tokens [L] without decoding; `StreamingDecoder.step` decodes.

        Raises:
            ValueError: if a token is outside the vocabulary, or the stream was flushed.
        """
        if self.state.ended:
            raise ValueError("tokens were pushed to a stream that was flushed: open a new one")
        self.decoder.check(tokens)
        self.state.tokens = torch.cat([self.state.tokens, tokens.cpu().long()])

    def end(self) -> None:
        """Says that no more tokens will come."""
        self.state.ended = True

    @property
    def finished(self) -> bool:
        """Whether everything has been heard."""
        return self.state.ended and self.decoder._num_blocks(self.state) == self.state.emitted

    def push(self, tokens: Tensor) -> Tensor:
        """Takes tokens [L], any number of them, and returns the wave [N] that has become ready."""
        self.feed(tokens)
        return self._drain()

    def flush(self) -> Tensor:
        """Ends the stream and returns the rest of its wave [N]."""
        self.end()
        return self._drain()

    def _drain(self) -> Tensor:
        waves = [self.state.wave[:0]]
        while len(wave := self.decoder.step([self])[0].wave):
            waves.append(wave)
        return torch.cat(waves)


def _last(x: Tensor, count: int) -> Tensor:
    """The last `count` rows, or fewer if there are fewer; in memory of their own."""
    return x[max(0, len(x) - count) :].clone()
