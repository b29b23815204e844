"""Generators on disk: exported folders, the `bigvgan` package's own folders, checkpoints of `sf-fit`.

vocoder/
  bigvgan_generator.safetensors   the weights, under the package's names, in float32
  config.json                     the package's hyperparameters
  README.md                       the model card

`bigvgan.py` computes waves with them.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.atomic import atomic_folder
from sf_lightning.files.foreign import require_regular
from sf_lightning.files.identify import BIGVGAN_WEIGHTS, VOCODER_CONFIG, VOCODER_WEIGHTS, Kind, require_kind
from sf_lightning.files.records import from_plain
from sf_lightning.files.safetensors_files import read_safetensors, save_safetensors
from sf_lightning.files.torch_files import read_torch
from sf_lightning.model.checkpoint import read_checkpoint
from sf_lightning.model.pretrained import CARD, WeightsOrigin
from sf_lightning.vocoder.generator import GeneratorConfig

PREFIX = "generator."
"""Prefix of the names of weights in `BigVGANVocoder`, which holds the package's generator."""


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters that the package requires; its first version has no `use_...`."""

    resblock: Literal["1", "2"]
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    upsample_initial_channel: int
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    activation: Literal["snake", "snakebeta"]
    snake_logscale: bool
    sampling_rate: int
    n_fft: int
    num_mels: int
    hop_size: int
    win_size: int
    fmin: float
    fmax: float | None
    use_tanh_at_final: bool = True
    use_bias_at_final: bool = True


@dataclass(frozen=True)
class TrainedVocoder:
    """A trained vocoder.

    Attributes:
        weights: State dict of the generator, under the package's names.
        generator: Its sizes.
        mel: The mel that it was trained on.
        origin: Where the weights come from.
    """

    weights: dict[str, Tensor]
    generator: GeneratorConfig
    mel: MelConfig
    origin: WeightsOrigin


def read_vocoder_checkpoint(path: Path, average: bool = True) -> TrainedVocoder:
    """Reads the averaged or the raw weights of the vocoder in a checkpoint of `sf-fit`, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a checkpoint of a vocoder, damaged, or of a newer format.
    """
    require_kind(path, Kind.VOCODER_CHECKPOINT)
    weights, options, _, origin = read_checkpoint(path, average)
    try:
        if "mel" not in options:
            raise ValueError("its hyperparameters have no mel")
        generator = from_plain(GeneratorConfig, options["generator"], "generator")
        mel = from_plain(MelConfig, options["mel"], "mel")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    weights = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
    return TrainedVocoder(weights, generator, mel, origin)


def read_generator(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Reads a generator, in whatever form it was saved.

    Args:
        path: A folder that `save_vocoder` or the `bigvgan` package wrote, or the weights in it; or a checkpoint of
            `sf-fit`, of which the averaged weights are read.

    Returns:
        The package's hyperparameters; the state dict, under the package's names; where the weights come from, in
        words.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: with the file's name, if one is damaged, or is not a generator.
    """
    if require_kind(path, Kind.VOCODER_CHECKPOINT, Kind.BIGVGAN) is Kind.VOCODER_CHECKPOINT:
        trained = read_vocoder_checkpoint(path)
        return trained.generator.hyperparameters(trained.mel), trained.weights, str(trained.origin)
    weights = path
    if path.is_dir():
        weights = path / (BIGVGAN_WEIGHTS if (path / BIGVGAN_WEIGHTS).is_file() else VOCODER_WEIGHTS)
    config = weights.with_name(VOCODER_CONFIG)
    if not config.is_file():
        raise FileNotFoundError(f"{config} is missing: expected the hyperparameters of {weights.name} there")
    return _read_config(config), *_read_weights(weights)


def _read_config(path: Path) -> dict[str, Any]:
    """Returns the package's hyperparameters, with everything that `BigVGAN` requires."""
    require_regular(path)
    try:
        h = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(h, dict):
            raise ValueError(f"it holds a {type(h).__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON of hyperparameters ({error!s:.200})") from error
    names = {field.name for field in fields(Hyperparameters)}
    try:
        from_plain(Hyperparameters, {name: h[name] for name in names & h.keys()}, "hyperparameters")
    except ValueError as error:
        raise ValueError(f"{path}: {error}: expected the config.json of a BigVGAN") from error
    return h


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Returns the state dict, and where it comes from, in words."""
    if path.suffix != ".safetensors":
        weights = read_torch(path)["generator"]
        if not isinstance(weights, dict):
            raise ValueError(f"{path} has no state dict under generator")
        return weights, f"the generator of {path.name}"
    weights, metadata = read_safetensors(path)
    return weights, _origin_in(metadata)


def _origin_in(metadata: dict[str, str]) -> str:
    """Returns where weights come from, in words, from the metadata that `save_vocoder` wrote."""
    step, averaged = metadata.get("step", ""), metadata.get("averaged")
    if not step.isdecimal() or averaged is None:
        return "a generator of unknown training"
    return str(WeightsOrigin(int(step), averaged == "true", metadata.get("begun_with")))


def save_vocoder(folder: Path, trained: TrainedVocoder, card: str) -> None:
    """Writes a vocoder's folder with its card (Markdown), whole or not at all; `from_checkpoint` reads it.

    Raises:
        FileExistsError: if the folder exists.
    """
    h, origin = trained.generator.hyperparameters(trained.mel), trained.origin
    metadata = {"step": str(origin.step), "averaged": str(origin.averaged).lower()}
    if origin.begun_with is not None:
        metadata["begun_with"] = origin.begun_with
    with atomic_folder(folder) as inner:
        weights = {name: value.float() for name, value in trained.weights.items()}
        save_safetensors(inner / VOCODER_WEIGHTS, weights, metadata)
        (inner / VOCODER_CONFIG).write_text(json.dumps(h, indent=4) + "\n", encoding="utf-8")
        (inner / CARD).write_text(card, encoding="utf-8")
