"""Generators on disk: our folders, the `bigvgan` package's own, checkpoints of `sf-fit`.

vocoder/
  bigvgan_generator.safetensors   the weights, under the package's names, in float32
  config.json                     the package's hyperparameters
  README.md                       the model card

Knows nothing of how waves are made of them, see `bigvgan.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bigvgan.bigvgan import load_hparams_from_json
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.atomic import atomic_folder
from sf_lightning.files.formats import CHECKPOINT_FORMAT, require_format
from sf_lightning.files.records import from_plain
from sf_lightning.files.torch_files import read_torch
from sf_lightning.model.pretrained import CARD, WeightsOf
from sf_lightning.vocoder.generator import GeneratorConfig

WEIGHTS = "bigvgan_generator.safetensors"
"""Name of our weights in a folder."""

THEIR_WEIGHTS = "bigvgan_generator.pt"
"""Name of the package's."""

CONFIG = "config.json"
"""Name of the hyperparameters, in both."""

OPTIONAL = {"use_tanh_at_final", "use_bias_at_final"}
"""Hyperparameters that the package's first version does not know."""

KNOWN = {"resblock": ("1", "2"), "activation": ("snake", "snakebeta")}
"""What the package has for each of these."""

PREFIX = "generator."
"""Of the names of weights in `BigVGANVocoder`, which holds the package's generator."""


@dataclass(frozen=True)
class TrainedVocoder:
    """What a checkpoint of `sf-fit` says of a vocoder.

    Attributes:
        weights: The state dict of the generator, under the package's names.
        generator: Its sizes.
        mel: The mel that it was trained on.
        of: Where the weights come from.
    """

    weights: dict[str, Tensor]
    generator: GeneratorConfig
    mel: MelConfig
    of: WeightsOf


class Saved(NamedTuple):
    """A generator, however it was saved.

    Attributes:
        h: The package's hyperparameters.
        weights: The state dict, under the package's names.
        of: Where the weights come from, in words.
    """

    h: dict[str, Any]
    weights: dict[str, Tensor]
    of: str


def is_trained(path: Path) -> bool:
    """Returns whether a file is a checkpoint of `sf-fit`.

    Raises:
        ValueError: if it is a file that cannot be read.
    """
    return path.is_file() and path.suffix != ".safetensors" and "hyper_parameters" in read_torch(path)


def holds_generator(folder: Path) -> bool:
    """Returns whether `sf-export` or the package wrote a vocoder to a folder."""
    return any((folder / name).is_file() for name in (WEIGHTS, THEIR_WEIGHTS))


def is_vocoder(path: Path) -> bool:
    """Returns whether a file is a checkpoint of `sf-fit` that holds a vocoder; what cannot be read is none."""
    try:
        return is_trained(path) and "generator" in read_torch(path)["hyper_parameters"]
    except ValueError:
        return False


def read_trained(path: Path, average: bool = True) -> TrainedVocoder:
    """Reads the vocoder of a checkpoint of `sf-fit`, on the CPU.

    Args:
        path: Of the file.
        average: Whether to take the averaged weights or the raw ones.

    Raises:
        ValueError: if it is no checkpoint of a vocoder, is broken, or of a newer format.
    """
    content = read_torch(path)
    given = content.get("hyper_parameters", {})
    if missing := {"generator", "mel"} - given.keys():
        raise ValueError(f"vocoder: {path} is no checkpoint of a vocoder: it has no {min(missing)}")
    require_format(path, content.get("format"), CHECKPOINT_FORMAT)
    prefix = f"average.{PREFIX}" if average else f"model.{PREFIX}"
    named = content["state_dict"].items()
    weights = {name.removeprefix(prefix): value for name, value in named if name.startswith(prefix)}
    try:
        generator = from_plain(GeneratorConfig, given["generator"], "generator")
        mel = from_plain(MelConfig, given["mel"], "mel")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    of = WeightsOf(content["global_step"], average, content.get("begun_with"))
    return TrainedVocoder(weights, generator, mel, of)


def read_generator(path: Path) -> Saved:
    """Reads a generator, however it was saved.

    Args:
        path: A folder that `save_vocoder` or the package wrote, or the weights in it; or a checkpoint of
            `sf-fit`, of which the averaged weights are taken.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: with the file's name, if one is broken.
    """
    if is_trained(path):
        trained = read_trained(path)
        return Saved(trained.generator.hyperparameters(trained.mel), trained.weights, str(trained.of))
    weights = path
    if path.is_dir():
        weights = path / (THEIR_WEIGHTS if (path / THEIR_WEIGHTS).is_file() else WEIGHTS)
    config = weights.with_name(CONFIG)
    for file in (weights, config):
        if not file.is_file():
            raise FileNotFoundError(
                f"vocoder: {file} is missing: give a checkpoint of sf-fit, the folder of its export, a BigVGAN "
                "checkpoint with its config.json, or the folder of Qwen2.5-Omni"
            )
    return Saved(_read_config(config), *_read_weights(weights))


def _read_config(path: Path) -> dict[str, Any]:
    """The package's hyperparameters, all that `BigVGAN` asks for."""
    try:
        h = dict(load_hparams_from_json(path))
    except (ValueError, TypeError) as error:
        raise ValueError(f"vocoder: {path} is no JSON of hyperparameters ({error})") from error
    wanted = GeneratorConfig().hyperparameters(MelConfig()).keys() - OPTIONAL
    if missing := sorted(wanted - h.keys()):
        raise ValueError(f"vocoder: {path} has no {missing[0]}: wanted the config.json of a BigVGAN")
    for name, known in KNOWN.items():
        if h[name] not in known:
            raise ValueError(f"vocoder: {path} has {name} {h[name]}: wanted {' or '.join(known)}")
    return h


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict, and where it comes from, in words."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, _said_in(file.metadata() or {})
        except SafetensorError as error:
            raise ValueError(f"vocoder: {path} is no whole safetensors file ({error}): copy it again") from error
    content = read_torch(path)
    if "generator" not in content:
        raise ValueError(f"vocoder: {path} has no generator in it, but {', '.join(list(content)[:3])}")
    return content["generator"], f"the generator of {path.name}"


def _said_in(metadata: dict[str, str]) -> str:
    """What `save_vocoder` has said of weights."""
    step, averaged = metadata.get("step", ""), metadata.get("averaged")
    if not step.isdecimal() or averaged is None:
        return "a generator of unknown training"
    return str(WeightsOf(int(step), averaged == "true", metadata.get("begun_with")))


def save_vocoder(folder: Path, trained: TrainedVocoder, card: str) -> None:
    """Writes a folder, whole or not at all, which `BigVGANVocoder.from_checkpoint` reads.

    Args:
        folder: That does not exist yet.
        trained: What goes into it.
        card: The model card, Markdown.

    Raises:
        FileExistsError: if the folder is there already.
    """
    h = trained.generator.hyperparameters(trained.mel)
    of = trained.of
    said = {"format": "pt", "step": str(of.step), "averaged": str(of.averaged).lower()}
    said |= {} if of.begun_with is None else {"begun_with": of.begun_with}
    with atomic_folder(folder) as inner:
        weights = {name: value.detach().float().cpu().contiguous() for name, value in trained.weights.items()}
        save_file(weights, inner / WEIGHTS, metadata=said)
        (inner / CONFIG).write_text(json.dumps(h, indent=4) + "\n", encoding="utf-8")
        (inner / CARD).write_text(card, encoding="utf-8")
