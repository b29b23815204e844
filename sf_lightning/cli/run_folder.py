"""The folder of a training run: output paths in it, the id of the run with W&B, the record of the run."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import SaveConfigCallback

from sf_lightning.files.atomic import write_atomically
from sf_lightning.files.records import to_plain
from sf_lightning.files.text import redact_values
from sf_lightning.training.base import ShardModule
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.loggers import ResumableWandbLogger


def path_arguments(trainer: Namespace) -> Iterator[tuple[Any, str, Callable[[str], str], str | None]]:
    """Yields paths of loggers and callbacks: arguments, name, default by the run's folder, unset value."""
    for logger in trainer.logger if isinstance(trainer.logger, list) else []:
        if "save_dir" in (arguments := logger.get("init_args", {})):
            yield arguments, "save_dir", lambda folder: folder, "."
    for callback in trainer.callbacks if isinstance(trainer.callbacks, list) else []:
        if "dirpath" in (arguments := callback.get("init_args", {})):
            yield arguments, "dirpath", lambda folder: f"{folder}/checkpoints", None


RUN_ID = "wandb-id"
"""File in a run's folder with its W&B id, under which it is resumed."""


def stored_run_id(folder: str) -> str | None:
    """Returns the id of the W&B run in a folder, or None."""
    path = Path(folder, RUN_ID)
    return path.read_text().strip() if path.is_file() else None


def agent_run_id(prefix: str = "") -> str:
    """Returns the run id that a W&B sweep agent has set, after a prefix; empty where there is no agent.

    An agent starts all its runs with the same arguments, so each run gets a subfolder named by its id.
    """
    given = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    return f"{prefix}{given}" if given else ""


def wandb_arguments(trainer: Namespace) -> Iterator[Any]:
    """Yields the arguments of the W&B loggers."""
    for logger in trainer.logger if isinstance(trainer.logger, list) else []:
        if logger["class_path"].endswith(ResumableWandbLogger.__name__):
            yield logger["init_args"]


class RecordRun(SaveConfigCallback):
    """Saves the resolved config in the run's folder, and stores config and data of the run in every logger."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Saves the config of a fit, without paths and ids of this run and without passwords, for other runs."""
        if stage != "fit":
            return
        folder = self.config.trainer.default_root_dir
        for arguments, name, default_path, unset in path_arguments(self.config.trainer):
            if arguments[name] == default_path(folder):
                arguments[name] = unset
        for arguments in wandb_arguments(self.config.trainer):
            arguments["id"] = None
        self.config = _redact_config(self.config)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Saves the config; stores it, commit, origin of the weights, shards and module in every logger."""
        folder = Path(trainer.default_root_dir)
        write_atomically(folder / "config.yaml", self.parser.dump(self.config, skip_none=False))
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, ShardModule) and isinstance(datamodule, ShardDataModule)
        config = to_plain(self.config.clone(with_meta=False).as_dict())  # without the paths of the config files
        config.pop("config", None)
        record = {
            "config": config,
            "commit": _commit(),
            "initialized_from": pl_module.initialized_from,
            "shards": {
                shards.name: [shard.digest for shard in shards.manifest.shards] for shards in datamodule.sets
            },
        } | pl_module.description()
        for logger in trainer.loggers:
            logger.log_hyperparams(redact_values(record))
            if isinstance(logger, ResumableWandbLogger):
                write_atomically(folder / RUN_ID, f"{logger.version}\n")


def _redact_config(value: Any) -> Any:
    """Returns a config without passwords; see `redacted`."""
    if isinstance(value, Namespace):
        copy = value.clone()
        vars(copy).update({name: _redact_config(item) for name, item in vars(value).items()})
        return copy
    if isinstance(value, list):
        return [*map(_redact_config, value)]
    return redact_values(value)


def _commit() -> str:
    """Returns the commit of this code, with a + if files differ from it; "unknown" outside a checkout."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment may be inside another repository
        return git("describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
