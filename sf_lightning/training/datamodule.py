"""Shards under Lightning: lanes dealt to ranks and workers, and a position that is saved with the run."""

import logging
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
from sf_lightning.training.base import ShardModule
from sf_lightning.training.generated_mels import GeneratedMels
from sf_lightning.training.loader import BatchList, LaneDataset, StepLoader
from sf_lightning.training.order import require_order, warn_of_order
from sf_lightning.training.ranks import gather_over_ranks

log = logging.getLogger(__name__)


class ShardDataModule(L.LightningDataModule):
    """Streams shards into fixed packs, the same global batches at any world size.

    What must agree with the model (mel, tokenizer, block size, length of the reference crops) is taken from
    the module at `setup`, so that it is written once.

    Args:
        train: Shard set to train on: its folder, or its place elsewhere (see `Store`); or several, to be mixed.
        val: Shard set to validate on.
        weights: Of each training set, how often a clip is drawn from it; by default all alike.
        pack_frames: Frames of a pack, in whole blocks; one pack of each lane makes a step.
        lanes: V, packs of a global step; a multiple of every world size the run may have.
        max_pieces: Pieces of clips in a pack; what remains of a pack beyond them is padding.
        val_clips: Held-out clips that are decoded and scored in validation.
        num_workers: Loader processes of each rank; lowered to a divisor of its lanes.
        group: Shards whose samples are shuffled together.
        max_bad_share: Share of broken samples beyond which training stops.
        seed: Of the order of samples.
        speed: Share by which training clips are made faster or slower at random; see `Perturbation`.
        level_db: Decibels by which they are made softer at random.
        cache_gb: Size of the cache of sets that lie elsewhere.
        mels: What a vocoder hears in training: "true" mels, of the waves, or "generated" ones, teacher-forced by a
            decoder (see `Teacher`), so that it learns that decoder's faults.
        decoder: That decoder: a checkpoint of `sf-fit` or a folder of `sf-export`.

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
        if (mels == "generated") != (decoder is not None):
            raise ValueError(
                f"data.mels is {mels}, data.decoder is {decoder}: generated mels want a decoder, true ones none"
            )
        places = [train] if isinstance(train, str) else train
        self.train, self.val = [ShardSet(each, cache_gb) for each in places], ShardSet(val, cache_gb)
        self.weights = weights or [1.0] * len(places)
        if len(self.weights) != len(places) or not places or min(self.weights) <= 0:
            raise ValueError(
                f"data.weights {self.weights} for {len(places)} sets of data.train: wanted one above 0 for each"
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
        """All sets, that of validation last."""
        return [*self.train, self.val]

    def check(self, module: ShardModule) -> None:
        """Checks that a module can learn from these shards, and tells it whose tokens they are, if it asks.

        Raises:
            FileNotFoundError: if a folder is no shard set, or a shard is missing.
            ValueError: with both values, if a set does not fit the model or the other set.
        """
        for shards in self.sets:
            try:
                _ = shards.manifest
            except (FileNotFoundError, ValueError) as error:
                option = "--data.val" if shards is self.val else "--data.train"
                raise type(error)(f"{option}: {error}") from error
        requirements, frames_per_token = (
            self._requirements_with(module),
            self.train[0].manifest.tokenizer.frames_per_token,
        )
        if requirements.tokens is not None:
            digest = requirements.tokens.digest or self.train[0].manifest.tokenizer.digest
            requirements = replace(requirements, tokens=replace(requirements.tokens, digest=digest))
            if self.generated_mels is None:
                module.tokenizer_digest = digest
        for shards in self.sets:
            requirements.check_set(shards)
            if (given := shards.manifest.tokenizer.frames_per_token) != frames_per_token:
                raise ValueError(
                    f"{shards.folder} has {given} frames per token, {self.train[0].folder} has {frames_per_token}: "
                    "use sets of one token rate"
                )
            shards.check_files()

    def _requirements_with(self, module: ShardModule) -> ClipRequirements:
        """Returns what a module requires of clips, and the decoder that predicts its mels, if one does."""
        requirements = module.clip_requirements
        return self.generated_mels.clip_requirements(requirements) if self.generated_mels else requirements

    def setup(self, stage: str) -> None:
        """Checks the shards against the module, and reads the clips of validation.

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
                f"{self.val.folder} gives {len(self.clips)} clips that can be decoded, each of {world} processes "
                f"needs one: raise --data.val_clips (now {self.val_clips}) or give another --data.val"
            )

    def pack_shape(self, module: ShardModule, world: int) -> PackShape:
        """Returns the shape of packs for a module on so many processes.

        Raises:
            ValueError: if packs or lanes do not fit the layout, the segments or the processes.
        """
        requirements = self._requirements_with(module)
        block = requirements.block_size
        frames_per_token = self.train[0].manifest.tokenizer.frames_per_token
        if self.lanes < 1:
            raise ValueError(f"data.lanes is {self.lanes}: wanted 1 or more")
        if self.pack_frames < block:
            raise ValueError(f"data.pack_frames {self.pack_frames} is less than a block of {block} frames")
        self._check_segments(requirements)
        if self.lanes % world:
            raise ValueError(f"data.lanes {self.lanes} is not a multiple of the {world} processes of this run")
        if block % frames_per_token:
            raise ValueError(f"a block of {block} frames holds no whole number of tokens of {frames_per_token}")
        return PackShape(self.pack_frames // block, block, frames_per_token, self.max_pieces, requirements.mel)

    def _check_segments(self, requirements: ClipRequirements) -> None:
        """Sees to it that every pack holds a piece of `min_frames`, however clips are cut.

        A pack is a clip's tail, whole clips and a clip's head: where no whole one fits between, one of the two is
        at least half of it.
        """
        wanted = 2 * (requirements.min_frames + requirements.block_size)
        if requirements.min_frames and (self.pack_frames < wanted or self.max_pieces < 2):
            raise ValueError(
                f"data.pack_frames {self.pack_frames}, data.max_pieces {self.max_pieces}: for segments of "
                f"{requirements.min_frames} frames wanted at least {wanted} and 2, so that every pack holds one: "
                "lower --model.segments.frames or raise these"
            )

    def train_dataloader(self) -> StepLoader:
        """The endless stream of this rank's steps."""
        assert self.trainer is not None
        mine = range(self.trainer.global_rank, self.lanes, self.trainer.world_size)
        reading = LaneConfig(
            self.seed,
            self.lanes,
            self.requirements,
            self.group,
            self.max_bad_share,
            self.perturbation,
        )
        lanes = [Lane(self.train, number, reading, self.weights) for number in mine]
        pin = self.trainer.strategy.root_device.type == "cuda"
        self.steps = StepLoader(LaneDataset(lanes, self.states, self.shape), self.num_workers, pin)
        return self.steps

    @property
    def data_wait_seconds(self) -> float:
        """How long training has stood still for its packs so far."""
        return self.steps.data_wait_seconds if self.steps else 0.0

    def val_dataloader(self) -> "BatchList":
        """The clips of validation, packed, a share for each rank."""
        return BatchList(list(pack_clips(self.rank_clips, self.shape)))

    @property
    def rank_clips(self) -> list[DrawnClip]:
        """The clips that this rank listens to."""
        assert self.trainer is not None
        return self.clips[self.trainer.global_rank :: self.trainer.world_size]

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Notes where the lanes stand after a batch that is about to be trained on, and has the module draw for it.

        Lightning calls this right before the step, after any prefetching: what was only fetched does not
        count, and whatever is saved in this step is saved after it.
        """
        assert self.trainer is not None
        if not self.trainer.training:
            return batch
        self._consumed(batch)
        module = self.trainer.lightning_module
        assert isinstance(module, ShardModule)
        return module.add_random_draws(batch)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Has the mels of a batch that is trained on made by the decoder, if there is one."""
        assert self.trainer is not None
        if self.generated_mels is None or not self.trainer.training:
            return batch
        return replace(batch, mels=self.generated_mels.teacher.predict_mels(batch))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copies a batch without waiting for it where its memory is pinned."""
        return batch.to(device, non_blocking=True)

    def _consumed(self, batch: Batch) -> None:
        self.states.update(batch.states)
        for lane, causes in batch.skipped.items():
            if causes != self.skipped.get(lane, {}):
                self.skipped[lane] = causes
                total = sum((Counter(each) for each in self.skipped.values()), Counter())
                log.warning("broken samples so far: %s", ", ".join(f"{c}: {n}" for c, n in total.items()))

    def state_dict(self) -> dict[str, Any]:
        """Where all lanes stand, also those of other ranks: Lightning asks every rank, and saves one answer."""
        mine = self.states
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
            # Its own lanes only: of the others it knows, since a resume, no more than where they stood then.
            mine = {lane: state for lane, state in self.states.items() if lane % world == rank}
        everyone = {lane: state for states in gather_over_ranks(mine) for lane, state in states.items()}
        # Plain lists: a checkpoint is read with weights_only.
        return {
            "states": {
                lane: vars(state) | {"places": [list(place) for place in state.places]}
                for lane, state in everyone.items()
            },
            "order": self._order(self.requirements),
        }

    def _order(self, requirements: ClipRequirements) -> dict[str, Any]:
        """What samples come, and in which order, beside where the lanes stand."""
        return {
            "lanes": self.lanes,
            "seed": self.seed,
            "group": self.group,
            "train": [shards.version for shards in self.train],
            "block_size": requirements.block_size,
            "mels": f"generated by {self.generated_mels.digest}" if self.generated_mels else "true",
        }

    def require_resumable(self, checkpoint: dict[str, Any], module: ShardModule) -> None:
        """Checks, before anything is set up, that a run of a module can go on with the lanes of a checkpoint.

        Raises:
            ValueError: as `require_order`.
        """
        state = checkpoint.get(type(self).__qualname__)  # where Lightning puts it
        if state is not None:
            require_order(state["order"], self._order(self._requirements_with(module)))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the lanes up where they stood, to train on; whoever only listens needs no position.

        Raises:
            ValueError: as `require_order`.
        """
        assert self.trainer is not None
        if not self.trainer.training:
            return
        orders = state["order"], self._order(self.requirements)
        require_order(*orders)
        warn_of_order(*orders)
        for lane, values in state["states"].items():
            places = tuple(SetPosition(*place) for place in values["places"])
            self.states[int(lane)] = LaneState(**(values | {"places": places}))
