"""Times the training step of a vocoder and that of the bigvgan package's trainer, on the same networks and data.

    python benchmarks/vocoder_step.py --shards shards/speech/train [--config experiments/vocoder_base.yaml] [--json]

Three implementations take steps by turns in one process: the loop of `bigvgan/train.py`, copied without its
devices, logs and checkpoints (its segments are given, and it clips at early_clip_norm); the steps of
`VocoderModule` without Lightning (it also slices segments and computes their mels, freezes the discriminators while
the generator is updated, uses a fused optimizer that can skip a step, averages weights, and compiles activations if
the recipe does); and `VocoderModule` under Lightning's Trainer, without loggers. The losses of the first step must
agree. The time of a step is the median. Further options change the recipe, such as --model.segments.frames=64.
"""

import argparse
import itertools
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from bigvgan.loss import MultiScaleMelSpectrogramLoss, discriminator_loss, feature_loss, generator_loss
from bigvgan.meldataset import mel_spectrogram
from jsonargparse import ArgumentParser
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch.nn.utils import clip_grad_norm_

from sf_lightning.cli.configs import expand_configs
from sf_lightning.data.lanes import Lane, LaneConfig, LaneState
from sf_lightning.data.packing import Batch, PackShape, pack_clips
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.segments import BLOCK_FRAMES, slice_segments
from sf_lightning.data.shards import ShardSet
from sf_lightning.training.ema import move_average
from sf_lightning.training.guard import skip_unless_finite
from sf_lightning.training.vocoder_module import VocoderModule

CONFIG = Path(__file__).parents[1] / "experiments" / "vocoder_small.yaml"
IMPLEMENTATIONS = ("bigvgan/train.py", "ours without Lightning", "ours under Lightning")
WARM = 2
"""Steps of each implementation that are not timed."""

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make(config: Any) -> VocoderModule:
    """Returns the module of a recipe, always with the same weights."""
    parser = ArgumentParser()
    parser.add_class_arguments(VocoderModule, "model")
    torch.manual_seed(0)
    module = parser.instantiate(parser.parse_object({"model": OmegaConf.to_container(config.model)})).model
    return module.to(device).train()


def first_batch(shards: ShardSet, config: Any) -> Batch:
    """Returns the batch of the first step of a run of the recipe."""
    data, manifest = config.data, shards.manifest
    shape = PackShape(
        data.pack_frames // BLOCK_FRAMES,
        BLOCK_FRAMES,
        manifest.tokenizer.frames_per_token,
        data.max_pieces,
        manifest.mel,
    )
    lane_config = LaneConfig(0, data.lanes, ClipRequirements(min_frames=config.model.segments.frames))
    lanes = [Lane([shards], number, lane_config) for number in range(data.lanes)]
    return Batch.from_packs([next(pack_clips(lane.draw_clips(LaneState()), shape, lane.lane)) for lane in lanes])


class PackageLoop:
    """The loop of bigvgan/train.py, with its variable names."""

    def __init__(self, module: VocoderModule, batch: Batch) -> None:
        segments, config = slice_segments(batch, module.segments.frames, module.mel), module.optimizer
        self.x, self.y, self.mel = segments.mel.transpose(1, 2), segments.wave[:, None], module.mel.config
        self.y_mel = module.mel(segments.wave).transpose(1, 2)
        self.generator, (self.mpd, self.mrd) = module.model.generator, module.adversary.parts
        self.losses, self.clip_grad_norm = module.adversary.losses, config.early_clip_norm
        self.fn_mel_loss_multiscale = MultiScaleMelSpectrogramLoss(module.mel.config.sample_rate)
        betas, rate = (config.beta1, config.beta2), config.learning_rate
        discriminators = itertools.chain(self.mrd.parameters(), self.mpd.parameters())
        self.optim_g = torch.optim.AdamW(self.generator.parameters(), lr=rate, betas=betas)
        self.optim_d = torch.optim.AdamW(discriminators, lr=config.discriminator_learning_rate or rate, betas=betas)

    def step(self) -> float:
        """Takes a step and returns the generator's loss."""
        mel, y = self.mel, self.y
        y_g_hat = self.generator(self.x)
        bands = (mel.n_fft, mel.num_bands, mel.sample_rate, mel.hop_length, mel.win_length, mel.f_min, mel.f_max)
        y_g_hat_mel = mel_spectrogram(y_g_hat.squeeze(1), *bands)
        self.optim_d.zero_grad()
        y_df_hat_r, y_df_hat_g, _, _ = self.mpd(y, y_g_hat.detach())
        loss_disc_f, _, _ = discriminator_loss(y_df_hat_r, y_df_hat_g)
        y_ds_hat_r, y_ds_hat_g, _, _ = self.mrd(y, y_g_hat.detach())
        loss_disc_s, _, _ = discriminator_loss(y_ds_hat_r, y_ds_hat_g)
        (loss_disc_s + loss_disc_f).backward()
        clip_grad_norm_(self.mpd.parameters(), self.clip_grad_norm)
        clip_grad_norm_(self.mrd.parameters(), self.clip_grad_norm)
        self.optim_d.step()
        self.optim_g.zero_grad()
        if self.losses.mel == "multi_scale":
            loss_mel = self.fn_mel_loss_multiscale(y, y_g_hat) * self.losses.mel_weight
        else:
            loss_mel = torch.nn.functional.l1_loss(self.y_mel, y_g_hat_mel) * self.losses.mel_weight
        _, y_df_hat_g, fmap_f_r, fmap_f_g = self.mpd(y, y_g_hat)
        _, y_ds_hat_g, fmap_s_r, fmap_s_g = self.mrd(y, y_g_hat)
        loss_fm = feature_loss(fmap_s_r, fmap_s_g) + feature_loss(fmap_f_r, fmap_f_g)
        loss_gen_all = generator_loss(y_ds_hat_g)[0] + generator_loss(y_df_hat_g)[0] + loss_fm + loss_mel
        loss_gen_all.backward()
        clip_grad_norm_(self.generator.parameters(), self.clip_grad_norm)
        self.optim_g.step()
        return float(loss_gen_all)


