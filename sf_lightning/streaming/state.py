"""What a stream is: how it is decoded, all that it remembers, what it emits, what it costs."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from torch import Tensor

from sf_lightning.flow.solver import Method, Solver
from sf_lightning.model.layout import Layout
from sf_lightning.streaming.wavefront import Front


@dataclass(frozen=True)
class DecodeConfig:
    """How a stream is decoded.

    Args:
        mode: "cached": the past is remembered exactly, as keys and values of every network evaluation, and
            never computed again; "windowed", the usual way: a window of p blocks of past, the chunk and
            its look-ahead is integrated and its middle kept; or "offline": nothing is heard before the end, and
            then all blocks are integrated together, which the others are held against. A layout without bound
            is windowed where "cached" is asked for, its window being all of the past.
        steps: Solver steps from noise to mel.
        method: Solver: "euler", "midpoint" (2 evaluations a step) or "rk4" (4).
        sway: Sway of the time grid; -1 puts more steps near the noise, 0 is even.
        guidance: Strength w of classifier-free guidance; 0 turns it off and halves the cost.
        temperature: Scale of the noise at the start; below 1 gives plainer, safer speech.
        chunk: Blocks decoded together and emitted at once.
        first_chunk: Blocks of the first chunk, by default as many as of the others; a small one is heard sooner.
        lookahead: Blocks waited for beyond a chunk; by default as many as the layout looks ahead (one
            where it looks ahead without bound). From q times the number of evaluations on, a cached stream
            equals offline to rounding.
        exact_vocoder: Whether the vocoder waits until the mel of its right context is final, or takes the
            provisional one of the look-ahead.
        seed: Of the noise.

    >>> DecodeConfig(lookahead=None).resolve(Layout(backward=2, forward=1)).lookahead
    1
    """

    mode: Literal["cached", "windowed", "offline"] = "cached"
    steps: int = 10
    method: Method = "euler"
    sway: float = -1.0
    guidance: float = 0.5
    temperature: float = 1.0
    chunk: int = 1
    first_chunk: int | None = None
    lookahead: int | None = None
    exact_vocoder: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("cached", "windowed", "offline"):
            raise ValueError(f"decode.mode is {self.mode!r}: wanted cached, windowed or offline")
        if self.seed < 0:
            raise ValueError(f"decode.seed is {self.seed}: wanted 0 or more")
        for name in ("guidance", "temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"decode.{name} is {getattr(self, name)}: wanted a number from 0 up")
        if self.chunk < 1 or (self.first_chunk is not None and self.first_chunk < 1):
            raise ValueError(f"decode: chunk {self.chunk} and first_chunk {self.first_chunk} must be at least 1")
        if self.lookahead is not None and self.lookahead < 0:
            raise ValueError(f"decode.lookahead is {self.lookahead}: wanted 0 or more blocks")
        Solver(self.steps, self.method, self.sway)

    def resolve(self, layout: Layout) -> "DecodeConfig":
        """Returns the same for a layout, with nothing left open."""
        return replace(
            self,
            mode="windowed" if self.mode == "cached" and not layout.bounded else self.mode,
            lookahead=layout.lookahead if self.lookahead is None else self.lookahead,
            first_chunk=self.first_chunk or self.chunk,
        )

    @cached_property
    def solver(self) -> Solver:
        """What carries noise to mel."""
        return Solver(self.steps, self.method, self.sway)

    @property
    def num_evaluations(self) -> int:
        """Network evaluations (NFE) of a chunk."""
        return self.solver.num_evaluations

    def chunk_end(self, start: int) -> int:
        """The block at which the chunk that begins with block `start` ends."""
        return start + (self.chunk if start else self.first_chunk or self.chunk)

    def edges(self, num_blocks: int) -> list[int]:
        """The blocks with which the chunks of a stream of so many blocks begin, but for the first."""
        edges, start = [], 0
        while self.mode != "offline" and (start := self.chunk_end(start)) < num_blocks:
            edges.append(start)
        return edges


@dataclass
class DecodeCost:
    """What decoding cost, added up over calls.

    Attributes:
        network_seconds: Time in the flow: conditions, network and solver; of one stream its share of each batch.
        vocoder_seconds: Time in the vocoder, likewise.
        block_evaluations: Blocks that went through the network, guidance branches counted once; a block that
            went through a part of the layers counts as that part. Of a decoder only, not of its streams.
    """

    network_seconds: float = 0.0
    vocoder_seconds: float = 0.0
    block_evaluations: float = 0.0


@dataclass(eq=False)
class StreamState:
    """All that a stream remembers. Its size does not grow with the stream, but for a layout without bound, for mode
    "offline", and for tokens that wait to be decoded.

    Attributes:
        speaker: Embedding [S], or None for nobody's voice.
        config: How it is decoded, nothing left open.
        tokens_per_block: K.
        tokens: Tokens still needed, from block `first` on, int64 [L].
        mel: The last final frames, [P + C, F]: P that were heard, C whose sound still waits.
        wave: The sound of those that were heard, [P * hop].
        front: Its blocks on their way, where the look-ahead is full; see `wavefront`.
        memory: Keys and values of the last emitted block, [NFE, branches, layers that look back, 2, H, W, Dh];
            None before the first chunk, and where nothing is remembered.
        first: Absolute number of the block that `tokens` begin with.
        emitted: Blocks whose mel is final.
        ended: Whether the last token has come.
        error: What went wrong in this stream; it cannot go on.
        cost: What it has cost.
    """

    speaker: Tensor | None
    config: DecodeConfig
    tokens_per_block: int
    tokens: Tensor
    mel: Tensor
    wave: Tensor
    front: Front | None = None
    memory: Tensor | None = None
    first: int = 0
    emitted: int = 0
    ended: bool = False
    error: Exception | None = None
    cost: DecodeCost = field(default_factory=DecodeCost)

    @property
    def num_blocks(self) -> int:
        """Blocks known so far: whole ones, and at the end of a stream also the partial last one."""
        count = len(self.tokens) / self.tokens_per_block
        return self.first + (math.ceil(count) if self.ended else math.floor(count))

    @property
    def chunk_end(self) -> int:
        """Where the next chunk ends, or `emitted` if it must wait."""
        assert self.config.lookahead is not None
        known, end = self.num_blocks, self.config.chunk_end(self.emitted)
        if self.config.mode == "offline":
            return known if self.ended else self.emitted
        if end + self.config.lookahead <= known:
            return end
        return min(end, known) if self.ended else self.emitted

    @property
    def is_whole(self) -> bool:
        """Whether the mel of everything that will ever come is final."""
        return self.ended and self.num_blocks == self.emitted

    def tokens_of(self, start: int, end: int) -> Tensor:
        """Returns the tokens [L] of some blocks that are still needed."""
        return self.tokens[
            (start - self.first) * self.tokens_per_block : (end - self.first) * self.tokens_per_block
        ]

    def forget(self, back: float) -> None:
        """Drops the tokens that no later chunk needs, a window of so many blocks being integrated again."""
        first = max(0, self.emitted - int(back)) if math.isfinite(back) else 0
        self.tokens, self.first = self.tokens[(first - self.first) * self.tokens_per_block :], first


@dataclass
class Chunk:
    """What one step of a stream emits: final mel [T, F] and wave [N].

    Both are empty if it had to wait; an exact vocoder is heard after its mel.
    """

    mel: Tensor
    wave: Tensor
