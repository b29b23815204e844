"""The sweep over layouts with real toy runs, without network, by two workers of which one is killed."""

import csv
from pathlib import Path

import pytest

from sf_lightning.data.shards import ShardSet
from sf_lightning.sweeps.results import Results
from tests.toys.cli import TOY_DECODER
from tests.toys.sweep import start_worker, wait_until
from tests.toys.tracking import wandb_records


@pytest.mark.slow
def test_the_sweep_over_layouts_completes_offline_although_one_of_two_workers_is_killed(
    shards: ShardSet, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    file, folder = repository / "experiments" / "sweeps" / "mask_layouts.yaml", tmp_path / "sweep"
    # 8 layers: streamflow_lr needs its four.
    toy = [arg for arg in TOY_DECODER if not arg.startswith("--model.layout")]
    args = [*toy, f"--data.train={shards.folder}", f"--data.val={shards.folder}"]
    first, other = (start_worker(file, folder, *args) for _ in range(2))
    checkpoints = [folder / "trials" / f"{number:03d}" / "checkpoints" / "last.ckpt" for number in range(2)]
    wait_until(lambda: any(path.is_file() for path in checkpoints), 1200)
    first.kill()
    first.communicate()
    output, _ = other.communicate(timeout=3600)
    results = Results(folder)
    assert other.returncode == 0, output
    assert [trial.state for trial in results.trials] == ["complete"] * 9 and results.frontier
    waits = {trial.label: trial.metrics["latency/wait_ms"] for trial in results.trials}
    assert waits["block_only"] == waits["backward_only"] == waits["chunk_causal"] == 240
    assert waits["streamflow_sr"] == waits["full"] == waits["backward: 2, forward: 1, placement: late"] == 480
    for trial in results.trials:
        with (trial.folder / "csv" / "metrics.csv").open() as table:
            steps = [int(row["step"]) for row in csv.DictReader(table) if row["train/loss"]]
        assert steps == [0, 1, 2, 3], "a step is missing, or there twice"
        logs = trial.folder.glob("wandb/offline-run-*/*.wandb")
        assert any(b"mask_layouts" in record for log in logs for record in wandb_records(log)), trial.parameters
    assert (folder / "frontier.png").is_file() and "| yes |" in (folder / "results.md").read_text()
