"""State of a stream: how it is decoded, what it stores between chunks, what it emits, what it costs.

Letters: E network evaluations, G guidance branches, P frames of the past, C frames whose audio is still pending, W
frames of a block, L tokens, H heads, Dh head width, D width, F mel bands, N samples, S speaker.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from torch import Tensor

from sf_lightning.flow.noise import require_seed
from sf_lightning.flow.solver import Method, Solver, SolverState
from sf_lightning.model.layout import Layout


@dataclass(frozen=True)
class DecodeConfig:
    """How a stream is decoded.

    Args:
        mode: "cached": the past is kept exactly, as keys and values of every network evaluation, and never
            recomputed; "windowed", the usual way: a window of p past blocks, the chunk and its look-ahead is
            integrated and its middle kept; or "offline", the reference: all blocks are integrated together at the
            end of the tokens. For a layout without bound "cached" means "windowed", with the whole past as its
            window.
        steps: Solver steps from noise to mel.
        method: Solver: "euler", "midpoint" (2 network evaluations a step) or "rk4" (4).
        sway: Sway of the time grid, -1 to 1.7519; -1 puts more steps near the noise, 0 is even.
        guidance: Strength w of classifier-free guidance; 0 turns it off and halves the cost.
        temperature: Scale of the initial noise; below 1 gives plainer, safer speech.
        chunk: Blocks decoded together and emitted at once.
        first_chunk: Blocks of the first chunk, by default `chunk`; a small one lowers the first-packet latency.
        lookahead: Blocks of look-ahead beyond a chunk; by default those of the layout (one if it looks ahead
            without bound). With at least q blocks for each network evaluation, guidance not counted, a cached
            stream equals offline decoding to rounding.
        exact_vocoder: Whether the vocoder delays audio until the mel of its right context is final, instead of
            using the provisional mel of the look-ahead.
        seed: Seed of the noise.

    Raises:
        ValueError: if a value is out of range.

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
            raise ValueError(f"decode.mode is {self.mode!r}: expected cached, windowed or offline")
        require_seed("decode.seed", self.seed)
        for name in ("guidance", "temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"decode.{name} is {getattr(self, name)}: expected a finite number, 0 or more")
        if self.chunk < 1 or (self.first_chunk is not None and self.first_chunk < 1):
            raise ValueError(f"decode: chunk {self.chunk} and first_chunk {self.first_chunk} must be at least 1")
        if self.lookahead is not None and self.lookahead < 0:
            raise ValueError(f"decode.lookahead is {self.lookahead}: expected 0 or more blocks")
        Solver(self.steps, self.method, self.sway)

    def resolve(self, layout: Layout) -> "DecodeConfig":
        """Returns a copy with every default resolved for `layout`."""
        return replace(
            self,
            mode="windowed" if self.mode == "cached" and not layout.bounded else self.mode,
            lookahead=layout.lookahead if self.lookahead is None else self.lookahead,
            first_chunk=self.first_chunk or self.chunk,
        )

    @cached_property
    def solver(self) -> Solver:
        """Solver from noise to mel."""
        return Solver(self.steps, self.method, self.sway)

    @property
    def num_evaluations(self) -> int:
        """Network evaluations (NFE) of a chunk."""
        return self.solver.num_evaluations

    def is_fully_ahead(self, layout: Layout) -> bool:
        """Returns whether a resolved config looks so far ahead that no block is computed provisionally."""
        assert self.lookahead is not None
        return self.mode == "cached" and 0 < layout.field.ahead * self.num_evaluations <= self.lookahead

    def chunk_end(self, start: int) -> int:
        """Returns the block after the last one of the chunk that starts with block `start`."""
        return start + (self.chunk if start else self.first_chunk or self.chunk)

    def edges(self, num_blocks: int) -> list[int]:
        """Returns the first block of every chunk but the first, of a stream of `num_blocks` blocks."""
        edges, start = [], 0
        while self.mode != "offline" and (start := self.chunk_end(start)) < num_blocks:
            edges.append(start)
        return edges


@dataclass
class DecodeCost:
    """Cost of decoding, summed over calls.

    Attributes:
        network_seconds: Time in the flow: conditions, network and solver; for one stream its share of each batch.
        vocoder_seconds: Time in the vocoder, likewise.
        block_evaluations: Blocks that went through the network, guidance branches counted once; a block that
            went through a part of the layers counts as that part. Kept for a decoder only, not for its streams.
    """

    network_seconds: float = 0.0
    vocoder_seconds: float = 0.0
    block_evaluations: float = 0.0


@dataclass(eq=False)
class VocoderState:
    """State of one stream in the vocoder.

    Attributes:
        mel: Last final frames, [P + C, F]: P whose audio was emitted and C whose audio is still pending.
        wave: Audio of the emitted frames in `mel`, [P * hop].
        exact: Whether audio is delayed until the mel of its right context is final.
    """

    mel: Tensor
    wave: Tensor
    exact: bool = False

    def num_pending(self, hop: int) -> int:
        """Returns C, the number of frames of `mel` without audio, for a vocoder of `hop` samples a frame."""
        return len(self.mel) - len(self.wave) // hop


@dataclass(eq=False)
class WavefrontBlock:
    """A block on its way from noise to mel.

    Attributes:
        condition: Condition of each branch, [G, W, D].
        valid: Frames that are not padding, bool [W].
        length: Number of valid frames, known without a device synchronization.
        solver: State of its integration.
        h: Input of the layer before which it is paused, [G, W, D].
        kv: Keys and values that this layer provides to the block before, [G, 2, H, W, Dh].
        velocity: Velocity of the last evaluation, [W, F].
    """

    condition: Tensor
    valid: Tensor
    length: int
    solver: SolverState
    h: Tensor | None = None
    kv: Tensor | None = None
    velocity: Tensor | None = None


@dataclass(eq=False)
class WavefrontState:
    """State of the wavefront of one stream.

    Attributes:
        cache: Keys and values of the last block that passed each layer that looks back, in each evaluation,
            [E, G, layers, 2, H, W, Dh].
        entered: Number of blocks that have entered.
        blocks: Blocks that are not collected yet, by absolute number.
    """

    cache: Tensor
    entered: int = 0
    blocks: dict[int, WavefrontBlock] = field(default_factory=dict)


@dataclass(eq=False)
class StreamState:
    """State of a stream.

    Its size does not grow with the length of the stream, except for a layout without bound, for mode "offline", and
    for tokens that are not decoded yet.

    Attributes:
        speaker: Speaker embedding [S], or None for no speaker (null embedding).
        config: How the stream is decoded, resolved.
        tokens_per_block: K, tokens of a block.
        tokens: Tokens still needed, from block `first` on, int64 [L].
        vocoder: State in the vocoder.
        wavefront: State of the wavefront; None unless the look-ahead is full.
        cache: Keys and values of the last emitted block, [E, G, layers that look back, 2, H, W, Dh];
            None before the first chunk and in the other modes.
        first: Absolute number of the first block in `tokens`.
        emitted: Number of blocks whose mel is final.
        ended: Whether the last token has been accepted.
        error: Exception that has stopped the stream.
        cost: Cost so far.
    """

    speaker: Tensor | None
    config: DecodeConfig
    tokens_per_block: int
    tokens: Tensor
    vocoder: VocoderState
    wavefront: WavefrontState | None = None
    cache: Tensor | None = None
    first: int = 0
    emitted: int = 0
    ended: bool = False
    error: Exception | None = None
    cost: DecodeCost = field(default_factory=DecodeCost)

    @property
    def num_blocks(self) -> int:
        """Blocks known so far: complete ones, and at the end of a stream also the partial last one."""
        count = len(self.tokens) / self.tokens_per_block
        return self.first + (math.ceil(count) if self.ended else math.floor(count))

    @property
    def chunk_end(self) -> int:
        """Block after the last one of the next chunk, or `emitted` if more tokens are needed."""
        assert self.config.lookahead is not None
        known, end = self.num_blocks, self.config.chunk_end(self.emitted)
        if self.config.mode == "offline":
            return known if self.ended else self.emitted
        if end + self.config.lookahead <= known:
            return end
        return min(end, known) if self.ended else self.emitted

    @property
    def is_complete(self) -> bool:
        """Whether the mel of the whole stream is final."""
        return self.ended and self.num_blocks == self.emitted

    def block_tokens(self, start: int, end: int) -> Tensor:
        """Returns the tokens [L] of blocks `start` to `end` - 1, which must not be dropped yet."""
        return self.tokens[
            (start - self.first) * self.tokens_per_block : (end - self.first) * self.tokens_per_block
        ]

    def drop_tokens(self, back: float) -> None:
        """Drops the tokens that no later chunk needs if each one starts at most `back` blocks in the past."""
        first = max(0, self.emitted - int(back)) if math.isfinite(back) else 0
        self.tokens, self.first = self.tokens[(first - self.first) * self.tokens_per_block :], first


@dataclass
class Chunk:
    """Output of one step of a stream: final mel [T, F] and audio [N].

    Both are empty if the stream needs more tokens; with an exact vocoder audio follows later than its mel.
    """

    mel: Tensor
    wave: Tensor
