"""The evaluation folder and the tables made of it."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from sf_lightning.audio.mel import MelConfig
from sf_lightning.evaluation import table
from sf_lightning.evaluation.report import write_evaluation_report
from sf_lightning.evaluation.results import ClipScores, Identity, Results
from sf_lightning.evaluation.systems import System
from sf_lightning.evaluation.table import Findings, flat_table, markdown, write_tables
from sf_lightning.vocoder.config import VocoderConfig

IDENTITY = Identity("clips", "1", 4, "", (), "cpu")

OFFLINE = System("offline", VocoderConfig("griffin_lim"), MelConfig(), "a.ckpt", "own", 4, 0.5)
STREAMED = System("streamed", VocoderConfig("griffin_lim"), MelConfig(), "a.ckpt", "own", 4, 0.5, 1)


def stoi_rows(system: System, scores: list[float], languages: tuple[str, ...] = ("en",)) -> list[ClipScores]:
    """Returns a row for each score, with the languages in turn."""
    return [
        ClipScores(system.id, f"clip{i}", languages[i % len(languages)], 100, {"stoi": score})
        for i, score in enumerate(scores)
    ]


def open_results(folder: Path, *systems: System, **identity: object) -> Results:
    """Opens an evaluation of some systems."""
    changed = replace(IDENTITY, **identity)  # type: ignore[arg-type]
    return Results.open(folder, changed, systems, {"a.ckpt": "1"}, {"data": ("clips",)})


def test_tables_have_means_intervals_and_undefined_counts_over_all_clips_and_by_language(tmp_path: Path) -> None:
    results = open_results(tmp_path / "out", OFFLINE, STREAMED)
    for row in stoi_rows(OFFLINE, [0.5, 0.7, 0.9, math.nan], ("en", "zh")):
        results.add(row)
    findings = Findings.from_results(results)
    (mean_row,) = findings.rows
    assert (mean_row.number, mean_row.clips, mean_row.means["stoi"].mean) == (1, 4, pytest.approx(0.7))
    by_language = {row.language: row.means["stoi"] for row in findings.language_rows}
    assert by_language["en"].mean == pytest.approx(0.7)
    assert (by_language["zh"].mean, by_language["zh"].num_nan) == (0.7, 1)
    text = markdown(findings)
    assert "| 1 | offline | 4 | 0.700 (0.203 to 1.197, 1 undefined) |" in text and "## By language" in text
    write_tables(findings, tmp_path)
    assert (tmp_path / "table.md").read_text() == text
    with (tmp_path / "table.csv").open() as file:
        (all_clips, en, zh) = csv.DictReader(file)
    assert (all_clips["language"], en["language"], zh["language"]) == ("", "en", "zh")
    assert all_clips["way"] == "offline" and all_clips["nfe"] == "4"
    assert float(all_clips["stoi"]) == pytest.approx(0.7) and all_clips["stoi_nan"] == "1"
    assert len(flat_table(findings)[1]) == 3


def test_means_over_frames_weigh_clips_by_their_length_and_times_have_no_interval(tmp_path: Path) -> None:
    results = open_results(tmp_path / "out", STREAMED)
    for clip, frames, value in (("a", 300, 1.0), ("b", 100, 5.0), ("c", 100, math.nan)):
        times = {"first_packet_ms": 100.0 * value} if clip != "c" else {}
        scores = {"mel_l1": value, "gap": value, "stoi": value} | times
        results.add(ClipScores(STREAMED.id, clip, "", frames, scores))
    (row,) = Findings.from_results(results).rows
    assert (row.means["mel_l1"].mean, row.means["gap"].mean, row.means["stoi"].mean) == (2.0, 2.0, 3.0)
    latency = row.means["first_packet_ms"]
    assert (latency.mean, latency.num_values) == (300.0, 2) and math.isnan(latency.low) and math.isnan(latency.high)
    assert "are measured on the 3 longest clips and have no interval" in markdown(Findings.from_results(results))
    results.close()
    assert Results.read(tmp_path / "out").rows.keys() == results.rows.keys()


def test_intervals_are_computed_once_for_all_tables_and_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = open_results(tmp_path / "out", OFFLINE)
    for row in stoi_rows(OFFLINE, [0.5, 0.7], ("en", "zh")):
        results.add(row)
    findings = Findings.from_results(results)
    monkeypatch.setattr(table, "mean_of", lambda *_: pytest.fail("computed again"))
    assert "0.600" in markdown(findings) and flat_table(findings)[1]
    write_evaluation_report(tmp_path / "report.html", findings)
    assert "0.600" in (tmp_path / "report.html").read_text()


def test_a_folder_resumes_after_its_last_complete_line_and_accepts_more_systems(tmp_path: Path) -> None:
    results = open_results(tmp_path / "out", OFFLINE)
    for row in stoi_rows(OFFLINE, [0.5, math.nan]):
        results.add(row)
    results.close()
    path = tmp_path / "out" / "results.jsonl"
    path.write_text(path.read_text() + '{"way": "half a li')
    resumed = open_results(tmp_path / "out", STREAMED)
    assert list(resumed.systems.values()) == [OFFLINE, STREAMED]
    assert [row.clip for row in resumed.rows_of(OFFLINE)] == ["clip0", "clip1"]
    assert math.isnan(resumed.rows_of(OFFLINE)[1].scores["stoi"])
    resumed.add(stoi_rows(STREAMED, [0.4])[0])
    resumed.close()
    assert len(path.read_text().splitlines()) == 3
    assert Results.read(tmp_path / "out").rows.keys() == resumed.rows.keys()


def test_stored_field_names_are_those_of_earlier_versions(tmp_path: Path) -> None:
    results = open_results(tmp_path / "out", STREAMED)
    results.add(ClipScores(STREAMED.id, "a", "en", 100, {"stoi": math.nan, "gap": 0.5}, (1.0, 2.0)))
    results.close()
    line = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    scores = {"stoi": None, "gap": 0.5}
    fields = {"way": STREAMED.id, "clip": "a", "language": "en", "frames": 100, "scores": scores}
    assert line == fields | {"chunk_ms": [1.0, 2.0], "speaker": ""}
    del line["speaker"]  # absent in folders of earlier versions
    assert ClipScores.from_json(json.dumps(line).encode()).speaker == ""
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(content) == ["format", "identity", "digests", "facts", "ways"]
    assert list(content["identity"]) == ["data", "version", "clips", "similarity", "judges", "device"]
    system = content["ways"][STREAMED.id]
    assert list(system) == ["kind", "vocoder", "mel", "ckpt", "layout", "nfe", "guidance", "lookahead"]


def test_reading_a_folder_does_not_disturb_the_process_that_writes_it(tmp_path: Path) -> None:
    results = open_results(tmp_path / "out", OFFLINE)
    (first,) = stoi_rows(OFFLINE, [0.5])
    results.add(first)
    path = tmp_path / "out" / "results.jsonl"
    with path.open("a") as file:
        file.write('{"way": "half a li')  # the other process is writing it
    assert list(Results.read(tmp_path / "out").rows.values()) == [first]
    with pytest.raises(BlockingIOError):
        open_results(tmp_path / "out", STREAMED)
    assert path.read_text().endswith("half a li")
    results.close()
    open_results(tmp_path / "out", OFFLINE).close()
    assert len(path.read_text().splitlines()) == 1


def test_a_damaged_line_is_reported_by_its_number(tmp_path: Path) -> None:
    open_results(tmp_path / "out", OFFLINE).close()
    path = tmp_path / "out" / "results.jsonl"
    path.write_text(stoi_rows(OFFLINE, [0.5])[0].to_json() + '\n{"way": 1}\n')
    with pytest.raises(ValueError, match=r"results\.jsonl: line 2 is damaged \(KeyError.*: delete it"):
        Results.read(tmp_path / "out")


def test_a_folder_of_another_format_is_not_reported_as_damaged(tmp_path: Path) -> None:
    open_results(tmp_path / "out", OFFLINE).close()
    path = tmp_path / "out" / "evaluation.json"
    content = json.loads(path.read_text())
    for number, message in ((1, r"has format 1, .* reads from 2 on: give another --out"), (3, "has format 3")):
        path.write_text(json.dumps(content | {"format": number}))
        with pytest.raises(ValueError, match=rf"evaluation\.json {message}"):
            Results.read(tmp_path / "out")


def test_facts_of_several_commands_are_numbered(tmp_path: Path) -> None:
    for machine, checkpoint in (("H100", "a, step 1"), ("H200", "b, step 2"), ("H100", "a, step 1")):
        facts = {"data": ("clips",), "device": (machine,), "checkpoint": (checkpoint,)}
        Results.open(tmp_path / "out", IDENTITY, [OFFLINE], {}, facts).close()
    assert Results.read(tmp_path / "out").numbered_facts == {
        "data": "clips",
        "device 1": "H100",
        "device 2": "H200",
        "checkpoint 1": "a, step 1",
        "checkpoint 2": "b, step 2",
    }


def test_a_folder_of_another_evaluation_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    results = open_results(tmp_path / "out", OFFLINE)
    with pytest.raises(BlockingIOError, match="is in use by another sf-eval"):
        open_results(tmp_path / "out", OFFLINE)
    results.close()
    before = (tmp_path / "out" / "evaluation.json").read_bytes()
    with pytest.raises(FileExistsError, match="another evaluation: its clips is 4, this command has 8"):
        open_results(tmp_path / "out", OFFLINE, clips=8)
    with pytest.raises(FileExistsError, match=r"results of a\.ckpt from before it changed"):
        Results.open(tmp_path / "out", IDENTITY, [OFFLINE], {"a.ckpt": "2"}, {})
    open_results(tmp_path / "out", OFFLINE).close()  # a refused command leaves no lock behind
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before
    with pytest.raises(FileExistsError, match="holds something other than an evaluation"):
        open_results(tmp_path, OFFLINE)
    with pytest.raises(FileNotFoundError, match="is not a folder written by sf-eval"):
        Results.read(tmp_path)
