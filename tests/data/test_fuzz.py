"""Tars with random damage: every sample that is read is one that was written, and every lost one is counted."""

import io
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.build import build
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import find_parts
from sf_lightning.data.lanes import LaneState, SetPosition
from sf_lightning.data.shards import ShardSet
from sf_lightning.tokens.base import TokenizerSpec
from tests.toys.audio import synthetic_voice
from tests.toys.corpora import mutate
from tests.toys.shards import make_lane, raw_sample


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Returns a set with one shard of eight clips of 0.1 s."""
    folder = tmp_path_factory.mktemp("fuzz")
    for i in range(8):
        raw = raw_sample(synthetic_voice(0.12 + 0.04 * i, seed=i), 3 + i)
        (folder / f"clip{i}.wav").parent.mkdir(exist_ok=True)
        (folder / f"clip{i}.wav").write_bytes(raw["wav"])
        (folder / f"clip{i}.tokens.npy").write_bytes(raw["tokens.npy"])
    build(
        find_parts(folder, 8),
        folder.with_name(folder.name + "-set"),
        BuildConfig(TokenizerSpec("any", 50, 4, "any")),
    )
    return ShardSet(folder.with_name(folder.name + "-set"))


@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_sample_read_from_a_randomly_damaged_tar_is_one_that_was_written(
    small: ShardSet, tmp_path: Path, count: int
) -> None:
    shutil.copytree(small.folder, tmp_path / "set")
    path = tmp_path / "set" / small.manifest.shards[0].name
    data, written = path.read_bytes(), {raw["__key__"]: raw for raw in small.read_samples(0)}
    assert len(written) == 8
    lost, memory = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(count):
        path.write_bytes(mutate(data, np.random.default_rng(seed)))
        read = list(ShardSet(tmp_path / "set").read_samples(0))
        keys = [raw["__key__"] for raw in read]
        assert len(set(keys)) == len(keys)
        for raw in read:
            same = {name for name in raw if not name.startswith("__")}
            assert same == {name for name in written[raw["__key__"]] if not name.startswith("__")}
            assert all(raw[name] == written[raw["__key__"]][name] for name in same), seed
        lost += len(written) - len(read)
    assert 0.1 * 8 * count < lost < 0.9 * 8 * count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # a header's word costs no memory


def test_every_lost_sample_is_counted_under_a_cause(small: ShardSet, tmp_path: Path) -> None:
    shutil.copytree(small.folder, tmp_path / "set")
    path = tmp_path / "set" / small.manifest.shards[0].name
    data = path.read_bytes()
    for seed in range(60):
        path.write_bytes(mutate(data, np.random.default_rng(seed)))
        lane = make_lane(ShardSet(tmp_path / "set"), crop_samples=1000, max_bad_share=0.99)
        (reader,) = lane.readers
        left = len(list(reader.shards.read_samples(0)))
        group = next(reader._groups_from(SetPosition()))
        drawn = list(reader._draw_group(group, reader._reader_of(group).finish(), reader._reader_of(group)))
        assert len(drawn) == left and lane.skipped == ({"damaged": 8 - left} if left < 8 else {})


@pytest.mark.parametrize("apart", [-4, -3, -2, 2, 3, 4])
def test_clips_with_wrong_token_counts_are_skipped_at_build(tmp_path: Path, apart: int) -> None:
    # One token too many or too few is the rounding of a tokenizer.
    raw = raw_sample(synthetic_voice(1.0), 25 + apart)
    for name in ("wav", "tokens.npy"):
        (tmp_path / f"clip.{name}").write_bytes(raw[name])
    with pytest.raises(ValueError, match=r"no clip of the corpus can be used \(token count: 1\)"):
        build(find_parts(tmp_path, 8), tmp_path / "set", BuildConfig(TokenizerSpec("any", 50, 4, "any")))


def test_stereo_and_8_khz_and_clipping_are_read(tmp_path: Path) -> None:
    import soundfile

    wave = synthetic_voice(1.0)
    soundfile.write(tmp_path / "stereo.wav", np.stack([wave, 0 * wave], 1), 16000)
    soundfile.write(tmp_path / "narrow.wav", wave[::2], 8000)
    soundfile.write(tmp_path / "clipped.wav", np.clip(3 * wave, -1, 1), 16000)
    for name in ("stereo", "narrow", "clipped"):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(25, np.int32))
        (tmp_path / f"{name}.tokens.npy").write_bytes(buffer.getvalue())
    manifest = build(find_parts(tmp_path, 8), tmp_path / "set", BuildConfig(TokenizerSpec("any", 50, 4, "any")))
    assert manifest is not None and manifest.skipped == {} and manifest.shards[0].samples == 3
    lane = make_lane(ShardSet(tmp_path / "set"), crop_samples=1000)
    for _, drawn in zip(range(3), lane.draw_clips(LaneState()), strict=False):
        assert np.abs(drawn.clip.wave).max() == pytest.approx(0.7, abs=1e-4)


def test_the_mel_of_a_set_survives_its_manifest(small: ShardSet) -> None:
    assert ShardSet(small.folder).manifest.mel == MelConfig()
    assert json.loads((Path(small.folder) / "manifest.json").read_text())["format"] == 3
