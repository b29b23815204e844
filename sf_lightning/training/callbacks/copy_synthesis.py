"""Validation of a vocoder: held-out clips made of their own mels, scored beside Griffin-Lim, kept as sound."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sf_lightning.evaluation.clips import kept
from sf_lightning.metrics.pool import shared_pool
from sf_lightning.metrics.speech import SpeechScores
from sf_lightning.training.callbacks.continuation import between
from sf_lightning.training.callbacks.keeping import conclude, keep_clip, samples_folder
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.vocoder_module import VocoderModule
from sf_lightning.vocoder.griffin_lim import GriffinLim

SCORES = ("pesq_wb", "stoi", "visqol", "mel_l1", "no_score")


class CopySynthesis(L.Callback):
    """Makes the clips of validation of their own mels, whole, with the averaged generator.

    Logs `copy_synthesis/{pesq_wb,stoi,visqol,mel_l1,no_score}`, the mel error as `val/loss` too, and once the same
    scores of Griffin-Lim; writes waves and pictures under `samples/step-*/` of the run's folder, and to W&B; ends a
    fit with a table and a page, `report.html`.

    Args:
        keep: Clips whose sound and picture are kept.
        iterations: Steps of Griffin-Lim.
    """

    def __init__(self, keep: int = 2, iterations: int = 32) -> None:
        self.keep, self.iterations = keep, iterations
        self.rows: dict[str, dict[str, float]] = {}
        self.samples: Path | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Fails now, not after an hour, if a metric cannot run; lets the metric processes start meanwhile."""
        assert isinstance(pl_module, VocoderModule)
        SpeechScores(pl_module.mel.config.sample_rate)
        shared_pool().warm_up()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock: what validation costs is logged as `val/seconds`."""
        self._started = time.perf_counter()

    @torch.inference_mode()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Makes, scores, logs and keeps."""
        assert isinstance(pl_module, VocoderModule)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(datamodule, ShardDataModule)
        device = pl_module.device
        clips = [(each.clip.key, torch.from_numpy(each.clip.wave).to(device)) for each in datamodule.rank_clips]
        mels = [pl_module.mel(wave[None])[0] for _, wave in clips]
        made = {"copy_synthesis": [pl_module.synthesise(mel[None])[0] for mel in mels]}
        if "griffin_lim" not in self.rows:
            griffin_lim = GriffinLim(pl_module.mel.config, self.iterations).to(device)
            made["griffin_lim"] = [griffin_lim.decode(mel[None])[0] for mel in mels]
        between(trainer)
        values: dict[str, float] = {}
        for way, waves in made.items():
            again = [pl_module.mel(wave[None])[0] for wave in waves]
            self.rows[way] = self._score(pl_module, waves, again, [wave for _, wave in clips], mels)
            values |= {f"{way}/{name}": value for name, value in self.rows[way].items()}
        values["val/loss"] = self.rows["copy_synthesis"]["mel_l1"]
        if trainer.is_global_zero:
            self._keep(trainer, pl_module, clips, mels, made["copy_synthesis"])
        values["val/seconds"] = time.perf_counter() - self._started
        pl_module.log_dict(values, batch_size=1)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the table of the last validation and what to open."""
        if trainer.is_global_zero and self.rows:
            conclude(trainer, self.rows, "", self.samples)

    def state_dict(self) -> dict[str, Any]:
        """What the last validation found: a run that is resumed at its end still has its table."""
        return {"rows": self.rows, "samples": str(self.samples) if self.samples else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self.rows = state_dict["rows"]
        self.samples = Path(state_dict["samples"]) if state_dict["samples"] else None

    def _score(
        self,
        module: VocoderModule,
        waves: list[Tensor],
        again: list[Tensor],
        references: list[Tensor],
        mels: list[Tensor],
    ) -> dict[str, float]:
        scores = SpeechScores(module.mel.config.sample_rate, module.device)
        scores.update(waves, references, again, mels, [torch.empty(0, dtype=torch.long)] * len(waves))
        found = scores.compute()
        return {name: found[name] for name in SCORES}  # nothing is joined, so there are no seams

    def _keep(
        self,
        trainer: L.Trainer,
        module: VocoderModule,
        clips: list[tuple[str, Tensor]],
        mels: list[Tensor],
        waves: list[Tensor],
    ) -> None:
        self.samples, config = samples_folder(trainer), module.mel.config
        for i in kept(len(clips), self.keep):
            key, reference = clips[i]
            sounds = {"reference": reference, "made": waves[i]}
            seen = {"reference": mels[i], "made": module.mel(waves[i][None])[0]}
            rates = dict.fromkeys(sounds, config.sample_rate)
            keep_clip(trainer, self.samples, key, sounds, rates, seen, torch.empty(0), config.frame_rate)
