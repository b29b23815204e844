"""`sf-sweep` as a user meets it; what it runs only pretends to train."""

import csv
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from sf_lightning.cli import sweep
from sf_lightning.sweeps.file import SweepFile
from sf_lightning.sweeps.results import read_results
from sf_lightning.sweeps.study import Lease, Sweep
from sf_lightning.sweeps.trial import run_trial
from tests.toys.sweep import first_steps, start_worker, sweep_file, wait_until


def mistake(capsys: pytest.CaptureFixture, *args: str) -> str:
    """Runs the command, which must end with 2 and one line; returns the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        sweep.main(list(args))
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert exit_.value.code == 2 and len(said) == 1 and said[0].startswith("error: "), said
    return said[0]


def test_a_grid_is_tried_once_each_and_ends_with_the_frontier(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "sweep"
    sweep.main([str(sweep_file(tmp_path)), "--dir", str(folder), "--jobs=2"])
    results = read_results(folder)
    assert [each.parameters for each in results.trials] == [{"rate": 1}, {"rate": 3}, {"rate": 2}]
    assert [each.state for each in results.trials] == ["complete"] * 3
    assert [each.values[results.metric] for each in results.complete] == [9.0, 6.0, 3.0]
    assert [each.parameters["rate"] for each in results.frontier] == [1, 2, 3]
    with (folder / "results.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["rate"] for row in rows] == ["3", "2", "1"] and rows[0]["latency/wait_ms"] == "720.0"
    assert (folder / "results.md").read_text().count("| yes |") == 3
    assert (folder / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    assert "720 ms: 3, streamed/stoi 9.0000" in capsys.readouterr().out
    # Again: all is there, nothing is done.
    sweep.main([str(sweep_file(tmp_path)), "--dir", str(folder)])
    assert all(first_steps(folder, number) == [0] for number in range(3))


def test_what_is_worse_at_the_same_wait_or_a_longer_one_is_not_on_the_frontier(tmp_path: Path) -> None:
    goal = {"name": "latency/wait_ms", "goal": "minimize"}
    sweep.main([str(sweep_file(tmp_path, metric=goal)), f"--dir={tmp_path / 'sweep'}"])
    assert [each.parameters["rate"] for each in read_results(tmp_path / "sweep").frontier] == [1]


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_drawn_sweep_has_as_many_trials_as_asked_and_those_of_its_numbers(tmp_path: Path, method: str) -> None:
    rates = {"rate": {"min": 1.0e-3, "max": 1.0, "distribution": "log_uniform_values"}}
    file = sweep_file(tmp_path, method=method, parameters=rates, run_cap=3)
    for name in ("one", "other"):
        sweep.main([str(file), f"--dir={tmp_path / name}"])
    drawn, again = (
        [t.parameters["rate"] for t in read_results(tmp_path / name).trials] for name in ("one", "other")
    )
    assert len(set(drawn)) == 3 and drawn == again and all(1e-3 <= rate <= 1 for rate in drawn)
    sweep.main([str(file), f"--dir={tmp_path / 'one'}", "--trials=5"])
    more = [t.parameters["rate"] for t in read_results(tmp_path / "one").trials]
    assert len(set(more)) == 5 and more[:3] == drawn


def test_a_trial_that_falls_behind_is_asked_to_save_itself_and_is_pruned(tmp_path: Path) -> None:
    early = {"type": "hyperband", "min_iter": 1, "eta": 2}
    parameters = {"rate": {"values": [9, 1]}, "steps": {"value": 40}, "pause": {"value": 0.1}}
    file = sweep_file(tmp_path, early_terminate=early, parameters=parameters)
    sweep.main([str(file), f"--dir={tmp_path / 'sweep'}"])
    best, worse = read_results(tmp_path / "sweep").trials
    assert (best.state, worse.state) == ("complete", "pruned")
    assert 0 < int((worse.folder / "checkpoints" / "last").read_text()) < 40


def test_a_trial_that_is_killed_goes_on_where_it_stood(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    sweep.main([str(sweep_file(tmp_path, parameters={"behavior": {"values": ["killed_once"]}})), f"--dir={folder}"])
    results = read_results(folder)
    assert results.trials[0].state == "complete" and first_steps(folder, 0) == [0, 1]


@pytest.mark.parametrize("patient", [False, True])
def test_what_a_killed_worker_leaves_another_takes_up_where_it_stood(tmp_path: Path, patient: bool) -> None:
    parameters = {"rate": {"values": [1, 2]}, "pause": {"value": 0.3}, "steps": {"value": 6}}
    file, folder = sweep_file(tmp_path, parameters=parameters), tmp_path / "sweep"
    killed, other = (start_worker(file, folder, "--patience=3") for _ in range(2))
    checkpoints = [folder / "trials" / f"{number:03d}" / "checkpoints" / "last" for number in range(2)]
    wait_until(lambda: all(path.is_file() for path in checkpoints))
    leases = [json.loads(path.parents[1].joinpath("lease").read_text()) for path in checkpoints]
    number = next(i for i, lease in enumerate(leases) if lease["pid"] == killed.pid)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    stood = checkpoints[number].read_text()  # its trial is killed with it
    if patient:  # as if it had been on another machine, where no process can be looked for
        lease = checkpoints[number].parents[1] / "lease"
        lease.write_text(json.dumps(leases[number] | {"machine": "other"}))
    said, _ = other.communicate(timeout=240)
    killed.communicate()
    results = read_results(folder)
    assert other.returncode == 0 and [each.state for each in results.trials] == ["complete"] * 2, said
    first, again = first_steps(folder, number)
    assert (first, again) == (0, int(stood)) and first_steps(folder, 1 - number) == [0]
    assert len((results.trials[number].folder / "csv" / "metrics.csv").read_text().split()) == 7


@pytest.mark.parametrize("method", ["grid", "random"])
def test_a_trial_whose_worker_died_before_it_had_chosen_is_chosen_and_run(tmp_path: Path, method: str) -> None:
    more = {"method": "random", "run_cap": 3, "parameters": {"rate": {"min": 1, "max": 9}}}
    file, folders = (
        sweep_file(tmp_path, **(more if method == "random" else {})),
        (tmp_path / "one", tmp_path / "other"),
    )
    for folder in folders:
        begun_by = Sweep(SweepFile.read(file), folder)
        begun_by.begin()
        if folder == folders[0]:
            begun_by.study.ask()  # running now, without a parameter or a lease
        sweep.main([str(file), f"--dir={folder}"])
    one, other = (read_results(folder).trials for folder in folders)
    assert [each.state for each in one] == ["complete"] * 3
    assert [each.parameters for each in one] == [each.parameters for each in other]


@pytest.mark.parametrize("lease", ['{"machine": "other", "pid": 1, "since": 1, "beat": 1}', ""])
def test_a_worker_that_does_not_stay_takes_up_what_another_machine_has_left(tmp_path: Path, lease: str) -> None:
    file, folder = sweep_file(tmp_path, parameters={"rate": {"values": [1]}}), tmp_path / "sweep"
    left = Sweep(SweepFile.read(file), folder)
    left.begin()
    assert left.claim() is not None
    (folder / "trials" / "000" / "lease").write_text(lease)
    sweep.main([str(file), f"--dir={folder}", "--stay=false", "--patience=1"])
    assert read_results(folder).trials[0].state == "complete"


def test_a_trial_that_was_taken_over_is_not_ended_by_who_had_it(tmp_path: Path) -> None:
    file, folder = sweep_file(tmp_path, parameters={"rate": {"values": [1]}}), tmp_path / "sweep"
    stood_still = Sweep(SweepFile.read(file), folder, patience=1000)
    stood_still.begin()
    claimed = stood_still.claim()
    assert claimed is not None
    Lease(claimed[1].path).take()
    assert run_trial(stood_still, *claimed).kind == "lost"
    assert read_results(folder).trials[0].state == "running"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_worker_that_is_asked_to_stop_has_its_trial_save_itself_and_leaves_it_to_others(
    tmp_path: Path, number: int, code: int
) -> None:
    file, folder = (
        sweep_file(tmp_path, parameters={"pause": {"values": [0.3]}, "steps": {"value": 8}}),
        tmp_path / "sweep",
    )
    asked = start_worker(file, folder)
    wait_until((folder / "trials" / "000" / "checkpoints" / "last").is_file)
    asked.send_signal(number)
    said, _ = asked.communicate(timeout=240)
    assert asked.returncode == code, said
    assert read_results(folder).trials[0].state == "running"
    sweep.main([str(file), f"--dir={folder}"])
    results = read_results(folder)
    assert results.trials[0].state == "complete" and first_steps(folder, 0)[1] > 0


def test_trials_are_one_group_for_wandb_and_no_tasks_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "say.py"
    program.write_text(
        "import os, sys\nif '--print_config' not in sys.argv:\n"
        "    print(*(f'{k}={v}' for k, v in os.environ.items()), sep='\\n'); sys.exit('error: enough')\n"
    )
    monkeypatch.setenv("SLURM_NTASKS", "1")
    with pytest.raises(SystemExit):
        sweep.main([str(sweep_file(tmp_path, program=str(program))), f"--dir={tmp_path / 'sweep'}"])
    said = (tmp_path / "sweep" / "trials" / "000" / "log.txt").read_text().split("\n")
    assert "WANDB_RUN_GROUP=toy" in said and "WANDB_NAME=toy-000" in said
    assert not any(line.startswith("SLURM_") for line in said)


def test_a_mistake_that_all_trials_would_make_stops_the_sweep_and_is_made_good(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    parameters = {
        "behavior": {"value": "fails"},
        "rate": {"values": [1, 2]},
        "unless_exists": {"value": str(tmp_path / "there")},
    }
    args = (str(sweep_file(tmp_path, parameters=parameters)), f"--dir={tmp_path / 'sweep'}")
    assert "trial 0: no shard set at /nowhere" in mistake(capsys, *args)
    assert [each.state for each in read_results(tmp_path / "sweep").trials] == ["failed", "waiting"]
    (tmp_path / "there").touch()
    sweep.main([*args])
    trials = read_results(tmp_path / "sweep").trials
    assert [(each.state, each.parameters.get("rate")) for each in trials] == [
        ("failed", 1),
        ("complete", 2),
        ("complete", 1),
    ]


def test_one_trial_that_fails_among_others_costs_itself_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    behaviors = {"values": ["works", "fails", "logs_nothing"]}
    parameters = {"behavior": behaviors, "unless_exists": {"value": "/nowhere"}}
    line = mistake(capsys, str(sweep_file(tmp_path, parameters=parameters)), f"--dir={tmp_path / 'sweep'}")
    assert "trial 1: no shard set at /nowhere; and 1 more" in line
    good, broken, silent = read_results(tmp_path / "sweep").trials
    assert (good.state, broken.state, silent.state) == ("complete", "failed", "failed")
    assert "streamed_within_500_ms/stoi is not in" in silent.why and "has no rows" in silent.why
    assert (tmp_path / "sweep" / "results.md").is_file()


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({"parameters": {"laiout": {"value": 1}}}, (), "toy.yaml: laiout is not an option"),
        ({"method": "genetic"}, (), "method is genetic"),
        ({"program": "/nowhere.py"}, (), "toy.yaml: .*/nowhere.py"),
        ({"command": ["/nowhere/sf-fit", "${args}"]}, (), "command /nowhere/sf-fit .* cannot be run"),
        ({"method": "random"}, (), "method random has no end: give --trials or a run_cap"),
        ({"run_cap": -1}, (), "run_cap is -1: wanted a number of trials, 1 or more"),
        ({"command": "sf-fit ${args}"}, (), "command is 'sf-fit ..args.': wanted a list of words"),
        ({}, ("--rate=4",), "--rate=4: the sweep says that itself"),
        ({}, ("--ckpt_path=x",), "--ckpt_path=x: the sweep says that itself"),
        ({}, ("--steps=4", "--typo=4"), "typo is not an option"),
        ({}, ("--trials=0",), "--trials is 0"),
        ({}, ("--jobs=0",), "--jobs is 0"),
        ({}, ("--patience=0",), "--patience is 0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict[str, Any], more: tuple[str, ...], said: str
) -> None:
    line = mistake(capsys, str(sweep_file(tmp_path, **changes)), f"--dir={tmp_path / 'sweep'}", *more)
    assert re.search(said, line), line
    assert not (tmp_path / "sweep" / "trials").exists()


def test_a_folder_of_another_sweep_is_refused_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = f"--dir={tmp_path / 'sweep'}"
    sweep.main([str(sweep_file(tmp_path)), folder, "--steps=2"])
    before = (tmp_path / "sweep" / "results.csv").read_text()
    other = sweep_file(tmp_path, parameters={"rate": {"values": [5]}})
    assert "holds a sweep with other parameters" in mistake(capsys, str(other), folder, "--steps=2")
    assert "holds a sweep with other arguments" in mistake(capsys, str(sweep_file(tmp_path)), folder, "--steps=3")
    assert "holds another sweep than b" in mistake(capsys, str(sweep_file(tmp_path, "b")), folder, "--steps=2")
    sweep.main([str(sweep_file(tmp_path)), folder, "--steps=2"])
    assert (tmp_path / "sweep" / "results.csv").read_text() == before
    assert "no sweep file /nowhere.yaml" in mistake(capsys, "/nowhere.yaml")
