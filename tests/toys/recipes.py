"""Readers of the recipes under `experiments/`."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from omegaconf import OmegaConf

from sf_lightning.cli.configs import expand_configs
from sf_lightning.data.segments import SegmentConfig
from sf_lightning.files.records import from_plain
from sf_lightning.training.vocoder_module import VocoderModule
from sf_lightning.vocoder.generator import GeneratorConfig


def recipe_config(repository: Path, *names: str) -> Any:
    """Returns the merged config of a recipe, its bases and its overlays."""
    paths = [repository / "experiments" / f"{name}.yaml" for name in names]
    args = expand_configs([f"--config={path}" for path in paths])
    return OmegaConf.merge(*(OmegaConf.load(arg.removeprefix("--config=")) for arg in args))


def vocoder_sizes(config: Any) -> tuple[GeneratorConfig, SegmentConfig]:
    """Returns the generator and segment settings of a vocoder recipe."""
    parser = ArgumentParser()
    parser.add_class_arguments(VocoderModule, "model")
    given = parser.parse_object({"model": OmegaConf.to_container(config.model)}).as_dict()["model"]
    return (
        from_plain(GeneratorConfig, given["generator"], "generator"),
        from_plain(SegmentConfig, given["segments"], "segments"),
    )
