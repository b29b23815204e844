"""What becomes of numbers: tables, and the folder of results."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from sf_lightning.audio.mel import MelConfig
from sf_lightning.evaluation import table
from sf_lightning.evaluation.grid import Way
from sf_lightning.evaluation.report import page_of
from sf_lightning.evaluation.results import Identity, Line, Results
from sf_lightning.evaluation.table import Findings, flat, markdown, write_csv
from sf_lightning.vocoder.config import VocoderConfig

IDENTITY = Identity("clips", "1", 4, "", (), "cpu")


def lines(way: Way, scores: list[float], languages: tuple[str, ...] = ("en",)) -> list[Line]:
    """Clips with a score each, in turn in each language."""
    return [
        Line(way.id, f"clip{i}", languages[i % len(languages)], 100, {"stoi": score})
        for i, score in enumerate(scores)
    ]


def opened(folder: Path, *ways: Way, **change: object) -> Results:
    """An evaluation of these ways."""
    return Results.open(folder, replace(IDENTITY, **change), ways, {"a.ckpt": "1"}, {"data": ("clips",)})


OFFLINE = Way("offline", VocoderConfig("griffin_lim"), MelConfig(), "a.ckpt", "own", 4, 0.5)


STREAMED = Way("streamed", VocoderConfig("griffin_lim"), MelConfig(), "a.ckpt", "own", 4, 0.5, 1)


def test_tables_have_means_intervals_and_what_is_undefined_for_all_and_for_each_language(tmp_path: Path) -> None:
    results = opened(tmp_path / "out", OFFLINE, STREAMED)
    for line in lines(OFFLINE, [0.5, 0.7, 0.9, math.nan], ("en", "zh")):
        results.add(line)
    found = Findings.of(results)
    (row,) = found.rows
    assert (row.number, row.clips, row.means["stoi"].mean) == (1, 4, pytest.approx(0.7))
    spoken = {row.language: row.means["stoi"] for row in found.language_rows}
    assert spoken["en"].mean == pytest.approx(0.7) and (spoken["zh"].mean, spoken["zh"].num_nan) == (0.7, 1)
    text = markdown(found)
    assert "| 1 | offline | 4 | 0.700 (0.500 to 0.900, 1 undefined) |" in text and "## By language" in text
    write_csv(found, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        (whole, en, zh) = csv.DictReader(file)
    assert (whole["language"], en["language"], zh["language"]) == ("", "en", "zh")
    assert float(whole["stoi"]) == pytest.approx(0.7) and whole["stoi_nan"] == "1" and whole["nfe"] == "4"
    assert len(flat(found)[1]) == 3


def test_what_is_a_mean_over_frames_weighs_clips_by_theirs_and_times_have_no_interval(tmp_path: Path) -> None:
    results = opened(tmp_path / "out", STREAMED)
    for clip, frames, value in (("a", 300, 1.0), ("b", 100, 5.0), ("c", 100, math.nan)):
        times = {"first_packet_ms": 100.0 * value} if clip != "c" else {}
        results.add(Line(STREAMED.id, clip, "", frames, {"mel_l1": value, "gap": value, "stoi": value} | times))
    (row,) = Findings.of(results).rows
    assert (row.means["mel_l1"].mean, row.means["gap"].mean, row.means["stoi"].mean) == (2.0, 2.0, 3.0)
    late = row.means["first_packet_ms"]
    assert (late.mean, late.number) == (300.0, 2) and math.isnan(late.low) and math.isnan(late.high)
    assert "are of the 3 longest clips alone, and have no interval" in markdown(Findings.of(results))
    results.close()
    assert Results.read(tmp_path / "out").lines.keys() == results.lines.keys()


def test_intervals_are_made_once_for_all_that_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = opened(tmp_path / "out", OFFLINE)
    for line in lines(OFFLINE, [0.5, 0.7], ("en", "zh")):
        results.add(line)
    found = Findings.of(results)
    monkeypatch.setattr(table, "mean_of", lambda *_: pytest.fail("made again"))
    assert "0.600" in markdown(found) and flat(found)[1] and page_of(found).tables


def test_a_folder_goes_on_behind_its_last_whole_line_and_takes_more_ways(tmp_path: Path) -> None:
    results = opened(tmp_path / "out", OFFLINE)
    for line in lines(OFFLINE, [0.5, math.nan]):
        results.add(line)
    results.close()
    path = tmp_path / "out" / "results.jsonl"
    path.write_text(path.read_text() + '{"way": "half a li')
    again = opened(tmp_path / "out", STREAMED)
    assert list(again.ways.values()) == [OFFLINE, STREAMED]
    assert [line.clip for line in again.of(OFFLINE)] == ["clip0", "clip1"]
    assert math.isnan(again.of(OFFLINE)[1].scores["stoi"])
    again.add(lines(STREAMED, [0.4])[0])
    again.close()
    assert len(path.read_text().splitlines()) == 3
    assert Results.read(tmp_path / "out").lines.keys() == again.lines.keys()


def test_to_read_a_folder_leaves_it_to_the_program_that_writes_it(tmp_path: Path) -> None:
    results = opened(tmp_path / "out", OFFLINE)
    (first,) = lines(OFFLINE, [0.5])
    results.add(first)
    path = tmp_path / "out" / "results.jsonl"
    with path.open("a") as file:
        file.write('{"way": "half a li')  # the other program is writing it
    assert list(Results.read(tmp_path / "out").lines.values()) == [first]
    with pytest.raises(BlockingIOError):
        opened(tmp_path / "out", STREAMED)
    assert path.read_text().endswith("half a li")
    results.close()
    opened(tmp_path / "out", OFFLINE).close()
    assert len(path.read_text().splitlines()) == 1


def test_a_folder_of_another_version_is_not_called_damaged(tmp_path: Path) -> None:
    opened(tmp_path / "out", OFFLINE).close()
    path = tmp_path / "out" / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(
        ValueError, match=r"evaluation.json has format 1, this version writes 2: give another --out"
    ):
        Results.read(tmp_path / "out")


def test_what_several_commands_said_is_said_of_all(tmp_path: Path) -> None:
    for machine, checkpoint in (("H100", "a, step 1"), ("H200", "b, step 2"), ("H100", "a, step 1")):
        facts = {"data": ("clips",), "device": (machine,), "checkpoint": (checkpoint,)}
        Results.open(tmp_path / "out", IDENTITY, [OFFLINE], {}, facts).close()
    said = {"data": "clips", "device 1": "H100", "device 2": "H200"}
    assert Results.read(tmp_path / "out").said == said | {"checkpoint 1": "a, step 1", "checkpoint 2": "b, step 2"}


def test_a_folder_of_another_evaluation_is_refused_and_stays_what_it_is(tmp_path: Path) -> None:
    results = opened(tmp_path / "out", OFFLINE)
    with pytest.raises(BlockingIOError, match="another sf-eval is at it"):
        opened(tmp_path / "out", OFFLINE)
    results.close()
    before = (tmp_path / "out" / "evaluation.json").read_bytes()
    with pytest.raises(FileExistsError, match="another evaluation, with clips 4 where this one has 8"):
        opened(tmp_path / "out", OFFLINE, clips=8)
    with pytest.raises(FileExistsError, match=r"results of a\.ckpt as it was before it changed"):
        Results.open(tmp_path / "out", IDENTITY, [OFFLINE], {"a.ckpt": "2"}, {})
    opened(tmp_path / "out", OFFLINE).close()  # who was refused does not keep others from it
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before
    with pytest.raises(FileExistsError, match="holds something else than an evaluation"):
        opened(tmp_path, OFFLINE)
    with pytest.raises(FileNotFoundError, match="is no folder of sf-eval"):
        Results.read(tmp_path)
