"""`sf-fit`: train and validate from a config file; `sf-fit` alone means `sf-fit fit`."""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf
from wandb.sdk.lib.runid import generate_id

from sf_lightning import __version__
from sf_lightning.cli.configs import expand_configs, expand_presets
from sf_lightning.cli.errors import one_line_errors
from sf_lightning.cli.parser import CommandParser
from sf_lightning.cli.run_folder import RecordRun, agent_run_id, path_arguments, stored_run_id, wandb_arguments
from sf_lightning.cli.tracking import offline_without_key
from sf_lightning.files.foreign import require_no_links
from sf_lightning.files.identify import SHARDED_META
from sf_lightning.flow.noise import require_seed
from sf_lightning.model.checkpoint import read_content
from sf_lightning.training.base import ShardModule, require_matching_checkpoint
from sf_lightning.training.callbacks.preemption import Preemption
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.lightning_internals import set_logged_step
from sf_lightning.training.module import StreamFlowModule
from sf_lightning.training.run_lock import run_lock
from sf_lightning.training.saving import AtomicCheckpointIO, newest_checkpoint, saves_sharded_folders
from sf_lightning.training.vocoder_module import VocoderModule


def best_precision() -> str:
    """Returns "bf16-mixed" where the device multiplies bf16 in hardware, else "32-true"."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


MODULES: dict[str, type[ShardModule]] = {"decoder": StreamFlowModule, "vocoder": VocoderModule}
"""Trainable modules by their name in `trains`."""

SEED_LIMIT = 2**32
"""Number of seeds of NumPy's global generator, which Lightning seeds too."""


class FitParser(CommandParser, LightningArgumentParser):
    """Lightning's parser with errors that name option, value and expectation."""


