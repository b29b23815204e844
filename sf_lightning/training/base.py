"""What modules that train on shards have in common: what they want of data, begin with, and keep in checkpoints."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from sf_lightning.data.packing import Batch
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.files.formats import CHECKPOINT_FORMAT, require_format
from sf_lightning.files.records import from_plain
from sf_lightning.training.guard import NonFiniteGuard
from sf_lightning.training.optimizer import ClippedSteps


class ShardModule(L.LightningModule, ABC):
    """A module that `ShardDataModule` feeds and `sf-fit` trains.

    Args:
        max_bad_steps: Training stops at so many steps in a row whose gradient is not finite.
        init_from: Weights to begin with, as `load_weights` takes them.

    Attributes:
        model: What is trained.
        average: Its averaged weights, which are what is judged and used.
        guard: Skips steps.
        clipped: Counts steps.
        initialized_from: The name of what was at `init_from` and what weights these were, once they are taken.
        tokenizer_digest: Of the tokenizer whose tokens it has learnt.
    """

    model: nn.Module
    average: nn.Module

    must_match: ClassVar[tuple[str, ...]]
    """Hyperparameters in which a run that goes on is what it was."""

    restored_from_optimizer: ClassVar[tuple[str, ...]]
    """Settings that a checkpoint's optimizers bring along: others would be ignored where a run goes on."""

    def __init__(self, max_bad_steps: int, init_from: str | None) -> None:
        super().__init__()
        self.guard, self.clipped = NonFiniteGuard(max_bad_steps), ClippedSteps()
        self.init_from = init_from
        self.initialized_from: str | None = None
        self.tokenizer_digest: str | None = None

    @property
    @abstractmethod
    def clip_requirements(self) -> ClipRequirements:
        """What it requires of clips."""

    @abstractmethod
    def check(self, trainer: L.Trainer) -> None:
        """Refuses what it cannot be trained with, before anything is written.

        Raises:
            ValueError: with the option of the trainer.
        """

    @abstractmethod
    def load_weights(self, path: str) -> str:
        """Takes other weights.

        Returns:
            What they are, such as "averaged weights of step 800".

        Raises:
            FileNotFoundError, ValueError: if they are not there, broken, or another network's.
        """

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What loggers keep of it beside the config."""

    def num_trained_frames(self, batch: Batch) -> int:
        """Returns how many frames of a batch it learns from; by default all that are no padding."""
        return batch.num_frames

    def add_random_draws(self, batch: Batch) -> Batch:
        """Adds what is drawn on the host, to a batch that is about to go to the device to be trained on."""
        return batch

    # -- a run begins, and ends -----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Checks the trainer, wherever it comes from."""
        self.check(self.trainer)

    def load_initial_weights(self) -> None:
        """Takes the weights of `init_from`, once, if there are some and no checkpoint has brought others.

        Raises:
            FileNotFoundError, ValueError: as `load_weights`.
        """
        if self.init_from is None:
            return
        try:
            of = self.load_weights(self.init_from)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"--model.init_from: {error}") from error
        rank_zero_only(print)(f"--model.init_from: {self.init_from}: {of}")
        self.initialized_from = f"{Path(self.init_from).name} ({of})"  # where that lay is no one's business
        self.average.load_state_dict(self.model.state_dict())
        self.init_from = None

    def on_fit_start(self) -> None:
        """Begins, unless a checkpoint was restored."""
        self.load_initial_weights()

    def on_validation_start(self) -> None:
        """Begins where nothing else was loaded."""
        self.load_initial_weights()

    def on_train_end(self) -> None:
        """Looks at the last step too."""
        self.guard.check_last_step()

    # -- checkpoints ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the number of the format, what the run was begun with, and what the log counts."""
        checkpoint["format"] = CHECKPOINT_FORMAT
        checkpoint["begun_with"] = self.initialized_from
        checkpoint["guard"] = self.guard.state_dict()
        checkpoint["clipped"] = self.clipped.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back, if the checkpoint is of what this run trains."""
        require_matching_checkpoint(checkpoint, self)
        self.init_from, self.initialized_from = None, checkpoint.get("begun_with")
        self.guard.load_state_dict(checkpoint["guard"])
        self.clipped.load_state_dict(checkpoint["clipped"])


def plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, all the way down: what a config file can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def require_matching_checkpoint(checkpoint: dict[str, Any], module: ShardModule, resumed: bool = False) -> None:
    """Checks that a checkpoint is one of `sf-fit`, and of what this run trains.

    Args:
        checkpoint: Its content.
        module: What this run trains.
        resumed: Whether it is trained on.

    Raises:
        ValueError: if it is not, or a setting of `module.must_match` differs, or on resume one of
            `module.restored_from_optimizer`.
    """
    if "format" not in checkpoint:
        raise ValueError(
            "--ckpt_path: this checkpoint has no number of its format: it is not one of sf-fit, or from before "
            "formats had numbers"
        )
    require_format("this checkpoint", checkpoint["format"], CHECKPOINT_FORMAT)
    parts = (*module.must_match, *(module.restored_from_optimizer if resumed else ()))
    do = "give what the run was begun with, or begin another one with --model.init_from"
    came, kinds = dict(checkpoint["hyper_parameters"]), get_type_hints(type(module).__init__)
    names = list(dict.fromkeys(part.partition(".")[0] for part in parts))
    if missing := [name for name in names if name not in came]:
        raise ValueError(f"--model.{missing[0]}: the checkpoint has none: it is not of what this run trains")
    for name in names:
        if dataclasses.is_dataclass(kinds[name]):  # what it does not say was not thought of yet, and so the default
            try:
                came[name] = plain(from_plain(kinds[name], came[name], name))
            except ValueError as error:
                raise ValueError(f"--ckpt_path: its {error}") from error
    require_equal_hyperparameters(parts, came, dict(module.hparams), do)


def require_equal_hyperparameters(
    parts: Iterable[str], came: Mapping[str, Any], wanted: Mapping[str, Any], do: str
) -> None:
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
        theirs, ours = came[name], wanted[name]
        for name in setting:
            theirs, ours = theirs[name], ours[name]
        if _differ(theirs, ours):
            raise ValueError(f"--model.{part}: {_difference(name, theirs, ours)}: {do}")


def _differ(came: Any, wanted: Any) -> bool:
    """Whether two values are not the same."""
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
