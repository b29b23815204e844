"""`sf-fit`: train and validate from a config file; `sf-fit` alone means `sf-fit fit`."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf
from wandb.sdk.lib.runid import generate_id

from sf_lightning import __version__
from sf_lightning.cli.configs import expand_configs, expand_presets
from sf_lightning.cli.errors import one_line_errors
from sf_lightning.cli.parser import CommandParser
from sf_lightning.cli.tracking import offline_without_key
from sf_lightning.files.identify import SHARDED_META
from sf_lightning.model.checkpoint import read_content
from sf_lightning.training.base import ShardModule, plain, require_matching_checkpoint
from sf_lightning.training.callbacks.preemption import Preemption
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.loggers import ResumableWandbLogger
from sf_lightning.training.module import StreamFlowModule
from sf_lightning.training.saving import AtomicCheckpointIO, newest_checkpoint, saves_sharded_folders
from sf_lightning.training.vocoder_module import VocoderModule


def best_precision() -> str:
    """Returns "bf16-mixed" where the device multiplies bf16 in hardware, else "32-true"."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


class RecordRun(SaveConfigCallback):
    """Saves the resolved config in the run's folder, and says in every logger's config what this run is."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Saves the config of a fit, such that it may be used for another one in another folder."""
        if stage != "fit":
            return
        folder = self.config.trainer.default_root_dir
        for arguments, name, place, unset in _places(self.config.trainer):
            if arguments[name] == place(folder):
                arguments[name] = unset
        for arguments in _of_wandb(self.config.trainer):
            arguments["id"] = None
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Logs config, commit, what it was begun with, shard digests, and what the module has to say of itself."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, ShardModule) and isinstance(datamodule, ShardDataModule)
        config = plain(self.config.clone(with_meta=False).as_dict())  # without the files that parts were read from
        config.pop("config", None)
        record = {
            "config": config,
            "commit": _commit(),
            "initialized_from": pl_module.initialized_from,
            "shards": {
                str(each.folder): [shard.digest for shard in each.manifest.shards] for each in datamodule.sets
            },
        } | pl_module.description()
        for logger in trainer.loggers:
            logger.log_hyperparams(record)
            if isinstance(logger, ResumableWandbLogger):
                Path(trainer.default_root_dir, RUN_ID).write_text(f"{logger.version}\n")


def _commit() -> str:
    """Returns the commit of the code, with a + if files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).parent
    say = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(say, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


MODULES: dict[str, type[ShardModule]] = {"decoder": StreamFlowModule, "vocoder": VocoderModule}
"""What can be trained, by its name in `trains`."""


class FitParser(CommandParser, LightningArgumentParser):
    """Lightning's parser with errors that name option, value and expectation."""


