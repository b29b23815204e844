"""The command `sf-sweep`, with a program that stands in for `sf-fit`."""

import csv
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from sf_lightning.cli import sweep
from sf_lightning.sweeps.file import SweepFile
from sf_lightning.sweeps.results import Results
from sf_lightning.sweeps.trials import Sweep
from tests.toys.cli import error_line
from tests.toys.sweep import first_steps, processes, start_worker, sweep_file, wait_until


def test_a_grid_runs_each_point_once_and_ends_with_the_frontier(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file, folder = str(sweep_file(tmp_path)), tmp_path / "sweep"
    sweep.main([file, "--dir", str(folder), "--jobs=2"])
    results = Results(folder)
    assert [trial.parameters for trial in results.trials] == [{"rate": 1}, {"rate": 3}, {"rate": 2}]
    assert [trial.state for trial in results.trials] == ["complete"] * 3
    assert [trial.value for trial in results.complete] == [9.0, 6.0, 3.0]
    assert [trial.parameters["rate"] for trial in results.frontier] == [1, 2, 3]
    with (folder / "results.csv").open() as table:
        rows = [*csv.DictReader(table)]
    assert [row["rate"] for row in rows] == ["3", "2", "1"] and rows[0]["latency/wait_ms"] == "720.0"
    assert (folder / "results.md").read_text().count("| yes |") == 3
    assert (folder / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    output = capsys.readouterr().out
    assert "720 ms: 3, streamed/stoi 9.0000" in output and "3 complete; see " in output
    # A second start finds a finished sweep and runs nothing.
    sweep.main([file, "--dir", str(folder)])
    assert all(first_steps(folder, number) == [0] for number in range(3))
    assert "3 complete; see " in capsys.readouterr().out


def test_a_trial_that_is_worse_at_the_same_or_a_longer_wait_is_not_on_the_frontier(tmp_path: Path) -> None:
    goal = {"name": "latency/wait_ms", "goal": "minimize"}
    sweep.main([str(sweep_file(tmp_path, metric=goal)), f"--dir={tmp_path / 'sweep'}"])
    assert [trial.parameters["rate"] for trial in Results(tmp_path / "sweep").frontier] == [1]


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_drawn_points_follow_from_the_trials_number_and_more_can_be_asked_for(tmp_path: Path, method: str) -> None:
    rates = {"rate": {"min": 1.0e-3, "max": 1.0, "distribution": "log_uniform_values"}}
    file = str(sweep_file(tmp_path, method=method, parameters=rates, run_cap=3))
    for name in ("one", "other"):
        sweep.main([file, f"--dir={tmp_path / name}"])
    first, second = (
        [trial.parameters["rate"] for trial in Results(tmp_path / name).trials] for name in ("one", "other")
    )
    assert len(set(first)) == 3 and first == second and all(1e-3 <= rate <= 1 for rate in first)
    sweep.main([file, f"--dir={tmp_path / 'one'}", "--trials=5"])
    more = [trial.parameters["rate"] for trial in Results(tmp_path / "one").trials]
    assert len(set(more)) == 5 and more[:3] == first


def test_a_trial_that_falls_behind_saves_its_state_and_is_pruned(tmp_path: Path) -> None:
    early = {"type": "hyperband", "min_iter": 1, "eta": 2}
    parameters = {"rate": {"values": [9, 1]}, "steps": {"value": 40}, "pause": {"value": 0.1}}
    file = sweep_file(tmp_path, early_terminate=early, parameters=parameters)
    sweep.main([str(file), f"--dir={tmp_path / 'sweep'}"])
    best, worse = Results(tmp_path / "sweep").trials
    assert (best.state, worse.state) == ("complete", "pruned")
    assert 0 < int((worse.folder / "checkpoints" / "last").read_text()) < 40


def test_a_trial_whose_process_is_killed_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    sweep.main([str(sweep_file(tmp_path, parameters={"behavior": {"values": ["killed_once"]}})), f"--dir={folder}"])
    assert Results(folder).trials[0].state == "complete" and first_steps(folder, 0) == [0, 1]


def test_a_trial_that_is_killed_again_and_again_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = sweep_file(tmp_path, parameters={"behavior": {"values": ["killed_always"]}})
    line = error_line(capsys, sweep.main, str(file), f"--dir={tmp_path / 'sweep'}")
    assert "trial 0: killed 3 times, the last time with exit code -9: no output" in line
    assert first_steps(tmp_path / "sweep", 0) == [0, 0, 0]


def test_a_trial_that_is_killed_with_its_worker_is_resumed_by_another_worker(tmp_path: Path) -> None:
    parameters = {"rate": {"values": [1, 2]}, "pause": {"value": 0.3}, "steps": {"value": 8}}
    file, folder = sweep_file(tmp_path, parameters=parameters), tmp_path / "sweep"
    killed = start_worker(file, folder)
    checkpoint = folder / "trials" / "000" / "checkpoints" / "last"
    wait_until(checkpoint.is_file)
    other = start_worker(file, folder)
    killed.send_signal(signal.SIGSTOP)  # so that it does not restart its trial
    for process in (*processes(folder / "trials" / "000"), killed.pid):
        os.kill(process, signal.SIGKILL)
    saved = int(checkpoint.read_text())
    output, _ = other.communicate(timeout=240)
    killed.communicate()
    trials = Results(folder).trials
    assert other.returncode == 0 and [trial.state for trial in trials] == ["complete"] * 2, output
    assert first_steps(folder, 0) == [0, saved] and first_steps(folder, 1) == [0]
    assert len((trials[0].folder / "csv" / "metrics.csv").read_text().split()) == 9


def test_a_trial_that_outlives_its_worker_is_never_run_by_two_processes(tmp_path: Path) -> None:
    parameters = {"rate": {"values": [1]}, "pause": {"value": 0.5}, "steps": {"value": 20}}
    file, folder = sweep_file(tmp_path, parameters=parameters), tmp_path / "sweep"
    killed = start_worker(file, folder)
    wait_until((folder / "trials" / "000" / "checkpoints" / "last").is_file)
    killed.kill()
    killed.communicate()
    sweep.main([str(file), f"--dir={folder}", "--wait=0"])
    (trial,) = Results(folder).trials
    assert trial.state == "running" and first_steps(folder, 0) == [0]
    sweep.main([str(file), f"--dir={folder}"])  # waits for it
    (trial,) = Results(folder).trials
    assert trial.state == "complete" and first_steps(folder, 0) == [0, 20]


def test_two_workers_never_claim_one_trial(tmp_path: Path) -> None:
    file = SweepFile(sweep_file(tmp_path))
    workers = [Sweep(file, tmp_path / "sweep") for _ in range(2)]
    for worker in workers:
        worker.join()
    claims = [worker.claim() for worker in workers * 2]
    assert [claim and claim[0].number for claim in claims] == [0, 1, 2, None]
    assert claims[1] is not None
    claims[1][1].close()
    again = workers[0].claim()
    assert again is not None and again[0].number == 1


@pytest.mark.parametrize("method", ["grid", "random"])
def test_a_trial_whose_worker_died_before_it_started_the_process_is_run(tmp_path: Path, method: str) -> None:
    drawn = {"method": "random", "run_cap": 3, "parameters": {"rate": {"min": 1, "max": 9}}}
    file, folders = sweep_file(tmp_path, **(drawn if method == "random" else {})), (tmp_path / "a", tmp_path / "b")
    for folder in folders:
        interrupted = Sweep(SweepFile(file), folder)
        interrupted.join()
        if folder == folders[0]:
            (folder / "trials" / "000" / "lock").touch()
        sweep.main([str(file), f"--dir={folder}"])
    first, second = (Results(folder).trials for folder in folders)
    assert [trial.state for trial in first] == ["complete"] * 3
    assert [trial.parameters for trial in first] == [trial.parameters for trial in second]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGUSR1, 75),
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_is_stopped_lets_its_trial_save_its_state_for_the_next_worker(
    tmp_path: Path, number: int, code: int
) -> None:
    parameters = {"pause": {"values": [0.3]}, "steps": {"value": 8}}
    file, folder = sweep_file(tmp_path, parameters=parameters), tmp_path / "sweep"
    stopped = start_worker(file, folder)
    wait_until((folder / "trials" / "000" / "checkpoints" / "last").is_file)
    stopped.send_signal(number)
    output, _ = stopped.communicate(timeout=240)
    assert stopped.returncode == code and "trial 0 is stopped" in output, output
    assert Results(folder).trials[0].state == "running"
    sweep.main([str(file), f"--dir={folder}"])
    assert Results(folder).trials[0].state == "complete" and first_steps(folder, 0)[1] > 0


def test_trials_are_one_group_of_wandb_runs_and_do_not_inherit_the_workers_slurm_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "print_environment.py"
    program.write_text(
        "import os, sys\nif '--print_config' not in sys.argv:\n"
        "    print(*(f'{k}={v}' for k, v in os.environ.items()), sep='\\n'); sys.exit('error: enough')\n"
    )
    monkeypatch.setenv("SLURM_NTASKS", "1")
    with pytest.raises(SystemExit):
        sweep.main([str(sweep_file(tmp_path, program=str(program))), f"--dir={tmp_path / 'sweep'}"])
    lines = (tmp_path / "sweep" / "trials" / "000" / "log.txt").read_text().split("\n")
    assert "WANDB_RUN_GROUP=toy" in lines and "WANDB_NAME=toy-000" in lines
    assert not any(line.startswith("SLURM_") for line in lines)


def test_a_sweep_whose_first_trial_fails_stops_and_repeats_it_when_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    parameters = {
        "behavior": {"value": "fails"},
        "rate": {"values": [1, 2]},
        "unless_exists": {"value": str(tmp_path / "there")},
    }
    args = (str(sweep_file(tmp_path, parameters=parameters)), f"--dir={tmp_path / 'sweep'}")
    assert "trial 0: no shard set at /nowhere" in error_line(capsys, sweep.main, *args)
    assert [trial.state for trial in Results(tmp_path / "sweep").trials] == ["failed", "waiting"]
    (tmp_path / "there").touch()
    sweep.main([*args])
    trials = Results(tmp_path / "sweep").trials
    states = [(trial.state, trial.parameters["rate"]) for trial in trials]
    assert states == [("failed", 1), ("complete", 2), ("complete", 1)]


def test_a_later_trial_that_fails_is_reported_in_one_line_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    behaviors = {"values": ["works", "fails", "logs_nothing"]}
    parameters = {"behavior": behaviors, "unless_exists": {"value": "/nowhere"}}
    file = str(sweep_file(tmp_path, parameters=parameters))
    line = error_line(capsys, sweep.main, file, f"--dir={tmp_path / 'sweep'}")
    assert "trial 1: no shard set at /nowhere; and 1 more" in line
    good, broken, silent = Results(tmp_path / "sweep").trials
    assert (good.state, broken.state, silent.state) == ("complete", "failed", "failed")
    assert "streamed_within_500_ms/stoi is not in" in silent.error and "has no metrics" in silent.error
    assert (tmp_path / "sweep" / "results.md").is_file()


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"parameters": {"laiout": {"value": 1}}}, (), "toy.yaml: laiout is not an option"),
        ({"method": "genetic"}, (), "toy.yaml: method is genetic; expected grid, random, bayes"),
        ({"program": "/nowhere.py"}, (), "toy.yaml: .*/nowhere.py"),
        ({"command": ["/nowhere/sf-fit", "${args}"]}, (), "command /nowhere/sf-fit .* cannot be run"),
        ({"method": "random"}, (), "method is random; expected --trials or a run_cap"),
        ({"run_cap": -1}, (), "run_cap is -1; expected a number of trials"),
        ({"command": "sf-fit ${args}"}, (), "command is 'sf-fit ..args.'; expected a list of words"),
        ({}, ("--rate=4",), "--rate=4: the sweep sets this option for each trial"),
        ({}, ("--ckpt_path=x",), "--ckpt_path=x: the sweep sets this option for each trial"),
        ({}, ("--steps=4", "--typo=4"), "typo is not an option"),
        ({}, ("--trials=0",), "--trials is 0"),
        ({}, ("--jobs=0",), "--jobs is 0"),
    ],
)
def test_a_mistake_is_one_line_and_starts_no_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict[str, Any], more: tuple[str, ...], message: str
) -> None:
    file = str(sweep_file(tmp_path, **changes))
    line = error_line(capsys, sweep.main, file, f"--dir={tmp_path / 'sweep'}", *more)
    assert re.search(message, line), line
    assert not (tmp_path / "sweep" / "trials").exists()


def test_a_folder_with_another_sweep_is_refused_and_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "sweep"
    options = (f"--dir={folder}", "--steps=2")
    sweep.main([str(sweep_file(tmp_path)), *options])
    before = (folder / "results.csv").read_text()
    (tmp_path / "changed").mkdir()
    changed = str(sweep_file(tmp_path / "changed", parameters={"rate": {"values": [5]}}))
    assert 'has a sweep with parameters {"layout"' in error_line(capsys, sweep.main, changed, *options)
    more = (str(sweep_file(tmp_path)), options[0], "--steps=3")
    line = error_line(capsys, sweep.main, *more)
    assert 'has a sweep with arguments ["--steps=2"], not ["--steps=3"]; use another --dir' in line
    named = error_line(capsys, sweep.main, str(sweep_file(tmp_path, "b")), *options)
    assert 'has a sweep with name "toy", not "b"' in named
    assert (folder / "results.csv").read_text() == before
    assert "/nowhere.yaml: no such file; expected a YAML file or one of block_size, " in error_line(
        capsys, sweep.main, "/nowhere.yaml"
    )
    (folder / "sweep.json").unlink()
    assert "has trials but no sweep.json" in error_line(capsys, sweep.main, str(sweep_file(tmp_path)), *options)
