"""A trained decoder in a folder of plain files, to be used, stored and shared.

decoder/
  model.safetensors   the weights of `StreamFlow`
  config.yaml         everything that is needed to build the model and to decode with it
  README.md           the model card

Independent of training, decoding and vocoders: their settings pass through as plain values.
The default of a field that a later version adds restores the earlier behavior, so that older folders still load;
a change without such a default raises `EXPORT_FORMAT`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import yaml
from torch import Tensor

from sf_lightning import __version__
from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.atomic import atomic_folder
from sf_lightning.files.formats import EXPORT_FORMAT, require_format
from sf_lightning.files.identify import EXPORT_CONFIG, EXPORT_WEIGHTS
from sf_lightning.files.records import from_plain, shown
from sf_lightning.files.safetensors_files import read_safetensors, save_safetensors
from sf_lightning.files.torch_files import weight_mismatches, weights_digest
from sf_lightning.files.yaml_files import read_yaml
from sf_lightning.model.dit import DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale, StreamFlow

CARD = "README.md"


@dataclass(frozen=True)
class ModelConfig:
    """Arguments of `StreamFlow`; see there."""

    layout: Layout
    dit: DiTConfig
    mel: MelConfig
    scale: MelScale
    speaker: SpeakerConfig
    predict: Literal["mel", "velocity"] = "mel"

    def build(self, weights: Mapping[str, Tensor]) -> StreamFlow:
        """Returns the model with these weights, in eval mode on the CPU, in float32.

        Raises:
            ValueError: if a weight is missing, unknown or of another shape.
        """
        arguments = (self.layout, self.dit, self.mel, self.scale, self.speaker, self.predict)
        if self.layout.num_layers > len(weights):
            raise ValueError(f"layout.num_layers is {self.layout.num_layers}, but there are {len(weights)} weights")
        with torch.device("meta"):  # compares sizes before it allocates any
            expected = StreamFlow(*arguments).state_dict()
        if mismatches := weight_mismatches(weights, expected):
            raise ValueError(f"{mismatches[0]} by the configuration")
        model = StreamFlow(*arguments)
        model.load_state_dict(weights)
        return model.eval()


@dataclass(frozen=True)
class TokenizerName:
    """The tokenizer whose tokens a model decodes: its kind, and the digest of its weights if it is known."""

    name: str
    digest: str | None


@dataclass(frozen=True)
class WeightsOrigin:
    """Where weights come from.

    Args:
        step: The optimizer step.
        averaged: Whether they are the averaged weights or the raw ones.
        begun_with: What the run was initialized from, in words; None for a fresh network.

    >>> str(WeightsOrigin(800, True, "last.ckpt (raw weights of step 200)"))
    'averaged weights of step 800, initialized from last.ckpt (raw weights of step 200)'
    """

    step: int
    averaged: bool
    begun_with: str | None = field(default=None, repr=False)  # nor in the digest: it changes nothing

    def __str__(self) -> str:
        start = "" if self.begun_with is None else f", initialized from {self.begun_with}"
        return f"{'averaged' if self.averaged else 'raw'} weights of step {self.step}{start}"


@dataclass(frozen=True)
class Description:
    """Everything about a trained decoder but its weights: the content of `config.yaml`.

    Args:
        model: Arguments of the model.
        tokenizer: The tokenizer whose tokens it decodes.
        weights: Where its weights come from.
        decode: How it decodes by default: the fields of `DecodeConfig`.
        vocoder: The vocoder of training: the fields of `VocoderConfig`.
        format: Format of the folder.
        written_by: The version that wrote it.
    """

    model: ModelConfig
    tokenizer: TokenizerName
    weights: WeightsOrigin
    decode: dict
    vocoder: dict
    format: int = EXPORT_FORMAT
    written_by: str = f"sf-lightning {__version__}"

    @classmethod
    def read(cls, path: Path) -> "Description":
        """Reads `config.yaml`.

        Raises:
            ValueError: with the file's name, if it is damaged or of a newer format.
        """
        values = read_yaml(path)
        try:
            if not isinstance(values, dict):
                raise ValueError(f"{shown(values)}: expected names and values")
            require_format("it", values.get("format"), EXPORT_FORMAT)
            return from_plain(cls, values, "config")
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Writes `config.yaml`."""
        values = {"format": self.format, "written_by": self.written_by, **asdict(self)}
        path.write_text(yaml.dump(values, Dumper=_Dumper, sort_keys=False), encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """Writes tuples as lists on one line."""


_Dumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


class Pretrained(NamedTuple):
    """A trained decoder: the model with its weights, in eval mode, and its description."""

    model: StreamFlow
    description: Description

    @property
    def digest(self) -> str:
        """Digest of the weights and the description, whatever version wrote them; computed on each access."""
        settings = repr(replace(self.description, written_by=""))
        # Stored digests were made when the class had this name.
        return weights_digest(self.model.state_dict(), settings.replace("WeightsOrigin(", "WeightsOf("))


def save_export(folder: Path, trained: Pretrained, card: str) -> None:
    """Writes a decoder's folder with its model card in Markdown, whole or not at all.

    Raises:
        FileExistsError: if the folder exists.
    """
    with atomic_folder(folder) as inner:
        save_safetensors(inner / EXPORT_WEIGHTS, trained.model.state_dict(), {})
        trained.description.write(inner / EXPORT_CONFIG)
        (inner / CARD).write_text(card, encoding="utf-8")


def load_export(folder: Path) -> Pretrained:
    """Reads a folder that `save_export` wrote.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: with the file's name, if one is damaged (a flipped bit in the weights is found) or of a newer
            format, or if the two do not match.
    """
    config, weights_file = folder / EXPORT_CONFIG, folder / EXPORT_WEIGHTS
    for path in (config, weights_file):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: expected both files of a folder that sf-export wrote")
    description = Description.read(config)
    weights, _ = read_safetensors(weights_file)
    try:
        model = description.model.build(weights)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{weights_file} does not match {EXPORT_CONFIG}: {error}") from error
    return Pretrained(model, description)