class FitCLI(LightningCLI):
    """LightningCLI for one of `MODULES` and `ShardDataModule`; all files of a run are in one folder."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Returns Lightning's subcommands that the modules support."""
        commands = LightningCLI.subcommands()
        return {name: commands[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `base`, which `expand_configs` reads, `trains`, which `model_kind` reads, and the common `seed`."""
        parser.add_argument(
            "--base",
            type=str | None,
            help="in a config file: the config that it overrides, a path relative to it or the name of a recipe",
        )
        trains = next(name for name, module in MODULES.items() if module is self.model_class)
        parser.add_argument("--trains", type=Literal[*MODULES], default=trains, help="kind of model to train")
        parser.add_argument(
            "--seed", type=int | None, help="seed of model, data and all random draws; replaces their own seeds"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Copies `--seed` to every other seed, for runs that differ by chance only.

        Raises:
            ValueError: if a seed is out of range.
        """
        super().parse_arguments(parser, args)
        config = self.config[self.config["subcommand"]]
        if config.get("seed") is not None:
            require_seed("--seed", config.seed, SEED_LIMIT)
            config.seed_everything = config.model.seed = config.data.seed = config.seed
        elif type(config.seed_everything) is int:
            require_seed("--seed_everything", config.seed_everything, SEED_LIMIT)

    def _parse_ckpt_path(self) -> None:
        """Disables Lightning's silent override of the config; see `require_matching_checkpoint`."""

    def before_instantiate_classes(self) -> None:
        """Sets the paths of loggers and checkpoints to the run's folder; finds its last checkpoint."""
        config = self.config[self.subcommand]
        config.base = None  # merged into the config already
        trainer = config.trainer
        run = folder = trainer.default_root_dir = str(trainer.default_root_dir or "runs/fit") + agent_run_id("/")
        if self.subcommand == "validate":  # does not change files of the run
            folder = trainer.default_root_dir = f"{run}/validate"
        # Also where a run was stopped before it saved anything: it restarts under its id.
        resumed = self.subcommand == "fit" and config.ckpt_path is not None
        if config.get("ckpt_path") == "last":
            last = newest_checkpoint(Path(run, "checkpoints"))
            config.ckpt_path = str(last) if last else None
            if last is None and self.subcommand == "validate":
                raise FileNotFoundError(f"--ckpt_path=last: no checkpoint in {run}/checkpoints")
            if last is None:
                rank_zero_only(print)(f"--ckpt_path=last: no checkpoint in {run}/checkpoints, starting a new run")
        for arguments in wandb_arguments(trainer):
            known = (resumed and stored_run_id(folder)) or agent_run_id()
            arguments["id"] = arguments["id"] or known or generate_id()
        for arguments, name, default_path, _ in path_arguments(trainer):
            if arguments[name] in (None, "."):
                arguments[name] = default_path(folder)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds atomic checkpoints, and disables Lightning's requeueing, which `Preemption` replaces."""
        plugins = self.config_init[self.subcommand].trainer.get("plugins") or []
        given = plugins if isinstance(plugins, list) else [plugins]
        added = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
        trainer = super().instantiate_trainer(plugins=[*given, AtomicCheckpointIO(), *added], **kwargs)
        # First, so that no other callback starts a step before which the run exits, or summarizes a fit too early.
        trainer.callbacks.sort(key=lambda callback: not isinstance(callback, Preemption))  # type: ignore[attr-defined]
        return trainer

    def before_fit(self) -> None:
        """Checks model, data and checkpoint, and that the folder holds no other run, before any logger starts.

        Raises:
            FileNotFoundError, ValueError: as `check` and `pack_shape` of the data, `check` and
                `load_initial_weights` of the module, and `VocoderConfig.make`.
            FileExistsError: if the folder holds checkpoints and the run does not resume from one of them.
        """
        folder = Path(self.trainer.default_root_dir)
        # The checkpoints may be on another disk.
        require_no_links(folder, unchecked=("checkpoints", "wandb"), linked=("checkpoints",))
        self.model.check(self.trainer)
        if isinstance(self.model, StreamFlowModule):
            self.model.make_vocoder()  # fails now rather than at the first validation
        if self.config.fit.ckpt_path is None:  # otherwise the checkpoint has weights and tokenizer digest
            self.datamodule.check(self.model)
            self.model.load_initial_weights()
        else:
            content = self._read(Path(self.config.fit.ckpt_path), resumed=True)
            self.model.initialized_from = content.get("begun_with")  # logged before the checkpoint is restored
            self.datamodule.require_resumable(content, self.model)
        self.datamodule.pack_shape(self.model, self.trainer.world_size)
        if stale := [*folder.glob("hpc_ckpt_*")]:
            raise FileExistsError(
                f"{stale[0]} is of Lightning's own requeueing, and Lightning would load it: move it away"
            )
        given = self.config.fit.ckpt_path
        # `checkpoints`, or the checkpoint in it, may be a link to another disk.
        resumed = given is not None and any(
            path.resolve().is_relative_to(own.resolve())
            for path in (Path(given), Path(given).parent)
            for own in (folder, folder / "checkpoints")
        )
        if any(folder.glob("checkpoints/[!.]*.ckpt")) and not resumed:
            raise FileExistsError(
                f"{folder} holds a run already: resume it with --ckpt_path=last, "
                "or give another --trainer.default_root_dir"
            )

    def before_validate(self) -> None:
        """Checks the checkpoint, and counts steps from it, which samples and rows are named by."""
        if self.config.validate.ckpt_path is not None:
            content = self._read(Path(self.config.validate.ckpt_path))
            self.trainer.fit_loop.load_state_dict(content["loops"]["fit_loop"])
            # The step under which the run itself logged the validation.
            set_logged_step(self.trainer, max(0, content["global_step"] - 1))

    def fit(self, **arguments: Any) -> None:
        """Trains with the run's folder locked: of two runs in one folder each would overwrite the other's files."""
        with self._folder_locked():
            self.trainer.fit(**arguments)

    def validate(self, **arguments: Any) -> None:
        """Validates with its own folder locked, not the run's, which it does not change."""
        with self._folder_locked():
            self.trainer.validate(**arguments)

    def _folder_locked(self) -> AbstractContextManager[None]:
        return run_lock(Path(self.trainer.default_root_dir)) if self.trainer.is_global_zero else nullcontext()

    def _read(self, path: Path, resumed: bool = False) -> dict[str, Any]:
        """Reads a checkpoint and checks that it matches this run's module."""
        if (path / SHARDED_META).is_file() and not saves_sharded_folders(self.trainer.strategy):
            raise ValueError(
                f"--ckpt_path: {path} is a sharded checkpoint: expected --trainer.strategy=fsdp2 or hsdp"
            )
        try:
            content = read_content(path)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"--ckpt_path: {error}") from error
        require_matching_checkpoint(content, self.model, resumed)
        return content


def model_kind(args: list[str]) -> str:
    """Returns the kind of model that the last `--trains`, or the last config with one, names; by default "decoder".

    It is needed before parsing, because the options of `model` depend on it.

    Raises:
        ValueError: if it is none of `MODULES`.
    """
    trains = "decoder"
    for arg, after in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = arg.partition("=")
        if name == "--config":  # always with an equals sign, by `expand_configs`
            trains = OmegaConf.select(OmegaConf.load(value), "trains") or trains
        elif name == "--trains":
            trains = value if equals else after
    if trains not in MODULES:
        raise ValueError(f"--trains is {trains}: expected {' or '.join(MODULES)}")
    return trains


GLOBAL_OPTIONS = ("-h", "--help", "--version", "--print_completion")
"""Options in front of which no subcommand is inserted."""


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0].partition("=")[0] not in (*FitCLI.subcommands(), *GLOBAL_OPTIONS):
        args = ["fit", *args]
    offline_without_key()
    OmegaConf.register_resolver("best_precision", best_precision, replace=True)
    args = expand_presets(expand_configs(args))
    FitCLI(
        MODULES[model_kind(args)],
        ShardDataModule,
        args=args,
        parser_class=FitParser,
        parser_kwargs={"prog": "sf-fit", "parser_mode": "omegaconf", "version": __version__},
        save_config_callback=RecordRun,
        save_config_kwargs={"save_to_log_dir": False},  # it would write through a link
        trainer_defaults={"callbacks": [Preemption()]},
        seed_everything_default=0,
    )
