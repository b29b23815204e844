"""Mask layouts as data: which blocks each layer attends to, drawn, counted and checked. Independent of tensors.

A layer is one of three kinds (StreamFlow, arXiv 2506.23986): *Block* attends to its own block, *Backward* to its
own and the previous one, *Forward* to its own and the next one; a layer may be both. With p Backward and q Forward
layers the receptive field of the stack is p + q + 1 blocks. Two baselines are unbounded: *past* (own block and all
earlier ones, in every layer) and *all* (everything, in every layer).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sf_lightning.files.records import from_plain
from sf_lightning.files.yaml_files import read_yaml

PRESETS = Path(__file__).parent / "layouts"
"""Directory of the named layouts, one YAML file each."""

MAX_LAYERS, MAX_BLOCK_SIZE = 1000, 10_000
"""Largest accepted sizes, so that a file cannot demand more than a machine has."""


@dataclass(frozen=True)
class Span:
    """Number of blocks back and ahead; `math.inf` where there is no bound."""

    back: float
    ahead: float

    @property
    def bounded(self) -> bool:
        """Whether the span ends on both sides."""
        return math.isfinite(self.back) and math.isfinite(self.ahead)

    @property
    def offsets(self) -> range:
        """Offsets of the blocks of a bounded span, from the earliest to the latest; the own block is 0."""
        return range(-int(self.back), int(self.ahead) + 1)

    def includes(self, offset: int) -> bool:
        """Returns whether the block `offset` blocks away (negative: earlier) is in the span."""
        return -self.back <= offset <= self.ahead


@dataclass(frozen=True)
class Layout:
    """Spans of all layers.

    Args:
        num_layers: Layers of the network.
        block_size: Frames of a block; a multiple of the frames of a token.
        backward: Layers that also attend to the previous block, counted from 0; or their number, p.
        forward: Layers that also attend to the next block, counted from 0; or their number, q.
        placement: Position of layers that are given by number: "spread" over the whole depth, the default ((2, 1)
            is streamflow_sr, (4, 1) streamflow_lr, (3, 0) the backward layers of sr_low), "early", the first
            layers, or "late", the last ones.
        unbounded: Baselines, for every layer: "past" (own and all earlier blocks), "all" (everything), or
            "no" for a block-wise layout.
        drawn_for: Depth for which the layers of `backward` and `forward` are listed, if it is not `num_layers`:
            they are scaled from it, so that one preset serves networks of any depth.

    Numbers are replaced by the layers that they mean, so that equal layouts compare equal.

    Raises:
        ValueError: if a layer does not exist, is listed twice, or a baseline lists layers.

    >>> Layout(backward=4, forward=1) == Layout(backward=(0, 7, 14, 20), forward=(10,))
    True
    >>> Layout.preset("streamflow_lr").forward
    (10,)
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
        depth = self.drawn_for or self.num_layers
        if not (1 <= self.num_layers <= MAX_LAYERS and 1 <= depth <= MAX_LAYERS):
            raise ValueError(
                f"layout has num_layers {self.num_layers}, drawn_for {self.drawn_for}: expected 1 to {MAX_LAYERS}"
            )
        if not 1 <= self.block_size <= MAX_BLOCK_SIZE:
            raise ValueError(f"layout.block_size is {self.block_size} frames: expected 1 to {MAX_BLOCK_SIZE}")
        self._place_layers(depth)
        for name in ("backward", "forward"):
            layers = getattr(self, name)
            if wrong := [layer for layer in layers if not 0 <= layer < depth]:
                raise ValueError(
                    f"layout.{name} lists layer {wrong[0]}: expected layers 0 to {depth - 1} "
                    f"(layout.drawn_for or layout.num_layers is {depth})"
                )
            if len(set(self._scaled(layers))) < len(layers):
                raise ValueError(
                    f"layout.{name} {list(layers)} falls on layers {list(self._scaled(layers))} of "
                    f"{self.num_layers}, one of them twice: list fewer layers or raise layout.num_layers"
                )
        if self.unbounded != "no" and (self.backward or self.forward):
            raise ValueError(
                f"layout.unbounded is {self.unbounded!r}, so every layer has the same span: "
                "set layout.backward and layout.forward to []"
            )

    @staticmethod
    def presets() -> dict[str, Path]:
        """Returns the files of the named layouts that come with the package, by name."""
        return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}

    @classmethod
    def preset(cls, name: str, num_layers: int = 22, block_size: int = 24) -> "Layout":
        """Returns a named layout for a network of `num_layers` layers and blocks of `block_size` frames.

        Raises:
            FileNotFoundError: if there is no preset of that name; the error lists the names.

        >>> Layout.preset("streamflow_sr", num_layers=8).field
        Span(back=2, ahead=1)
        """
        if name not in cls.presets():
            raise FileNotFoundError(f"layout {name!r}: expected {', '.join(cls.presets())}")
        return cls.read(name, num_layers=num_layers, block_size=block_size)

    @classmethod
    def file(cls, name: str) -> Path:
        """Returns the YAML file of a layout that is given as a path or as the name of a preset; a file comes first.

        Raises:
            FileNotFoundError: if there is neither; the error lists the presets.
        """
        path = Path(name) if Path(name).is_file() else cls.presets().get(name)
        if path is None:
            raise FileNotFoundError(f"layout {name!r}: expected {', '.join(cls.presets())} or a YAML file")
        return path

    @classmethod
    def read(cls, name: str, **defaults: int) -> "Layout":
        """Returns the layout of a YAML file or a preset.

        Args:
            name: Path of the file, or name of the preset.
            defaults: Fields that apply where the file does not set them, such as `num_layers`.

        Raises:
            FileNotFoundError: as `file`.
            ValueError: if the file does not describe a layout.
        """
        path = cls.file(name)
        values: Any = read_yaml(path)
        try:
            return from_plain(cls, defaults | values if isinstance(values, dict) else values, "layout")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _place_layers(self, depth: int) -> None:
        """Replaces numbers of layers by the layers."""
        given = {name: getattr(self, name) for name in ("backward", "forward")}
        if self.placement is not None and not any(isinstance(layers, int) for layers in given.values()):
            raise ValueError(
                f"layout.placement is {self.placement!r}, but the layers are listed: give layout.backward or "
                "layout.forward as a number of layers, or leave layout.placement out"
            )
        for name, layers in given.items():
            if isinstance(layers, int):
                free = 0 if self.placement in ("early", "late") else 1 + (name == "forward")
                most = max(1, depth - free)
                if not 0 <= layers <= most:
                    raise ValueError(f"layout.{name} is {layers} layers: expected 0 to {most} of {depth}")
                layers = _layers_at(layers, depth, self.placement or "spread", ahead=name == "forward")
            object.__setattr__(self, name, tuple(layers))
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
        """Receptive field of the whole stack in one evaluation: p blocks back, q ahead, p + q + 1 in all."""
        return Span(sum(span.back for span in self.spans), sum(span.ahead for span in self.spans))

    @property
    def bounded(self) -> bool:
        """Whether the receptive field is finite, and with it the cost of a chunk."""
        return self.field.bounded

    @property
    def lookahead(self) -> int:
        """Default look-ahead of decoding in blocks: q, or 1 where the layout looks ahead without bound."""
        return int(self.field.ahead) if math.isfinite(self.field.ahead) else 1

    def wait_blocks(self, chunk: int = 1, lookahead: int | None = None) -> int:
        """Returns the number of blocks whose tokens must have arrived before the first chunk is emitted."""
        return chunk + (self.lookahead if lookahead is None else lookahead)

    def wait_ms(self, chunk: int = 1, lookahead: int | None = None, frame_rate: float = 100.0) -> float:
        """Returns the algorithmic latency: the duration of `wait_blocks` in milliseconds of speech."""
        return 1000 * self.wait_blocks(chunk, lookahead) * self.block_size / frame_rate

    def window_blocks(self, chunk: int = 1, lookahead: int | None = None) -> float:
        """Returns the number of blocks that one evaluation of a window computes; infinite for the baselines."""
        return self.field.back + self.wait_blocks(chunk, lookahead)

    def picture(self, num_blocks: int = 6) -> str:
        """Returns the 0/1 mask of each kind of layer, rows attending to columns, and the layers that have it.

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
            lines.append(f"{_layers_text(layers)}: {_span_text(span)}")
            for row in range(num_blocks):
                cells = (str(int(span.includes(column - row))) for column in range(num_blocks))
                lines.append("  " + " ".join(cells))
        return "\n".join([*lines, f"field: {_span_text(self.field)}"])


def _layers_at(count: int, depth: int, placement: str, ahead: bool) -> range | list[int]:
    """Returns which layers of `depth` look back, or ahead, if `count` of them do.

    With "spread", the layers that look back run from the first to the last but one, as in the public layout, and
    those that look ahead are between them.
    """
    if placement == "early":
        return range(count)
    if placement == "late":
        return range(depth - count, depth)
    gaps = count + 1 if ahead else max(1, count - 1)
    return [-(-(i + ahead) * (depth - 2) // gaps) for i in range(count)]


def _span_text(span: Span) -> str:
    back, ahead = ("all" if math.isinf(n) else f"{n:.0f}" for n in (span.back, span.ahead))
    return f"back {back}, ahead {ahead}"


def _layers_text(layers: list[int]) -> str:
    """Returns a short list of layers: "layers 1-3, 7" for [1, 2, 3, 7]."""
    groups: list[list[int]] = []
    for layer in layers:
        if groups and groups[-1][-1] == layer - 1:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    names = [str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in groups]
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(names)
