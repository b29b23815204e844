"""Training of a StreamFlow decoder with Lightning: flow matching loss, averaged weights, validation loss.

Letters: U utterances, M blocks, W frames of a block, F mel bands, S speaker width.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.packing import Batch
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.files.hub import local_path
from sf_lightning.files.identify import DECODERS, Kind, require_kind
from sf_lightning.files.records import to_plain
from sf_lightning.files.text import get_logger
from sf_lightning.flow.guidance import DropConfig
from sf_lightning.flow.loss import flow_matching_loss
from sf_lightning.flow.noise import keyed_generator
from sf_lightning.flow.path import draw_times, straight_path
from sf_lightning.model.dit import DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.model.pretrained import ModelConfig, TokenizerName
from sf_lightning.model.qwen import warm_start
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale, StreamFlow
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.loading import load_pretrained
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.training.base import ShardModule, require_equal_hyperparameters
from sf_lightning.training.compile_cache import compile_modules
from sf_lightning.training.ema import move_average
from sf_lightning.training.optimizer import OptimizerConfig, adamw, warmup_cosine
from sf_lightning.training.sharding import copy_full_weights, full_tensor, is_sharded, shard_weights
from sf_lightning.vocoder.base import Vocoder
from sf_lightning.vocoder.config import VocoderConfig

log = get_logger(__name__)


@dataclass(frozen=True)
class _Draws:
    """Random values of a step: noise [M, W, F], flow times [U], which speakers and tokens are dropped [U]."""

    x_0: Tensor
    t: Tensor
    drop_speaker: Tensor
    drop_tokens: Tensor


class StreamFlowModule(ShardModule):
    """Trains a StreamFlow decoder.

    Args:
        layout: Receptive field of each layer.
        dit: Sizes of the network.
        mel: Settings of the mel spectrogram.
        scale: Mean and standard deviation by which the mel is normalized.
        speaker: Settings of the speaker encoder.
        predict: Output of the network, "mel" or "velocity"; the loss is on the velocity in both cases.
        tokenizer: Name of the tokenizer whose tokens are decoded.
        times: Distribution of flow times in training.
        drop: Probabilities of dropping conditions in training.
        optimizer: Settings of the optimizer and of the averaged weights.
        decode: Decoding settings of validation, and the defaults of `sf-decode`.
        vocoder: Vocoder that turns mels into audio.
        init_from: Initial weights: a checkpoint of `sf-fit`, of which the averaged weights are used; a folder of
            `sf-export`; the folder of Qwen2.5-Omni, one of its files or a state dict; or OWNER/NAME[@REVISION] of
            the Hugging Face hub (HF_TOKEN and HF_HOME set access token and cache). A resumed run ignores it.
        compile: Whether to compile each layer with torch.compile; the first steps then take minutes.
        recompute: Whether to recompute activations in the backward pass: less memory, a third more work.
        seed: Seed of noise, flow times and dropped conditions in training.

    >>> dit = DiTConfig(width=32, num_heads=2, token_width=16, speaker_width=8, vocabulary=50)
    >>> module = StreamFlowModule(Layout(num_layers=2, backward=1, forward=1), dit)
    >>> module.model.layout.wait_ms()  # before the first chunk can be decoded
    480.0
    """

    model: StreamFlow
    average: StreamFlow
    must_match = ("layout", "dit", "mel", "scale", "speaker", "predict")
    restored_from_optimizer = ("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.beta2")

    def __init__(
        self,
        layout: Layout = Layout(),
        dit: DiTConfig = DiTConfig(),
        mel: MelConfig = MelConfig(),
        scale: MelScale = MelScale(),
        speaker: SpeakerConfig = SpeakerConfig(),
        predict: Literal["mel", "velocity"] = "mel",
        tokenizer: str = "kmeans",
        times: Literal["logit_normal", "uniform"] = "logit_normal",
        drop: DropConfig = DropConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        decode: DecodeConfig = DecodeConfig(),
        vocoder: VocoderConfig = VocoderConfig(),
        init_from: str | None = None,
        compile: bool = False,
        recompute: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer.max_bad_steps, init_from, seed)
        self.store_hyperparameters(locals())
        self.tokenizer, self.times, self.drop = tokenizer, times, drop
        self.optimizer, self.decode, self.vocoder = optimizer, decode, vocoder
        self.config = ModelConfig(layout, dit, mel, scale, speaker, predict)
        self._make = partial(StreamFlow, layout, dit, mel, scale, speaker, predict)
        self.model, self.average = self._make(), self._make()
        self.average.requires_grad_(False).load_state_dict(self.model.state_dict())
        self._unsharded: list[StreamFlow] = []  # in a list: not a submodule
        self.model.dit.recompute = recompute
        self.compiles = compile

    @property
    def clip_requirements(self) -> ClipRequirements:
        """Tokens, blocks and speaker inputs of the network."""
        return ClipRequirements.from_config(self.config, TokenizerName(self.tokenizer, self.tokenizer_digest))

    def description(self) -> dict[str, Any]:
        """Returns layout, receptive field, algorithmic latency and size."""
        layout, decode = self.model.layout, self.decode
        return {
            "layout_picture": layout.picture(),
            "field_back": layout.field.back,
            "field_ahead": layout.field.ahead,
            "wait_ms": layout.wait_ms(decode.chunk, decode.lookahead, self.model.mel.config.frame_rate),
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }

    def load_weights(self, path: str) -> str:
        """Loads the weights of a trained decoder, whose layout may differ, or of Qwen2.5-Omni token2wav.

        Raises:
            FileNotFoundError, ValueError: as `load_pretrained`, `model.qwen.warm_start`; or if the network differs.
        """
        found = local_path(path)
        if require_kind(found, *DECODERS, Kind.QWEN) is Kind.QWEN:
            return str(warm_start(self.model, found))
        trained = load_pretrained(found)
        settings = ("layout.num_layers", *(name for name in self.must_match if name != "layout"))
        require_equal_hyperparameters(
            settings, to_plain(trained.description.model), dict(self.hparams), "use the value of the checkpoint"
        )
        self.model.load_state_dict(trained.model.state_dict())
        trained_on, given = trained.description.tokenizer.digest, self.tokenizer_digest
        if None not in (trained_on, given) and trained_on != given:
            message = "--model.init_from: %s was trained on tokens of tokenizer %s, the data has tokens of %s"
            log.warning(message, path, trained_on, given)
        return str(trained.description.weights)

    def check(self, trainer: L.Trainer) -> None:
        """Refuses scaled gradients, which clipping would misread, clipping by value, and endless runs.

        Raises:
            ValueError: with the option of the trainer.
        """
        if trainer.precision == "16-mixed":
            raise ValueError(
                "--trainer.precision is 16-mixed, which scales gradients: expected bf16-mixed or 32-true"
            )
        if trainer.state.fn != TrainerFn.VALIDATING and trainer.max_steps < 1:
            raise ValueError(
                f"--trainer.max_steps is {trainer.max_steps}: expected 1 or more, for the learning-rate schedule"
            )
        if (algorithm := trainer.gradient_clip_algorithm) not in (None, "norm"):
            raise ValueError(f"--trainer.gradient_clip_algorithm is {algorithm.value}: expected norm")

    def setup(self, stage: str) -> None:
        """Checks the trainer, and compiles the layers if asked to."""
        super().setup(stage)
        if self.compiles:
            compile_modules(self.model.dit.layers)
            self.compiles = False

    def configure_model(self) -> None:
        """Shards the weights over ranks, if the strategy shards."""
        if self.device_mesh is not None and not is_sharded(self.model):
            for network in (self.model, self.average):
                shard_weights(network, self.device_mesh)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the flow matching loss of a batch."""
        losses = self._losses(self.model, batch, self._random_draws(batch))
        self.guard.add_losses(losses, batch.blocks.utterance, batch.keys)
        loss = losses.mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=1)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps the optimizer, then moves the averaged weights, before any callback can save them."""
        super().optimizer_step(*args, **kwargs)
        move_average(self.average, self.model, self.global_step + 1, self.optimizer.ema_decay)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Any = None,
    ) -> None:
        """Clips the norm of all gradients and logs it; skips the step if the norm is not finite.

        Raises:
            FloatingPointError: if too many consecutive steps were skipped.
        """
        limit = gradient_clip_val or float("inf")
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        self.guard.guard_step(optimizer, norm, self.global_step)
        self.log("train/gradient_norm", norm)
        self.log("train/clip_share", self.clipped.update(norm, limit))
        # As a tensor on the host: the host waits while a float is copied to the device.
        self.log("train/skipped_steps", torch.tensor(float(self.guard.skipped)))

    def configure_optimizers(self) -> Any:
        """Returns AdamW and its schedule, which advances once per optimizer step."""
        optimizer = adamw(self.model, self.optimizer)
        schedule = warmup_cosine(optimizer, self.optimizer.warmup_steps, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def unsharded_average(self) -> StreamFlow:
        """The averaged weights without shards; with sharding, a copy that each rank has during validation.

        Each rank decodes its own clips, and ranks that run sharded weights unequally often deadlock.
        """
        return self._unsharded[0] if self._unsharded else self.average

    def on_validation_start(self) -> None:
        """Loads initial weights where no checkpoint was loaded; gathers sharded averaged weights."""
        super().on_validation_start()
        if is_sharded(self.average):
            self._unsharded = [copy_full_weights(self.average, self._make()).to(self.device)]
        self.unsharded_average.eval()

    def on_validation_end(self) -> None:
        """Frees the copy of the averaged weights."""
        self._unsharded.clear()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the loss of the averaged weights with fixed noise and flow times."""
        loss = self._losses(self.unsharded_average, batch, self._fixed_draws(batch, batch_idx)).mean()
        # Mean over valid frames: the last batch is mostly padding.
        loss = loss * batch.blocks.valid.numel() / batch.num_frames
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=batch.num_frames)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the digest of the tokenizer."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["tokenizer_digest"] = self.tokenizer_digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the digest of the tokenizer from a checkpoint, which must match the module."""
        super().on_load_checkpoint(checkpoint)
        self.tokenizer_digest = checkpoint["tokenizer_digest"]

    def make_vocoder(self) -> Vocoder:
        """Returns the configured vocoder, on this module's device."""
        vocoder = self.vocoder.make(self.model.mel.config)
        return vocoder.to(self.device) if isinstance(vocoder, torch.nn.Module) else vocoder

    def decoder(self, vocoder: Vocoder | None = None, decode: DecodeConfig | None = None) -> StreamingDecoder:
        """Returns a decoder with the averaged weights, by default with the configured vocoder and settings."""
        return StreamingDecoder(
            self.unsharded_average.eval(), vocoder or self.make_vocoder(), decode or self.decode
        )

    def _losses(self, model: StreamFlow, batch: Batch, draws: _Draws) -> Tensor:
        """Returns the loss of each block, [M]."""
        blocks = batch.blocks
        x_1 = model.to_flow(model.mel.frames(batch.wave))
        point = straight_path(draws.x_0, x_1, draws.t[blocks.utterance, None, None])
        speaker = (batch.reference, batch.x_vector)
        velocity = model(point.x_t, draws.t, batch.tokens, speaker, blocks, draws.drop_speaker, draws.drop_tokens)
        return flow_matching_loss(velocity, point.dx_t, blocks.valid)

    def _random_draws(self, batch: Batch) -> _Draws:
        """Returns random values keyed by (seed, lane, pack): the same at any world size and after a resume."""
        frames, bands = batch.blocks.block_size, self.model.mel.config.num_bands
        draws = []
        for pack in batch.packs:
            random = keyed_generator("training", self.seed, pack.lane, pack.pack, device=self.device)
            x_0 = torch.randn(pack.num_blocks, frames, bands, generator=random, device=self.device)
            t = draw_times(pack.num_utterances, self.times, random)
            draws.append((x_0, t, *self.drop.draw(pack.num_utterances, random)))
        return _Draws(*(torch.cat(values) for values in zip(*draws, strict=True)))

    def _fixed_draws(self, batch: Batch, batch_idx: int) -> _Draws:
        """Returns the draws of each validation: fixed noise, evenly spaced flow times, all conditions kept."""
        blocks, count = batch.blocks, batch.blocks.num_utterances
        random = keyed_generator("validation", batch_idx)
        x_0 = torch.randn(*blocks.valid.shape, self.model.mel.config.num_bands, generator=random)
        t = (torch.arange(count, device=self.device) + 0.5) / count
        kept = torch.zeros(count, dtype=torch.bool, device=self.device)
        return _Draws(x_0.to(self.device), t, kept, kept)
