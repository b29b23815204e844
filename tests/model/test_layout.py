"""Layouts are data: pictures, fields, latencies, presets, and what is refused."""

import math
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    ("given", "backward", "forward"),
    [
        ({"backward": 2, "forward": 1}, (0, 20), (10,)),  # streamflow_sr
        ({"backward": 4, "forward": 1}, (0, 7, 14, 20), (10,)),  # streamflow_lr
        ({"backward": 3, "forward": 0}, (0, 10, 20), ()),
        ({"backward": 0, "forward": 2}, (), (7, 14)),
        ({"backward": 3, "forward": 1, "placement": "early"}, (0, 1, 2), (0,)),
        ({"backward": 2, "forward": 2, "placement": "late"}, (20, 21), (20, 21)),
        ({"backward": (3,), "forward": 1, "placement": "late"}, (3,), (21,)),
        ({"backward": 2, "forward": 1, "num_layers": 8}, (0, 6), (3,)),
        ({"backward": 21, "forward": 20}, tuple(range(21)), tuple(range(1, 21))),
    ],
)
def test_numbers_of_layers_become_layers_where_placement_says(
    given: dict[str, Any], backward: tuple[int, ...], forward: tuple[int, ...]
) -> None:
    layout = Layout(**given)
    assert (layout.backward, layout.forward) == (backward, forward)
    assert (layout.field.back, layout.field.ahead) == (len(backward), len(forward))
    named = {name: value for name, value in given.items() if name != "placement"}
    assert layout == Layout(**{**named, "backward": backward, "forward": forward})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backward": 22}, "layout.backward is 22 layers: wanted 0 to 21 of 22"),
        ({"forward": 21}, "layout.forward is 21 layers: wanted 0 to 20 of 22"),
        ({"backward": -1}, "layout.backward is -1 layers: wanted 0 to 21"),
        ({"forward": 23, "placement": "late"}, "layout.forward is 23 layers: wanted 0 to 22"),
        ({"placement": "late"}, "layout.placement is 'late', but the layers are named"),
        ({"backward": 1, "forward": 0, "unbounded": "past"}, "every layer has the same span"),
    ],
)
def test_a_number_of_layers_that_cannot_be_placed_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Layout(**given)
