"""Building: from folders and Emilia's tars, in parts and pieces, killed and taken up, always the same bytes."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sf_lightning.cli import encoders
from sf_lightning.cli.shards import main
from sf_lightning.data import build as building
from sf_lightning.data.build import build, build_unit
from sf_lightning.data.corpus import Filters, TarUnit, clean_key, find_units
from sf_lightning.data.index import checksum
from sf_lightning.data.recipe import Recipe
from sf_lightning.data.shards import ShardSet
from sf_lightning.data.work import Tally
from sf_lightning.data.writer import Sample, ShardWriter
from sf_lightning.tokens.base import TokenizerSpec
from tests.data.test_fuzz import mutate
from tests.data.test_shards import tokenizer_of
from tests.helpers import voice, write_corpus


def mp3(seconds: float, seed: int = 0) -> bytes:
    """Speech as Emilia has it: mp3, 24 kHz, mono."""
    buffer = io.BytesIO()
    wave = np.interp(
        np.arange(int(seconds * 24000)) / 24000, np.arange(int(seconds * 16000)) / 16000, voice(seconds, seed=seed)
    )
    soundfile.write(buffer, wave, 24000, format="MP3")
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Writes a plain tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def emilia(folder: Path) -> Path:
    """Two tars, one as Emilia has it and one as Emilia-YODAS, of seven clips each."""
    for language, tar in (("en", "EN-B000000"), ("zh", "ZH-B000001")):
        members = []
        for i in range(7):
            yodas = language == "zh"
            key = f"ZH_a_b-{i // 2}_W{i:06d}" if yodas else f"EN_B00000_S{i // 3:05d}_W{i:06d}"
            fields = {
                "text": f" sentence {i}",
                "duration": 0.8 + 0.1 * i,
                "speaker": key.rsplit("_W")[0],
                "language": language,
                "dnsmos": 3.0 + 0.05 * i,
            } | ({"_id": key, "phone_count": 7} if yodas else {"id": key, "wav": f"{key}.mp3"})
            pair = [(f"{key}.mp3", mp3(0.8 + 0.1 * i, i)), (f"{key}.json", json.dumps(fields).encode())]
            members += pair if yodas else reversed(pair)
        write_tar(folder / f"{tar}.tar", members)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def recipe(shards: ShardSet) -> Recipe:
    """Shards of three clips with the k-means tokens of the fixture."""
    return Recipe(tokenizer_of(shards), shard_samples=3)


def test_emilia_and_yodas_tars_become_shards_with_their_fields_and_bytes(recipe: Recipe, tmp_path: Path) -> None:
    build(find_units(emilia(tmp_path / "emilia"), 3), tmp_path / "set", recipe)
    made = ShardSet(tmp_path / "set")
    names = [info.name for info in made.manifest.shards]
    assert names == [f"{tar}{run}.tar" for tar in ("EN-B000000", "ZH-B000001") for run in ("", "-0001", "-0002")]
    rows = [row for number in range(6) for row in made.index(number)]
    assert len(rows) == 14 and {row.language for row in rows} == {"en", "zh"}
    assert rows[0].speaker == "EN_B00000_S00000" and rows[-1].speaker == "ZH_a_b-3"
    (first, *_) = made.read(0)
    assert first["mp3"] == mp3(0.8, 0)
    fields = json.loads(first["json"])
    assert fields["text"] == "sentence 0" and fields["dnsmos"] == 3.0 and fields["id"] == first["__key__"]
    assert checksum(first) == rows[0].checksum


@pytest.mark.parametrize(
    ("filters", "left", "causes"),
    [
        (Filters(languages=("ZH",)), 7, {"filtered: language": 7}),
        (Filters(min_seconds=1.05, max_seconds=1.25), 4, {"filtered: duration": 10}),
        (Filters(min_dnsmos=3.2), 6, {"filtered: dnsmos": 8}),
        (Filters(blocked_speakers=frozenset(["EN_B00000_S00001"])), 11, {"filtered: blocked speaker": 3}),
    ],
)
def test_filters_leave_clips_out_and_count_them(
    recipe: Recipe, tmp_path: Path, filters: Filters, left: int, causes: dict
) -> None:
    units = find_units(emilia(tmp_path / "emilia"), 3)
    manifest = build(units, tmp_path / "set", Recipe(recipe.tokenizer, filters=filters))
    assert manifest is not None and manifest.skipped == causes
    assert sum(info.samples for info in manifest.shards) == left


@pytest.mark.parametrize(
    ("languages", "samples"), [("zh", 7), ("[zh]", 7), ("en,zh", 14), ("[en, zh]", 14), ("", 14)]
)
def test_languages_may_be_a_list_or_a_word(shards: ShardSet, tmp_path: Path, languages: str, samples: int) -> None:
    tokens = shards.folder.parent / "kmeans-50.npz"
    say = ["build", f"--audio={emilia(tmp_path / 'emilia')}", f"--out={tmp_path}/set", f"--tokenizer={tokens}"]
    main([*say, f"--languages={languages}"])
    assert ShardSet(tmp_path / "set").samples == samples


def test_parts_give_the_bytes_of_one_job(recipe: Recipe, tmp_path: Path) -> None:
    units = find_units(emilia(tmp_path / "emilia"), 3)
    build(units, tmp_path / "one", recipe)
    assert build(units, tmp_path / "parts", recipe, part=(2, 2)) is None
    assert not (tmp_path / "parts").exists()
    assert build(units, tmp_path / "parts", recipe, part=(1, 2)) is not None
    assert files(tmp_path / "one") == files(tmp_path / "parts")


@pytest.mark.slow
def test_processes_give_the_bytes_of_one(recipe: Recipe, tmp_path: Path) -> None:
    units = find_units(emilia(tmp_path / "emilia"), 3)
    build(units, tmp_path / "one", recipe)
    build(units, tmp_path / "two", recipe, processes=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_build_that_was_stopped_goes_on_after_the_last_whole_shard(recipe: Recipe, tmp_path: Path) -> None:
    units = find_units(emilia(tmp_path / "emilia"), 3)
    build(units, tmp_path / "whole", recipe)
    partial = tmp_path / "set.partial"
    assert build(units, tmp_path / "set", recipe, part=(1, 2)) is None
    # Killed while its last shard was written, before the unit was marked.
    (partial / "EN-B000000.done").unlink()
    (partial / "EN-B000000-0002.json").unlink()
    (partial / ".EN-B000000-0002.tar.77").write_bytes(b"half")
    before = (partial / "EN-B000000-0001.tar").stat().st_mtime_ns
    tally = Tally()
    build_unit(units[0], tally, partial, recipe)
    made, seconds, passed = tally.read()
    assert seconds == pytest.approx(1.4, abs=0.1) and made == len(mp3(1.4, 6))  # the last clip alone
    assert made + passed == units[0].bytes
    assert (partial / "EN-B000000-0001.tar").stat().st_mtime_ns == before
    assert build(units, tmp_path / "set", recipe) is not None
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_progress_moves_with_every_shard_of_a_tar(recipe: Recipe, tmp_path: Path) -> None:
    (unit,) = find_units(emilia(tmp_path / "emilia") / "EN-B000000.tar", 3)
    (tmp_path / "set").mkdir()
    seen: list[tuple[float, float, float]] = []

    class Watched(Tally):
        def add(self, made: int = 0, seconds: float = 0.0, passed: int = 0) -> None:
            super().add(made, seconds, passed)
            seen.append(self.read())

    build_unit(unit, Watched(), tmp_path / "set", recipe)
    sizes = [len(mp3(0.8 + 0.1 * i, i)) for i in range(7)]
    assert sorted({made for made, _, _ in seen}) == [0, sum(sizes[:3]), sum(sizes[:6]), sum(sizes)]
    assert len({seconds for _, seconds, _ in seen}) == 7 and seen[-1][1] == pytest.approx(7.7, abs=0.4)
    assert sum(seen[-1][::2]) == unit.bytes


def test_jobs_that_end_at_the_same_time_are_both_content(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, look_up = find_units(emilia(tmp_path / "emilia"), 3), building.look_up

    def slow(shards: ShardSet) -> np.ndarray:
        # While this job makes the table, another one ends the set.
        monkeypatch.setattr(building, "look_up", look_up)
        assert build(units, tmp_path / "set", recipe) is not None
        return look_up(shards)

    monkeypatch.setattr(building, "look_up", slow)
    assert build(units, tmp_path / "set", recipe) == ShardSet(tmp_path / "set").manifest
    assert not (tmp_path / "set.partial").exists()
    build(units, tmp_path / "alone", recipe)
    assert files(tmp_path / "set") == files(tmp_path / "alone")


def test_a_job_that_looked_just_before_another_one_ended_begins_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, begin = find_units(emilia(tmp_path / "emilia"), 3), building._begin

    def late(*args: Any) -> None:
        # This job has seen that there is no set. Now another one ends it, and only then the folder is begun.
        monkeypatch.setattr(building, "_begin", begin)
        assert build(units, tmp_path / "set", recipe) is not None
        begin(*args)

    monkeypatch.setattr(building, "_begin", late)
    assert build(units, tmp_path / "set", recipe, part=(2, 2)) == ShardSet(tmp_path / "set").manifest
    assert not (tmp_path / "set.partial").exists()


def test_a_job_that_works_where_another_one_ends_is_content(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same part, started twice: the slower one is still writing when the folder gets its name.
    units, write = find_units(emilia(tmp_path / "emilia"), 3), building._write

    def slow(*args: Any) -> list[str]:
        monkeypatch.setattr(building, "_write", write)
        assert build(units, tmp_path / "set", recipe) is not None
        return write(*args)

    monkeypatch.setattr(building, "_write", slow)
    assert build(units, tmp_path / "set", recipe) == ShardSet(tmp_path / "set").manifest
    assert not (tmp_path / "set.partial").exists() and not list((tmp_path / "set").glob(".*"))


@pytest.mark.parametrize("killed", ["replace_file", "rename", "_tidy"])
def test_a_build_killed_at_its_very_end_ends_when_it_is_started_again(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    # With a shard of no samples, which is in no set.
    units = find_units(emilia(tmp_path / "emilia"), 3)
    filtered = Recipe(recipe.tokenizer, filters=Filters(min_dnsmos=3.12), shard_samples=3)
    build(units, tmp_path / "whole", filtered)
    assert len(ShardSet(tmp_path / "whole").manifest.shards) == 4

    def kill(*args: Any) -> None:
        raise KeyboardInterrupt

    assert build(units, tmp_path / "set", filtered, part=(1, 2)) is None
    build_unit(units[1], Tally(), tmp_path / "set.partial", filtered)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path if killed == "rename" else building, killed, kill)
        build(units, tmp_path / "set", filtered)
    assert build(units, tmp_path / "set", filtered, part=(2, 2)) is not None
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_more_parts_than_units_are_no_mistake(recipe: Recipe, tmp_path: Path) -> None:
    units = find_units(emilia(tmp_path / "emilia"), 3)
    assert build(units, tmp_path / "set", recipe, part=(5, 5)) is None
    made = [build(units, tmp_path / "set", recipe, part=(part, 5)) for part in (4, 2, 1, 3, 5)]
    assert [manifest is not None for manifest in made] == [False, False, True, True, True]


def test_a_full_disk_says_where_and_how_to_go_on_and_leaves_nothing_half_written(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = find_units(emilia(tmp_path / "emilia"), 3)
    build(units, tmp_path / "whole", recipe)

    def full(self: ShardWriter, sample: Sample) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "add", full)
        with pytest.raises(
            OSError, match=r"set.partial: No space left on device: make room and start the same comm"
        ):
            build(units, tmp_path / "set", recipe)
    assert [path.name for path in (tmp_path / "set.partial").iterdir()] == ["build.json"]
    build(units, tmp_path / "set", recipe)
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_the_order_of_languages_makes_no_other_build(recipe: Recipe, tmp_path: Path) -> None:
    units = find_units(emilia(tmp_path / "emilia"), 3)
    one, same, other = (
        Recipe(recipe.tokenizer, filters=Filters(languages=languages), shard_samples=3)
        for languages in (("en", "zh"), ("ZH", "en"), ("en",))
    )
    manifest = build(units, tmp_path / "set", one)
    assert build(units, tmp_path / "set", same) == manifest
    with pytest.raises(FileExistsError, match=r"languages was \['en', 'zh'\] and is \['en'\]"):
        build(units, tmp_path / "set", other)


def test_a_build_cannot_go_on_with_other_options(recipe: Recipe, tmp_path: Path) -> None:
    units = find_units(emilia(tmp_path / "emilia"), 3)
    build(units, tmp_path / "set", recipe, part=(1, 2))
    other = Recipe(recipe.tokenizer, filters=Filters(min_dnsmos=3.0), shard_samples=3)
    said = r"set.partial holds another build \(min_dnsmos was None and is 3.0\): give the same options"
    with pytest.raises(ValueError, match=said):
        build(units, tmp_path / "set", other, part=(2, 2))


def test_a_corpus_that_changed_under_the_same_names_is_noticed(recipe: Recipe, tmp_path: Path) -> None:
    units = find_units(emilia(tmp_path / "emilia"), 3)
    build(units, tmp_path / "set", recipe, part=(1, 2))
    tar = tmp_path / "emilia" / "ZH-B000001.tar"
    size = tar.stat().st_size
    tar.write_bytes(tar.read_bytes() + bytes(512))
    said = rf"\(unit ZH-B000001 had {size} bytes and has {size + 512}\): give the same options and files"
    with pytest.raises(ValueError, match=said):
        build(units, tmp_path / "set", recipe, part=(2, 2))


def test_of_audio_files_what_lies_beside_them_counts_as_well(recipe: Recipe, tmp_path: Path) -> None:
    audio = write_corpus(tmp_path / "audio", clips=12)
    build(find_units(audio, 3), tmp_path / "set", recipe)
    (audio / "voice0" / "clip002.json").write_text('{"language": "en"}')
    with pytest.raises(FileExistsError, match=r"build \(unit shard-000000 had \d+ bytes and has \d+\): delete"):
        build(find_units(audio, 3), tmp_path / "set", recipe)
    for path in audio.rglob("*.wav"):
        path.write_bytes(path.read_bytes() + b"longer")
    write_corpus(audio / "more", clips=1)
    with pytest.raises(FileExistsError, match=r"unit shard-000002 had .* has \d+, and more, 5 units in all"):
        build(find_units(audio, 3), tmp_path / "set", recipe)


def test_a_set_that_is_there_is_content_with_its_own_build_and_refuses_another(
    recipe: Recipe, tmp_path: Path
) -> None:
    units = find_units(emilia(tmp_path / "emilia"), 3)
    manifest = build(units, tmp_path / "set", recipe)
    before = files(tmp_path / "set")
    assert build(units, tmp_path / "set", recipe) == manifest
    assert build(units, tmp_path / "set", recipe, part=(2, 3)) == manifest  # a job that is started once more
    other = Recipe(recipe.tokenizer, filters=Filters(languages=("zh",)), shard_samples=4)
    said = r"another build \(languages was \[\] and is \['zh'\], shard_samples was 3 and is 4\): .* another --out"
    with pytest.raises(FileExistsError, match=said):
        build(units, tmp_path / "set", other)
    with pytest.raises(FileExistsError, match=r"another build \(unit ZH-B000001 is gone\)"):
        build(units[:1], tmp_path / "set", recipe)
    assert files(tmp_path / "set") == before and not (tmp_path / "set.partial").exists()
    (tmp_path / "set" / "build.json").unlink()
    with pytest.raises(FileExistsError, match="set is there already: delete it or give another --out"):
        build(units, tmp_path / "set", recipe)


def test_the_same_command_again_fits_nothing_and_describes_the_set(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = ["build", f"--audio={emilia(tmp_path / 'emilia')}", f"--out={tmp_path}/set"]
    main([*say, "--vocabulary=40"])
    monkeypatch.setattr(encoders, "fit_tokenizer", None)
    for _ in range(2):
        capsys.readouterr()
        main([*say, "--vocabulary=40", "--part=2/3"])
        assert re.search("made by this same build: nothing was done\n.*set: 14 clips", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main([*say, "--vocabulary=50"])
    assert "tokenizer.vocabulary was 40 and is 50" in capsys.readouterr().err


def test_a_sigkill_in_the_middle_costs_nothing_but_the_shards_it_hit_and_leaves_no_process(
    shards: ShardSet, tmp_path: Path
) -> None:
    tokens = shards.folder.parent / "kmeans-50.npz"
    say = ["build", f"--audio={emilia(tmp_path / 'emilia')}", f"--tokenizer={tokens}", "--shard_samples=1"]
    main([*say, f"--out={tmp_path / 'whole'}"])
    say.append(f"--out={tmp_path / 'set'}")
    killed = subprocess.Popen(
        [sys.executable, "-m", "sf_lightning.cli.shards", *say, "--processes=2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    partial, deadline = tmp_path / "set.partial", time.monotonic() + 120
    while len(list(partial.glob("*.tar"))) < 4 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(killed.pid)], capture_output=True, text=True)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "set").exists() and len(list(partial.glob("*-*.json"))) >= 2
    pids = [int(pid) for pid in children.stdout.split()]
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) >= 2 and not any(alive(pid) for pid in pids)
    main(say)
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def alive(pid: int) -> bool:
    """Whether a process runs."""
    said = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(said) and not said.startswith("Z")


def test_tokens_made_elsewhere_are_taken_as_they_are_and_checked(tmp_path: Path) -> None:
    for i, length in enumerate((25, 25, 27, None)):
        soundfile.write(tmp_path / f"clip{i}.wav", voice(1.0, seed=i), 16000)
        if length:
            np.save(tmp_path / f"clip{i}.tokens.npy", np.full(length, 60 if i == 1 else 7))
    spec = TokenizerSpec("s3", 50, 4, "s3")
    manifest = build(find_units(tmp_path, 9), tmp_path.with_name("made"), Recipe(spec))
    assert manifest is not None and manifest.tokenizer == spec
    assert manifest.skipped == {"token count": 2, "incomplete": 1}
    (raw,) = ShardSet(tmp_path.with_name("made")).read(0)
    assert np.load(io.BytesIO(raw["tokens.npy"])).tolist() == [7] * 25


class FakeECAPA:
    """Says the length of each wave."""

    name, width = "fake", 2

    def encode(self, waves: list) -> list:
        """Returns [N, 1]."""
        assert len(waves) <= 2
        return [np.array([len(wave) / 16000, 1], np.float32) for wave in waves]


def test_x_vectors_are_made_a_few_clips_at_once_and_stored_beside_their_own_clip(
    recipe: Recipe, tmp_path: Path
) -> None:
    units = find_units(emilia(tmp_path / "emilia"), 3)
    made = Recipe(recipe.tokenizer, speaker=FakeECAPA(), shard_samples=5, at_once=2)
    build(units, tmp_path / "set", made)
    held = ShardSet(tmp_path / "set")
    assert (held.manifest.x_vectors, held.manifest.x_vector_width) == ("fake", 2)
    for raw in held.read(0):
        x_vector = np.load(io.BytesIO(raw["speaker.npy"]))
        assert x_vector.dtype == np.float16
        assert x_vector[0] == pytest.approx(json.loads(raw["json"])["duration"], abs=2e-3)


def test_names_that_would_leave_the_folder_or_hide_are_made_harmless(recipe: Recipe, tmp_path: Path) -> None:
    assert clean_key("../../etc/passwd.d") == "--_--_etc_passwd-d"
    assert clean_key("__meta__") == "_meta__" and clean_key("./a b") == "a_b"
    write_tar(tmp_path / "in" / "a.tar", [("../../evil/clip.mp3", mp3(1.0)), ("../../evil/clip.json", b"[1]")])
    build(find_units(tmp_path / "in", 3), tmp_path / "set", recipe)
    assert [row.key for row in ShardSet(tmp_path / "set").index(0)] == ["--_--_evil_clip"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "set"]


def test_a_damaged_tar_gives_what_lies_before_the_damage_and_twins_are_counted(
    recipe: Recipe, tmp_path: Path
) -> None:
    twin = [("a.mp3", mp3(1.0)), ("b.mp3", mp3(1.0, 1)), ("a.mp3", mp3(1.0))]
    tar = write_tar(tmp_path / "in" / "a.tar", twin)
    manifest = build(find_units(tmp_path / "in", 9), tmp_path / "set", recipe)
    assert manifest is not None and manifest.skipped == {"duplicate key": 1}
    with tarfile.open(tar) as members:
        cut = members.getmembers()[2].offset_data + 1000
    tar.write_bytes(tar.read_bytes()[:cut])
    assert [source.key for source in TarUnit("a", tar).read()] == ["a", "b", "a.tar"]


@pytest.mark.parametrize("where", ["before a header", "within a header", "in a header", "in a file"])
def test_a_tar_that_ends_early_is_counted_wherever_it_is_cut_or_broken(
    recipe: Recipe, tmp_path: Path, where: str, capsys: pytest.CaptureFixture
) -> None:
    tar = write_tar(tmp_path / "in" / "a.tar", [(f"{i}.mp3", mp3(1.0, i)) for i in range(4)])
    build(find_units(tmp_path / "in", 9), tmp_path / "whole", recipe)
    data = tar.read_bytes()
    with tarfile.open(tar) as members:
        info = members.getmembers()[2]
    at = info.offset
    cut = {"before a header": at, "within a header": at + 100, "in a file": info.offset_data + 1000}
    tar.write_bytes(data[: cut[where]] if where in cut else data[:at] + b"?" + data[at + 1 :])
    manifest = build(find_units(tmp_path / "in", 9), tmp_path / "set", recipe)
    assert manifest is not None and manifest.skipped == {"damaged tar": 1}
    assert [row.key for row in ShardSet(tmp_path / "set").index(0)] == ["0", "1"]
    assert re.search(r"skipped for a: a\.tar: damaged tar: ends early: .+", capsys.readouterr().out)


@pytest.mark.parametrize("count", [150, pytest.param(2_000, marks=pytest.mark.slow)])
def test_whatever_happens_to_a_tar_of_a_corpus_it_is_read_to_an_end(tmp_path: Path, count: int) -> None:
    members = [(f"{i}.{kind}", bytes(700 * i) or b"x") for i in range(6) for kind in ("mp3", "json")]
    tar = write_tar(tmp_path / "a.tar", members)
    data = tar.read_bytes()
    for seed in range(count):
        tar.write_bytes(mutate(data, np.random.default_rng(seed)))
        sources = list(TarUnit("a", tar).read())
        assert all(not source.damage for source in sources[:-1])
        assert sum(len(source.audio) for source in sources) <= 2 * len(data)


def test_tars_whose_shards_would_have_one_name_are_refused(tmp_path: Path) -> None:
    for pair, said in (
        (("data", "data-0001"), "data-0001.tar and .*data.tar would both have shards named data-0001"),
        (("a.b", "a-b"), "would both have the key a-b"),
        (("x", "manifest"), "would have an index named manifest.json"),
    ):
        folder = tmp_path / pair[0]
        for name in pair:
            write_tar(folder / f"{name}.tar", [])
        with pytest.raises(ValueError, match=said):
            find_units(folder, 3)


def test_text_that_is_no_unicode_and_speakers_without_a_name_do_no_harm(recipe: Recipe, tmp_path: Path) -> None:
    audio = write_corpus(tmp_path / "audio", clips=2, speakers=2)
    (audio / "voice0" / "clip000.json").write_text('{"text": "\\ud800 half", "speaker": null, "language": null}')
    os.rename(audio / "voice1" / "clip001.wav", os.fsencode(audio / "voice1") + b"/caf\xe9.wav")
    build(find_units(audio, 9), tmp_path / "set", recipe)
    held = ShardSet(tmp_path / "set")
    assert [(row.key, row.speaker, row.language) for row in held.index(0)] == [
        ("voice0_clip000", "voice0", ""),
        ("voice1_caf_", "voice1", ""),
    ]
    assert json.loads(next(held.read(0))["json"])["text"] == "\ud800 half"


def test_mixed_folders_and_twins_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x" / "a.tar", [])
    write_tar(tmp_path / "y" / "a.tar", [])
    with pytest.raises(ValueError, match="would both have the key a: rename one"):
        find_units(tmp_path, 3)
    soundfile.write(tmp_path / "a.wav", voice(0.5), 16000)
    with pytest.raises(ValueError, match=r"holds tars .* and audio .*: give a folder of one kind"):
        find_units(tmp_path, 3)
