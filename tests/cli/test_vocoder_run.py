"""A vocoder trained from the command line, resumed, exported, and used by a decoder."""

import csv
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
import wandb

from sf_lightning.audio.mel import MelConfig
from sf_lightning.cli import export, fit
from sf_lightning.data.shards import ShardSet
from sf_lightning.streaming.loading import load_pretrained
from sf_lightning.training.vocoder_module import VocoderModule
from sf_lightning.vocoder.config import VocoderConfig
from sf_lightning.vocoder.files import read_generator
from tests.toys.cli import error_line, vocoder_arguments
from tests.toys.decoder import decoder_data, decoder_module, fit_decoder


@pytest.fixture(scope="module")
def run(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a run of four steps, two of them after a resume."""
    folder = tmp_path_factory.mktemp("run") / "vocoder"
    for steps in (2, 4):
        fit.main(vocoder_arguments(shards, folder, f"--trainer.max_steps={steps}", "--ckpt_path=last"))
        wandb.finish()
    return folder


def test_a_resumed_run_counts_one_step_per_batch_in_its_table_and_its_checkpoint(run: Path) -> None:
    with (run / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row.get("train/loss")] == [0, 1, 2, 3]
    assert [int(row["step"]) for row in rows if row.get("val/loss")] == [1, 3]
    names = {"pesq_wb", "stoi", "visqol", "mel_l1", "mr_stft", "periodicity", "real_time_factor", "no_score"}
    for system in ("copy_synthesis", "streamed", "griffin_lim", "griffin_lim_streamed"):
        assert {f"{system}/{name}" for name in names} <= rows[0].keys()
        # Griffin-Lim has no weights: it is evaluated once.
        assert sum(bool(row[f"{system}/mr_stft"]) for row in rows) == (1 if system.startswith("griffin_lim") else 2)
    validated = [row for row in rows if row.get("val/loss")]
    assert all(float(row["streamed/exact_gap"]) < 1e-5 for row in validated)
    assert all(0 < float(row["griffin_lim_streamed/real_time_factor"]) for row in validated[:1])
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4 and len(last["optimizer_states"]) == len(last["lr_schedulers"]) == 2
    # The discriminators were frozen for one step.
    assert [state["last_epoch"] for state in last["lr_schedulers"]] == [4, 3]


def test_a_run_writes_audio_pictures_and_a_table(run: Path) -> None:
    samples = run / "samples" / "step-000004"
    assert len([*samples.glob("*.png")]) == 2
    assert {soundfile.info(path).samplerate for path in samples.glob("*.made.wav")} == {16000}
    assert len([*samples.glob("*.streamed.wav")]) == 2
    table = (run / "summary.md").read_text()
    for text in (
        "| griffin-lim |",
        "| griffin-lim-streamed |",
        "| copy-synthesis |",
        "MR-STFT",
        "periodicity",
        "RTF",
    ):
        assert text in table


@torch.inference_mode()
def test_checkpoint_and_export_load_as_vocoders_with_the_same_output(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"last.ckpt is a vocoder checkpoint .*, which --vocoder takes"):
        load_pretrained(checkpoint)
    (tmp_path / "data.md").write_text("Speech of nobody.\n")
    given = ["--license=apache-2.0", f"--data={tmp_path / 'data.md'}"]
    export.main([str(checkpoint), str(tmp_path / "out"), *given])
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("step 4", "license: apache-2.0", "Speech of nobody.", "| training | averaged weights of step 4 |"):
        assert text in card
    assert "| copy-synthesis | " in card and "| griffin-lim | " in card and "TO BE FILLED IN" not in card
    mel = torch.randn(1, 40, 80, generator=torch.Generator().manual_seed(0)) - 4
    made = [VocoderConfig(str(path)).make(MelConfig()).decode(mel) for path in (checkpoint, tmp_path / "out")]
    assert made[0].abs().mean() > 1e-6 and torch.equal(*made)
    module = VocoderModule.load_from_checkpoint(checkpoint)
    torch.testing.assert_close(module.synthesize(mel), made[0], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="its hop_size is 160, the mel of this run has 200"):
        VocoderConfig(str(checkpoint)).make(MelConfig(hop_length=200))
    torch.save(torch.load(checkpoint, weights_only=True) | {"format": 99}, tmp_path / "newer.ckpt")
    with pytest.raises(ValueError, match=r"newer.ckpt has format 99, sf-lightning .* reads up to 1: install"):
        VocoderConfig(str(tmp_path / "newer.ckpt")).make(MelConfig())


def test_a_run_is_fine_tuned_on_the_mels_of_a_decoder_and_evaluated_on_them(
    run: Path, shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fit_decoder(tmp_path, decoder_module(), decoder_data(shards), 1)
    generated = ["--data.mels=generated", f"--data.decoder={tmp_path / 'last.ckpt'}"]
    initialized = f"--model.init_from={run / 'checkpoints' / 'last.ckpt'}"
    frozen = vocoder_arguments(shards, tmp_path / "frozen", *generated, initialized)
    assert "freeze_steps is 1: expected 0" in error_line(capsys, fit.main, *frozen)
    given = [*vocoder_arguments(shards, tmp_path / "tuned", *generated, initialized), "--trainer.max_steps=2"]
    given += ["--model.optimizer.freeze_steps=0"]
    fit.main(given)
    wandb.finish()
    with (tmp_path / "tuned" / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row.get("train/loss")] == [0, 1]
    evaluated = [row for row in rows if row.get("generated/stoi")]
    assert [int(row["step"]) for row in evaluated] == [1]
    assert evaluated[0]["val/pesq_wb"] == evaluated[0]["generated/pesq_wb"]
    other = shutil.copy(tmp_path / "tuned" / "checkpoints" / "last.ckpt", tmp_path / "other.ckpt")
    for again in (given, [*given, f"--ckpt_path={other}"]):  # an existing run is not started again
        assert "tuned holds a run already: resume it with --ckpt_path=last" in error_line(capsys, fit.main, *again)
    assert "| generated |" in (tmp_path / "tuned" / "summary.md").read_text()
    export.main([str(other), str(tmp_path / "out")])
    origin = "averaged weights of step 2, initialized from last.ckpt (averaged weights of step 4)"
    assert f"| training | {origin} |" in (tmp_path / "out" / "README.md").read_text()
    assert read_generator(tmp_path / "out")[2] == origin


def test_the_kind_of_model_is_read_from_config_or_arguments(run: Path) -> None:
    assert fit.model_kind([f"--config={run / 'config.yaml'}"]) == "vocoder"
    assert fit.model_kind(["--trains", "vocoder"]) == "vocoder"
    assert fit.model_kind(["fit"]) == "decoder"


def test_an_unknown_kind_or_invalid_sizes_are_refused_in_one_line(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    error = error_line(capsys, fit.main, "--trains=singer")
    assert error == "error: --trains is singer: expected decoder or vocoder"
    rates = "--model.generator.upsample_rates=[10, 18]"
    error = error_line(capsys, fit.main, *vocoder_arguments(shards, tmp_path / "run", rates))
    assert "upsample_rates multiply to 180, the hop length is 160" in error
