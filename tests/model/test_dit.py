"""The network on a list of blocks: receptive fields, padding, and equality with dense attention masks."""

import dataclasses
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from benchmarks.blocks import dense_masks
from sf_lightning.model import dit as dit_module
from sf_lightning.model.attention import block_mask
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.dit import DiT
from sf_lightning.model.layout import Layout, Span
from tests.toys.networks import SMALL_DIT, small_dit, small_model

LAYOUTS = {
    "sr": Layout(5, 24, (0, 3), (2,)),
    "both ways": Layout(4, 12, (0, 2), (0,)),
    "ahead only": Layout(3, 8, (), (0, 1)),
    "block": Layout(2, 24, (), ()),
    "past": Layout(3, 24, (), (), "past"),
    "all": Layout(3, 24, (), (), "all"),
}


def inputs(blocks: Blocks, seed: int = 0) -> dict[str, Tensor]:
    """Returns random inputs for a list of blocks."""
    random = torch.Generator().manual_seed(seed)
    count, size, users = len(blocks), blocks.block_size, blocks.num_utterances
    return {
        "x": torch.randn(count, size, SMALL_DIT.num_bands, generator=random),
        "t": torch.rand(users, generator=random),
        "tokens": torch.randint(0, SMALL_DIT.vocabulary, (count, size // 4), generator=random),
        "speaker": torch.randn(users, SMALL_DIT.speaker_width, generator=random),
    }


def run(dit: DiT, blocks: Blocks, x: Tensor, t: Tensor, tokens: Tensor, speaker: Tensor) -> Tensor:
    """Returns the velocity with no condition dropped."""
    kept = torch.zeros(blocks.num_utterances, dtype=torch.bool)
    return dit(x, t, dit.condition(tokens, speaker, blocks, kept), blocks)


@pytest.mark.parametrize("name", LAYOUTS)
@torch.inference_mode()
def test_a_changed_token_changes_exactly_the_blocks_that_have_it_in_their_receptive_field(name: str) -> None:
    layout = LAYOUTS[name]
    dit = small_dit(layout)
    blocks = Blocks.from_lengths([9 * layout.block_size], layout.block_size)
    given = inputs(blocks)
    before = run(dit, blocks, **given)
    assert before.abs().mean() > 0.1  # an output of zeros would pass the checks below
    given["tokens"] = given["tokens"].clone()
    given["tokens"][4, 1] = (given["tokens"][4, 1] + 1) % SMALL_DIT.vocabulary
    changed = (run(dit, blocks, **given) - before).abs().amax((1, 2)) > 0
    expected = [layout.field.includes(4 - block) for block in range(9)]
    assert changed.tolist() == expected


@pytest.mark.parametrize("name", LAYOUTS)
@torch.inference_mode()
def test_padding_and_other_utterances_of_a_pack_have_no_effect(name: str) -> None:
    layout = LAYOUTS[name]
    size = layout.block_size
    dit = small_dit(layout)
    lengths = [2 * size + 4, 3 * size, size - 4, 4]  # partial last blocks, whole ones, less than a block
    packed = Blocks.from_lengths(lengths, size)
    given = inputs(packed)
    together = run(dit, packed, **given)
    garbage = {
        **given,
        "x": torch.where(packed.valid[..., None], given["x"], 99.0),
        "tokens": torch.where(packed.valid.unflatten(1, (-1, 4))[..., 0], given["tokens"], 7),
    }
    assert torch.equal(run(dit, packed, **garbage)[packed.valid], together[packed.valid])
    assert together.isfinite().all()
    for number, length in enumerate(lengths):
        mine = packed.utterance == number
        alone = Blocks.from_lengths([length], size)
        own = {name: value[mine] for name, value in given.items() if name in ("x", "tokens")}
        own |= {name: given[name][number : number + 1] for name in ("t", "speaker")}
        difference = (run(dit, alone, **own) - together[mine])[alone.valid].abs().max()
        assert difference < 1e-5


@torch.inference_mode()
def test_empty_blocks_have_no_effect() -> None:
    real = Blocks.from_lengths([60], 24)
    given = inputs(real)
    # With three empty blocks after it, numbered as in a pack: utterance 0, position 0.
    padded = Blocks(
        torch.cat([real.utterance, torch.zeros(3, dtype=torch.long)]),
        torch.cat([real.position, torch.zeros(3, dtype=torch.long)]),
        torch.cat([real.valid, torch.zeros(3, 24, dtype=torch.bool)]),
        1,
        6,
    )
    more = {name: torch.cat([given[name], 5 * torch.ones_like(given[name])]) for name in ("x", "tokens")}
    for layout in (LAYOUTS["sr"], LAYOUTS["all"]):
        dit = small_dit(layout)
        longer = run(dit, padded, more["x"], given["t"], more["tokens"], given["speaker"])
        assert longer.isfinite().all()
        torch.testing.assert_close(longer[:3][real.valid], run(dit, real, **given)[real.valid], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.bounded])
def test_block_masks_give_the_velocity_and_gradients_of_dense_masks(name: str) -> None:
    layout = LAYOUTS[name]
    blocks = Blocks.from_lengths([3 * layout.block_size + 4, 2 * layout.block_size], layout.block_size)
    given = inputs(blocks)
    results = []
    for dense in (False, True):
        dit = small_dit(layout)
        with dense_masks() if dense else nullcontext():
            y = run(dit, blocks, **given)[blocks.valid]
        y.square().sum().backward()
        results.append((y.detach(), {n: p.grad for n, p in dit.named_parameters() if p.grad is not None}))
    (y, gradients), (y_dense, gradients_dense) = results
    assert y.abs().mean() > 0.1
    torch.testing.assert_close(y, y_dense, atol=1e-5, rtol=1e-5)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients_dense[key], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["past", "all"])
