"""The sweep over layouts, really trained at toy size: offline, by two workers of which one is killed."""

import csv
import json
import signal
from pathlib import Path

import pytest

from sf_lightning.data.shards import ShardSet
from sf_lightning.sweeps.results import read_results
from tests.toys.cli import TOY_DECODER
from tests.toys.sweep import start_worker, wait_until
from tests.toys.tracking import wandb_records


@pytest.mark.slow
def test_the_sweep_over_layouts_ends_offline_and_survives_the_kill_of_one_of_two_workers(
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
    first.send_signal(signal.SIGKILL)
    said, _ = other.communicate(timeout=3600)
    first.communicate()
    results = read_results(folder)
    assert other.returncode == 0, said
    assert [each.state for each in results.trials] == ["complete"] * 9 and results.frontier
    waits = {each.label: each.values["latency/wait_ms"] for each in results.trials}
    assert waits["block_only"] == waits["backward_only"] == waits["chunk_causal"] == 240
    assert waits["streamflow_sr"] == waits["full"] == waits["backward: 2, forward: 1, placement: late"] == 480
    for each in results.trials:
        with (each.folder / "csv" / "metrics.csv").open() as table:
            steps = [int(row["step"]) for row in csv.DictReader(table) if row["train/loss"]]
        assert steps == [0, 1, 2, 3], "a step is missing, or there twice"
        config = json.dumps(each.parameters)
        kept = b"".join(b"".join(wandb_records(path)) for path in each.folder.glob("wandb/offline-run-*/*.wandb"))
        assert b"mask_layouts" in kept, f"{config} is in no group"
    assert (folder / "frontier.png").is_file() and "| yes |" in (folder / "results.md").read_text()
