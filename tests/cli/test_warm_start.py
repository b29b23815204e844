"""Runs that begin with foreign weights or another's config, and what is left on disk at their end."""

import shutil
from pathlib import Path

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

pytest.importorskip("transformers")

WARM = (
    "--model.layout={num_layers: 4, backward: [0, 2], forward: [1]}",
    "--model.dit={width: 64, num_heads: 4, rope_heads: 1, token_width: 24, speaker_width: 12, vocabulary: 50}",
    "--model.scale={mean: 0, std: 1}",
    "--model.speaker={encoder: qwen, channels: 16, crop_seconds: 0.5}",
    "--model.predict=velocity",
    "--trainer.limit_val_batches=0",
)


def test_a_warm_start_is_said_and_recorded_and_a_resumed_run_needs_the_weights_no_more(
    shards: ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    folder = save_token2wav(small_token2wav(num_embeds=50), tmp_path / "qwen")
    begins = decoder_arguments(
        shards, tmp_path / "run", *WARM, f"--model.init_from={folder}", "--trainer.max_steps=2"
    )
    fit.main(begins)
    wandb.finish()
    said = "".join(capfd.readouterr())
    assert "M parameters loaded" in said and "x-vectors skipped" in said
    hparams = tmp_path / "run" / "csv" / "hparams.yaml"
    assert "M parameters loaded" in (before := yaml.safe_load(hparams.read_text())["initialized_from"])
    shutil.rmtree(folder)
    fit.main([*begins, "--trainer.max_steps=4", "--ckpt_path=last"])
    wandb.finish()
    assert yaml.safe_load(hparams.read_text())["initialized_from"] == before
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    StreamFlowModule.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert "M parameters loaded" not in "".join(capfd.readouterr())


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = save_token2wav(small_token2wav(), tmp_path / "qwen")
    wide = "--model.dit.width=128"
    args = decoder_arguments(shards, tmp_path / "run", *WARM, wide, f"--model.init_from={folder}")
    said = error_line(capsys, fit.main, *args)
    assert said == "error: --model.init_from: dit.width is 128, the weights to start from have 64"
    assert not (tmp_path / "run").exists()


def test_a_run_begins_with_a_trained_decoder_another_rate_and_another_layout(
    run: Path, fitted: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    export.main([str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "exported")])
    averages = read_checkpoint(run / "checkpoints" / "last.ckpt").weights
    still = ["--model.optimizer.learning_rate=1e-12", "--trainer.limit_val_batches=0", "--trainer.max_steps=1"]
    for begun in (tmp_path / "exported", run / "checkpoints" / "last.ckpt"):
        fit.main(decoder_arguments(fitted, tmp_path / begun.name, *still, f"--model.init_from={begun}"))
        wandb.finish()
        assert f"--model.init_from: {begun}: averaged weights of step 4" in capsys.readouterr().out
        weights = read_checkpoint(tmp_path / begun.name / "checkpoints" / "last.ckpt", average=False).weights
        for name, value in averages.items():
            torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=0)
    wide = decoder_arguments(fitted, tmp_path / "wide", "--model.dit.token_width=8", f"--model.init_from={begun}")
    said = error_line(capsys, fit.main, *wide)
    assert (
        "--model.dit: the checkpoint has token_width" in said and "this run has 8: give this run its value" in said
    )
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


def test_the_config_of_one_run_makes_another_and_leaves_the_first_alone(shards: ShardSet, tmp_path: Path) -> None:
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
