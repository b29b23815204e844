"""Base of the trainable modules: data requirements, initial weights, content of checkpoints."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from sf_lightning.data.packing import Batch
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.files.formats import CHECKPOINT_FORMAT, require_format
from sf_lightning.files.records import from_plain, to_plain
from sf_lightning.flow.noise import require_seed
from sf_lightning.training.guard import NonFiniteGuard
from sf_lightning.training.optimizer import ClippedSteps


class ShardModule(L.LightningModule, ABC):
    """A module that `sf-fit` trains on the batches of `ShardDataModule`.

    Args:
        max_bad_steps: Number of consecutive steps with a non-finite gradient at which training stops.
        init_from: Initial weights, as `load_weights` reads them; None for random ones.
        seed: Seed of the random draws of training.

    Attributes:
        model: The network that is trained.
        average: A second network with its averaged weights, which is evaluated, exported and used.
        guard: Skips steps with a non-finite gradient.
        clipped: Counts steps whose gradient was clipped.
        initialized_from: File name and kind of the initial weights, once they are loaded.
        tokenizer_digest: Digest of the tokenizer whose tokens the module is trained on, once that is known.

    Raises:
        ValueError: if the seed is out of range.
    """

    model: nn.Module
    average: nn.Module

    must_match: ClassVar[tuple[str, ...]]
    """Hyperparameters that must equal those of a checkpoint that is loaded."""

    restored_from_optimizer: ClassVar[tuple[str, ...]]
    """Further ones that must match on resume, because the optimizer state would override other values."""

    def __init__(self, max_bad_steps: int, init_from: str | None, seed: int) -> None:
        super().__init__()
        require_seed("model.seed", seed)
        self.guard, self.clipped = NonFiniteGuard(max_bad_steps), ClippedSteps()
        self.init_from, self.seed = init_from, seed
        self.initialized_from: str | None = None
        self.tokenizer_digest: str | None = None

    def store_hyperparameters(self, arguments: Mapping[str, Any]) -> None:
        """Stores the arguments of a module's constructor in checkpoints, given as its `locals()`.

        Plain values, and the parser that reads them: a checkpoint then loads without pickled classes.
        """
        given = {name: value for name, value in arguments.items() if name not in ("self", "__class__")}
        self.save_hyperparameters(to_plain(given) | {"_instantiator": "lightning.pytorch.cli.instantiate_module"})

    @property
    @abstractmethod
    def clip_requirements(self) -> ClipRequirements:
        """What the module requires of clips."""

    @abstractmethod
    def check(self, trainer: L.Trainer) -> None:
        """Checks the settings of the trainer before anything is written.

        Raises:
            ValueError: with the option to change, if the module cannot be trained with one.
        """

    @abstractmethod
    def load_weights(self, path: str) -> str:
        """Loads initial weights from a file or folder.

        Returns:
            Their kind, such as "averaged weights of step 800".

        Raises:
            FileNotFoundError, ValueError: if they are missing, damaged, or those of another network.
        """

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Returns the values that loggers store about the module beside the config."""

    def num_trained_frames(self, batch: Batch) -> int:
        """Returns the number of frames of a batch that are trained on, by default all but the padding."""
        return batch.num_frames

    def add_random_draws(self, batch: Batch) -> Batch:
        """Returns a training batch with random values drawn on the host, just before it is copied to the device."""
        return batch

    def setup(self, stage: str) -> None:
        """Checks the trainer, also one that `sf-fit` did not make."""
        self.check(self.trainer)

    def load_initial_weights(self) -> None:
        """Loads the weights of `init_from` once, unless a checkpoint was loaded.

        Raises:
            FileNotFoundError, ValueError: as `load_weights`.
        """
        if self.init_from is None:
            return
        try:
            kind = self.load_weights(self.init_from)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"--model.init_from: {error}") from error
        rank_zero_only(print)(f"--model.init_from: {self.init_from}: {kind}")
        self.initialized_from = f"{Path(self.init_from).name} ({kind})"  # no path: exports publish it
        self.average.load_state_dict(self.model.state_dict())
        self.init_from = None

    def on_fit_start(self) -> None:
        """Loads initial weights, unless a checkpoint was restored."""
        self.load_initial_weights()

    def on_validation_start(self) -> None:
        """Loads initial weights, unless a checkpoint was restored."""
        self.load_initial_weights()

    def on_train_end(self) -> None:
        """Checks the last step."""
        self.guard.check_last_step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the format number, the origin of the initial weights, and the counts that are logged."""
        checkpoint["format"] = CHECKPOINT_FORMAT
        checkpoint["begun_with"] = self.initialized_from
        checkpoint["guard"] = self.guard.state_dict()
        checkpoint["clipped"] = self.clipped.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores these from a checkpoint, which must match the module."""
        require_matching_checkpoint(checkpoint, self)
        self.init_from, self.initialized_from = None, checkpoint.get("begun_with")
        self.guard.load_state_dict(checkpoint["guard"])
        self.clipped.load_state_dict(checkpoint["clipped"])


def require_matching_checkpoint(checkpoint: dict[str, Any], module: ShardModule, resumed: bool = False) -> None:
    """Checks that a checkpoint was written by `sf-fit` for a module with the same hyperparameters.

    Args:
        checkpoint: Content of the checkpoint.
        module: The module of this run.
        resumed: Whether training is resumed; then `module.restored_from_optimizer` must match as well.

    Raises:
        ValueError: if it was not, or a hyperparameter differs.
    """
    if "format" not in checkpoint:
        raise ValueError("--ckpt_path: the checkpoint has no format number: expected a checkpoint of sf-fit")
    require_format("this checkpoint", checkpoint["format"], CHECKPOINT_FORMAT)
    settings = (*module.must_match, *(module.restored_from_optimizer if resumed else ()))
    found, types = dict(checkpoint["hyper_parameters"]), get_type_hints(type(module).__init__)
    for name in dict.fromkeys(setting.partition(".")[0] for setting in settings):
        if name not in found:
            raise ValueError(f"--model.{name}: the checkpoint has none: it is one of another kind of model")
        if is_dataclass(types[name]):  # a setting newer than the checkpoint has its default
            try:
                found[name] = to_plain(from_plain(types[name], found[name], name))
            except ValueError as error:
                raise ValueError(f"--ckpt_path: its {error}") from error
    remedy = "use the value of the checkpoint, or start a new run with --model.init_from"
    require_equal_hyperparameters(settings, found, dict(module.hparams), remedy)


def require_equal_hyperparameters(
    settings: Iterable[str], found: Mapping[str, Any], expected: Mapping[str, Any], remedy: str
) -> None:
    """Checks hyperparameters of a checkpoint against those of a run.

    Args:
        settings: Names of the hyperparameters to compare: `name` or `name.field`.
        found: Plain values of the checkpoint.
        expected: Plain values of the run.
        remedy: What the user can do about a difference, for errors.

    Raises:
        ValueError: with both values, at the first difference.
    """
    for setting in settings:
        name, *fields = setting.split(".")
        pair = found[name], expected[name]
        for name in fields:
            pair = pair[0][name], pair[1][name]
        if difference := _difference(name, *pair):
            raise ValueError(f"--model.{setting}: {difference}: {remedy}")


def _difference(name: str, found: Any, expected: Any) -> str | None:
    """Returns a phrase about the first place in which two values differ, or None if they are equal."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = {**expected, **found}
        return next(filter(None, (_difference(key, found.get(key), expected.get(key)) for key in keys)), None)
    return None if found == expected else f"the checkpoint has {name} {found}, this run has {expected}"
