"""Adversarial training of a BigVGAN vocoder with Lightning.

Generator and discriminators come from `vocoder`, segments of clips from `data`.

Letters: B segments, S frames of a segment, F mel bands, N samples.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ExponentialLR

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.data.packing import Batch
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.segments import BLOCK_FRAMES, SegmentConfig, draw_starts, slice_segments
from sf_lightning.files.identify import Kind, identify
from sf_lightning.files.records import from_plain, to_plain
from sf_lightning.files.torch_files import read_torch
from sf_lightning.training.base import ShardModule
from sf_lightning.training.compile_cache import set_compile_cache
from sf_lightning.training.ema import move_average
from sf_lightning.training.guard import skip_unless_finite
from sf_lightning.training.lightning_internals import finds_unused_parameters
from sf_lightning.training.optimizer import GANOptimizerConfig
from sf_lightning.vocoder.adversary import REACH, Adversary, DiscriminatorConfig, GeneratorLosses, LossConfig
from sf_lightning.vocoder.bigvgan import BigVGANVocoder
from sf_lightning.vocoder.config import shipped, vocoder_path
from sf_lightning.vocoder.generator import GeneratorConfig


class VocoderModule(ShardModule):
    """Trains a BigVGAN on random segments of the clips that decoders are trained on.

    **A step** is one batch, on which the discriminators are trained first, then the generator.
    `trainer.global_step`, `--trainer.max_steps`, schedules, checkpoints and logs count batches. Lightning would
    count the steps of both optimizers, so the one of the discriminators is stepped without Lightning's wrapper.

    Args:
        generator: Sizes of the generator.
        mel: Settings of the mel spectrogram.
        discriminators: Kind and sizes of the discriminators.
        losses: Kinds and weights of the losses.
        segments: Length and number of the segments of a pack.
        optimizer: Settings of the optimizers and of the averaged weights.
        init_from: Initial weights: a checkpoint of `sf-fit`, with its discriminators if they were trained; the name
            of a shipped vocoder; another source that `read_generator` accepts; or OWNER/NAME[@REVISION] of the
            Hugging Face hub (HF_TOKEN and HF_HOME set access token and cache). Optimizers are not loaded.
        compile: Whether to compile the generator's periodic activations, which are limited by memory bandwidth; the
            first step then takes half a minute. The bigvgan package's own kernel for them has no backward pass.
        seed: Seed of the start positions of segments.

    >>> discriminators = DiscriminatorConfig(kind="resolutions", periods=(2,), width=0.03125)
    >>> module = VocoderModule(GeneratorConfig(channels=32), discriminators=discriminators)
    >>> module.model.left, module.model.right  # frames of mel context
    (28, 28)
    """

    model: BigVGANVocoder
    average: BigVGANVocoder
    must_match = ("generator", "mel", "discriminators", "segments")
    restored_from_optimizer = (
        "optimizer.learning_rate",
        "optimizer.discriminator_learning_rate",
        "optimizer.decay",
        "optimizer.beta1",
        "optimizer.beta2",
        "optimizer.freeze_steps",
    )

    def __init__(
        self,
        generator: GeneratorConfig = GeneratorConfig(),
        mel: MelConfig = MelConfig(),
        discriminators: DiscriminatorConfig = DiscriminatorConfig(),
        losses: LossConfig = LossConfig(),
        segments: SegmentConfig = SegmentConfig(),
        optimizer: GANOptimizerConfig = GANOptimizerConfig(),
        init_from: str | None = None,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer.max_bad_steps, init_from, seed)
        self.store_hyperparameters(locals())
        self.automatic_optimization = False
        self.segments, self.optimizer = segments, optimizer
        if (samples := segments.frames * mel.hop_length) <= REACH:
            raise ValueError(
                f"segments.frames is {segments.frames}, which are {samples} samples: expected more than {REACH}, "
                "for discriminators and mel loss"
            )
        make = partial(BigVGANVocoder, generator.hyperparameters(mel), mel)
        self.model, self.average = make(), make()
        if compile:
            set_compile_cache()
            self.model.compile_activations()
        self.average.requires_grad_(False).load_state_dict(self.model.state_dict())
        self.adversary = Adversary(discriminators, losses, mel)
        self.mel = MelSpectrogram(mel)

    @property
    def clip_requirements(self) -> ClipRequirements:
        """Mel settings, and clips of at least a segment; tokens of any rate whose frames divide `BLOCK_FRAMES`."""
        return ClipRequirements(self.mel.config, BLOCK_FRAMES, min_frames=self.segments.frames)

    def add_random_draws(self, batch: Batch) -> Batch:
        """Returns a batch with the start positions of its segments, keyed by seed, lane and pack."""
        return replace(batch, starts=draw_starts(batch, self.segments, self.seed))

    def num_trained_frames(self, batch: Batch) -> int:
        """Returns the number of frames in the segments, which may overlap."""
        return len(batch.packs) * self.segments.per_pack * self.segments.frames

    def description(self) -> dict[str, Any]:
        """Returns sizes, and how many frames of context the generator reads."""
        return {
            "context_frames": self.model.left,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "discriminator_parameters": sum(p.numel() for p in self.adversary.parameters()),
        }

    def load_weights(self, path: str) -> str:
        """Loads the generator of another vocoder and, from a checkpoint, its discriminators if they were trained.

        Raises:
            FileNotFoundError, ValueError: as `load_generator`; or if the discriminators differ, or would not be
                trained for `freeze_steps`.
        """
        try:
            found = vocoder_path(path)
            kind = self.model.load_generator(found)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; or a name: {' or '.join(shipped())}") from error
        if identify(found) is not Kind.VOCODER_CHECKPOINT:
            return kind
        content = read_torch(found)
        given = content["hyper_parameters"]
        trained_with = from_plain(GANOptimizerConfig, given["optimizer"], "optimizer")
        if content["global_step"] <= trained_with.freeze_steps:
            return kind
        if self.optimizer.freeze_steps:
            raise ValueError(
                f"--model.optimizer.freeze_steps is {self.optimizer.freeze_steps}: expected 0, because {path} has "
                "trained discriminators"
            )
        # Their settings, because weights do not tell the periods.
        stored = to_plain(from_plain(DiscriminatorConfig, given["discriminators"], "discriminators"))
        if stored != (expected := self.hparams["discriminators"]):
            raise ValueError(f"{path} has the discriminators {stored}, this run has {expected}: give the same")
        weights = {name.removeprefix("adversary."): value for name, value in content["state_dict"].items()}
        self.adversary.load_state_dict({name: weights[name] for name in self.adversary.state_dict()})
        return kind

    def check(self, trainer: L.Trainer) -> None:
        """Checks the settings of the trainer; Lightning's own clipping supports one optimizer only.

        Raises:
            ValueError: with the option to change: if precision is neither full nor bf16-mixed, DDP would wait for
                gradients of the network that the current half of the step does not train, or Lightning would clip.
        """
        if trainer.world_size > 1 and not finds_unused_parameters(trainer.strategy):
            raise ValueError(
                f"--trainer.strategy with {trainer.world_size} processes: expected "
                "ddp_find_unused_parameters_true, because discriminators and generator are trained in turn"
            )
        if trainer.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(
                f"--trainer.precision is {trainer.precision}: expected 32-true, or bf16-mixed, in which only the "
                "discriminators use bf16; scaled gradients are not supported"
            )
        if trainer.gradient_clip_val is not None:
            raise ValueError(
                f"--trainer.gradient_clip_val is {trainer.gradient_clip_val}: expected none; for a vocoder, give "
                "--model.optimizer.clip_norm and early_clip_norm"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Trains the discriminators, after `freeze_steps`, then the generator, on the segments of a batch.

        A non-finite gradient of the discriminators skips the updates of both. A non-finite gradient of the
        generator only skips the generator's update: the discriminators are already updated by then.
        """
        segments = slice_segments(batch, self.segments.frames, self.mel)
        generator, discriminators = self._optimizers()
        with torch.autocast(self.device.type, enabled=False):
            generated = self.model.decode(segments.mel)  # in 16 bits the noise is at -38 dB (LOG.md)
        # The distance of each segment, not the losses, which bigvgan averages: this identifies the broken clip.
        self.guard.add_losses((generated - segments.wave).abs().mean(1), segments.utterance, batch.keys)

        frozen = self.global_step < self.optimizer.freeze_steps
        loss, norms = generated.new_zeros(()), generated.new_zeros(len(self.adversary.parts))
        if not frozen:
            loss, norms = self._train_discriminators(discriminators, segments.wave, generated)

        # The generator's loss uses the updated discriminators, which get no gradient here. Thus autocast does
        # not reuse its cached 16-bit copy of them, which is from before their update.
        self.adversary.requires_grad_(False)
        criterion = self.adversary.mel_only_losses if frozen else self.adversary.generator_losses
        losses = criterion(segments.wave, generated)
        generator.zero_grad()
        self.manual_backward(losses.total)
        self.adversary.requires_grad_(True)
        norm = clip_grad_norm_(self.model.parameters(), self._clip_norm())
        self.guard.guard_step(generator.optimizer, norm + norms.sum(), self.global_step)
        generator.step()
        move_average(self.average, self.model, self.global_step, self.optimizer.ema_decay)
        schedules: Any = self.lr_schedulers()
        # The schedule of the discriminators starts with their training.
        for schedule in schedules[:1] if frozen else schedules:
            schedule.step()
        self._log(losses, loss, norm, norms)
        return {"loss": losses.total.detach(), "discriminator_loss": loss.detach()}

    def _train_discriminators(
        self, optimizer: torch.optim.Optimizer, wave: Tensor, generated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Trains the discriminators on segments [B, N]; returns their loss and the gradient norms, [2]."""
        loss, limit = self.adversary.discriminator_loss(wave, generated), self._clip_norm()
        optimizer.zero_grad()
        self.manual_backward(loss)
        norms = torch.stack([clip_grad_norm_(part.parameters(), limit) for part in self.adversary.parts])
        skip_unless_finite(optimizer, norms.sum())
        optimizer.step()
        return loss, norms

    def _optimizers(self) -> tuple[LightningOptimizer, torch.optim.Optimizer]:
        """Returns the generator's optimizer, whose steps Lightning counts, and the discriminators' bare one."""
        generator, discriminators = self.optimizers()  # type: ignore[misc,attr-defined]
        assert isinstance(generator, LightningOptimizer) and isinstance(discriminators, LightningOptimizer)
        return generator, discriminators.optimizer

    def _clip_norm(self) -> float:
        config = self.optimizer
        return config.early_clip_norm if self.global_step < config.early_steps else config.clip_norm

    def _log(self, losses: GeneratorLosses, discriminator_loss: Tensor, norm: Tensor, norms: Tensor) -> None:
        self.log("train/loss", losses.total.detach(), prog_bar=True, batch_size=1)
        values = {
            "mel_loss": losses.mel.detach(),
            "feature_loss": losses.feature.detach(),
            "adversarial_loss": losses.adversarial.detach(),
            "discriminator_loss": discriminator_loss.detach(),
            "gradient_norm": norm,
            "clip_share": self.clipped.update(norm, self._clip_norm()),
            "period_gradient_norm": norms[0],
            "spectral_gradient_norm": norms[1],
            # As a tensor on the host: the host waits while a float is copied to the device.
            "skipped_steps": torch.tensor(float(self.guard.skipped)),
        }
        for name, value in values.items():
            self.log(f"train/{name}", value, batch_size=1)

    def configure_optimizers(self) -> Any:
        """Returns an optimizer for the generator and one for the discriminators, each with its schedule."""
        config = self.optimizer

        def make(module: nn.Module, rate: float) -> torch.optim.Optimizer:
            betas = (config.beta1, config.beta2)
            # Fused: the device itself can skip a step.
            return torch.optim.AdamW(module.parameters(), lr=rate, betas=betas, fused=True)

        optimizers = {
            "generator": make(self.model, config.learning_rate),
            "discriminators": make(self.adversary, config.discriminator_learning_rate or config.learning_rate),
        }
        return [
            {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": ExponentialLR(optimizer, config.decay), "name": f"lr-{name}"},
            }
            for name, optimizer in optimizers.items()
        ]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Does nothing: `CopySynthesis` evaluates whole clips, and logs `val/loss` too."""

    @torch.inference_mode()
    def synthesize(self, mel: Tensor) -> Tensor:
        """Returns the audio [B, T * hop] that the averaged generator makes of mels [B, T, F]."""
        return self.average.eval().decode(mel)
