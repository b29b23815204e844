"""Runs that are initialized from other weights or another run's config, and the files that they leave."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import wandb
import yaml

from sf_lightning.cli import export, fit
from sf_lightning.data.shards import ShardSet
from sf_lightning.model.checkpoint import read_checkpoint
from sf_lightning.training.module import StreamFlowModule
from tests.toys.cli import decoder_arguments, error_line
from tests.toys.qwen import save_token2wav, small_token2wav
from tests.toys.tracking import wait_for_wandb, wandb_records

pytest.importorskip("transformers")

WARM = (
    "--model.layout={num_layers: 4, backward: [0, 2], forward: [1]}",
    "--model.dit={width: 64, num_heads: 4, rope_heads: 1, token_width: 24, speaker_width: 12, vocabulary: 50}",
    "--model.scale={mean: 0, std: 1}",
    "--model.speaker={encoder: qwen, channels: 16, crop_seconds: 0.5}",
    "--model.predict=velocity",
    "--trainer.limit_val_batches=0",
)


def test_a_warm_start_is_reported_and_recorded_and_not_repeated_on_resume(
    shards: ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    folder = save_token2wav(small_token2wav(num_embeds=50), tmp_path / "qwen")
    arguments = decoder_arguments(
        shards, tmp_path / "run", *WARM, f"--model.init_from={folder}", "--trainer.max_steps=2"
    )
    fit.main(arguments)
    wandb.finish()
    message = "".join(capfd.readouterr())
    assert "M parameters loaded" in message and "x-vectors skipped" in message
    hparams = tmp_path / "run" / "csv" / "hparams.yaml"
    assert "M parameters loaded" in (before := yaml.safe_load(hparams.read_text())["initialized_from"])
    shutil.rmtree(folder)
    fit.main([*arguments, "--trainer.max_steps=4", "--ckpt_path=last"])
    wandb.finish()
    assert yaml.safe_load(hparams.read_text())["initialized_from"] == before
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    StreamFlowModule.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert "M parameters loaded" not in "".join(capfd.readouterr())


def test_weights_of_another_size_are_refused_before_anything_is_written(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = save_token2wav(small_token2wav(), tmp_path / "qwen")
    wide = "--model.dit.width=128"
    args = decoder_arguments(shards, tmp_path / "run", *WARM, wide, f"--model.init_from={folder}")
    message = error_line(capsys, fit.main, *args)
    assert message == "error: --model.init_from: dit.width is 128, the weights to start from have 64"
    assert not (tmp_path / "run").exists()


def test_a_run_is_initialized_from_an_export_a_checkpoint_or_the_hub(
    run: Path, fitted: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path / "exported"))
    export.main([str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "exported")])
    averages = read_checkpoint(run / "checkpoints" / "last.ckpt").weights
    still = ["--model.optimizer.learning_rate=1e-12", "--trainer.limit_val_batches=0", "--trainer.max_steps=1"]
    for source in (Path("owner/name@v1"), tmp_path / "exported", run / "checkpoints" / "last.ckpt"):
        fit.main(decoder_arguments(fitted, tmp_path / f"run-{source.name}", *still, f"--model.init_from={source}"))
        wandb.finish()
        assert f"--model.init_from: {source}: averaged weights of step 4" in capsys.readouterr().out
        weights = read_checkpoint(
            tmp_path / f"run-{source.name}" / "checkpoints" / "last.ckpt", average=False
        ).weights
        for name, value in averages.items():
            torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=0)
    wide = decoder_arguments(fitted, tmp_path / "wide", "--model.dit.token_width=8", f"--model.init_from={source}")
    message = error_line(capsys, fit.main, *wide)
    assert "--model.dit: the checkpoint has token_width" in message and "this run has 8" in message
    assert not (tmp_path / "wide").exists()


@pytest.mark.parametrize(("steps", "cadence"), [(5, "null"), (3, "2")])
def test_the_last_checkpoint_is_that_of_the_last_step(
    shards: ShardSet, tmp_path: Path, steps: int, cadence: str
) -> None:
    kind = "sf_lightning.training.callbacks.last_checkpoint.LastCheckpoint"
    callbacks = f"--trainer.callbacks=[{{class_path: {kind}, init_args: {{every_n_train_steps: {cadence}}}}}]"
    quick = (f"--trainer.max_steps={steps}", "--trainer.limit_val_batches=0", callbacks)
    fit.main(decoder_arguments(shards, tmp_path, *quick))
    wandb.finish()
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == ["last.ckpt"]
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == steps


def test_the_config_of_a_run_starts_another_and_leaves_the_first(shards: ShardSet, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    fit.main(decoder_arguments(shards, first, "--trainer.limit_val_batches=0", "--trainer.max_steps=3"))
    wandb.finish()
    kept = [first / "checkpoints" / "last.ckpt", first / "csv" / "metrics.csv", first / "wandb-id"]
    before = [path.read_bytes() for path in kept]
    fit.main([f"--config={first}/config.yaml", f"--trainer.default_root_dir={second}", "--trainer.max_steps=1"])
    wandb.finish()
    assert [path.read_bytes() for path in kept] == before
    assert (second / "checkpoints" / "last.ckpt").is_file() and (second / "csv" / "metrics.csv").is_file()
    assert (second / "wandb-id").read_bytes() != before[-1]


def test_a_run_may_be_under_the_home_directory_with_brackets_and_have_its_checkpoints_on_another_disk(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    home, disk = tmp_path / "home", tmp_path / "disk"
    folder = home / "r[exp]" / "a[/b]c"  # "[/b]" ends a style in rich's markup
    folder.mkdir(parents=True)
    disk.mkdir()
    (folder / "checkpoints").symlink_to(disk)
    (home / "set").symlink_to(shards.folder)
    (tmp_path / "data.yaml").write_text("data: {train: ~/set, val: ~/set}\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_PROJECT", "my-project")
    options = [f"--config={tmp_path}/data.yaml", "--data.val_clips=1", "--trainer.max_steps=2"]
    given = decoder_arguments(shards, Path("~/r[exp]/a[/b]c"), *options)
    given = [argument for argument in given if not argument.startswith(("--data.train", "--data.val="))]
    fit.main(given)
    wandb.finish()
    printed = capsys.readouterr()
    assert f"checkpoint:   {folder}/checkpoints/last.ckpt" in printed.out and "does not exist" not in printed.err
    wait_for_wandb(folder)
    (record,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert any(b"my-project" in content for content in wandb_records(record))
    fit.main([*given, "--trainer.max_steps=3", "--trainer.limit_val_batches=0", "--ckpt_path=last"])
    wandb.finish()
    assert torch.load(disk / "last.ckpt", weights_only=True)["global_step"] == 3
