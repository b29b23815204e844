"""Groups read ahead: in time, in bounded memory, with no effect on order, errors and the exit of a process."""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sf_lightning.data.groups import GroupReader, ShardSlice
from sf_lightning.data.lanes import DrawnClip, Lane, LaneConfig, LaneState, SetPosition
from sf_lightning.data.perturb import Perturbation
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import RawSample
from sf_lightning.data.shards import ShardSet
from tests.toys.shards import copy_shards, make_lane

WHOLE = [ShardSlice(shard, 0, 1) for shard in range(4)]


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits until another thread has reached a condition."""
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("the condition was not reached in 20 s")


def damage(shards: ShardSet, folder: Path) -> ShardSet:
    """Copies a set, and cuts its second shard."""
    broken = copy_shards(shards, folder)
    tar = folder / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size * 6 // 10])
    return broken


@pytest.mark.parametrize("min_frames", [0, 170])  # clips have 148 to 200 frames
@pytest.mark.parametrize("kind", ["plain", "damaged", "lanes", "sets", "fast"])
def test_a_lane_resumes_after_any_clip_with_the_same_clips_and_references(
    shards: ShardSet, tmp_path: Path, kind: str, min_frames: int
) -> None:
    sets = [damage(shards, tmp_path / "set") if kind == "damaged" else shards] + [shards] * (kind == "sets")
    requirements = ClipRequirements(crop_samples=4000, min_frames=min_frames)
    number, num_lanes = (1, 3) if kind == "lanes" else (0, 1)
    speed = Perturbation(speed=0.2 if kind == "fast" else 0.0)
    config = LaneConfig(0, num_lanes, requirements, group=2, max_bad_share=0.9, perturbation=speed)

    def draw(state: LaneState, count: int) -> list[DrawnClip]:
        return list(islice(Lane(sets, number, config).draw_clips(state), count))

    whole = draw(LaneState(), 26)  # several groups, and the start of another epoch
    assert whole[-1].state.places[0].epoch >= (kind != "sets")
    for last, following in zip(whole[:-1], whole[1:], strict=True):
        (resumed,) = draw(last.after, 1)
        assert resumed.state == following.state and resumed.clip.key == following.clip.key
        assert np.array_equal(resumed.clip.wave, following.clip.wave)
        assert np.array_equal(resumed.reference, following.reference)


def test_clips_that_are_too_short_are_neither_drawn_nor_references(shards: ShardSet) -> None:
    lane = Lane([shards], 0, LaneConfig(0, 1, ClipRequirements(crop_samples=4000, min_frames=170)))
    clips = [shards.decode(raw) for shard in range(5) for raw in shards.read_samples(shard)]
    short = [clip for clip in clips if 4 * len(clip.tokens) < 170]
    assert 5 < len(short) < 15
    for drawn in islice(lane.draw_clips(LaneState()), 12):
        assert drawn.clip.key not in {clip.key for clip in short}
        for clip in short:
            windows = np.lib.stride_tricks.sliding_window_view(clip.wave, 8)
            assert not (windows == drawn.reference[1000:1008]).all(1).any()


def test_the_next_group_is_read_while_one_is_drawn(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    read, plain = list[bool](), ShardSet.read_samples

    def record(self: ShardSet, shard: int, rows: Any = None) -> Iterator[RawSample]:
        yield from plain(self, shard, rows)
        read.append(threading.current_thread() is threading.main_thread())

    monkeypatch.setattr(ShardSet, "read_samples", record)
    clips = make_lane(shards, group=2).draw_clips(LaneState())
    next(clips)
    wait_until(lambda: len(read) == 3)
    for _ in range(5):  # the group has 8 to 10 clips
        next(clips)
    wait_until(lambda: len(read) == 4)
    assert read == [True, True, False, False]  # before the first clip of all, the first group


def test_shards_are_due_one_by_one_over_the_previous_group_and_later_in_later_lanes(shards: ShardSet) -> None:
    def shares(phase: float) -> list[float]:
        reader, found = GroupReader(shards, WHOLE, phase), list[float]()
        for i in range(100):
            before = len(reader.reads)
            reader.read_due(i / 100)
            if len(reader.reads) > before:
                found.append(i / 100)
                wait_until(reader.reads[-1].done)
        return found

    assert shares(0.0) == [0, 0.2, 0.4, 0.6]
    assert shares(0.5) == [0.1, 0.3, 0.5, 0.7]
    for number, share in enumerate(shares(0.0)):  # drawn samples are dropped: 1.4 groups are held at most
        assert 1 - share + (number + 1) / 4 <= 1.4 + 1e-9


def test_samples_are_dropped_when_they_are_drawn(shards: ShardSet) -> None:
    (reader,) = make_lane(shards, group=5).readers
    group = next(reader._groups_from(SetPosition()))
    content = reader._reader_of(group).finish()
    for number, _ in enumerate(reader._draw_group(group, content, reader._reader_of(group))):
        assert len(content.raws) == 22 - number


def test_a_slow_disk_has_one_read_of_a_lane_at_a_time(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, disk = ShardSet.read_samples, threading.Event()

    def wait(self: ShardSet, shard: int, rows: Any = None) -> Iterator[RawSample]:
        disk.wait(20)
        yield from plain(self, shard, rows)

    monkeypatch.setattr(ShardSet, "read_samples", wait)
    reader = GroupReader(shards, WHOLE, 0.0)
    for i in range(100):
        reader.read_due(i / 100)
    assert len(reader.reads) == 1
    disk.set()
    assert len(reader.finish().raws) == sum(info.samples for info in shards.manifest.shards[:4])


def test_an_error_of_a_thread_is_raised_where_the_group_begins(shards: ShardSet, tmp_path: Path) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    lane = make_lane(broken, group=1)
    first, second = (group[0].shard for group in lane.readers[0]._split_epoch(0)[:2])
    (tmp_path / "set" / f"shard-{second:06d}.json").write_text("{}")
    clips = lane.draw_clips(LaneState())
    for _ in range(broken.manifest.shards[first].samples):
        next(clips)
    with pytest.raises(ValueError, match=rf"shard-{second:06d}.json is damaged .* --repair=true"):
        next(clips)


def test_a_lane_starts_no_thread_before_it_is_drawn_from(shards: ShardSet) -> None:
    before = threading.active_count()
    _ = make_lane(shards).draw_clips(LaneState())
    assert threading.active_count() == before


def _exit_while_reading(shards: ShardSet) -> None:
    ShardSet.read_samples = lambda *_: threading.Event().wait()  # type: ignore[assignment, method-assign]
    GroupReader(shards, WHOLE, 0.0).read_due(0)


def test_a_loader_process_exits_while_a_shard_is_being_read(shards: ShardSet) -> None:
    process = multiprocessing.get_context("fork").Process(target=_exit_while_reading, args=(shards,))
    process.start()
    process.join(60)
    try:
        assert process.exitcode == 0
    finally:
        process.kill()
