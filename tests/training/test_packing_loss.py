"""The loss of a pack equals the weighted losses of its pieces, and ranks share no clip."""

import dataclasses
from collections import Counter
from itertools import islice

from sf_lightning.data.lanes import LaneState, SetPosition
from sf_lightning.data.packing import Batch, PackShape, pack_clips
from sf_lightning.data.shards import ShardSet
from sf_lightning.flow.path import straight_path
from sf_lightning.model.blocks import Blocks
from tests.toys.decoder import decoder_module
from tests.toys.networks import randomize_weights
from tests.toys.shards import make_lane


def test_the_loss_of_packs_is_the_frame_weighted_mean_of_the_losses_of_their_pieces(shards: ShardSet) -> None:
    module = decoder_module()
    randomize_weights(module.model)
    lane = make_lane(shards, 0, 1)
    stream = pack_clips(lane.draw_clips(LaneState()), PackShape(10, 24, 4, 4, shards.manifest.mel))
    batch = Batch.from_packs(list(islice(stream, 3)))
    assert max(Counter(filter(None, batch.keys)).values()) > 1  # a clip is cut into two pieces
    draws = module._random_draws(batch)
    packed = float(module._losses(module.model, batch, draws).detach().mean())
    total = 0.0
    for u in range(batch.blocks.num_utterances):
        mine = (batch.blocks.utterance == u) & batch.blocks.valid[:, 0]
        if not mine.any():
            continue
        frames = int(batch.blocks.valid[mine].sum())
        alone = dataclasses.replace(
            batch,
            wave=batch.wave[mine],
            tokens=batch.tokens[mine],
            blocks=Blocks.from_lengths([frames], 24),
            reference=batch.reference[u : u + 1],
            x_vector=batch.x_vector[u : u + 1],
        )
        own = type(draws)(
            draws.x_0[mine], draws.t[u : u + 1], draws.drop_speaker[u : u + 1], draws.drop_tokens[u : u + 1]
        )
        # The mean squared error of this piece over its valid frames, computed here.
        model = module.model
        x_1 = model.to_flow(model.mel.frames(alone.wave))
        point = straight_path(own.x_0, x_1, own.t[alone.blocks.utterance, None, None])
        speaker = model.encode_speaker(alone.reference, alone.x_vector)
        condition = model.condition(alone.tokens, speaker, alone.blocks, own.drop_speaker, own.drop_tokens)
        velocity = model.velocity(point.x_t, own.t, condition, alone.blocks)
        valid = alone.blocks.valid
        mean = float((velocity - point.dx_t)[valid].square().mean().detach())
        total += frames * mean
    assert abs(total / batch.blocks.valid.numel() / packed - 1) < 1e-5


def test_two_ranks_share_no_clip_in_an_epoch_and_together_they_cover_all(shards: ShardSet) -> None:
    world, lanes = 2, 4
    for epoch in range(3):
        seen: list[set[str]] = []
        for rank in range(world):
            mine = set()
            for number in range(rank, lanes, world):
                for drawn in make_lane(shards, number, lanes).draw_clips(LaneState((SetPosition(epoch),))):
                    if drawn.state.places[0].epoch > epoch:
                        break
                    mine.add(drawn.clip.key)
            seen.append(mine)
        assert not seen[0] & seen[1]
        assert len(seen[0] | seen[1]) == shards.samples
