"""BigVGAN under Lightning: generator and adversary from `vocoder`, segments from `data`, nothing of its own.

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
from sf_lightning.files.records import from_plain
from sf_lightning.files.torch_files import read_torch
from sf_lightning.training.base import ShardModule, plain
from sf_lightning.training.ema import move_average
from sf_lightning.training.guard import skip_unless_finite
from sf_lightning.training.optimizer import GANOptimizerConfig
from sf_lightning.vocoder.adversary import REACH, Adversary, DiscriminatorConfig, GeneratorLosses, LossConfig
from sf_lightning.vocoder.bigvgan import BigVGANVocoder
from sf_lightning.vocoder.config import shipped, vocoder_path
from sf_lightning.vocoder.generator import GeneratorConfig


class VocoderModule(ShardModule):
    """Trains a BigVGAN on random segments of the clips that decoders are trained on.

    **A step** is one batch: the discriminators learn from it, then the generator. `trainer.global_step`,
    `--trainer.max_steps`, the schedules, checkpoints and logs all count these; Lightning would count both
    optimizers, so that of the discriminators steps without its knowledge.

    Args:
        generator: Sizes of the generator.
        mel: The mel spectrogram.
        discriminators: Which discriminators.
        losses: Weights of the losses.
        segments: How segments are cut.
        optimizer: How weights are trained and averaged.
        init_from: A vocoder to begin with: a checkpoint of `sf-fit`, which brings discriminators that have learnt;
            the name of one that comes with the package; or what else `read_generator` takes. Optimizers and
            schedules begin anew.
        compile: Whether to compile the generator's periodic activations, most of whose time is memory; the first
            step then takes half a minute. The package's own kernel for them knows no backward pass.
        seed: Of where segments begin.

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
        super().__init__(optimizer.max_bad_steps, init_from)
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        # Plain values, and the parser that turns them back: a checkpoint then loads without pickled classes.
        self.save_hyperparameters(plain(given) | {"_instantiator": "lightning.pytorch.cli.instantiate_module"})
        self.automatic_optimization = False
        self.segments, self.optimizer, self.seed = segments, optimizer, seed
        if (samples := segments.frames * mel.hop_length) <= REACH:
            raise ValueError(
                f"segments.frames {segments.frames} are {samples} samples: discriminators and mel loss need "
                f"more than {REACH}: raise it"
            )
        make = partial(BigVGANVocoder, generator.hyperparameters(mel), mel)
        self.model, self.average = make(), make()
        if compile:
            self.model.compile_activations()
        self.average.requires_grad_(False).load_state_dict(self.model.state_dict())
        self.adversary = Adversary(discriminators, losses, mel)
        self.mel = MelSpectrogram(mel)

    @property
    def clip_requirements(self) -> ClipRequirements:
        """The mel, and clips of at least a segment; any tokens whose frames divide `BLOCK_FRAMES`."""
        return ClipRequirements(self.mel.config, BLOCK_FRAMES, min_frames=self.segments.frames)

    def add_random_draws(self, batch: Batch) -> Batch:
        """Draws where segments begin."""
        return replace(batch, starts=draw_starts(batch, self.segments, self.seed))

    def num_trained_frames(self, batch: Batch) -> int:
        """Those of the segments, which may overlap."""
        return len(batch.packs) * self.segments.per_pack * self.segments.frames

    def description(self) -> dict[str, Any]:
        """Sizes, and how much mel a sample depends on."""
        return {
            "context_frames": self.model.left,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "discriminator_parameters": sum(p.numel() for p in self.adversary.parameters()),
        }

    # -- training -------------------------------------------------------------------------------------

    def load_weights(self, path: str) -> str:
        """Takes the generator of another vocoder; of a checkpoint of `sf-fit` discriminators that have learnt, too.

        Raises:
            FileNotFoundError, ValueError: as `load_generator`; or if its discriminators are others, or are to rest.
        """
        try:
            found = vocoder_path(path)
            of = self.model.load_generator(found)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; or a name: {' or '.join(shipped())}") from error
        if identify(found) is not Kind.VOCODER_CHECKPOINT:
            return of
        content = read_torch(found)
        given = content["hyper_parameters"]
        learnt_with = from_plain(GANOptimizerConfig, given["optimizer"], "optimizer")
        if content["global_step"] <= learnt_with.freeze_steps:
            return of
        if self.optimizer.freeze_steps:
            raise ValueError(
                f"{path} brings discriminators that have learnt: --model.optimizer.freeze_steps "
                f"{self.optimizer.freeze_steps} would rest them, give 0"
            )
        # By their sizes, for weights do not say which periods they hear.
        theirs = plain(from_plain(DiscriminatorConfig, given["discriminators"], "discriminators"))
        if theirs != (ours := self.hparams["discriminators"]):
            raise ValueError(
                f"the discriminators of {path} are others: {theirs}, this run has {ours}: give this run theirs"
            )
        came = {name.removeprefix("adversary."): value for name, value in content["state_dict"].items()}
        self.adversary.load_state_dict({name: came[name] for name in self.adversary.state_dict()})
        return of

    def check(self, trainer: L.Trainer) -> None:
        """Refuses what was never tried, and Lightning's clipping, which knows of one optimizer.

        Raises:
            ValueError: if precision is neither full nor bf16-mixed, or ranks would wait for gradients that are not
                this half-step's; or with the option of the trainer.
        """
        kwargs = getattr(trainer.strategy, "_ddp_kwargs", {})
        if trainer.world_size > 1 and not kwargs.get("find_unused_parameters"):
            raise ValueError(
                f"--trainer.strategy on {trainer.world_size} processes: wanted "
                "ddp_find_unused_parameters_true, for discriminators and generator learn by turns"
            )
        if trainer.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(
                f"--trainer.precision is {trainer.precision}: a vocoder is trained with 32-true, or with "
                "bf16-mixed, in which its discriminators alone multiply in 16 bits; gradients are judged unscaled"
            )
        if trainer.gradient_clip_val is not None:
            raise ValueError(
                f"--trainer.gradient_clip_val is {trainer.gradient_clip_val}: a vocoder's gradients are clipped "
                "by --model.optimizer.clip_norm and early_clip_norm"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Trains the discriminators, unless they still rest, then the generator, on the segments of a batch.

        What is not finite changes no weight: if it is the discriminators' gradient, none of either; if it is the
        generator's alone, none of its own, for they have stepped by then.
        """
        segments = slice_segments(batch, self.segments.frames, self.mel)
        generator, discriminators = self._optimizers()
        with torch.autocast(self.device.type, enabled=False):
            made = self.model.decode(segments.mel)  # in 16 bits its noise is 38 dB below it (LOG.md)
        # Of the segments, not of the losses, which the package averages: this names the one that is broken.
        self.guard.add_losses((made - segments.wave).abs().mean(1), segments.utterance, batch.keys)

        frozen = self.global_step < self.optimizer.freeze_steps
        loss, judging = made.new_zeros(()), made.new_zeros(len(self.adversary.parts))
        if not frozen:
            loss, judging = self._train_discriminators(discriminators, segments.wave, made)

        # The generator learns from the discriminators as they are now; they learn nothing here. So autocast does
        # not take what it has kept of them in 16 bits, which is what they were before.
        self.adversary.requires_grad_(False)
        judge = self.adversary.mel_only_losses if frozen else self.adversary.generator_losses
        losses = judge(segments.wave, made)
        generator.zero_grad()
        self.manual_backward(losses.total)
        self.adversary.requires_grad_(True)
        norm = clip_grad_norm_(self.model.parameters(), self._clip_norm())
        self.guard.guard_step(generator.optimizer, norm + judging.sum(), self.global_step)
        generator.step()
        move_average(self.average, self.model, self.global_step, self.optimizer.ema_decay)
        schedules: Any = self.lr_schedulers()
        for schedule in schedules[:1] if frozen else schedules:  # that of the discriminators begins when they do
            schedule.step()
        self._log(losses, loss, norm, judging)
        return {"loss": losses.total.detach(), "discriminator_loss": loss.detach()}

    def _train_discriminators(
        self, optimizer: torch.optim.Optimizer, wave: Tensor, made: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Takes their step on segments [B, N]; returns their loss, and the gradient's norm for each kind, [2]."""
        loss, limit = self.adversary.discriminator_loss(wave, made), self._clip_norm()
        optimizer.zero_grad()
        self.manual_backward(loss)
        norms = torch.stack([clip_grad_norm_(part.parameters(), limit) for part in self.adversary.parts])
        skip_unless_finite(optimizer, norms.sum())
        optimizer.step()
        return loss, norms

    def _optimizers(self) -> tuple[LightningOptimizer, torch.optim.Optimizer]:
        """The generator's, whose steps Lightning counts, and the discriminators', whose steps it does not."""
        generator, discriminators = self.optimizers()  # type: ignore[misc,attr-defined]
        assert isinstance(generator, LightningOptimizer) and isinstance(discriminators, LightningOptimizer)
        return generator, discriminators.optimizer

    def _clip_norm(self) -> float:
        config = self.optimizer
        return config.early_clip_norm if self.global_step < config.early_steps else config.clip_norm

    def _log(self, losses: GeneratorLosses, discriminator_loss: Tensor, norm: Tensor, judging: Tensor) -> None:
        self.log("train/loss", losses.total.detach(), prog_bar=True, batch_size=1)
        values = {
            "mel_loss": losses.mel.detach(),
            "feature_loss": losses.feature.detach(),
            "adversarial_loss": losses.adversarial.detach(),
            "discriminator_loss": discriminator_loss.detach(),
            "gradient_norm": norm,
            "clip_share": self.clipped.update(norm, self._clip_norm()),
            "period_gradient_norm": judging[0],
            "spectral_gradient_norm": judging[1],
            "skipped_steps": torch.tensor(float(self.guard.skipped)),  # a float is copied, and waited for
        }
        for name, value in values.items():
            self.log(f"train/{name}", value, batch_size=1)

    def configure_optimizers(self) -> Any:
        """One for the generator, one for the discriminators, each with its schedule."""
        config = self.optimizer

        def make(module: nn.Module, rate: float) -> torch.optim.Optimizer:
            betas = (config.beta1, config.beta2)
            # Fused: it can be told on the device to skip a step.
            return torch.optim.AdamW(module.parameters(), lr=rate, betas=betas, fused=True)

        theirs = config.discriminator_learning_rate or config.learning_rate
        made = {
            "generator": make(self.model, config.learning_rate),
            "discriminators": make(self.adversary, theirs),
        }
        return [
            {
                "optimizer": each,
                "lr_scheduler": {"scheduler": ExponentialLR(each, config.decay), "name": f"lr-{name}"},
            }
            for name, each in made.items()
        ]

    # -- validation -----------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Nothing: clips are judged whole, by `CopySynthesis`, which logs `val/loss` too."""

    @torch.inference_mode()
    def synthesize(self, mel: Tensor) -> Tensor:
        """Returns the waves [B, T * hop] of mels [B, T, F] by the averaged generator."""
        return self.average.eval().decode(mel)
