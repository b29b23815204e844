"""Evaluation folders that somebody else has packed, an editor has changed, or a full disk or a kill has cut."""

import json
import math
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sf_lightning.audio.wave import write_wave
from sf_lightning.evaluation import report
from sf_lightning.evaluation.listening import add_ratings, listening_items, read_ratings, write_opinions, write_test
from sf_lightning.evaluation.report import read_sound, write_evaluation_report
from sf_lightning.evaluation.results import ClipScores, Identity, Results
from sf_lightning.evaluation.table import Findings, write_tables
from sf_lightning.files.atomic import atomic_path, temporary_path
from tests.evaluation.test_pages import SYSTEMS
from tests.toys.audio import synthetic_voice

IDENTITY = Identity("clips", "1", 3, "", (), "cpu")


def open_results(folder: Path) -> Results:
    """Opens an evaluation of all systems."""
    return Results.open(folder, IDENTITY, SYSTEMS, {"a.ckpt": "1"}, {"data": ("clips",)})


def rows() -> list[ClipScores]:
    """Returns the scores of three clips of every system, with all kinds of values."""
    scores = {"stoi": 0.75, "pesq_wb": math.nan, "first_packet_ms": 300.0}
    return [
        ClipScores(system.id, clip, "é", 100, scores, (10.0, 12.5))
        for clip in ("first", "second", "third\u2028")
        for system in SYSTEMS
    ]


