"""Every recipe builds the network that it describes; no GPU, shards or weights are needed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from omegaconf import OmegaConf

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.segments import BLOCK_FRAMES
from sf_lightning.training.module import StreamFlowModule
from sf_lightning.vocoder.bigvgan import BigVGANVocoder
from tests.toys.recipes import recipe_config, vocoder_sizes

RECIPES = {
    "demo": (5.2e6, "2 back, 1 ahead"),
    "streamflow_sr": (332.8e6, "2 back, 1 ahead"),
    "streamflow_lr": (332.8e6, "4 back, 1 ahead"),
    "dit_full": (332.8e6, "all back, all ahead"),
    "qwen": (333.6e6, "2 back, 1 ahead"),
}


VOCODERS = {"vocoder": 115.7e6, "vocoder_base": 13.07e6, "vocoder_small": 1.47e6}


def build_module(repository: Path, *names: str) -> tuple[StreamFlowModule, Any]:
    """Returns the module of a recipe on the meta device, and the merged config."""
    config = recipe_config(repository, *names)
    parser = ArgumentParser()
    parser.add_class_arguments(StreamFlowModule, "model")
    with torch.device("meta"):
        made = parser.instantiate(parser.parse_object({"model": OmegaConf.to_container(config.model)}))
    return made.model, config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_the_network_that_it_names(repository: Path, name: str) -> None:
    count, field = RECIPES[name]
    module, _ = build_module(repository, name)
    parameters = sum(p.numel() for p in module.model.dit.parameters())
    span = module.model.layout.field
    back, ahead = ("all" if n == float("inf") else str(int(n)) for n in (span.back, span.ahead))
    assert f"{back} back, {ahead} ahead" == field
    # The DiT alone; the count of Qwen2.5-Omni token2wav includes its small speaker encoder.
    assert abs(parameters / count - 1) < 0.03


@pytest.mark.parametrize("name", ["streamflow_sr", "streamflow_lr", "dit_full", "qwen"])
def test_one_gpu_has_as_many_packs_per_step_and_validates_as_often(repository: Path, name: str) -> None:
    _, many = build_module(repository, name)
    _, one = build_module(repository, name, "one_gpu")
    world = many.trainer.num_nodes * many.trainer.devices
    assert many.data.lanes % world == 0
    assert one.data.lanes * one.trainer.accumulate_grad_batches == many.data.lanes
    assert one.trainer.num_nodes * one.trainer.devices == 1
    # Lightning counts this interval in batches, not steps.
    assert one.trainer.val_check_interval == many.trainer.val_check_interval * one.trainer.accumulate_grad_batches


def test_every_file_of_experiments_is_tested_or_an_overlay(repository: Path) -> None:
    files = {path.stem for path in (repository / "experiments").glob("*.yaml")}
    assert files == {*RECIPES, *VOCODERS, "one_gpu"}


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vocoder_small", "vocoder_base", pytest.param("vocoder", marks=pytest.mark.slow)])
def test_a_frame_changes_the_audio_of_exactly_the_context_of_a_recipe(repository: Path, name: str) -> None:
    generator, _ = vocoder_sizes(recipe_config(repository, name))
    vocoder = BigVGANVocoder(generator.hyperparameters(MelConfig()), MelConfig()).eval()
    middle = vocoder.right + 4
    mel = torch.zeros(1, 2 * middle + 1, 80)
    mel[:, middle] = torch.nan  # NaN reaches every sample that depends on it
    changed = vocoder.decode(mel)[0].isnan().view(-1, 160).any(1).nonzero()[:, 0]
    assert [int(changed[0]), int(changed[-1])] == [middle - vocoder.left, middle + vocoder.right]


@pytest.mark.parametrize("name", VOCODERS)
def test_a_recipe_builds_the_vocoder_that_it_names_and_its_packs_hold_segments(repository: Path, name: str) -> None:
    config = recipe_config(repository, name)
    assert config.trains == "vocoder"
    generator, segments = vocoder_sizes(config)
    with torch.device("meta"):  # the generator alone: constant-Q transforms cannot be built on the meta device
        model = BigVGANVocoder(generator.hyperparameters(MelConfig()), MelConfig())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(VOCODERS[name], rel=0.01)
    assert config.data.pack_frames >= 2 * (segments.frames + BLOCK_FRAMES)
