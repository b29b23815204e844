"""Layouts: pictures, receptive fields, latencies, presets, and invalid values."""

import math
from pathlib import Path
from typing import Any

import pytest

from sf_lightning.model.layout import Layout, Span


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
    layout = Layout.preset(name, num_layers=depth)
    assert (layout.field.back, layout.field.ahead) == field
    assert len(layout.spans) == depth


def test_the_public_layout_looks_back_in_0_and_20_and_ahead_in_10() -> None:
    spans = Layout.preset("streamflow_sr").spans
    assert {i: span for i, span in enumerate(spans) if span != Span(0, 0)} == {
        0: Span(1, 0),
        10: Span(0, 1),
        20: Span(1, 0),
    }


def test_a_preset_is_read_from_the_package_and_an_unknown_name_lists_the_presets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # not from the working directory
    assert Layout.preset("full", num_layers=4, block_size=12) == Layout(4, 12, (), (), "all")
    names = "backward_only, block_only, chunk_causal, full, sr_low, streamflow_lr, streamflow_sr"
    with pytest.raises(FileNotFoundError, match=f"layout 'fulll': expected {names}"):
        Layout.preset("fulll")
    with pytest.raises(FileNotFoundError, match=f"layout 'fulll': expected {names} or a YAML file"):
        Layout.read("fulll")


def test_a_file_may_set_any_field_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("backward: [1]\nforward: []\nblock_size: 12\n")
    assert Layout.read(str(path), num_layers=8, block_size=24) == Layout(8, 12, (1,), ())
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"mine.yaml: layout is \[1, 2\]"):
        Layout.read(str(path))


def test_a_layer_may_look_back_and_ahead() -> None:
    assert Layout.preset("sr_low").spans[0] == Span(1, 1)


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
    assert math.isinf(Layout.preset("chunk_causal").window_blocks())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"backward": (0, 22)},
            "layout.backward lists layer 22: expected layers 0 to 21",
        ),
        ({"forward": (-1,)}, "layout.forward lists layer -1"),
        ({"backward": (3, 3)}, "one of them twice"),
        ({"num_layers": 2, "drawn_for": 22, "backward": (0, 3, 20)}, "one of them twice"),
        ({"unbounded": "past"}, "set layout.backward and layout.forward to"),
        ({"block_size": 0}, "block_size is 0"),
    ],
)
def test_an_invalid_layout_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
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
def test_numbers_of_layers_are_placed_according_to_placement(
    given: dict[str, Any], backward: tuple[int, ...], forward: tuple[int, ...]
) -> None:
    layout = Layout(**given)
    assert (layout.backward, layout.forward) == (backward, forward)
    assert (layout.field.back, layout.field.ahead) == (len(backward), len(forward))
    named = {name: value for name, value in given.items() if name != "placement"}
    assert layout == Layout(**{**named, "backward": backward, "forward": forward})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backward": 22}, "layout.backward is 22 layers: expected 0 to 21 of 22"),
        ({"forward": 21}, "layout.forward is 21 layers: expected 0 to 20 of 22"),
        ({"backward": -1}, "layout.backward is -1 layers: expected 0 to 21"),
        ({"forward": 23, "placement": "late"}, "layout.forward is 23 layers: expected 0 to 22"),
        ({"placement": "late"}, "layout.placement is 'late', but the layers are listed"),
        ({"backward": 1, "forward": 0, "unbounded": "past"}, "every layer has the same span"),
    ],
)
def test_a_number_of_layers_that_cannot_be_placed_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(**arguments)