def write_pages(folder: Path, *ratings: Path) -> None:
    """Adds ratings, and writes all tables and pages."""
    add_ratings(folder, ratings)
    findings = Findings.from_results(Results.read(folder))
    write_tables(findings, folder)
    write_evaluation_report(folder / "report.html", findings, [write_opinions(folder, read_ratings(folder))])


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Returns an evaluation with sounds, pictures, pages, tables, a listening test and ratings."""
    folder = tmp_path / "eval"
    results = open_results(folder)
    for row in rows():
        results.add(row)
    for name in ("reference", "voice", *(system.id for system in SYSTEMS)):
        for number, clip in enumerate(("first", "second")):
            write_wave(results.sample_path(clip, f"{name}.flac"), synthetic_voice(0.1, seed=number), 16000)
    results.sample_path("first", f"{SYSTEMS[2].id}.webp").write_bytes(b"a picture")
    results.close()
    test = write_test(folder, listening_items(Findings.from_results(results)))
    ratings = {"test": test, "listener": "Ada", "ratings": {"001": {"naturalness": 3, "similarity": 4}}}
    (tmp_path / "ada.json").write_text(json.dumps(ratings))
    write_pages(folder, tmp_path / "ada.json")
    (folder / "wandb" / "run").mkdir(parents=True)
    (folder / "wandb" / "latest-run").symlink_to("run")  # as W&B does
    return folder


def test_a_link_in_place_of_any_file_is_neither_read_nor_written_through(evaluation: Path, tmp_path: Path) -> None:
    mine, ratings = tmp_path / "mine", tmp_path / "ada.json"
    paths = [path for path in evaluation.rglob("*") if "wandb" not in path.parts]
    assert {"samples", "ratings", "mos.csv", "mos.md", "table.csv", "table.md", "report.html", "listening.html"} < {
        path.name for path in paths
    }
    for path in [*paths, evaluation / "wandb"]:
        path.rename(tmp_path / "moved")
        for target in (mine, tmp_path / "moved"):
            mine.write_text("mine")
            path.symlink_to(target)
            for read in (
                lambda: write_pages(evaluation, ratings),
                lambda: Results.read(evaluation),
                lambda: open_results(evaluation),
            ):
                with pytest.raises(ValueError, match=f"{path} is a symbolic link"):
                    read()
            assert mine.read_text() == "mine"
            path.unlink()
        (tmp_path / "moved").rename(path)
    write_pages(evaluation, ratings)


def test_links_that_appear_after_the_check_are_replaced_and_not_followed(evaluation: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    findings, opinions = Findings.from_results(Results.read(evaluation)), read_ratings(evaluation)
    for name in ("mos.csv", "mos.md", "table.csv", "table.md", "report.html"):
        (evaluation / name).unlink()
        (evaluation / name).symlink_to(tmp_path / "mine")
    write_tables(findings, evaluation)
    write_opinions(evaluation, opinions)
    write_evaluation_report(evaluation / "report.html", findings)
    assert (tmp_path / "mine").read_text() == "mine"
    Results.read(evaluation)


def test_a_folder_behind_a_link_is_an_evaluation(evaluation: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(evaluation)
    write_pages(tmp_path / "link", tmp_path / "ada.json")
    open_results(tmp_path / "link").close()


@pytest.mark.parametrize("leftovers", [(), ("results.jsonl",), ("results.jsonl", "temporary"), ("temporary",)])
def test_an_evaluation_that_was_stopped_between_its_first_files_starts_again(
    tmp_path: Path, leftovers: tuple[str, ...]
) -> None:
    folder = tmp_path / "eval"
    folder.mkdir()
    for name in leftovers:
        path = temporary_path(folder / "evaluation.json") if name == "temporary" else folder / name
        path.touch()
    open_results(folder).close()
    assert {path.name for path in folder.iterdir()} == {"evaluation.json", "results.jsonl"}


@pytest.mark.parametrize("name", ["notes.txt", ".git/config", "results.jsonl", "samples/a.flac"])
def test_a_folder_with_anything_else_is_refused_and_unchanged(tmp_path: Path, name: str) -> None:
    path = tmp_path / "eval" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="holds something other than an evaluation"):
        open_results(tmp_path / "eval")
    assert [path for path in (tmp_path / "eval").rglob("*") if path.is_file()] == [path]


def test_temporary_files_of_a_killed_evaluation_are_deleted_when_it_resumes(evaluation: Path) -> None:
    before = {path.name for path in evaluation.rglob("*")}
    for path in (evaluation / "report.html", evaluation / "samples" / "first.reference.flac"):
        temporary_path(path).touch()
    (evaluation / ".mine").touch()
    open_results(evaluation).close()
    assert {path.name for path in evaluation.rglob("*")} == before | {".mine"}


@pytest.mark.parametrize(
    "rewrite", [lambda text: text.replace(b"\n", b"\r\n"), lambda text: b"\xef\xbb\xbf" + text]
)
def test_line_ends_and_byte_order_marks_of_editors_change_nothing(
    evaluation: Path, rewrite: Callable[[bytes], bytes]
) -> None:
    for name in ("evaluation.json", "results.jsonl"):
        (evaluation / name).write_bytes(rewrite((evaluation / name).read_bytes()))
    results = open_results(evaluation)
    results.add(ClipScores(SYSTEMS[0].id, "fourth", "", 100, {"stoi": 0.5}))
    results.close()
    again = Results.read(evaluation)
    assert again.rows.keys() == {(row.system, row.clip) for row in rows()} | {(SYSTEMS[0].id, "fourth")}
    assert (evaluation / "results.jsonl").read_bytes().count(b"\n") == len(again.rows)


def test_an_evaluation_cut_at_any_byte_of_its_last_line_resumes_as_if_it_had_not_been_cut(tmp_path: Path) -> None:
    given = rows()
    results = open_results(tmp_path / "eval")
    for row in given:
        results.add(row)
    results.close()
    path = tmp_path / "eval" / "results.jsonl"
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for size in range(last, len(whole)):
        path.write_bytes(whole[:size])
        results = open_results(tmp_path / "eval")
        assert len(results.rows) == len(given) - 1
        results.add(given[-1])
        results.close()
        assert path.read_bytes() == whole


def test_an_evaluation_on_a_full_disk_resumes_as_if_there_had_been_room(tmp_path: Path) -> None:
    given, folder = rows()[:3], tmp_path / "eval"

    def evaluate() -> bytes:
        results = open_results(folder)
        try:
            for row in given:
                if (row.system, row.clip) not in results.rows:
                    results.add(row)
        finally:
            results.close()
        return (folder / "results.jsonl").read_bytes()

    whole = evaluate()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)  # files of limited size fail as a full disk does
    for size in (0, 1, *range(100, len(whole), 37)):
        for path in folder.iterdir():
            path.unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                evaluate()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert evaluate() == whole
        assert {path.name for path in folder.iterdir()} == {"evaluation.json", "results.jsonl"}


def _evaluate_slowly(folder: Path) -> None:
    """Adds missing rows with their sounds, in the order in which an evaluation writes them."""
    results = open_results(folder)
    (folder / "samples").mkdir(exist_ok=True)
    for row in rows():
        if (row.system, row.clip) not in results.rows:
            time.sleep(0.002)
            with atomic_path(results.sample_path(row.clip, f"{row.system}.flac")) as path:
                write_wave(path, np.zeros(100, np.float32), 16000)
            results.add(row)
    write_tables(Findings.from_results(results), folder)
    results.close()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
def test_an_evaluation_that_is_killed_at_random_moments_equals_its_twin(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    _evaluate_slowly(tmp_path / "twin")
    for _ in range(10):
        if (child := os.fork()) == 0:
            try:
                _evaluate_slowly(tmp_path / "eval")
            finally:
                os._exit(0)
        time.sleep(random.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    _evaluate_slowly(tmp_path / "eval")
    contents = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "twin", tmp_path / "eval")
    ]
    assert contents[0] == contents[1]


def test_a_sound_that_expands_to_gigabytes_or_is_damaged_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_SAMPLES", 1000)
    path = tmp_path / "a.flac"
    for samples, channels in ((1001, 1), (10, 2)):
        soundfile.write(path, np.zeros((samples, channels)), 16000)
        message = rf"a\.flac has {channels} channels of {samples} samples: expected mono, at most 1000 samples"
        with pytest.raises(ValueError, match=message):
            read_sound(path, "int16")
    for content in (b"", b"not a sound", path.read_bytes()[:50]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.flac is damaged \(.*\): delete it"):
            read_sound(path, "int16")
