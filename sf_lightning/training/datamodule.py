"""The Lightning data module: lanes of shard sets spread over ranks and workers, with a position in checkpoints."""

from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import torch

from sf_lightning.data.held_out import evenly_spaced_clips
from sf_lightning.data.lanes import DrawnClip, Lane, LaneConfig, LaneState, SetPosition
from sf_lightning.data.packing import Batch, PackShape, pack_clips
from sf_lightning.data.perturb import Perturbation
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.shards import ShardSet
from sf_lightning.files.text import get_logger
from sf_lightning.flow.noise import require_seed
from sf_lightning.training.base import ShardModule
from sf_lightning.training.generated_mels import GeneratedMels
from sf_lightning.training.loader import BatchList, LaneDataset, StepLoader
from sf_lightning.training.ranks import gather_over_ranks
from sf_lightning.training.sample_order import ORDER_VERSION, require_same_order, warn_about_order

log = get_logger(__name__)


class ShardDataModule(L.LightningDataModule):
    """Streams shards into fixed packs, the same global batches at any world size.

    Everything that must agree with the model (mel, tokenizer, block size, length of the reference crops) is read
    from the module at `setup`, so that it is configured once.

    Args:
        train: Shard set to train on: a folder or a remote location (see `Store`); or several, which are mixed.
        val: Shard set to validate on.
        weights: Sampling weight of each training set; by default all are equal.
        pack_frames: Frames in a pack, rounded down to whole blocks; a step has one pack of each lane.
        lanes: Packs in a step over all ranks; a multiple of every world size that the run may have.
        max_pieces: Largest number of pieces of clips in a pack; the rest of the pack is padding.
        val_clips: Number of held-out clips that are decoded and scored in validation.
        num_workers: Loader processes of each rank; lowered to a divisor of the rank's lanes.
        group: Number of shards whose samples are shuffled together.
        max_bad_share: Share of broken samples above which training stops.
        seed: Seed of the order of samples.
        speed: Largest relative change of the speed of training clips, drawn at random; see `Perturbation`.
        level_db: Largest attenuation of training clips in decibels, drawn at random.
        cache_gb: Size of the cache of remote shard sets, in gigabytes.
        mels: Input of a vocoder in training: "true" mels, computed from the audio, or "generated" ones, which a
            decoder predicts with teacher forcing (see `Teacher`), so that the vocoder learns to correct that
            decoder's errors.
        decoder: Decoder that generates the mels, as in `sf-decode --ckpt`.

    >>> data = ShardDataModule("shards/train", "shards/dev", pack_frames=768, lanes=2)  # read at `setup`
    >>> data.pack_frames * data.lanes  # frames of a step
    1536
    """

    def __init__(
        self,
        train: str | list[str],
        val: str,
        weights: list[float] | None = None,
        pack_frames: int = 768,
        lanes: int = 1,
        max_pieces: int = 8,
        val_clips: int = 16,
        num_workers: int = 1,
        group: int = 4,
        max_bad_share: float = 0.1,
        seed: int = 0,
        speed: float = 0.0,
        level_db: float = 0.0,
        cache_gb: float = 50.0,
        mels: Literal["true", "generated"] = "true",
        decoder: str | None = None,
    ) -> None:
        super().__init__()
        require_seed("data.seed", seed)
        if (mels == "generated") != (decoder is not None):
            raise ValueError(
                f"data.mels is {mels}, data.decoder is {decoder}: expected a decoder with generated mels, none "
                "with true ones"
            )
        names = [train] if isinstance(train, str) else train
        self.train, self.val = [ShardSet(name, cache_gb) for name in names], ShardSet(val, cache_gb)
        self.weights = weights or [1.0] * len(names)
        if len(self.weights) != len(names) or not names or min(self.weights) <= 0:
            raise ValueError(
                f"data.weights is {self.weights} for {len(names)} sets of data.train: expected one above 0 for each"
            )
        self.perturbation = Perturbation(speed, level_db)
        self.pack_frames, self.lanes, self.max_pieces = pack_frames, lanes, max_pieces
        self.val_clips, self.num_workers, self.group = val_clips, num_workers, group
        self.max_bad_share, self.seed = max_bad_share, seed
        self.states: dict[int, LaneState] = {}
        self.skipped: dict[int, dict[str, int]] = {}
        self.generated_mels = GeneratedMels(decoder, seed) if decoder is not None else None
        self.clips: list[DrawnClip] = []
        self.steps: StepLoader | None = None

    @property
    def sets(self) -> list[ShardSet]:
        """All shard sets, the validation set last."""
        return [*self.train, self.val]

    def check(self, module: ShardModule) -> None:
        """Checks that a module can be trained on these sets, and sets its tokenizer digest if it reads tokens.

        Raises:
            FileNotFoundError: if a folder is not a shard set, or a shard is missing.
            ValueError: with both values, if a set does not match the model or the first set.
        """
        for shards in self.sets:
            try:
                _ = shards.manifest
            except (FileNotFoundError, ValueError) as error:
                option = "--data.val" if shards is self.val else "--data.train"
                raise type(error)(f"{option}: {error}") from error
        requirements, tokenizer = self._requirements_with(module), self.train[0].manifest.tokenizer
        frames_per_token = tokenizer.frames_per_token
        if requirements.tokens is not None:
            digest = requirements.tokens.digest or tokenizer.digest
            requirements = replace(requirements, tokens=replace(requirements.tokens, digest=digest))
            if self.generated_mels is None:
                module.tokenizer_digest = digest
        for shards in self.sets:
            requirements.check_set(shards)
            if (given := shards.manifest.tokenizer.frames_per_token) != frames_per_token:
                raise ValueError(
                    f"{shards.name} has {given} frames per token, {self.train[0].name} has {frames_per_token}: "
                    "use sets of one token rate"
                )
            shards.check_files()

    def _requirements_with(self, module: ShardModule) -> ClipRequirements:
        """Returns what a module requires of clips, and the decoder that predicts its mels, if one does."""
        requirements = module.clip_requirements
        return self.generated_mels.clip_requirements(requirements) if self.generated_mels else requirements

    def setup(self, stage: str) -> None:
        """Checks the shard sets against the module, and reads the validation clips.

        Raises:
            FileNotFoundError: as `check`.
            ValueError: as `check` and `pack_shape`, or if there are fewer clips than processes.
        """
        assert self.trainer is not None
        module = self.trainer.lightning_module
        assert isinstance(module, ShardModule)
        self.check(module)
        self.requirements, world = self._requirements_with(module), self.trainer.world_size
        self.shape = self.pack_shape(module, world)
        self.clips = list(evenly_spaced_clips(self.val, self.val_clips, self.requirements))
        if len(self.clips) < world:
            raise ValueError(
                f"{self.val.name} has {len(self.clips)} readable clips, with --data.val_clips={self.val_clips}: "
                f"expected one or more for each of {world} processes; raise it or give another --data.val"
            )

    def pack_shape(self, module: ShardModule, world: int) -> PackShape:
        """Returns the shape of packs for a module on `world` processes.

        Raises:
            ValueError: if packs or lanes do not match the layout, the segments or the processes.
        """
        requirements = self._requirements_with(module)
        block = requirements.block_size
        frames_per_token = self.train[0].manifest.tokenizer.frames_per_token
        if self.lanes < 1:
            raise ValueError(f"data.lanes is {self.lanes}: expected 1 or more")
        if self.pack_frames < block:
            raise ValueError(f"data.pack_frames is {self.pack_frames}: expected at least a block of {block} frames")
        self._check_segments(requirements)
        if self.lanes % world:
            raise ValueError(
                f"data.lanes is {self.lanes}: expected a multiple of the {world} processes of this run"
            )
        if block % frames_per_token:
            raise ValueError(
                f"a block has {block} frames: expected a multiple of the {frames_per_token} frames per token"
            )
        return PackShape(self.pack_frames // block, block, frames_per_token, self.max_pieces, requirements.mel)

    def _check_segments(self, requirements: ClipRequirements) -> None:
        """Checks that every pack holds a piece of at least `min_frames`, wherever clips are split."""
        # A pack without a whole clip holds the end of one and the start of another: one of them fills half of it.
        required = 2 * (requirements.min_frames + requirements.block_size)
        if requirements.min_frames and (self.pack_frames < required or self.max_pieces < 2):
            raise ValueError(
                f"data.pack_frames is {self.pack_frames}, data.max_pieces is {self.max_pieces}: expected at least "
                f"{required} and 2, so that every pack holds a segment of {requirements.min_frames} frames; or "
                "lower --model.segments.frames"
            )

    def train_dataloader(self) -> StepLoader:
        """Returns the endless stream of this rank's batches."""
        assert self.trainer is not None
        own = range(self.trainer.global_rank, self.lanes, self.trainer.world_size)
        config = LaneConfig(
            self.seed, self.lanes, self.requirements, self.group, self.max_bad_share, self.perturbation
        )
        lanes = [Lane(self.train, number, config, self.weights) for number in own]
        pin = self.trainer.strategy.root_device.type == "cuda"
        self.steps = StepLoader(LaneDataset(lanes, self.states, self.shape), self.num_workers, pin)
        return self.steps

    @property
    def data_wait_seconds(self) -> float:
        """Seconds that training has waited for its packs so far."""
        return self.steps.data_wait_seconds if self.steps else 0.0

    def val_dataloader(self) -> BatchList:
        """Returns this rank's validation clips, packed."""
        return BatchList(list(pack_clips(self.rank_clips, self.shape)))

    @property
    def rank_clips(self) -> list[DrawnClip]:
        """Validation clips of this rank."""
        assert self.trainer is not None
        return self.clips[self.trainer.global_rank :: self.trainer.world_size]

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Records the position of the lanes after a training batch, and adds the module's random draws to it.

        Lightning calls this right before the step, after any prefetching: a batch that was only prefetched does not
        count, and a checkpoint of this step is saved later.
        """
        assert self.trainer is not None
        if not self.trainer.training:
            return batch
        self._record_position(batch)
        module = self.trainer.lightning_module
        assert isinstance(module, ShardModule)
        return module.add_random_draws(batch)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Adds generated mels to a training batch, if a decoder generates them."""
        assert self.trainer is not None
        if self.generated_mels is None or not self.trainer.training:
            return batch
        return replace(batch, mels=self.generated_mels.teacher.predict_mels(batch))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copies a batch to the device; asynchronously where its memory is pinned."""
        return batch.to(device, non_blocking=True)

    def _record_position(self, batch: Batch) -> None:
        self.states.update(batch.states)
        for lane, causes in batch.skipped.items():
            if causes != self.skipped.get(lane, {}):
                self.skipped[lane] = causes
                total = sum(map(Counter, self.skipped.values()), Counter())
                log.warning("broken samples so far: %s", ", ".join(f"{c}: {n}" for c, n in total.items()))

    def state_dict(self) -> dict[str, Any]:
        """Returns the positions of all lanes; a collective operation, as Lightning saves one rank's answer."""
        own = self.states
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
            # After a resume, the positions of other ranks' lanes are those of the resumed checkpoint.
            own = {lane: state for lane, state in self.states.items() if lane % world == rank}
        everything = {lane: state for states in gather_over_ranks(own) for lane, state in states.items()}
        # Plain lists: a checkpoint is read with weights_only.
        states = {lane: vars(state) | {"places": [*map(list, state.places)]} for lane, state in everything.items()}
        return {"states": states, "order": self._order_settings(self.requirements)}

    def _order_settings(self, requirements: ClipRequirements) -> dict[str, Any]:
        """Returns the settings that the samples and their order follow from, beside the positions of the lanes."""
        return {
            "version": ORDER_VERSION,
            "lanes": self.lanes,
            "seed": self.seed,
            "group": self.group,
            "train": [shards.version for shards in self.train],
            "block_size": requirements.block_size,
            "mels": f"generated by {self.generated_mels.digest}" if self.generated_mels else "true",
        }

    def require_resumable(self, checkpoint: dict[str, Any], module: ShardModule) -> None:
        """Checks, before setup, that a run can resume from the lane positions of a checkpoint.

        Raises:
            ValueError: as `require_same_order`.
        """
        state = checkpoint.get(type(self).__qualname__)  # the key that Lightning stores it under
        if state is not None:
            require_same_order(state["order"], self._order_settings(self._requirements_with(module)))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the positions of the lanes, in training only; raises as `require_same_order`."""
        assert self.trainer is not None
        if not self.trainer.training:
            return
        orders = state["order"], self._order_settings(self.requirements)
        require_same_order(*orders)
        warn_about_order(*orders)
        for lane, values in state["states"].items():
            places = tuple(SetPosition(*place) for place in values["places"])
            self.states[int(lane)] = LaneState(**(values | {"places": places}))
