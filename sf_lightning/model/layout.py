"""Mask layouts as data: how far each layer may look, drawn, counted and checked. Knows nothing of tensors.

A layer is one of three kinds (StreamFlow, arXiv 2506.23986): *Block* sees its own block, *Backward* its own
and the previous one, *Forward* its own and the next one; a layer may be both. With p Backward and q Forward
layers a stack sees a field of p + q + 1 blocks. Two baselines leave the blocks: *past* (own block and all
earlier ones, in every layer) and *all* (everything, in every layer).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal


@dataclass(frozen=True)
class Span:
    """How many blocks back and ahead; `math.inf` where there is no bound."""

    back: float
    ahead: float

    @property
    def bounded(self) -> bool:
        """Whether the span ends on both sides."""
        return math.isfinite(self.back) and math.isfinite(self.ahead)

    @property
    def offsets(self) -> range:
        """The neighbours of a bounded span, from the earliest to the latest, the own block being 0."""
        return range(-int(self.back), int(self.ahead) + 1)

    def sees(self, offset: int) -> bool:
        """Whether the block `offset` blocks away (negative: earlier) lies in the span."""
        return -self.back <= offset <= self.ahead


@dataclass(frozen=True)
class Layout:
    """The spans of all layers.

    Args:
        num_layers: Layers of the network.
        block_size: Frames of a block; a multiple of the frames of a token.
        backward: Layers that also see the previous block, counted from 0; or how many, p.
        forward: Layers that also see the next block, counted from 0; or how many, q.
        placement: Where layers lie of which only the number is given: "spread", over the whole depth, by default
            ((2, 1) is streamflow_sr, (4, 1) streamflow_lr, (3, 0) the backward half of sr_low), "early", the first
            ones, or "late", the last ones.
        unbounded: Baselines, for every layer: "past" (own and all earlier blocks), "all" (everything), or
            "no" for a block-wise layout.
        drawn_for: Depth for which `backward` and `forward` are numbered, if it is not `num_layers`: the
            numbers are scaled from it, so that one preset serves networks of any depth.

    Numbers become the layers that they stand for: a layout is the same however it was said.

    Raises:
        ValueError: if a layer does not exist, is named twice, or a baseline names layers.

    >>> Layout(backward=4, forward=1) == Layout(backward=(0, 7, 14, 20), forward=(10,))
    True
    >>> Layout(num_layers=8, backward=2, forward=1, placement="late").forward
    (7,)
    """

    num_layers: int = 22
    block_size: int = 24
    backward: tuple[int, ...] | int = (0, 20)
    forward: tuple[int, ...] | int = (10,)
    unbounded: Literal["no", "past", "all"] = "no"
    drawn_for: int | None = None
    placement: Literal["spread", "early", "late"] | None = None

    def __post_init__(self) -> None:
        if self.num_layers < 1 or self.block_size < 1:
            raise ValueError(
                f"layout: num_layers {self.num_layers} and block_size {self.block_size} must be at least 1"
            )
        depth = self.drawn_for or self.num_layers
        self._place(depth)
        for name in ("backward", "forward"):
            layers = getattr(self, name)
            if wrong := [layer for layer in layers if not 0 <= layer < depth]:
                raise ValueError(
                    f"layout.{name} names layer {wrong[0]}, which does not exist: "
                    f"the layers are 0 to {depth - 1} (layout.drawn_for or layout.num_layers is {depth})"
                )
            if len(set(self._scaled(layers))) < len(layers):
                raise ValueError(
                    f"layout.{name} {list(layers)} falls on layers {list(self._scaled(layers))} of "
                    f"{self.num_layers}, one of them twice: name fewer layers or raise layout.num_layers"
                )
        if self.unbounded != "no" and (self.backward or self.forward):
            raise ValueError(
                f"layout.unbounded is {self.unbounded!r}, so every layer has the same span: "
                "set layout.backward and layout.forward to []"
            )

    def _place(self, depth: int) -> None:
        """Turns numbers of layers into layers."""
        given = {name: getattr(self, name) for name in ("backward", "forward")}
        if self.placement is not None and not any(isinstance(each, int) for each in given.values()):
            raise ValueError(
                f"layout.placement is {self.placement!r}, but the layers are named: give layout.backward or "
                "layout.forward as a number of layers, or leave layout.placement out"
            )
        for name, each in given.items():
            if isinstance(each, int):
                free = 0 if self.placement in ("early", "late") else 1 + (name == "forward")
                most = max(1, depth - free)
                if not 0 <= each <= most:
                    raise ValueError(f"layout.{name} is {each} layers: wanted 0 to {most} of {depth}")
                each = _placed(each, depth, self.placement or "spread", ahead=name == "forward")
            object.__setattr__(self, name, tuple(each))
        object.__setattr__(self, "placement", None)

    def _scaled(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        # Rounded down, so that the last layer but one stays the last but one in a smaller network.
        if self.drawn_for is None or self.drawn_for == 1:
            return layers
        return tuple(layer * (self.num_layers - 1) // (self.drawn_for - 1) for layer in layers)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """One span per layer, from the first to the last."""
        if self.unbounded != "no":
            return (Span(math.inf, math.inf if self.unbounded == "all" else 0),) * self.num_layers
        assert isinstance(self.backward, tuple) and isinstance(self.forward, tuple)
        backward, forward = self._scaled(self.backward), self._scaled(self.forward)
        return tuple(Span(int(i in backward), int(i in forward)) for i in range(self.num_layers))

    @property
    def field(self) -> Span:
        """What the whole stack sees in one evaluation: p blocks back, q ahead, p + q + 1 in all."""
        return Span(sum(span.back for span in self.spans), sum(span.ahead for span in self.spans))

    @property
    def bounded(self) -> bool:
        """Whether the field is finite, and with it the cost of a chunk."""
        return self.field.bounded

    @property
    def lookahead(self) -> int:
        """A, blocks that a decoder waits for beyond a chunk: q, or one where there is no bound ahead."""
        return int(self.field.ahead) if math.isfinite(self.field.ahead) else 1

    def wait_blocks(self, chunk: int = 1, lookahead: int | None = None) -> int:
        """Blocks of tokens that must have arrived before the first chunk can leave."""
        return chunk + (self.lookahead if lookahead is None else lookahead)

    def wait_ms(self, chunk: int = 1, lookahead: int | None = None, frame_rate: float = 100.0) -> float:
        """The same in milliseconds of speech: the part of the latency that no machine can shorten."""
        return 1000 * self.wait_blocks(chunk, lookahead) * self.block_size / frame_rate

    def window_blocks(self, chunk: int = 1, lookahead: int | None = None) -> float:
        """Blocks that one evaluation computes to emit a chunk from a window; infinite for the baselines."""
        return self.field.back + self.wait_blocks(chunk, lookahead)

    def picture(self, num_blocks: int = 6) -> str:
        """Draws each kind of layer as a 0/1 mask, rows attending to columns, and says which layers have it.

        >>> print(Layout(num_layers=3, backward=(0,), forward=()).picture(3))
        layer 0: back 1, ahead 0
          1 0 0
          1 1 0
          0 1 1
        layers 1-2: back 0, ahead 0
          1 0 0
          0 1 0
          0 0 1
        field: back 1, ahead 0
        """
        lines = []
        for span in dict.fromkeys(self.spans):
            layers = [i for i, other in enumerate(self.spans) if other == span]
            lines.append(f"{_ranges(layers)}: {_words(span)}")
            for row in range(num_blocks):
                cells = (str(int(span.sees(column - row))) for column in range(num_blocks))
                lines.append("  " + " ".join(cells))
        return "\n".join([*lines, f"field: {_words(self.field)}"])


def _placed(count: int, depth: int, placement: str, ahead: bool) -> range | list[int]:
    """Which layers of a depth look back, or ahead, if so many do.

    Spread, those that look back begin with the first and end with the last but one, as in the public layout; those
    that look ahead lie between.
    """
    if placement == "early":
        return range(count)
    if placement == "late":
        return range(depth - count, depth)
    gaps = count + 1 if ahead else max(1, count - 1)
    return [-(-(i + ahead) * (depth - 2) // gaps) for i in range(count)]


def _words(span: Span) -> str:
    back, ahead = ("all" if math.isinf(n) else f"{n:.0f}" for n in (span.back, span.ahead))
    return f"back {back}, ahead {ahead}"


def _ranges(layers: list[int]) -> str:
    """Names layers shortly: [1, 2, 3, 7] is "layers 1-3, 7"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    names = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(names)
