"""Lanes and packs: independent of the world size, every clip exactly once, exact after a resume."""

import dataclasses
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.data.held_out import evenly_spaced_clips
from sf_lightning.data.lanes import DrawnClip, LaneState, SetPosition
from sf_lightning.data.packing import Batch, pack_clips
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import Clip, decode_clip
from sf_lightning.data.shards import ShardSet
from sf_lightning.training.datamodule import ShardDataModule
from tests.toys.audio import synthetic_voice
from tests.toys.shards import PACK_SHAPE, copy_shards, make_lane, packs_equal, set_packs


def epoch(shards: ShardSet, number: int, of: int, wanted: int = 0) -> list[str]:
    """Returns the keys that a lane draws in one of its epochs."""
    keys = []
    for drawn in make_lane(shards, number, of).draw_clips(LaneState()):
        if drawn.state.places[0].epoch > wanted:
            return keys
        if drawn.state.places[0].epoch == wanted:
            keys.append(drawn.clip.key)
    raise AssertionError


@pytest.mark.parametrize("of", [1, 2, 4, 8, 23])
def test_in_an_epoch_every_clip_is_in_exactly_one_lane(shards: ShardSet, of: int) -> None:
    # With up to 23 lanes on 5 shards, several lanes share a shard.
    everything = Counter(key for number in range(of) for key in epoch(shards, number, of))
    assert len(everything) == 23 and set(everything.values()) == {1}


def test_the_order_is_a_function_of_seed_epoch_and_lane(shards: ShardSet) -> None:
    assert epoch(shards, 0, 2) == epoch(shards, 0, 2)
    assert epoch(shards, 0, 1) != epoch(shards, 0, 1, wanted=1)
    assert [d.clip.key for d in islice(make_lane(shards, seed=1).draw_clips(LaneState()), 23)] != epoch(
        shards, 0, 1
    )
    assert sorted(epoch(shards, 0, 1)) == sorted(epoch(shards, 0, 1, wanted=1))


def test_a_lane_resumes_after_any_pack_with_the_next_one(shards: ShardSet) -> None:
    whole = set_packs(shards, 14)  # more than two epochs
    assert whole[-1].states[0].places[0].epoch >= 1
    for stop in range(13):
        assert packs_equal(set_packs(shards, 1, whole[stop].states[0])[0], whole[stop + 1])


def test_packing_keeps_every_frame_exactly_once(shards: ShardSet) -> None:
    mel = MelSpectrogram(MelConfig())
    mels: dict[str, list[torch.Tensor]] = {}
    tokens: dict[str, list[int]] = {}
    for pack in set_packs(shards, 7):  # less than an epoch
        frames = mel.frames(pack.wave)
        for piece, key in enumerate(pack.keys):
            mine = (pack.blocks.utterance == piece) & pack.blocks.valid[:, 0]
            mels.setdefault(key, []).append(frames[mine][pack.blocks.valid[mine]])
            valid = pack.blocks.valid[mine].unflatten(1, (-1, 4))[..., 0]
            tokens.setdefault(key, []).extend(pack.tokens[mine][valid].tolist())
    checked = 0
    for shard in range(len(shards.manifest.shards)):
        for raw in shards.read_samples(shard):
            clip = decode_clip(raw, MelConfig(), 50, 4)
            packed = torch.cat(mels.get(clip.key, [torch.zeros(0, 80)]))
            if len(packed) == 4 * len(clip.tokens):  # the packs above end within the last clips
                whole = mel(torch.from_numpy(clip.wave)[None])[0]
                torch.testing.assert_close(packed, whole, atol=1e-5, rtol=0)
                assert tokens[clip.key] == clip.tokens.tolist()
                checked += 1
    assert checked >= 12


