"""Layouts are data: pictures, fields, latencies, presets, and what is refused."""

import math
from pathlib import Path

import pytest
import yaml

from sf_lightning.model.layout import Layout, Span

PRESETS = Path(__file__).parents[2] / "experiments" / "layouts"


def preset(name: str, **change: int) -> Layout:
    """A preset as a config would build it."""
    return Layout(**(yaml.safe_load((PRESETS / f"{name}.yaml").read_text()) | change))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("streamflow_sr", (2, 1)),
        ("streamflow_lr", (4, 1)),
        ("sr_low", (3, 1)),
        ("backward_only", (2, 0)),
        ("block_only", (0, 0)),
        ("chunk_causal", (math.inf, 0)),
        ("full", (math.inf, math.inf)),
    ],
)
@pytest.mark.parametrize("depth", [22, 8])
def test_a_preset_has_the_same_field_at_any_depth(name: str, field: tuple, depth: int) -> None:
    layout = preset(name, num_layers=depth)
    assert (layout.field.back, layout.field.ahead) == field
    assert len(layout.spans) == depth


def test_the_public_layout_looks_back_in_0_and_20_and_ahead_in_10() -> None:
    spans = preset("streamflow_sr").spans
    assert {i: span for i, span in enumerate(spans) if span != Span(0, 0)} == {
        0: Span(1, 0),
        10: Span(0, 1),
        20: Span(1, 0),
    }


def test_a_layer_may_look_both_ways() -> None:
    assert preset("sr_low").spans[0] == Span(1, 1)


def test_pictures_are_the_masks() -> None:
    layout = Layout(num_layers=3, block_size=24, backward=(0,), forward=(2,))
    assert layout.picture(3).splitlines() == [
        "layer 0: back 1, ahead 0",
        "  1 0 0",
        "  1 1 0",
        "  0 1 1",
        "layer 1: back 0, ahead 0",
        "  1 0 0",
        "  0 1 0",
        "  0 0 1",
        "layer 2: back 0, ahead 1",
        "  1 1 0",
        "  0 1 1",
        "  0 0 1",
        "field: back 1, ahead 1",
    ]


def test_latency_and_cost_follow_from_the_field() -> None:
    layout = Layout()
    assert layout.wait_ms() == 480  # its own block and the one ahead
    assert layout.wait_ms(chunk=2, lookahead=0) == 480
    assert layout.window_blocks() == 4
    assert math.isinf(preset("chunk_causal").window_blocks())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"backward": (0, 22)},
            "layout.backward names layer 22, which does not exist: the layers are 0 to 21",
        ),
        ({"forward": (-1,)}, "layout.forward names layer -1"),
        ({"backward": (3, 3)}, "one of them twice"),
        ({"num_layers": 2, "drawn_for": 22, "backward": (0, 3, 20)}, "one of them twice"),
        ({"unbounded": "past"}, "set layout.backward and layout.forward to"),
        ({"block_size": 0}, "block_size 0"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Layout(**change)
