"""A trained decoder in a folder of plain files, to be used, kept and shared.

decoder/
  model.safetensors   the weights of `StreamFlow`
  config.yaml         all that must be known to build the model and to decode with it
  README.md           the model card

Knows nothing of training, nor of what decoding and vocoders are: their settings pass through as plain values.
What a later version adds to the configuration is by default what was before, so that older folders keep loading;
a change that has no such default raises `EXPORT_FORMAT`.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sf_lightning import __version__
from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.atomic import atomic_folder
from sf_lightning.files.formats import EXPORT_FORMAT, require_format
from sf_lightning.files.records import from_plain
from sf_lightning.files.torch_files import weight_mismatches, weights_digest
from sf_lightning.model.dit import DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale, StreamFlow

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"


@dataclass(frozen=True)
class ModelConfig:
    """What a `StreamFlow` is built of; see there."""

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
        model = StreamFlow(self.layout, self.dit, self.mel, self.scale, self.speaker, self.predict)
        if mismatches := weight_mismatches(weights, model.state_dict()):
            raise ValueError(f"{mismatches[0]} by the configuration")
        model.load_state_dict(weights)
        return model.eval()


@dataclass(frozen=True)
class TokenizerName:
    """Whose tokens a model has learnt: the kind of tokenizer, and the digest of its weights if it is known."""

    name: str
    digest: str | None


@dataclass(frozen=True)
class WeightsOf:
    """Where weights come from.

    Args:
        step: The optimizer step.
        averaged: Whether they are the averaged ones or the raw.
        begun_with: What the run was begun with, where that was no fresh network.

    >>> str(WeightsOf(800, True, "last.ckpt (raw weights of step 200)"))
    'averaged weights of step 800, begun with last.ckpt (raw weights of step 200)'
    """

    step: int
    averaged: bool
    begun_with: str | None = field(default=None, repr=False)  # nor in the digest: it changes nothing

    def __str__(self) -> str:
        begun = "" if self.begun_with is None else f", begun with {self.begun_with}"
        return f"{'averaged' if self.averaged else 'raw'} weights of step {self.step}{begun}"


@dataclass(frozen=True)
class Description:
    """Of a trained decoder, all but the numbers: what `config.yaml` says.

    Args:
        model: What it is built of.
        tokenizer: Whose tokens it decodes.
        weights: Where they come from.
        decode: How it decodes by default: the fields of `DecodeConfig`.
        vocoder: What makes its mel audible: the fields of `VocoderConfig`.
        format: Of the folder.
        written_by: The version that wrote it.
    """

    model: ModelConfig
    tokenizer: TokenizerName
    weights: WeightsOf
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
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError(f"{values!r:.60}: expected names and values")
            require_format("it", values.get("format"), EXPORT_FORMAT)
            return from_plain(cls, values, "config")
        except (yaml.YAMLError, ValueError, ArithmeticError) as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Writes it."""
        said = {"format": self.format, "written_by": self.written_by, **asdict(self)}
        path.write_text(yaml.dump(said, Dumper=_Dumper, sort_keys=False), encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """Writes tuples as lists, in one line."""


_Dumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


class Pretrained(NamedTuple):
    """A trained decoder: its weights, in eval mode, and what must be known to decode with them."""

    model: StreamFlow
    description: Description

    @property
    def digest(self) -> str:
        """Of the weights and the description, whatever version wrote them; made anew each time it is asked for."""
        return weights_digest(self.model.state_dict(), repr(replace(self.description, written_by="")))


def save_pretrained(folder: Path, trained: Pretrained, card: str) -> None:
    """Writes a folder, whole or not at all.

    Args:
        folder: That does not exist yet.
        trained: What goes into it.
        card: The model card, Markdown.

    Raises:
        FileExistsError: if the folder is there already.
    """
    with atomic_folder(folder) as inner:
        weights = {name: value.detach().cpu().contiguous() for name, value in trained.model.state_dict().items()}
        save_file(weights, inner / WEIGHTS, metadata={"format": "pt"})
        trained.description.write(inner / CONFIG)
        (inner / CARD).write_text(card, encoding="utf-8")


def load_pretrained(folder: Path) -> Pretrained:
    """Reads a folder that `save_pretrained` wrote.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: with the file's name, if one is damaged or of a newer format, or if the two do not fit.
    """
    for path in (folder / CONFIG, folder / WEIGHTS):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: wanted a folder that sf-export wrote, with both its files")
    description = Description.read(folder / CONFIG)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is no whole safetensors file ({error}): copy it again") from error
    try:
        model = description.model.build(weights)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit {CONFIG}: {error}") from error
    return Pretrained(model, description)


def is_export(folder: Path) -> bool:
    """Returns whether `save_pretrained` wrote a folder."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def locate(name: str) -> Path:
    """Returns the folder of that name; or the copy of the Hugging Face hub's repository, which is brought first.

    Args:
        name: A folder; or where there is none, an id such as "owner/name".

    Raises:
        FileNotFoundError: if it is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise FileNotFoundError(f"no folder {name}: wanted one that sf-export wrote, or an owner/name of the hub")
    from huggingface_hub import snapshot_download  # only where something is to be brought

    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS, CONFIG]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(f"no folder {name}, and the hub does not give it either ({reason})") from error
