"""Random damage to each file of a shard set gives a result, a counted bad sample, or an error of one line."""

import json
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from sf_lightning.cli.inspection import inspect, sample
from sf_lightning.data.build import build
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import find_parts
from sf_lightning.data.held_out import evenly_spaced_clips
from sf_lightning.data.index import checksum
from sf_lightning.data.lanes import LaneState
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import RawSample
from sf_lightning.data.shards import ShardSet
from sf_lightning.data.verify import repair, verify
from sf_lightning.files.digest import file_digest
from sf_lightning.tokens.base import TokenizerSpec
from tests.toys.audio import synthetic_voice
from tests.toys.fuzz import damage, damage_text, mutate, strange_value
from tests.toys.shards import copy_shards, make_lane, raw_sample

DESIGNED = (ValueError, FileNotFoundError, IsADirectoryError, RuntimeError)
"""Errors that a command prints as one line; a subclass, such as UnicodeError or RecursionError, is a bug."""

NUMBERS = [pytest.param(range(25), id="short"), pytest.param(range(25, 1700), id="long", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Returns a set with two shards of three clips of 0.2 to 0.4 s."""
    folder = tmp_path_factory.mktemp("fuzz") / "audio"
    folder.mkdir()
    for i in range(6):
        raw = raw_sample(synthetic_voice(0.2 + 0.04 * i, seed=i), 5 + i)
        (folder / f"clip{i}.wav").write_bytes(raw["wav"])
        (folder / f"clip{i}.tokens.npy").write_bytes(raw["tokens.npy"])
    out = folder.with_name("set")
    build(find_parts(folder, 3), out, BuildConfig(TokenizerSpec("any", 50, 4, "any"), shard_samples=3))
    return ShardSet(out)


def damage_npy(draw: random.Random, content: bytes) -> bytes:
    """Returns a damaged copy of a `.npy` file, half of the time with all damage in its header of 128 bytes."""
    return damage(draw, content[:128]) + content[128:] if draw.random() < 0.5 else damage(draw, content)


@contextmanager
def designed(case: object) -> Iterator[None]:
    """Accepts the errors of `DESIGNED`; fails if there is another one, no message, or no end within 20 s."""

    def fail(*_: object) -> None:
        raise AssertionError(f"hangs: {case!r:.300}")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    try:
        yield
    except DESIGNED as error:
        if type(error) not in DESIGNED or not str(error).strip():
            raise AssertionError(f"{error!r:.300} of {case!r:.300}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def check(small: ShardSet, damaged: ShardSet, case: object, touched: frozenset[str] = frozenset()) -> None:
    """Verifies, inspects, samples, validates and trains on a set; whatever is read must be what was written."""
    written = {raw["__key__"]: raw for number in (0, 1) for raw in small.read_samples(number)}
    folder = str(damaged.folder)
    for use in (
        lambda: verify(ShardSet(folder)),
        lambda: inspect(folder),
        lambda: sample(folder, f"{folder}-out"),
        lambda: [found.clip for found in evenly_spaced_clips(ShardSet(folder), 6, ClipRequirements())],
        lambda: [found.clip for found in islice(make_lane(ShardSet(folder)).draw_clips(LaneState()), 8)],
    ):
        with designed(case):
            clips = use() or []
            for clip in clips if clips and hasattr(clips[0], "wave") else []:
                if clip.key in written and clip.key not in touched:
                    expected = ShardSet(folder).decode(written[clip.key])
                    assert np.array_equal(clip.tokens, expected.tokens), case
                    assert np.array_equal(clip.wave, expected.wave), case
    outside = {path.name for path in Path(folder).parent.iterdir()}
    assert outside <= {Path(folder).name, f"{Path(folder).name}-out"}, case


def run_cases(
    small: ShardSet,
    tmp_path: Path,
    numbers: range,
    change: Callable[[random.Random, Path], tuple[object, frozenset]],
) -> None:
    """Damages copies of a set, each by its own seed, and checks them; together they may not cost a gigabyte."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        damaged = copy_shards(small, tmp_path / f"{number}" / "set")
        case, touched = change(random.Random(number), Path(damaged.folder))
        check(small, damaged, (number, case), touched)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 1_000_000


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("name", ["manifest.json", "shard-000000.json"])
def test_damaged_manifests_and_indices(small: ShardSet, tmp_path: Path, name: str, numbers: range) -> None:
    def change(draw: random.Random, folder: Path) -> tuple[object, frozenset]:
        values = mutate(draw, json.loads((folder / name).read_text()))
        (folder / name).write_bytes(damage_text(draw, json.dumps(values)))
        return values, frozenset()

    run_cases(small, tmp_path, numbers, change)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("name", ["shard-000000.tar", "lookup.npy"])
def test_damaged_tars_and_tables(small: ShardSet, tmp_path: Path, name: str, numbers: range) -> None:
    def change(draw: random.Random, folder: Path) -> tuple[object, frozenset]:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes((damage_npy if name.endswith(".npy") else damage)(draw, content))
        return name, frozenset()

    run_cases(small, tmp_path, numbers, change)


NPY_DTYPES = ("'<i4'", "'|O'", "'<f8'", "'<U99999999'", "[('a','<i4')]", "'<M8[s]'", "'V0'", "((((" * 500, "'?'")
NPY_SHAPES = ("(3,)", "(10**12,)", "(99999999999999999999,)", "(-1,)", "()", "(True,)", "(3.0,)", "(" * 300, "[3]")
WAV_FIELDS = (4, 16, 20, 22, 24, 28, 32, 34, 40)


def replace_content(draw: random.Random, raw: RawSample) -> str:
    """Replaces a file of a sample, or its key, by something hostile; returns what."""
    kind = draw.choice(["npy", "tokens", "tokens.npy", "wav", "wav header", "json", "key"])
    if kind == "npy":
        dtype, shape = draw.choice(NPY_DTYPES), draw.choice(NPY_SHAPES)
        header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
        version = draw.choice([1, 1, 1, 2, 3, 9])
        raw["tokens.npy"] = (
            b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(2, "little") + header + bytes(12)
        )
    elif kind == "tokens":
        values = draw.choice([[10**9], [-1] * 5, [], [2**62], list(range(10))])
        raw["tokens.npy"] = raw_sample(np.zeros(9), 1)["tokens.npy"][:128] + np.array(values, "<i8").tobytes()
    elif kind == "wav header":
        wave, field = bytearray(raw["wav"]), draw.choice(WAV_FIELDS)
        wave[field : field + 2] = draw.choice([0, 1, 3, 255, 0xFFFE, 0xFFFF]).to_bytes(2, "little")
        raw["wav"] = bytes(wave)
    elif kind == "json":
        raw["json"] = draw.choice(
            [b"", b"[]", b"{", b'{"duration": 1e999}', b"[" * 200_000, b"\xff", b'{"a": "\\ud800"}']
        )
    elif kind == "key":
        raw["__key__"] = draw.choice(
            ["", "..", "a.b", "a" * 5000, "../../x", "/abs", "é\u202e", "\ud800", "a\nb", "clip0"]
        )
    else:
        raw[kind] = damage_npy(draw, raw[kind]) if kind == "tokens.npy" else damage(draw, raw[kind])
    return kind


@pytest.mark.parametrize("numbers", NUMBERS)
def test_hostile_content_whose_index_and_digests_are_right(small: ShardSet, tmp_path: Path, numbers: range) -> None:
    def change(draw: random.Random, folder: Path) -> tuple[object, frozenset]:
        raws = list(small.read_samples(0))
        chosen = draw.choice(raws)
        kind = replace_content(draw, chosen)
        rows, content = json.loads((folder / "shard-000000.json").read_text())["rows"], bytearray()
        for raw, row in zip(raws, rows, strict=True):
            row[0], row[2], row[5] = raw["__key__"], checksum(raw), {}
            if raw is chosen and draw.random() < 0.3:
                row[1], row[3], row[4] = (
                    draw.choice([0, 1, 5, 50]),
                    str(strange_value(draw)),
                    str(strange_value(draw)),
                )
            for name in (name for name in raw if name != "__key__"):
                row[5][name] = [len(content), len(raw[name])]
                content += raw[name]
        (folder / "shard-000000.tar").write_bytes(content)  # samples are read by their offsets, not as a tar
        (folder / "shard-000000.json").write_text(json.dumps({"skipped": {}, "rows": rows}))
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["shards"][0] |= {
            "digest": file_digest(folder / "shard-000000.tar"),
            "bytes": len(content),
            "tokens": sum(row[1] for row in rows),
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return kind, frozenset([chosen["__key__"], "clip0"])

    run_cases(small, tmp_path, numbers, change)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_repair_of_a_damaged_set_leaves_none_that_verify_refuses(
    small: ShardSet, tmp_path: Path, numbers: range
) -> None:
    for number in numbers:
        draw = random.Random(number)
        damaged = copy_shards(small, tmp_path / f"{number}")
        for name in draw.sample(["shard-000000.tar", "shard-000001.json", "lookup.npy"], draw.choice([1, 2])):
            path = Path(damaged.folder) / name
            path.write_bytes(damage(draw, path.read_bytes()))
        with designed(number):
            repair(damaged, sorted({found.shard for found in verify(damaged) if found.shard is not None}))
            assert verify(ShardSet(damaged.folder)) == []
