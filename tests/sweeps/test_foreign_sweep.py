"""Sweep folders that somebody else has packed: links are refused, and trials have parameters of the sweep alone."""

import json
from pathlib import Path

import pytest

from sf_lightning.files.tables import read_metrics
from sf_lightning.sweeps.file import SweepFile
from sf_lightning.sweeps.trials import Sweep
from tests.toys.sweep import sweep_file


@pytest.mark.parametrize(
    "name", ["sweep.json", "lock", "trials/000/log.txt", "trials/000/lock", "trials/001", "results.md"]
)
def test_a_link_in_a_sweep_is_refused_and_nothing_is_written_through_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").write_text("mine")
    path = tmp_path / "sweep" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match=f"{path} is a symbolic link"):
        Sweep(SweepFile(sweep_file(tmp_path)), tmp_path / "sweep").join()
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("method", ["grid", "random"])
@pytest.mark.parametrize(
    "point", [{"rate": 4}, {"rate": "1"}, {"rate": True}, {"other": 1}, {"rate": 1, "other": 1}]
)
def test_a_trial_with_parameters_that_the_sweep_lacks_is_refused(
    tmp_path: Path, method: str, point: dict[str, object]
) -> None:
    cap = {} if method == "grid" else {"run_cap": 2}
    sweep = Sweep(SweepFile(sweep_file(tmp_path, method=method, **cap)), tmp_path / "sweep")
    sweep.join()
    sweep.claim()
    path = tmp_path / "sweep" / "trials" / "000" / "parameters.json"
    assert sweep.file.contains(json.loads(path.read_text()))
    path.write_text(json.dumps(point))
    with pytest.raises(ValueError, match=r"parameters\.json has .* which .*toy\.yaml does not contain"):
        sweep.claim()


def test_the_last_row_of_metrics_cut_anywhere_is_ignored_until_it_ends(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    text = "step,loss\r\n0,0.125\r\n1,0.0625\r\n"
    for size in range(len("step,loss\r\n0,0.125\r\n"), len(text)):
        (tmp_path / "csv" / "metrics.csv").write_bytes(text[:size].encode())
        assert read_metrics(tmp_path) == [{"step": 0.0, "loss": 0.125}]
