"""FLOPs of a forward pass, in closed form and as counted by torch."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sf_lightning.model.blocks import Blocks
from sf_lightning.model.dit import DiT, DiTConfig
from sf_lightning.model.flops import flops_per_frame
from sf_lightning.model.layout import Layout
from tests.toys.networks import SMALL_DIT


def on_meta(config: DiTConfig, layout: Layout) -> DiT:
    """Returns a network on the meta device, which takes no memory."""
    with torch.device("meta"):
        return DiT(config, layout)


def test_flops_per_frame_of_the_paper_s_network_in_closed_form() -> None:
    width, layers, keys = 1024, 22, 24 * (19 + 3 * 2)  # three of the layers attend to two blocks
    in_and_out = 80 + (512 + 192) + 80
    matrices = 2 * (in_and_out * width + layers * (3 + 1 + 2 + 2) * width**2)
    assert flops_per_frame(on_meta(DiTConfig(), Layout())) == matrices + 4 * width * keys


@pytest.mark.parametrize("unbounded", ["no", "all"])
def test_flops_equal_the_count_of_torch_without_the_time_embedding(unbounded: str) -> None:
    near = {"backward": (0, 2), "forward": (2,)} if unbounded == "no" else {"backward": (), "forward": ()}
    dit = on_meta(SMALL_DIT, Layout(4, 8, unbounded=unbounded, **near))  # type: ignore[arg-type]
    # With whole utterances of one length, dense attention computes no padding.
    blocks, utterances = Blocks.from_lengths([32, 32], 8).to("meta"), 2
    tokens = torch.zeros(len(blocks), 2, dtype=torch.long, device="meta")
    none = torch.zeros(utterances, dtype=torch.bool, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        condition = dit.condition(tokens, torch.zeros(utterances, 8, device="meta"), blocks, none)
        dit(torch.zeros(len(blocks), 8, 80, device="meta"), none.float(), condition, blocks)
    linears = [
        layer for part in (dit.time, dit.modulations) for layer in part.modules() if isinstance(layer, nn.Linear)
    ]
    time_flops = 2 * utterances * sum(layer.weight.numel() for layer in linears)
    assert counter.get_total_flops() == blocks.valid.numel() * flops_per_frame(dit, blocks.longest) + time_flops


def test_flops_of_an_unbounded_layout_grow_with_the_longest_utterance_which_is_required() -> None:
    dit = on_meta(SMALL_DIT, Layout(4, 8, (), (), "past"))
    more = flops_per_frame(dit, longest=5) - flops_per_frame(dit, longest=3)
    assert more == 4 * SMALL_DIT.width * 4 * 8 * 2 and math.isfinite(more)
    with pytest.raises(ValueError, match="give `longest`, the blocks of the longest utterance"):
        flops_per_frame(dit)
