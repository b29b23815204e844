"""The table of layouts: its intervals, its differences, and a line for each layout of a finished sweep."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.layouts import Run, differences, interval, main, read_run
from sf_lightning.cli import sweep
from sf_lightning.data.shards import ShardSet
from sf_lightning.model.layout import Layout
from sf_lightning.sweeps.results import Results
from sf_lightning.sweeps.trials import Trial
from tests.toys.decoder import decoder_data, decoder_module, fit_decoder
from tests.toys.sweep import sweep_file

STOI = {"full": 0.8, "streamflow_sr": 0.7, "block_only": 0.5}
LAYOUTS = {
    "full": Layout(2, 24, (), (), unbounded="all"),
    "streamflow_sr": Layout(2, 24, (0,), (1,)),
    "block_only": Layout(2, 24, (), ()),
}


def write_validation(folder: Path, stoi: float) -> None:
    """Writes the files of a validation to a run's folder."""
    samples = folder / "samples" / "step-000003"
    samples.mkdir(parents=True)
    with (samples / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["way", "key", "stoi", "mel_l1", "frames", "gap"])
        for mode in ("copy_synthesis", "look_up", "offline", "streamed"):
            for clip in range(4):
                gap = 0.01 if mode == "streamed" else ""
                writer.writerow([mode, f"clip{clip}", stoi + 0.05 * clip, 0.5, 100, gap])
    config = {"trainer": {"max_steps": 3}, "data": {"train": str(Path.cwd() / "shards/x"), "pack_frames": 768}}
    record = {"config": config, "commit": "abc", "parameters": 5_400_000}
    (folder / "csv" / "hparams.yaml").write_text(yaml.safe_dump(record))


def test_the_table_has_every_layout_streamed_and_offline_and_which_differ_from_the_reference(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    parameters = {"seed": {"values": [0, 1]}, "model.layout": {"values": [*LAYOUTS]}}
    sweep.main([str(sweep_file(tmp_path, parameters=parameters)), f"--dir={tmp_path / 'sweep'}", "--jobs=3"])
    for trial in Results(tmp_path / "sweep").trials:
        name = trial.parameters["model.layout"]
        write_validation(trial.folder, STOI[name])
        if trial.parameters["seed"] == 0:
            fit_decoder(trial.folder / "checkpoints", decoder_module(layout=LAYOUTS[name]), decoder_data(shards), 1)
    out = tmp_path / "LAYOUTS.md"
    monkeypatch.setattr(sys, "argv", ["layouts.py", str(tmp_path / "sweep"), "--out", str(out)])
    main()
    page = out.read_text()
    assert "- 6 runs of 3 steps" in page and "seeds 0, 1" in page and "commit abc" in page
    assert " shards/x, 4 held-out clips" in page, "the path is specific to this machine"
    for name, stoi in STOI.items():
        for mode in ("streamed", "offline"):
            assert f"| {name}, {mode} |  | {stoi + 0.075:.3f} [" in page
    more, less = "+0.1000 [+0.1000, +0.1000]", "-0.2000 [-0.2000, -0.2000]"
    assert "|  | streamed, seed 0 | streamed, seed 1 | streamed, all seeds | offline, seed 0 |" in page
    assert f"| full | {more} | {more} | above | {more} | {more} | above |" in page
    assert f"| block_only | {less} | {less} | below |" in page
    latency = page[page.index("## Latency") :]
    for line in ("full | all / all | 480", "streamflow_sr | 1 / 1 | 480", "block_only | 0 / 0 | 240"):
        assert f"| {line} | " in latency


def test_an_interval_contains_the_mean_narrows_with_more_clips_and_ignores_nan() -> None:
    random = np.random.default_rng(0)
    widths = []
    for clips in (8, 128):
        values = random.normal(size=(2, clips))
        values[0, 1] = np.nan
        mean, low, high = interval(values, np.ones_like(values))
        assert mean == pytest.approx(np.nanmean(values)) and low < mean < high
        widths.append(high - low)
    assert widths[1] < widths[0]
    constant = interval(np.full((2, 5), 3.0), np.ones((2, 5)))
    assert constant == (3.0, 3.0, 3.0)
    weighted, *_ = interval(np.array([[1.0, 2.0]]), np.array([[3.0, 1.0]]))
    assert weighted == 1.25
    assert all(np.isnan(interval(np.full((1, 2), np.nan), np.ones((1, 2)))))


def test_scores_are_of_the_last_validation_and_baselines_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    write_validation(tmp_path, 0.5)
    later = tmp_path / "samples" / "step-000006"
    later.mkdir()
    (later / "scores.csv").write_text("way,key,stoi\nstreamed,clip0,0.9\n")
    run = read_run(Trial(tmp_path, {"model.layout": "full", "seed": 1}, "complete"))
    assert run.scores["streamed", "clip0"] == {"stoi": 0.9} and run.scores["look_up", "clip0"]["stoi"] == 0.5
    assert (run.layout, run.seed) == ("full", 1) and run.checkpoint == tmp_path / "checkpoints" / "last.ckpt"


def test_a_layout_above_in_one_seed_and_below_in_another_is_undecided() -> None:
    def run(layout: str, seed: int, stoi: float) -> Run:
        return Run(layout, seed, {("streamed", f"clip{i}"): {"stoi": stoi} for i in range(4)}, Path(), {})

    groups = {
        "streamflow_sr": [run("streamflow_sr", seed, 0.5) for seed in (0, 1)],
        "full": [run("full", 0, 0.6), run("full", 1, 0.4)],
        "block_only": [run("block_only", 0, 0.6)],
    }
    _, full, one_seed = differences(groups, "stoi")
    assert full[1:4] == ["+0.1000 [+0.1000, +0.1000]", "-0.1000 [-0.1000, -0.1000]", "undecided"]
    assert one_seed[1:4] == ["+0.1000 [+0.1000, +0.1000]", "", "undecided"]  # it has one seed only


def test_differences_of_means_over_frames_are_weighted_by_frames() -> None:
    def run(layout: str, errors: list[float]) -> Run:
        scores = {
            ("streamed", f"clip{i}"): {"mel_l1": error, "frames": 100.0 * (i + 1)} for i, error in enumerate(errors)
        }
        return Run(layout, 0, scores, Path(), {})

    groups = {"streamflow_sr": [run("streamflow_sr", [0.5, 0.5])], "full": [run("full", [0.5, 0.8])]}
    _, full = differences(groups, "mel_l1")
    assert full[1].startswith("+0.2000 [")  # 0.3 of 200 frames of 300
