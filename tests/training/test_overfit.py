"""A network trained on one clip reproduces it, offline and streamed."""

from dataclasses import replace

import pytest
import torch

from sf_lightning.data.lanes import LaneState
from sf_lightning.data.packing import PackShape, pack_clips
from sf_lightning.data.shards import ShardSet
from sf_lightning.model.dit import DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.streaming.state import DecodeConfig
from tests.toys.decoder import decoder_module
from tests.toys.shards import make_lane


@pytest.mark.slow
@pytest.mark.parametrize("predict", ["mel", "velocity"])
def test_it_overfits_one_clip(shards: ShardSet, predict: str) -> None:
    module = decoder_module(
        layout=Layout(6, 24, (0, 4), (2,)),
        dit=DiTConfig(width=128, num_heads=2, token_width=64, speaker_width=16, vocabulary=50),
        predict=predict,
        decode=DecodeConfig(steps=6, guidance=0.0),
    )
    drawn = next(make_lane(shards, 0, 1).draw_clips(LaneState()))
    batch = next(pack_clips([drawn], PackShape(8, 24, 4, 1, shards.manifest.mel)))
    steps = 1500
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=2e-3, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for number in range(steps):
        keyed = replace(batch, packs=[replace(batch.packs[0], pack=number)])
        optimizer.zero_grad()
        module._losses(module.model, keyed, module._random_draws(keyed)).mean().backward()
        torch.nn.utils.clip_grad_norm_(module.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    module.eval()
    tokens = torch.from_numpy(drawn.clip.tokens)
    mel = module.model.mel(torch.from_numpy(drawn.clip.wave)[None])[0]
    with torch.inference_mode():
        speaker = module.model.encode_speaker(torch.from_numpy(drawn.reference)[None])[0]
    decoder = module.decoder()
    baseline = (mel - mel.mean(0)).abs().mean()
    (streamed,) = decoder.decode([tokens], [speaker])
    for chunk in (decoder.decode_offline([tokens], [speaker])[0], streamed):
        error = (mel - chunk.mel).abs().mean()
        assert error < 0.15 * baseline, f"{float(error / baseline):.3f}"
