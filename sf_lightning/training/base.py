"""What modules that train on shards have in common: what they want of the data, and what their checkpoints say."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.packing import Batch
from sf_lightning.model.pretrained import CHECKPOINT_FORMAT, require_format
from sf_lightning.model.streamflow import StreamFlow


@dataclass(frozen=True)
class TokenNeeds:
    """Which tokens a module learns.

    Args:
        tokenizer: Name of the tokenizer.
        vocabulary: Its codes.
        frames_per_token: Frames of a token.
    """

    tokenizer: str
    vocabulary: int
    frames_per_token: int


@dataclass(frozen=True)
class DataNeeds:
    """What a module wants of its data.

    Args:
        mel: The mel.
        block_size: Frames of the blocks of a pack.
        tokens: Which tokens; None is any, for a module that does not look at them.
        x_vectors: Name and width of the x-vectors; an empty name takes none.
        x_vector_width: Width of those that are read; 0 reads none.
        crop_samples: Length of the reference crops; 0 takes none.
        min_frames: Of a clip; shorter ones are passed over and counted.
    """

    mel: MelConfig
    block_size: int
    tokens: TokenNeeds | None = None
    x_vectors: tuple[str, int] = ("", 0)
    x_vector_width: int = 0
    crop_samples: int = 0
    min_frames: int = 0


def decoder_needs(model: StreamFlow, tokenizer: str) -> DataNeeds:
    """Returns what a decoder wants of its data: tokens, blocks and speakers as the network takes them."""
    mel, dit, speaker = model.mel.config, model.dit.config, model.speaker
    return DataNeeds(
        mel,
        model.layout.block_size,
        TokenNeeds(tokenizer, dit.vocabulary, dit.frames_per_token),
        (speaker.x_vectors, speaker.stored_width),
        speaker.stored_width,
        speaker.crop_samples(mel.sample_rate),
    )


class ShardTrained(L.LightningModule, ABC):
    """A module that `ShardDataModule` feeds and `sf-fit` trains.

    Attributes:
        tokenizer_digest: Of the tokenizer whose tokens it has learnt.
    """

    same: ClassVar[tuple[str, ...]]
    """Hyperparameters in which a run that goes on is what it was."""

    brought: ClassVar[tuple[str, ...]]
    """Settings that a checkpoint's optimizers bring along: others would be ignored where a run goes on."""

    tokenizer_digest: str | None = None

    @property
    @abstractmethod
    def needs(self) -> DataNeeds:
        """What it wants of its data."""

    def learnt_frames(self, batch: Batch) -> int:
        """Returns how many frames of a batch it learns from; by default all that are no padding."""
        return batch.num_frames

    def begin(self) -> None:
        """What is done once before a run begins, and not when it goes on."""

    def draw(self, batch: Batch) -> Batch:
        """Adds what is drawn on the host, to a batch that is about to go to the device to be trained on."""
        return batch

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What loggers keep of it beside the config."""


def plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, all the way down: what a config file can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def require_same(checkpoint: dict[str, Any], module: ShardTrained, goes_on: bool = False) -> None:
    """Checks that a checkpoint is one of `sf-fit`, and of what this run trains.

    Args:
        checkpoint: Its content.
        module: What this run trains.
        goes_on: Whether it is trained on.

    Raises:
        ValueError: if it is not, or one of `module.same`, or `module.brought` of a run that goes on, is not what
            this run has.
    """
    if "format" not in checkpoint:
        raise ValueError(
            "--ckpt_path: this checkpoint has no number of its format: it is not one of sf-fit, or from before "
            "formats had numbers"
        )
    require_format("this checkpoint", checkpoint["format"], CHECKPOINT_FORMAT)
    parts = (*module.same, *(module.brought if goes_on else ()))
    do = "give what the run was begun with, or begin another one with --model.init_from"
    require_equal(parts, checkpoint["hyper_parameters"], dict(module.hparams), do)


def require_equal(parts: Iterable[str], came: Mapping[str, Any], wanted: Mapping[str, Any], do: str) -> None:
    """Checks hyperparameters of a checkpoint against those of a run.

    Args:
        parts: Which: the name of one, or `name.setting`.
        came: The checkpoint's, plain values.
        wanted: The run's.
        do: What the user can do where they differ.

    Raises:
        ValueError: with both values, at the first difference.
    """
    for part in parts:
        name, *setting = part.split(".")
        if name not in came:
            raise ValueError(f"--model.{name}: the checkpoint has none: it is not of what this run trains")
        theirs, ours = came[name], wanted[name]
        for name in setting:
            theirs, ours = theirs.get(name, ours[name]), ours[name]
        if _differ(theirs, ours):
            raise ValueError(f"--model.{part}: {_difference(name, theirs, ours)}: {do}")


def _differ(came: Any, wanted: Any) -> bool:
    """Whether two values are not the same; a setting that is not there is one that was not thought of yet: None."""
    if isinstance(came, dict) and isinstance(wanted, dict):
        return any(_differ(came.get(key), wanted.get(key)) for key in {*came, *wanted})
    return bool(came != wanted)


def _difference(name: str, came: Any, wanted: Any) -> str:
    """What a checkpoint has and this run has not, in its first place."""
    if not isinstance(came, dict) or not isinstance(wanted, dict):
        return f"the checkpoint has {name} {came}, this run has {wanted}"
    return next(
        _difference(key, came.get(key), wanted.get(key))
        for key in {**wanted, **came}
        if _differ(came.get(key), wanted.get(key))
    )