class FitCLI(LightningCLI):
    """LightningCLI around one of `MODULES` and `ShardDataModule`; everything of a run lies in one folder."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those for which the modules are made."""
        ours = LightningCLI.subcommands()
        return {name: ours[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `base`, which `expand_configs` reads, and `trains`, which `model_kind` reads."""
        parser.add_argument("--base", type=str | None, help="config, beside this one, that this one is laid over")
        trains = next(name for name, module in MODULES.items() if module is self.model_class)
        parser.add_argument("--trains", type=Literal[*MODULES], default=trains, help="what --model is")
        parser.add_argument("--seed", type=int | None, help="of all that is drawn; by default each has its own")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Gives everything that draws the one seed, if there is one: for runs that differ by chance alone."""
        super().parse_arguments(parser, args)
        config = self.config[self.config["subcommand"]]
        if config.get("seed") is not None:
            config.seed_everything = config.model.seed = config.data.seed = config.seed

    def _parse_ckpt_path(self) -> None:
        """Leaves the configuration as it was given.

        Lightning would lay a checkpoint's hyperparameters over it, and what the user changed would be ignored. Here
        a run that goes on must agree with its checkpoint (`require_matching_checkpoint`) or says so.
        """

    def before_instantiate_classes(self) -> None:
        """Puts loggers and checkpoints that name no folder into the run's; finds its last checkpoint."""
        config = self.config[self.subcommand]
        config.base = None  # all that it says is in the config now
        trainer = config.trainer
        run = folder = trainer.default_root_dir = str(trainer.default_root_dir or "runs/fit") + _of_agent("/")
        if self.subcommand == "validate":  # leaves what the run has written as it is
            folder = trainer.default_root_dir = f"{run}/validate"
        # Also where a run was stopped or killed before it saved anything: it begins again, under its id.
        goes_on = self.subcommand == "fit" and config.ckpt_path is not None
        if config.get("ckpt_path") == "last":
            last = newest_checkpoint(Path(run, "checkpoints"))
            config.ckpt_path = str(last) if last else None
            if last is None and self.subcommand == "validate":
                raise FileNotFoundError(f"--ckpt_path=last: no checkpoint in {run}/checkpoints")
            if last is None:
                rank_zero_only(print)(f"--ckpt_path=last: nothing to go on with in {run}: begins anew")
        for arguments in _of_wandb(trainer):
            known = (goes_on and _run_id(folder)) or _of_agent()
            arguments["id"] = arguments["id"] or known or generate_id()
        for arguments, name, place, _ in _places(trainer):
            if arguments[name] in (None, "."):
                arguments[name] = place(folder)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds what every run needs: whole checkpoints, and a way to stop and go on that is not Lightning's."""
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        given = [*plugins] if isinstance(plugins, list) else [plugins]
        ours = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
        trainer = super().instantiate_trainer(plugins=[*given, AtomicCheckpointIO(), *ours], **kwargs)
        # First, so that no other callback begins a step before which the run is left, or sums up a fit too early.
        trainer.callbacks.sort(key=lambda each: not isinstance(each, Preemption))  # type: ignore[attr-defined]
        return trainer

    def before_fit(self) -> None:
        """Refuses what does not fit, and a second run in the folder of a first, before any logger starts.

        Raises:
            FileNotFoundError, ValueError: as `check` and `pack_shape` of the data, `check` and
                `load_initial_weights` of the module, and `VocoderConfig.make`.
            FileExistsError: if the folder holds checkpoints and it is none of them that is continued.
        """
        folder = Path(self.trainer.default_root_dir)
        self.model.check(self.trainer)
        if isinstance(self.model, StreamFlowModule):
            self.model.make_vocoder()  # that it can be made is seen now
        if self.config.fit.ckpt_path is None:  # else the checkpoint has the weights, and knows their tokens
            self.datamodule.check(self.model)
            self.model.load_initial_weights()
        else:
            content = self._read(Path(self.config.fit.ckpt_path), goes_on=True)
            self.model.initialized_from = content.get("begun_with")  # said before the checkpoint is restored
            self.datamodule.require_resumable(content, self.model)
        self.datamodule.pack_shape(self.model, self.trainer.world_size)
        if stale := [*folder.glob("hpc_ckpt_*")]:
            raise FileExistsError(
                f"{stale[0]} is of Lightning's own requeueing, and would be taken for this run's: move it away"
            )
        begun = self.config.fit.ckpt_path
        goes_on = begun is not None and Path(begun).resolve().is_relative_to(folder.resolve())
        if any(folder.glob("checkpoints/*.ckpt")) and not goes_on:
            raise FileExistsError(
                f"{folder} holds a run already: continue it with --ckpt_path=last, "
                "or give another --trainer.default_root_dir"
            )

    def before_validate(self) -> None:
        """Refuses a checkpoint of something else; counts steps from it, for samples and rows are named by them.

        Raises:
            FileNotFoundError, ValueError: if there is no such checkpoint, or it is of something else.
        """
        if self.config.validate.ckpt_path is not None:
            content = self._read(Path(self.config.validate.ckpt_path))
            self.trainer.fit_loop.load_state_dict(content["loops"]["fit_loop"])
            # What loggers call a step: as where the run itself was validated.
            self.trainer.fit_loop.epoch_loop._batches_that_stepped = max(0, content["global_step"] - 1)

    def _read(self, path: Path, goes_on: bool = False) -> dict[str, Any]:
        """Reads a checkpoint of what this run trains; raises FileNotFoundError or ValueError if it is none."""
        if (path / SHARDED_META).is_file() and not saves_sharded_folders(self.trainer.strategy):
            raise ValueError(
                f"--ckpt_path: {path} is a folder, of shards: go on with --trainer.strategy=fsdp2 or hsdp"
            )
        try:
            content = read_content(path)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"--ckpt_path: {error}") from error
        require_matching_checkpoint(content, self.model, goes_on)
        return content


def _places(trainer: Namespace) -> Iterator[tuple[Any, str, Callable[[str], str], str | None]]:
    """Where in a config loggers and callbacks say where they write.

    Yields:
        The arguments, the name of the one, what it is in a run's folder, and what it is where it is left open.
    """
    for each in trainer.logger if isinstance(trainer.logger, list) else []:
        if "save_dir" in (arguments := each.get("init_args", {})):
            yield arguments, "save_dir", lambda folder: folder, "."
    for each in trainer.callbacks if isinstance(trainer.callbacks, list) else []:
        if "dirpath" in (arguments := each.get("init_args", {})):
            yield arguments, "dirpath", lambda folder: f"{folder}/checkpoints", None


RUN_ID = "wandb-id"
"""The file in a run's folder that has its id with W&B, under which it goes on."""


def _run_id(folder: str) -> str | None:
    path = Path(folder, RUN_ID)
    return path.read_text().strip() if path.is_file() else None


def _of_agent(before: str = "") -> str:
    """The id that an agent of W&B's sweeps gives a run, behind some text; nothing where there is none.

    An agent says the same arguments again and again: so its runs lie in folders of their own, by their ids.
    """
    given = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    return f"{before}{given}" if given else ""


def _of_wandb(trainer: Namespace) -> Iterator[Any]:
    """The arguments of the loggers that go on with a run of W&B's."""
    for each in trainer.logger if isinstance(trainer.logger, list) else []:
        if each["class_path"].endswith(ResumableWandbLogger.__name__):
            yield each["init_args"]


def model_kind(args: list[str]) -> str:
    """Returns what the last `--trains`, or the last config that has one, names; by default a decoder.

    The parser must know it before it reads the rest, for each has options of its own under `model`.

    Raises:
        ValueError: if it is none of `MODULES`.
    """
    trains = "decoder"
    for arg, after in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = arg.partition("=")
        if name == "--config":  # with an equals sign, for `expand_configs` has been here
            trains = OmegaConf.select(OmegaConf.load(value), "trains") or trains
        elif name == "--trains":
            trains = value if equals else after
    if trains not in MODULES:
        raise ValueError(f"--trains is {trains}: wanted {' or '.join(MODULES)}")
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
    # It warns of arguments given twice; here the second time they only have a subcommand in front.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    # The package's spectrograms at three resolutions have none.
    warnings.filterwarnings("ignore", "A window was not provided")
    args = expand_presets(expand_configs(args))
    FitCLI(
        MODULES[model_kind(args)],
        ShardDataModule,
        args=args,
        parser_class=FitParser,
        parser_kwargs={"prog": "sf-fit", "parser_mode": "omegaconf", "version": __version__},
        save_config_callback=RecordRun,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"callbacks": [Preemption()]},
        seed_everything_default=0,
    )
