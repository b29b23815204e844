"""Segments: windows on the waves and mels of whole clips, independent of ranks."""

import torch

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.data.held_out import evenly_spaced_clips
from sf_lightning.data.lanes import LaneState
from sf_lightning.data.packing import Batch, PackShape, pack_clips
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.segments import BLOCK_FRAMES, SegmentConfig
from sf_lightning.data.shards import ShardSet
from tests.toys.shards import make_lane
from tests.toys.vocoder import cut_segments, vocoder_batch


def test_a_segment_is_a_part_of_the_wave_and_of_the_mel_of_its_clip(shards: ShardSet) -> None:
    mel, config = MelSpectrogram(MelConfig()), SegmentConfig(frames=100, per_pack=60)
    batch = vocoder_batch(shards, packs=3)
    found = cut_segments(batch, config)
    assert found.wave.shape == (180, 100 * 160) and found.mel.shape == (180, 100, 80)
    clips = {
        drawn.clip.key: torch.from_numpy(drawn.clip.wave)
        for drawn in evenly_spaced_clips(shards, 23, ClipRequirements())
    }
    at_the_edge = 0
    for wave, frames, utterance in zip(*found, strict=True):
        whole = clips[batch.keys[int(utterance)]]
        places = whole.unfold(0, len(wave), 160)  # every frame
        place = int((places - wave).abs().amax(1).argmin())
        assert torch.equal(places[place], wave)
        torch.testing.assert_close(mel(whole[None])[0, place : place + 100], frames, atol=1e-4, rtol=0)
        assert not torch.allclose(mel(wave[None])[0], frames, atol=1e-2) or place == 0
        at_the_edge += place in (0, len(places) - 1)
    assert at_the_edge


def test_segments_depend_only_on_the_pack(shards: ShardSet) -> None:
    config = SegmentConfig(frames=20, per_pack=4)
    shape = PackShape(8, BLOCK_FRAMES, 4, 8, shards.manifest.mel)
    packs = [
        next(pack_clips(make_lane(shards, n, 2, crop_samples=0).draw_clips(LaneState()), shape, n))
        for n in range(2)
    ]
    both = cut_segments(Batch.from_packs(packs), config)
    torch.rand(100)
    alone = cut_segments(Batch.from_packs(packs[1:]), config)
    assert torch.equal(both.wave[4:], alone.wave)
    assert not torch.equal(cut_segments(Batch.from_packs(packs[1:]), config, seed=1).wave, alone.wave)
