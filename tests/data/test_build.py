"""Builds in slices and processes, interrupted and resumed: always the same bytes."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sf_lightning.cli import encoders
from sf_lightning.cli.shards import main
from sf_lightning.data import build as building
from sf_lightning.data.build import build, build_part
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import find_parts
from sf_lightning.data.filters import Filters
from sf_lightning.data.jobs import ProgressCounter
from sf_lightning.data.shards import ShardSet
from sf_lightning.data.writer import Sample, ShardWriter
from tests.toys.audio import write_corpus
from tests.toys.corpora import emilia, files, mp3


def test_slices_give_the_same_bytes_as_one_job(config: BuildConfig, tmp_path: Path) -> None:
    parts = find_parts(emilia(tmp_path / "emilia"), 3)
    build(parts, tmp_path / "one", config)
    assert build(parts, tmp_path / "parts", config, job_slice=(2, 2)) is None
    assert not (tmp_path / "parts").exists()
    assert build(parts, tmp_path / "parts", config, job_slice=(1, 2)) is not None
    assert files(tmp_path / "one") == files(tmp_path / "parts")


@pytest.mark.slow
def test_several_processes_give_the_same_bytes_as_one(config: BuildConfig, tmp_path: Path) -> None:
    parts = find_parts(emilia(tmp_path / "emilia"), 3)
    build(parts, tmp_path / "one", config)
    build(parts, tmp_path / "two", config, processes=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_an_interrupted_build_resumes_after_the_last_complete_shard(config: BuildConfig, tmp_path: Path) -> None:
    parts = find_parts(emilia(tmp_path / "emilia"), 3)
    build(parts, tmp_path / "whole", config)
    partial = tmp_path / "set.partial"
    assert build(parts, tmp_path / "set", config, job_slice=(1, 2)) is None
    # Killed while its last shard was written, before the part was marked as done.
    (partial / "EN-B000000.done").unlink()
    (partial / "EN-B000000-0002.json").unlink()
    (partial / ".EN-B000000-0002.tar.77").write_bytes(b"half")
    before = (partial / "EN-B000000-0001.tar").stat().st_mtime_ns
    counter = ProgressCounter()
    build_part(parts[0], counter, partial, config)
    made, seconds, reused = counter.read()
    assert seconds == pytest.approx(1.4, abs=0.1) and made == len(mp3(1.4, 6))  # the last clip alone
    assert made + reused == parts[0].bytes
    assert (partial / "EN-B000000-0001.tar").stat().st_mtime_ns == before
    assert build(parts, tmp_path / "set", config) is not None
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_progress_advances_with_every_shard_of_a_tar(config: BuildConfig, tmp_path: Path) -> None:
    (part,) = find_parts(emilia(tmp_path / "emilia") / "EN-B000000.tar", 3)
    (tmp_path / "set").mkdir()
    seen: list[tuple[float, float, float]] = []

    class Watched(ProgressCounter):
        def add(self, processed: int = 0, seconds: float = 0.0, reused: int = 0) -> None:
            super().add(processed, seconds, reused)
            seen.append(self.read())

    build_part(part, Watched(), tmp_path / "set", config)
    sizes = [len(mp3(0.8 + 0.1 * i, i)) for i in range(7)]
    assert sorted({made for made, _, _ in seen}) == [0, sum(sizes[:3]), sum(sizes[:6]), sum(sizes)]
    assert len({seconds for _, seconds, _ in seen}) == 7 and seen[-1][1] == pytest.approx(7.7, abs=0.4)
    assert sum(seen[-1][::2]) == part.bytes


def test_jobs_that_end_at_the_same_time_both_succeed(
    config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, mean_token_mels = find_parts(emilia(tmp_path / "emilia"), 3), building.mean_token_mels

    def slow(shards: ShardSet) -> np.ndarray:
        # While this job computes the lookup table, another one completes the set.
        monkeypatch.setattr(building, "mean_token_mels", mean_token_mels)
        assert build(parts, tmp_path / "set", config) is not None
        return mean_token_mels(shards)

    monkeypatch.setattr(building, "mean_token_mels", slow)
    assert build(parts, tmp_path / "set", config) == ShardSet(tmp_path / "set").manifest
    assert not (tmp_path / "set.partial").exists()
    build(parts, tmp_path / "alone", config)
    assert files(tmp_path / "set") == files(tmp_path / "alone")


def test_a_job_that_starts_while_another_one_completes_the_set_does_not_change_it(
    config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, begin = find_parts(emilia(tmp_path / "emilia"), 3), building._start_build

    def late(*args: Any) -> None:
        # This job has found no set. Another one completes it before this one creates its folder.
        monkeypatch.setattr(building, "_start_build", begin)
        assert build(parts, tmp_path / "set", config) is not None
        begin(*args)

    monkeypatch.setattr(building, "_start_build", late)
    assert build(parts, tmp_path / "set", config, job_slice=(2, 2)) == ShardSet(tmp_path / "set").manifest
    assert not (tmp_path / "set.partial").exists()


def test_a_job_succeeds_when_another_one_completes_the_set_meanwhile(
    config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same slice, started twice: the slower job is still writing when the folder is renamed.
    parts, write = find_parts(emilia(tmp_path / "emilia"), 3), building._write_shard

    def slow(*args: Any) -> list[str]:
        monkeypatch.setattr(building, "_write_shard", write)
        assert build(parts, tmp_path / "set", config) is not None
        return write(*args)

    monkeypatch.setattr(building, "_write_shard", slow)
    assert build(parts, tmp_path / "set", config) == ShardSet(tmp_path / "set").manifest
    assert not (tmp_path / "set.partial").exists() and not list((tmp_path / "set").glob(".*"))


@pytest.mark.parametrize("killed", ["write_atomically", "rename", "_clean_up"])
def test_a_build_killed_while_it_completes_the_set_can_be_started_again(
    config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    # With a shard without samples, which is removed from the set.
    parts = find_parts(emilia(tmp_path / "emilia"), 3)
    filtered = BuildConfig(config.tokenizer, filters=Filters(min_dnsmos=3.12), shard_samples=3)
    build(parts, tmp_path / "whole", filtered)
    assert len(ShardSet(tmp_path / "whole").manifest.shards) == 4

    def kill(*args: Any) -> None:
        raise KeyboardInterrupt

    assert build(parts, tmp_path / "set", filtered, job_slice=(1, 2)) is None
    build_part(parts[1], ProgressCounter(), tmp_path / "set.partial", filtered)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path if killed == "rename" else building, killed, kill)
        build(parts, tmp_path / "set", filtered)
    assert build(parts, tmp_path / "set", filtered, job_slice=(2, 2)) is not None
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_more_slices_than_parts_are_accepted(config: BuildConfig, tmp_path: Path) -> None:
    parts = find_parts(emilia(tmp_path / "emilia"), 3)
    assert build(parts, tmp_path / "set", config, job_slice=(5, 5)) is None
    made = [build(parts, tmp_path / "set", config, job_slice=(part, 5)) for part in (4, 2, 1, 3, 5)]
    assert [manifest is not None for manifest in made] == [False, False, True, True, True]


def test_a_full_disk_is_reported_with_a_remedy_and_leaves_no_partial_file(
    config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = find_parts(emilia(tmp_path / "emilia"), 3)
    build(parts, tmp_path / "whole", config)

    def full(self: ShardWriter, sample: Sample) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "add", full)
        with pytest.raises(
            OSError, match=r"set.partial: No space left on device: free some space and start the same comm"
        ):
            build(parts, tmp_path / "set", config)
    assert [path.name for path in (tmp_path / "set.partial").iterdir()] == ["build.json"]
    build(parts, tmp_path / "set", config)
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_the_order_of_languages_does_not_matter(config: BuildConfig, tmp_path: Path) -> None:
    parts = find_parts(emilia(tmp_path / "emilia"), 3)
    one, same, other = (
        BuildConfig(config.tokenizer, filters=Filters(languages=languages), shard_samples=3)
        for languages in (("en", "zh"), ("ZH", "en"), ("en",))
    )
    manifest = build(parts, tmp_path / "set", one)
    assert build(parts, tmp_path / "set", same) == manifest
    with pytest.raises(FileExistsError, match=r"languages was \['en', 'zh'\] and is \['en'\]"):
        build(parts, tmp_path / "set", other)


def test_a_build_cannot_be_resumed_with_other_options(config: BuildConfig, tmp_path: Path) -> None:
    parts = find_parts(emilia(tmp_path / "emilia"), 3)
    build(parts, tmp_path / "set", config, job_slice=(1, 2))
    other = BuildConfig(config.tokenizer, filters=Filters(min_dnsmos=3.0), shard_samples=3)
    message = r"set.partial has an unfinished build .* \(min_dnsmos was None and is 3.0\): give the same ones"
    with pytest.raises(ValueError, match=message):
        build(parts, tmp_path / "set", other, job_slice=(2, 2))


def test_a_corpus_whose_files_changed_size_is_refused(config: BuildConfig, tmp_path: Path) -> None:
    parts = find_parts(emilia(tmp_path / "emilia"), 3)
    build(parts, tmp_path / "set", config, job_slice=(1, 2))
    tar = tmp_path / "emilia" / "ZH-B000001.tar"
    size = tar.stat().st_size
    tar.write_bytes(tar.read_bytes() + bytes(512))
    message = rf"\(part ZH-B000001 had {size} bytes and has {size + 512}\): give the same ones"
    with pytest.raises(ValueError, match=message):
        build(parts, tmp_path / "set", config, job_slice=(2, 2))


def test_changed_files_beside_the_audio_are_noticed(config: BuildConfig, tmp_path: Path) -> None:
    audio = write_corpus(tmp_path / "audio", clips=12)
    build(find_parts(audio, 3), tmp_path / "set", config)
    (audio / "voice0" / "clip002.json").write_text('{"language": "en"}')
    with pytest.raises(FileExistsError, match=r"build \(part shard-000000 had \d+ bytes and has \d+\): delete"):
        build(find_parts(audio, 3), tmp_path / "set", config)
    for path in audio.rglob("*.wav"):
        path.write_bytes(path.read_bytes() + b"longer")
    write_corpus(audio / "more", clips=1)
    with pytest.raises(FileExistsError, match=r"part shard-000002 had .* has \d+, and others, 5 parts in all"):
        build(find_parts(audio, 3), tmp_path / "set", config)


def test_an_existing_set_accepts_its_own_build_and_refuses_others(config: BuildConfig, tmp_path: Path) -> None:
    parts = find_parts(emilia(tmp_path / "emilia"), 3)
    manifest = build(parts, tmp_path / "set", config)
    before = files(tmp_path / "set")
    assert build(parts, tmp_path / "set", config) == manifest
    assert build(parts, tmp_path / "set", config, job_slice=(2, 3)) == manifest  # a job that is started again
    other = BuildConfig(config.tokenizer, filters=Filters(languages=("zh",)), shard_samples=4)
    message = (
        r"another build \(languages was \[\] and is \['zh'\], shard_samples was 3 and is 4\): .* another --out"
    )
    with pytest.raises(FileExistsError, match=message):
        build(parts, tmp_path / "set", other)
    with pytest.raises(FileExistsError, match=r"another build \(part ZH-B000001 is gone\)"):
        build(parts[:1], tmp_path / "set", config)
    assert files(tmp_path / "set") == before and not (tmp_path / "set.partial").exists()
    (tmp_path / "set" / "build.json").unlink()
    with pytest.raises(FileExistsError, match="set exists already: delete it or give another --out"):
        build(parts, tmp_path / "set", config)


def test_the_same_command_again_fits_no_tokenizer_and_describes_the_set(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["build", f"--audio={emilia(tmp_path / 'emilia')}", f"--out={tmp_path}/set"]
    main([*command, "--vocabulary=40"])
    monkeypatch.setattr(encoders, "fit_tokenizer", None)
    for _ in range(2):
        capsys.readouterr()
        main([*command, "--vocabulary=40", "--slice=2/3"])
        assert re.search("from this same build: nothing to do\n.*set: 14 clips", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main([*command, "--vocabulary=50"])
    assert "tokenizer.vocabulary was 40 and is 50" in capsys.readouterr().err


def test_a_sigkill_loses_only_unfinished_shards_and_leaves_no_process(shards: ShardSet, tmp_path: Path) -> None:
    tokens = shards.folder.parent / "kmeans-50.npz"
    command = ["build", f"--audio={emilia(tmp_path / 'emilia')}", f"--tokenizer={tokens}", "--shard_samples=1"]
    main([*command, f"--out={tmp_path / 'whole'}"])
    command.append(f"--out={tmp_path / 'set'}")
    killed = subprocess.Popen(
        [sys.executable, "-m", "sf_lightning.cli.shards", *command, "--processes=2"],
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
    main(command)
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def alive(pid: int) -> bool:
    """Returns whether a process runs."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state) and not state.startswith("Z")
