"""A set of two million samples: planning an epoch reads the manifest alone, and a lane only its current group."""

import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.groups import GroupReader
from sf_lightning.data.index import IndexRow
from sf_lightning.data.lanes import Lane, LaneConfig, LaneState, SetPosition
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import RawSample
from sf_lightning.data.shards import Manifest, ShardInfo, ShardSet
from sf_lightning.files.atomic import write_atomically

SHARDS, SAMPLES, LANES = 2000, 1000, 64


@pytest.fixture(scope="module")
def large(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a set of 2,000 shards of 1,000 samples, without their files."""
    folder = tmp_path_factory.mktemp("large")
    infos = tuple(
        ShardInfo(f"shard-{i:06d}.tar", SAMPLES, 250 * SAMPLES, 10.0 * SAMPLES, 80_000_000, 64 * "0")
        for i in range(SHARDS)
    )
    write_atomically(
        folder / "manifest.json", Manifest(MelConfig(), shards.manifest.tokenizer, infos, {}).as_json()
    )
    return folder


def test_an_epoch_is_planned_only_from_the_manifest_in_little_memory(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(ShardSet, "open", lambda self, name, size=None: read.append(name))
    tracemalloc.start()
    held = ShardSet(large)
    lanes = [
        Lane([held], number, LaneConfig(0, LANES, ClipRequirements(crop_samples=4000))) for number in range(LANES)
    ]
    plans = [lane.readers[0]._split_epoch(7) for lane in lanes]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read == [] and peak < 200e6
    dealt = Counter(part.shard for plan in plans for group in plan for part in group)
    assert held.samples == 2_000_000 and len(dealt) == SHARDS and set(dealt.values()) == {1}
    sizes = [sum(part.size(SAMPLES) for group in plan for part in group) for plan in plans]
    assert max(sizes) - min(sizes) <= SAMPLES
    # The first groups differ in size, so that lanes do not reach the ends of groups together.
    assert [len(plan[0]) for plan in plans[:8]] == [4, 3, 2, 1, 4, 3, 2, 1]
    assert all(len(group) == 4 for plan in plans for group in plan[1:-1])


@pytest.mark.parametrize(("lanes", "sample"), [(1, 10**6), (2, 10**6 - 3), (64, 31_000)])
def test_a_lane_resumed_in_mid_epoch_opens_only_its_group_before_its_first_clip(
    shards: ShardSet, large: Path, monkeypatch: pytest.MonkeyPatch, lanes: int, sample: int
) -> None:
    opened: list[tuple[str, int]] = []

    # A clip of the fixture stands for every clip of the large set.
    row, raw = shards.read_index(0)[0], next(shards.read_samples(0))

    def index(self: ShardSet, shard: int) -> list[IndexRow]:
        opened.append(("index", shard))
        return [row._replace(key=f"{row.key}-{i}") for i in range(SAMPLES)]

    def read(self: ShardSet, shard: int, rows: list[IndexRow]) -> list[RawSample]:
        opened.append(("read", shard))
        return [raw | {"__key__": row.key} for row in rows]

    monkeypatch.setattr(ShardSet, "read_index", index)
    monkeypatch.setattr(ShardSet, "read_samples", read)
    monkeypatch.setattr(GroupReader, "read_due", lambda self, share: None)
    lane = Lane([ShardSet(large)], 0, LaneConfig(0, lanes, ClipRequirements(crop_samples=4000), group=4))
    drawn = next(lane.draw_clips(LaneState((SetPosition(3, sample),))))
    assert drawn.state.places == (SetPosition(3, sample),) and drawn.after.places == (SetPosition(3, sample + 1),)
    group = lane.readers[0]._split_epoch(3)[sample // (4 * SAMPLES)]
    assert len(group) <= 4
    assert sorted(opened) == sorted((call, part.shard) for part in group for call in ("index", "read"))