def test_unbounded_layouts_give_the_same_velocity_on_packs_as_on_utterances(name: str) -> None:
    layout = LAYOUTS[name]
    size = layout.block_size
    # Two packs of six blocks: three utterances and an empty block, and one utterance.
    first, second = Blocks.from_lengths([2 * size, size + 4, 20], size), Blocks.from_lengths([6 * size], size)
    empty = Blocks(
        torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), first.valid[:1] & False, 3, 6
    )
    packs = []
    for blocks in (first, second):
        missing = 6 - len(blocks)
        parts = [blocks, *[empty] * missing]
        fields = ([getattr(part, field) for part in parts] for field in ("utterance", "position", "valid"))
        packs.append(Blocks(*map(torch.cat, fields), blocks.num_utterances, 6, packed=True))
    packed = Blocks.cat(packs)
    assert packed.packed and len(packed) == 12
    given, dit = inputs(packed), small_dit(layout)
    y = run(dit, packed, **given)
    expected = run(dit, dataclasses.replace(packed, packed=False), **given)
    assert y.isfinite().all() and y[packed.valid].abs().mean() > 0.1
    torch.testing.assert_close(y[packed.valid], expected[packed.valid], atol=1e-5, rtol=0)


def test_bf16_autocast_on_a_cpu_is_close_to_fp32() -> None:
    layout = LAYOUTS["sr"]
    dit = small_dit(layout)
    blocks = Blocks.from_lengths([60, 40], 24)
    given = inputs(blocks)
    exact = run(dit, blocks, **given)
    with torch.autocast("cpu", torch.bfloat16):
        rough = run(dit, blocks, **given)
    assert (exact - rough).abs().max() < 0.05 * exact.abs().max()


def test_an_untrained_network_outputs_zero() -> None:
    layout = LAYOUTS["sr"]
    blocks = Blocks.from_lengths([48], 24)
    assert (run(DiT(SMALL_DIT, layout), blocks, **inputs(blocks)) == 0).all()


@torch.inference_mode()
def test_the_null_condition_equals_no_code_and_does_not_depend_on_the_speaker() -> None:
    model = small_model(LAYOUTS["sr"])
    blocks = Blocks.from_lengths([48], 24)
    given = inputs(blocks)
    yes, no = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    null = model.condition(given["tokens"], given["speaker"], blocks, yes, yes)
    assert torch.equal(null, model.condition(given["tokens"] * 0, given["speaker"] * 0, blocks, yes, yes))
    assert torch.equal(null, model.null_condition(blocks))
    for code in range(SMALL_DIT.vocabulary):
        real = model.condition(torch.full_like(given["tokens"], code), given["speaker"], blocks, yes, no)
        assert not torch.allclose(real, null)


def test_neighboring_blocks_belong_to_the_same_utterance() -> None:
    blocks = Blocks.from_lengths([48, 24, 30], 24)
    assert blocks.has_neighbor(-1).tolist() == [False, True, False, False, True]
    assert blocks.has_neighbor(1).tolist() == [True, False, False, True, False]
    assert block_mask(Span(1, 0), blocks, 8).mask[4, 0, 0].int().tolist() == [1] * 24 + [1] * 6 + [0] * 18


def test_a_block_size_that_is_no_multiple_of_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"block_size is 26: expected a multiple of the 4 frames of a token"):
        DiT(SMALL_DIT, Layout(2, 26, (), ()))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dit.width 32 over dit.num_heads 3"):
        dataclasses.replace(SMALL_DIT, num_heads=3)


@pytest.mark.parametrize("name", ["sr", "block"])
def test_long_lists_processed_in_slices_give_the_same_velocity_and_gradients(name: str) -> None:
    layout = LAYOUTS[name]
    blocks = Blocks.from_lengths([60 * 24 - 4, 20, 50 * 24], 24)
    assert len(blocks) > 2 * dit_module.BLOCKS_AT_ONCE
    given = inputs(blocks)
    results = []
    for at_once, recompute in ((dit_module.BLOCKS_AT_ONCE, False), (10_000, False), (7, True)):
        network = small_dit(layout)
        network.recompute = recompute
        with patch.object(dit_module, "BLOCKS_AT_ONCE", at_once):
            y = run(network, blocks, **given)[blocks.valid]
        y.square().mean().backward()
        results.append((y.detach(), {n: p.grad for n, p in network.named_parameters()}))
    (y, gradients), *others = results
    assert y.abs().mean() > 0.1
    for y_other, gradients_other in others:
        torch.testing.assert_close(y_other, y, atol=1e-5, rtol=0)
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradients_other[key], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("frames", [4, 20, 24, 28, 180_000])
@torch.inference_mode()
def test_any_length_from_a_token_to_half_an_hour_gives_a_finite_velocity(frames: int) -> None:
    dit = small_dit(LAYOUTS["sr"])
    blocks = Blocks.from_lengths([frames], 24)
    given = inputs(blocks)
    y = run(dit, blocks, **given)[blocks.valid]
    assert y.shape == (frames, 80) and y.isfinite().all()
    # The last frames equal those of a short utterance: the velocity does not depend on the length of the past.
    start = max(0, len(blocks) - 6)
    short = Blocks.from_lengths([frames - 24 * start], 24)
    own = given | {"x": given["x"][start:], "tokens": given["tokens"][start:]}
    last = run(dit, short, **own)[short.valid]
    torch.testing.assert_close(y[-min(frames, 24) :], last[-min(frames, 24) :], atol=1e-5, rtol=0)
