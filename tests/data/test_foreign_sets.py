"""Foreign sets: names stay in their folder and run nothing, small files cost little, equal keys are told apart."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sf_lightning.cli.inputs import _find_sample
from sf_lightning.cli.inspection import inspect, sample
from sf_lightning.data.held_out import clip_names, evenly_spaced_clips, select_samples
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.shards import Manifest, ShardSet
from sf_lightning.data.store import Store
from sf_lightning.data.verify import repair, verify
from sf_lightning.files.text import file_name
from tests.toys.shards import copy_shards


def change_manifest(own: ShardSet, **values: Any) -> None:
    """Replaces values in the manifest of a set; those of "mel", "tokenizer" and "shards" (the first) are merged."""
    path = Path(own.folder) / "manifest.json"
    content = json.loads(path.read_text())
    for name, value in values.items():
        old = content[name][0] if name == "shards" else content[name]
        value = old | value if isinstance(old, dict) else value
        content[name] = [value, *content[name][1:]] if name == "shards" else value
    path.write_text(json.dumps(content))


def change_index(own: ShardSet, change: Callable[[list], Any], shard: int = 0) -> None:
    """Changes the rows of the index of a shard in place."""
    path = Path(own.folder) / f"shard-{shard:06d}.json"
    content = json.loads(path.read_text())
    change(content["rows"])
    path.write_text(json.dumps(content))


UNSAFE_NAMES = (
    "x;touch a;.tar",
    "x$(touch a).tar",
    "`a`.tar",
    "a'b.tar",
    "a b.tar",
    "-a.tar",
    ".a.tar",
    "a..b.tar",
)


@pytest.mark.parametrize(
    "name", [*UNSAFE_NAMES, "../a.tar", "a/b.tar", "a.tar\n", "manifest.tar", "build.tar", "tar"]
)
@pytest.mark.parametrize("command", ["{}", "pipe:cat {}/{{}}", "pipe:cat '{}/{{}}'", 'pipe:sh -c "cat {}/{{}}"'])
def test_names_of_shards_are_no_paths_and_run_nothing(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    own = copy_shards(shards, tmp_path / "set")
    change_manifest(own, shards={"name": name})
    with pytest.raises(ValueError, match="expected the name of a tar"):
        Manifest.load(command.format(own.folder))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("name", ["a.tar", "shard-000000-0001.tar", "a.b_c.tar", "名前.tar", "é.tar"])
def test_plain_names_of_shards_are_accepted(shards: ShardSet, tmp_path: Path, name: str) -> None:
    own = copy_shards(shards, tmp_path / "set")
    change_manifest(own, shards={"name": name})
    assert Manifest.load(own.folder).shards[0].name == name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mel": {"sample_rate": 10**9}}, "expected at most 384000 Hz"),
        ({"mel": {"sample_rate": -16000}}, "expected at most 384000 Hz"),
        ({"mel": {"n_fft": 2**28}}, "and 65536 samples"),
        ({"mel": {"win_length": 2**30}}, "win_length <= n_fft"),
        ({"mel": {"num_bands": 10**8}}, "expected 1 to 513"),
        ({"mel": {"num_bands": 0}}, "expected 1 to 513"),
        ({"mel": {"hop_length": 0}}, "0 < hop_length"),
        ({"mel": {"f_min": float("nan")}}, "mel.f_min is nan"),
        ({"mel": {"f_max": float("nan")}}, "mel.f_max is nan"),
        ({"tokenizer": {"vocabulary": 10**9}}, "expected 1 to 16777216"),
        ({"tokenizer": {"vocabulary": 2**24}}, "in the lookup table"),
        ({"tokenizer": {"frames_per_token": 0}}, "0 frames per token"),
        ({"x_vector_width": 10**9}, "x_vector_width is 1000000000"),
        ({"shards": {"samples": 10**12}}, "more samples or tokens than bytes"),
        ({"shards": {"tokens": 10**12}}, "more samples or tokens than bytes"),
        ({"shards": {"seconds": float("inf")}}, "seconds is inf"),
        ({"shards": {"name": "shard-000001.tar"}}, "two shards have the same name"),
    ],
)
def test_a_manifest_cannot_ask_for_gigabytes(
    shards: ShardSet, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    own = copy_shards(shards, tmp_path / "set")
    change_manifest(own, **values)
    with pytest.raises(ValueError, match=rf"manifest.json is damaged .*{message}"):
        Manifest.load(own.folder)


UNSAFE_KEYS = ("", ".", "..", "/a", "a/../b", "../a", "a//b", "a/", "..\\a", "a\nb", "a\x1b]0;b", "a\x9b", "\ud800")


@pytest.mark.parametrize("key", UNSAFE_KEYS)
def test_keys_that_point_elsewhere_or_control_a_terminal_are_refused(
    shards: ShardSet, tmp_path: Path, key: str
) -> None:
    own = copy_shards(shards, tmp_path / "set")
    change_index(own, lambda rows: rows[0].__setitem__(0, key))
    with pytest.raises(ValueError, match=r"shard-000000.json is damaged \(key .* expected no absolute path"):
        own.read_index(0)


@pytest.mark.parametrize("key", ["a/b/c", "名前", "a b", "it's", 'a "b"', "a.b", "...", "-rf", "é" * 200])
def test_unusual_keys_that_stay_in_their_folder_are_read_and_written(
    shards: ShardSet, tmp_path: Path, key: str
) -> None:
    own = copy_shards(shards, tmp_path / "set")
    change_index(own, lambda rows: rows[0].__setitem__(0, key))
    assert key in [raw["__key__"] for raw in own.read_samples(0)]
    sample(str(own.folder), str(tmp_path / "out"), count=23)
    assert len(list((tmp_path / "out").iterdir())) == 46
    assert (tmp_path / "out" / f"{file_name(key)}.wav").is_file()


def test_different_keys_have_different_file_names_of_at_most_200_bytes() -> None:
    keys = ["a/b", "a_b", "a\\b", "a b", "a.b", "a-b", "a" * 300, "a" * 299, "", "_", "..", "../..", "é", "e\u0301"]
    names = [file_name(key) for key in keys]
    assert len(set(names)) == len(keys) and max(len(name.encode()) for name in names) <= 200
    assert not any(set(name) & set("/\\. ") for name in names)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[0][5].update({f"wav{i}": [0, 10**5] for i in range(99)}),  # all of the same bytes
        lambda rows: rows[0].__setitem__(1, -1),
        lambda rows: rows[0].__setitem__(1, 10**9),
        lambda rows: rows[1].__setitem__(0, rows[0][0]),
    ],
)
def test_an_index_has_each_byte_once_and_each_key_once(shards: ShardSet, tmp_path: Path, change: Callable) -> None:
    own = copy_shards(shards, tmp_path / "set")
    change_index(own, change)
    with pytest.raises(ValueError, match=r"files or tokens exceed the|two samples have the same key"):
        own.read_index(0)
    assert {problem.shard for problem in verify(own)} == {0}


def test_repair_makes_no_key_that_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    own = copy_shards(shards, tmp_path / "set")
    change_index(own, lambda rows: rows[0].__setitem__(0, "../a"))
    repair(own, [0])
    assert verify(ShardSet(own.folder)) == []


def test_json_nested_too_deeply_is_damaged(shards: ShardSet, tmp_path: Path) -> None:
    own = copy_shards(shards, tmp_path / "set")
    (own.folder / "shard-000000.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"is damaged .*nested too deeply"):
        own.read_index(0)
    (own.folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"is damaged .*nested too deeply"):
        Manifest.load(own.folder)


def test_named_pipes_are_refused_in_place_of_files(shards: ShardSet, tmp_path: Path) -> None:
    own = copy_shards(shards, tmp_path / "set")
    for name in ("shard-000000.tar", "shard-000001.json", "lookup.npy"):
        (own.folder / name).unlink()
        os.mkfifo(own.folder / name)
    with pytest.raises(FileNotFoundError, match=r"shard-000000.tar is no regular file"):
        list(own.read_samples(0))
    assert {problem.shard for problem in verify(own)} == {None, 0, 1}


def test_sizes_beyond_the_tar_cost_no_memory(shards: ShardSet, tmp_path: Path) -> None:
    own = copy_shards(shards, tmp_path / "set")
    change_manifest(own, shards={"bytes": 10**15})
    change_index(own, lambda rows: rows[0][5].update(wav=[0, 10**14]))
    assert len(list(ShardSet(own.folder).read_samples(0))) == 4


def test_a_download_without_end_is_aborted() -> None:
    with pytest.raises(FileNotFoundError, match="could not be read in 1 attempts"):
        Store("pipe:yes {}", attempts=1).read("manifest.json", 10_000)


def test_clips_of_one_key_in_two_shards_stay_apart(shards: ShardSet, tmp_path: Path) -> None:
    own = copy_shards(shards, tmp_path / "set")
    for shard in (0, 1):
        change_index(own, lambda rows: rows[0].__setitem__(0, "same"), shard)
    requirements = ClipRequirements(crop_samples=4000)
    clips = {drawn.clip.key: drawn.clip for drawn in evenly_spaced_clips(own, 23, requirements)}
    assert len(clips) == 23 and {"shard-000000/same", "shard-000001/same"} < clips.keys()
    originals = [drawn.clip for drawn in evenly_spaced_clips(shards, 23, requirements)]
    assert (clips["shard-000001/same"].wave == originals[5].wave).all()
    assert clip_names(own, select_samples(own, [0, 1])) == {0: ["same", clip_names(shards, {0: [1]})[0][0]]}
    sample(str(own.folder), str(tmp_path / "out"), count=23)
    assert len(list((tmp_path / "out").glob("*.wav"))) == 23


def test_a_clip_is_found_by_its_key_or_by_shard_and_key(shards: ShardSet, tmp_path: Path) -> None:
    own = copy_shards(shards, tmp_path / "set")
    for shard in (0, 1):
        change_index(own, lambda rows: rows[2].__setitem__(0, "same"), shard)
    other = own.read_index(3)[1].key
    assert _find_sample(own, other) == _find_sample(own, f"shard-000003/{other}") == {3: [1]}
    assert _find_sample(own, "shard-000001/same") == {1: [2]} and _find_sample(own, "none") == {}
    with pytest.raises(ValueError, match=r"are same: expected shard-000000/same or shard-000001/same"):
        _find_sample(own, "same")


def test_words_of_a_foreign_set_do_not_control_the_terminal(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, evil = copy_shards(shards, tmp_path / "set"), "\x1b]52;c;eA==\x07\u202e\n[bold]"
    for column in (3, 4):  # speaker and language
        change_index(own, lambda rows, column=column: rows[0].__setitem__(column, evil))
    change_manifest(own, skipped={evil: 1}, tokenizer={"name": evil, "digest": evil}, shards={"digest": evil})
    inspect(str(own.folder))
    verify(ShardSet(own.folder))
    lines = capsys.readouterr().out.split("\n")
    assert len([line for line in lines if "[bold]" in line]) >= 3 and all(line.isprintable() for line in lines)