class OwnLoop:
    """The step of `VocoderModule`, without Lightning."""

    def __init__(self, module: VocoderModule, batch: Batch) -> None:
        self.module, self.batch, self.number = module, batch, 0
        configured = module.configure_optimizers()
        self.generator, self.discriminators = (entry["optimizer"] for entry in configured)
        self.schedules = [entry["lr_scheduler"]["scheduler"] for entry in configured]

    def step(self) -> float:
        """Takes a step and returns the generator's loss."""
        module, limit = self.module, self.module.optimizer.early_clip_norm
        segments = slice_segments(self.batch, module.segments.frames, module.mel)
        generated = module.model.decode(segments.mel)
        loss = module.adversary.discriminator_loss(segments.wave, generated)
        self.discriminators.zero_grad()
        loss.backward()
        norms = [clip_grad_norm_(part.parameters(), limit) for part in module.adversary.parts]
        skip_unless_finite(self.discriminators, torch.stack(norms).sum())
        self.discriminators.step()
        module.adversary.requires_grad_(False)
        total = module.adversary.generator_losses(segments.wave, generated).total
        self.generator.zero_grad()
        total.backward()
        module.adversary.requires_grad_(True)
        skip_unless_finite(self.generator, clip_grad_norm_(module.model.parameters(), limit))
        self.generator.step()
        self.number += 1
        move_average(module.average, module.model, self.number, module.optimizer.ema_decay)
        for schedule in self.schedules:
            schedule.step()
        return float(total)


@dataclass
class Turns:
    """Yields the same batch in every step; before each, the other implementations take a step."""

    batch: Batch
    others: list[Callable[[], float]]
    steps: int
    seconds: list[list[float]]
    losses: list[list[float]]

    def __len__(self) -> int:  # without it Lightning would prefetch a batch
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            for number, step in enumerate(self.others):
                start = time.perf_counter()
                self.losses[number].append(step())
                self.seconds[number].append(_seconds_since(start))
            start = time.perf_counter()
            yield self.batch
            self.seconds[-1].append(_seconds_since(start))


def _seconds_since(start: float) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Losses(L.Callback):
    """Records the losses of Lightning's steps."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        """Records the loss of a step."""
        self.losses.append(float(outputs["loss"]))


def measure(config: Any, shards: Path, steps: int) -> tuple[list[float], list[float]]:
    """Returns the seconds of a step of each implementation, and the losses of their first steps."""
    uncompiled = OmegaConf.merge(config, {"model": {"compile": False}})
    with redirect_stdout(None):
        modules = [make(uncompiled), make(config), make(config)]
    batch = modules[0].add_random_draws(first_batch(ShardSet(shards), config)).to(device)
    seconds, losses = ([[] for _ in IMPLEMENTATIONS] for _ in range(2))
    others = [PackageLoop(modules[0], batch).step, OwnLoop(modules[1], batch).step]
    turns = Turns(batch, others, steps + WARM, seconds, losses)
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=steps + WARM,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Losses(losses[-1])],
    )
    trainer.fit(modules[-1], turns)
    return [statistics.median(times[WARM:]) for times in seconds], [values[0] for values in losses]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True, help="a shard set")
    parser.add_argument("--config", type=Path, default=CONFIG, help="recipe of a vocoder")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each implementation")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args, options = parser.parse_known_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    files = [option.removeprefix("--config=") for option in expand_configs([f"--config={args.config}"])]
    changes = OmegaConf.from_dotlist([option.removeprefix("--") for option in options])
    config = OmegaConf.merge(*map(OmegaConf.load, files), changes)
    config.model.optimizer.freeze_steps = 0  # both networks are updated
    config.model.discriminators.gain = 1.0  # the package has none
    seconds, losses = measure(config, args.shards, args.steps)
    if max(losses) - min(losses) > 1e-4 * losses[0]:
        raise RuntimeError(f"the implementations differ: their first losses are {losses}")
    table = Table("implementation", "ms per step", "over bigvgan/train.py")
    for name, value in zip(IMPLEMENTATIONS, seconds, strict=True):
        table.add_row(name, f"{1000 * value:.1f}", f"{value / seconds[0] - 1:+.1%}")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    console = Console(width=110, force_terminal=False)
    console.print(f"{args.config.name} on {where}, torch {torch.__version__}; first losses {losses}")
    console.print(table)
    overhead = seconds[2] - seconds[1]
    console.print(f"Lightning: {1000 * overhead:.1f} ms per step, {overhead / seconds[1]:.1%}")
    if args.json:
        ms = {name: round(1000 * value, 2) for name, value in zip(IMPLEMENTATIONS, seconds, strict=True)}
        print(
            json.dumps({"ratio": round(seconds[2] / seconds[0], 4), "lightning": overhead / seconds[1], "ms": ms})
        )


if __name__ == "__main__":
    main()
