"""`sf-fit`: train, validate, test and predict from a config file; `sf-fit` alone means `sf-fit fit`."""

import os
import subprocess
import sys
import warnings
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlparse

import lightning as L
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from omegaconf import OmegaConf

from sf_lightning.cli.errors import one_line_errors
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.module import StreamFlowModule


def best_precision() -> str:
    """Returns "bf16-mixed" where the device multiplies bf16 in hardware, else "32-true"."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


def wandb_key_is_known() -> bool:
    """Whether W&B could upload: a key in the environment or in ~/.netrc. Without one, runs are kept offline."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host is not None and netrc().authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


class RecordRun(SaveConfigCallback):
    """Saves the resolved config in the run's folder, and says in every logger's config what this run is."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Logs config, commit, shard digests, layout, field and latency."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, StreamFlowModule) and isinstance(datamodule, ShardDataModule)
        layout, decode = pl_module.model.layout, pl_module.decode
        config = self.config.as_dict()
        config.pop("config", None)
        record = {
            "config": config,
            "commit": _commit(),
            "shards": {
                str(each.folder): [shard.digest for shard in each.manifest.shards]
                for each in (datamodule.train, datamodule.val)
            },
            "layout_picture": layout.picture(),
            "field_back": layout.field.back,
            "field_ahead": layout.field.ahead,
            "wait_ms": layout.wait_ms(decode.chunk, decode.lookahead, pl_module.model.mel.config.frame_rate),
            "parameters": sum(p.numel() for p in pl_module.model.parameters()),
        }
        for logger in trainer.loggers:
            logger.log_hyperparams(record)


def _commit() -> str:
    """Returns the commit of the code, with a + if files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).parent
    say = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(say, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class FitCLI(LightningCLI):
    """LightningCLI around `StreamFlowModule` and `ShardDataModule`; everything of a run lies in one folder."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `base`, which `with_bases` reads."""
        parser.add_argument("--base", type=str | None, help="config, beside this one, that this one is laid over")

    def before_instantiate_classes(self) -> None:
        """Puts loggers and checkpoints that name no folder into `trainer.default_root_dir`."""
        self.config[self.subcommand].base = None  # all that it says is in the config now
        trainer = self.config[self.subcommand].trainer
        folder = trainer.default_root_dir = str(trainer.default_root_dir or "runs/fit")
        loggers = trainer.logger if isinstance(trainer.logger, list) else []
        callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else []
        for each, name, place in (
            *((logger, "save_dir", folder) for logger in loggers),
            *((callback, "dirpath", f"{folder}/checkpoints") for callback in callbacks),
        ):
            arguments = each.get("init_args", {})
            if name in arguments and arguments[name] in (None, "."):
                arguments[name] = place

    def before_fit(self) -> None:
        """Refuses shards that do not fit, and a second run in the folder of a first, before any logger starts.

        Raises:
            FileNotFoundError, ValueError: as `ShardDataModule.check`.
            FileExistsError: if the folder holds checkpoints and none of them is to be continued.
        """
        if self.config.fit.ckpt_path is None:  # else the checkpoint says whose tokens the model has learnt
            self.datamodule.check(self.model)
        folder = Path(self.trainer.default_root_dir)
        if self.config.fit.ckpt_path is None and any(folder.glob("checkpoints/*.ckpt")):
            raise FileExistsError(
                f"{folder} holds a run already: continue it with --ckpt_path=last, "
                "or give another --trainer.default_root_dir"
            )


def with_bases(args: list[str]) -> list[str]:
    """Puts in front of each `--config` the one that it names as its `base`, so that overlays stay short.

    Raises:
        FileNotFoundError: if a config or its base is missing.
    """
    done: list[str] = []
    for i, arg in enumerate(args):
        given = arg.removeprefix("--config=") if arg.startswith("--config=") else None
        if i and args[i - 1] == "--config":
            given = arg
            done.pop()
        if given is None:
            done.append(arg)
            continue
        chain = [Path(given)]
        while base := OmegaConf.select(OmegaConf.load(_found(chain[0])), "base"):
            chain.insert(0, chain[0].parent / base)
        done += [f"--config={path}" for path in chain]
    return done


def _found(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"--config: {path} is missing")
    return path


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    args = sys.argv[1:] if args is None else args
    commands = ("fit", "validate", "test", "predict")
    if not args or (args[0] not in commands and args[0] not in ("-h", "--help")):
        args = ["fit", *args]
    if not wandb_key_is_known():
        os.environ.setdefault("WANDB_MODE", "offline")
    OmegaConf.register_resolver("best_precision", best_precision, replace=True)
    # It warns of arguments given twice; here the second time they only have a subcommand in front.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    FitCLI(
        StreamFlowModule,
        ShardDataModule,
        args=with_bases(args),
        parser_kwargs={"parser_mode": "omegaconf", "exit_on_error": False, "allow_abbrev": False},
        save_config_callback=RecordRun,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
    )


if __name__ == "__main__":
    main()