@pytest.mark.parametrize("tokens", [1, 5, 6, 7, 11, 12, 13, 19, 40])
def test_blocks_of_a_piece_equal_those_of_the_reflected_clip(tokens: int) -> None:
    wave = synthetic_voice(tokens / 25)
    clip = Clip("a", wave, np.arange(1, tokens + 1), np.zeros(0, np.float32))
    count, pad, size = -(-tokens // 6), MelConfig().pad, 24 * 160
    whole = np.pad(np.pad(wave, pad, mode="reflect"), (0, count * size - len(wave)))
    wanted = np.stack([whole[i * size : (i + 1) * size + 2 * pad] for i in range(count)])
    for first in range(count):
        for end in range(first + 1, count + 1):
            shape = dataclasses.replace(PACK_SHAPE, num_blocks=end - first)
            made = next(pack_clips([DrawnClip(clip, wave, LaneState(block=first))], shape))
            assert np.array_equal(made.wave.numpy(), wanted[first:end])
            expected = [token if token <= tokens else 0 for token in range(6 * first + 1, 6 * end + 1)]
            assert made.tokens.flatten().tolist() == expected
            assert int(made.blocks.valid.sum()) == min(24 * end, 4 * tokens) - 24 * first


def test_packs_have_one_shape_and_padding_only_in_last_blocks(shards: ShardSet) -> None:
    for pack in set_packs(shards, 10):
        assert pack.wave.shape == (16, 24 * 160 + 2 * MelConfig().pad)
        assert pack.tokens.shape == (16, 6) and pack.reference.shape == (6, 4000)
        assert pack.blocks.valid[:, 0].all()
        partial = ~pack.blocks.valid.all(1)
        last = torch.cat([pack.blocks.utterance[1:] != pack.blocks.utterance[:-1], torch.tensor([True])])
        assert (last | ~partial).all()


def test_a_pack_with_the_most_pieces_is_padded_and_the_next_clip_opens_a_new_one(shards: ShardSet) -> None:
    few = dataclasses.replace(PACK_SHAPE, num_blocks=64, max_pieces=2)
    made = list(islice(pack_clips(make_lane(shards).draw_clips(LaneState()), few), 4))
    assert all(len(pack.keys) == 2 for pack in made)
    assert [key for pack in made for key in pack.keys] == epoch(shards, 0, 1)[:8]
    assert not made[0].blocks.valid[-1].any()


def test_the_reference_is_another_clip_of_the_same_speaker(shards: ShardSet) -> None:
    for drawn in islice(make_lane(shards).draw_clips(LaneState()), 23):
        assert drawn.reference.shape == (4000,)
        own = np.lib.stride_tricks.sliding_window_view(drawn.clip.wave, 4000)[::1]
        assert not any(np.array_equal(row, drawn.reference) for row in own[:: len(own) // 50])


def test_utterances_of_different_packs_stay_separate_in_a_batch(shards: ShardSet) -> None:
    pair = [set_packs(shards, 1, number=number, num_lanes=2)[0] for number in (0, 1)]
    batch = Batch.from_packs(pair)
    assert len(batch.blocks) == 32 and batch.blocks.num_utterances == 12
    assert batch.blocks.utterance[16] == 6
    assert not batch.blocks.has_neighbor(-1)[16]
    assert [(key.lane, key.pack) for key in batch.packs] == [(0, 0), (1, 0)]


def test_a_truncated_tar_loses_only_the_samples_beyond_the_cut(shards: ShardSet, tmp_path: Path) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    tar = broken.folder / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size * 6 // 10])
    mine = make_lane(broken, max_bad_share=0.5)
    keys = [drawn.clip.key for drawn in islice(mine.draw_clips(LaneState()), 40)]
    assert 1 <= mine.skipped["damaged"] and set(mine.skipped) == {"damaged"}
    lost = {row.key for row in shards.read_index(1)} - set(keys)
    assert 1 <= len(lost) <= 4


def test_a_damaged_index_stops_the_run_with_the_remedy(shards: ShardSet, tmp_path: Path) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    index = broken.folder / "shard-000001.json"
    for content in (index.read_text()[:300], "{}", '{"rows": [[1]]}'):
        index.write_text(content)
        with pytest.raises(ValueError, match=r"shard-000001.json is damaged .* --repair=true"):
            list(islice(make_lane(broken).draw_clips(LaneState()), 40))


def test_too_many_broken_samples_stop_the_run_with_causes_and_option(shards: ShardSet, tmp_path: Path) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    for info in broken.manifest.shards[:3]:
        (broken.folder / info.name).write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"damaged: \d+.*raise --data.max_bad_share above 0.1"):
        list(islice(make_lane(broken).draw_clips(LaneState()), 100))


def test_a_max_bad_share_of_one_is_refused(shards: ShardSet) -> None:
    with pytest.raises(ValueError, match=r"max_bad_share is 1.0: expected 0 or more, and less than 1"):
        make_lane(shards, max_bad_share=1.0)


def test_a_set_without_a_good_sample_stops_the_run(shards: ShardSet, tmp_path: Path) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    for info in broken.manifest.shards:
        (broken.folder / info.name).write_bytes(b"")
    with pytest.raises(RuntimeError, match="20 of 20 samples"):
        next(make_lane(broken).draw_clips(LaneState()))


def test_validation_reports_the_clips_that_a_truncated_tar_lost(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    tar = broken.folder / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size * 6 // 10])
    clips = list(evenly_spaced_clips(broken, 23, ClipRequirements(crop_samples=4000)))
    assert 19 <= len(clips) < 23
    named = [message for message in caplog.messages if message.startswith("skipped ")]
    assert len(named) == 23 - len(clips) and all("in shard-000001.tar of" in message for message in named)
    broken.check_files()
    assert "is it truncated?" in caplog.text
    tar.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-000001.tar is missing"):
        broken.check_files()


def test_more_lanes_than_samples_are_refused(shards: ShardSet) -> None:
    with pytest.raises(ValueError, match=r"23 samples for 24 lanes: lower --data.lanes"):
        make_lane(shards, 0, 24)


def test_shards_without_samples_are_ignored(shards: ShardSet, tmp_path: Path) -> None:
    folder = copy_shards(shards, tmp_path / "set").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][2]["samples"] = 0
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert len(epoch(ShardSet(folder), 0, 1)) == 18


def test_validation_clips_are_spread_over_the_set_in_a_fixed_order(shards: ShardSet) -> None:
    clips: list[DrawnClip] = list(evenly_spaced_clips(shards, 8, ClipRequirements(crop_samples=4000)))
    keys = [drawn.clip.key for drawn in clips]
    assert keys == [drawn.clip.key for drawn in evenly_spaced_clips(shards, 8, ClipRequirements(crop_samples=4000))]
    everything = [row.key for number in range(5) for row in shards.read_index(number)]
    places = [everything.index(key) for key in keys]
    assert places == sorted(places) and max(places) - min(places) > 15
    assert len(list(evenly_spaced_clips(shards, 100, ClipRequirements(crop_samples=4000)))) == 23


def test_a_clip_without_another_of_its_speaker_is_its_own_reference(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(
        drawn.is_own_reference for drawn in evenly_spaced_clips(shards, 4, ClipRequirements(crop_samples=4000))
    )
    index = ShardSet.read_index

    def strangers(self: ShardSet, number: int) -> list:
        return [row._replace(speaker=f"{number}-{i}") for i, row in enumerate(index(self, number))]

    monkeypatch.setattr(ShardSet, "read_index", strangers)
    assert all(
        drawn.is_own_reference for drawn in evenly_spaced_clips(shards, 4, ClipRequirements(crop_samples=4000))
    )


def test_a_saved_position_requires_the_same_lanes_and_warns_of_another_order(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def module(folder: Path | str, block_size: int = 24, **change: int) -> ShardDataModule:
        given: dict[str, Any] = {"lanes": 2} | change
        made = ShardDataModule(str(folder), str(shards.folder), **given)
        made.requirements, trainer = ClipRequirements(block_size=block_size), SimpleNamespace(training=True)
        made.trainer = trainer  # type: ignore[assignment]
        return made

    begun = module(shards.folder)
    begun.states = {0: LaneState((SetPosition(1, 3),), turn=4)}
    saved = begun.state_dict()
    again = module(shards.folder)
    again.load_state_dict(saved)
    assert again.states == begun.states and not caplog.messages
    module(copy_shards(shards, tmp_path / "elsewhere").folder).load_state_dict(saved)
    assert not caplog.messages  # a set that was moved is the same set
    with pytest.raises(
        ValueError, match=r"data.lanes is 4 but the checkpoint was trained with 2: lanes cannot change"
    ):
        module(shards.folder, lanes=4).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"a block has 8 frames but the checkpoint was trained with 24"):
        module(shards.folder, block_size=8).load_state_dict(saved)
    module(shards.folder, seed=1, group=2).load_state_dict(saved)
    assert ["data.seed differs", "data.group differ"] == [message[:17] for message in caplog.messages]
