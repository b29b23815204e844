"""The commands with the arguments that users give."""

import csv
import json
import re
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import wandb
import yaml

import sf_lightning
from sf_lightning.cli import decode, export, fit, shards, sweep
from sf_lightning.cli import eval as evaluate
from sf_lightning.data.shards import ShardSet
from sf_lightning.model.layout import Layout
from tests.toys.audio import write_corpus
from tests.toys.cli import DEMO, decoder_arguments, error_line
from tests.toys.tracking import wandb_records


def test_a_run_writes_metrics_audio_pictures_and_checkpoints(run: Path) -> None:
    csv = (run / "csv" / "metrics.csv").read_text()
    for system in ("streamed", "offline", "copy_synthesis", "look_up"):
        for name in ("pesq_wb", "stoi", "visqol", "mel_l1", "seam_db", "no_score"):
            assert f"{system}/{name}" in csv
    for name in (
        "streamed/gap",
        "latency/first_packet_ms",
        "val/loss",
        "val/seconds",
        "train/loss",
        "train/gradient_norm",
    ):
        assert name in csv
    assert (run / "checkpoints" / "last.ckpt").is_file() and list(run.glob("checkpoints/best-*.ckpt"))
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
    samples = run / "samples" / "step-000004"
    assert len(list(samples.glob("*.png"))) == 3  # two clips, and cost and gap against position
    for path in samples.glob("*.wav"):
        assert soundfile.info(path).samplerate == 16000
    page = (run / "report.html").read_text()
    assert page.count("<audio") == 2 * 3 and page.count("data:image/png") == 2 and page.count("<svg") == 4
    assert "Held-out clips" in page and "Computing time by chunk" in page
    summary = (run / "summary.md").read_text()
    assert all(row in summary for row in ("copy-synthesis", "look-up", "offline", "streamed", "first packet"))


def test_validate_writes_samples_and_metrics_under_the_step_of_the_checkpoint(
    run: Path, fitted: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    args = ["validate", *decoder_arguments(fitted, tmp_path, f"--model.layout={run.with_name('layout.yaml')}")]
    fit.main([*args, f"--ckpt_path={run}/checkpoints/last.ckpt"])
    wandb.finish()
    folder = tmp_path / "validate"  # files of the run itself stay as they are
    assert [*tmp_path.iterdir()] == [folder]
    assert [path.name for path in (folder / "samples").iterdir()] == ["step-000004"]
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3"]
    again, first = ((path / "summary.md").read_text().splitlines() for path in (folder, run))
    assert again[2:6] == first[2:6]
    output = capsys.readouterr().out
    assert all(title.strip() in output for title in again[0].split("|"))  # not cut, although this is no terminal
    assert "--model.layout: the checkpoint has" in error_line(
        capsys,
        fit.main,
        "validate",
        *decoder_arguments(fitted, tmp_path),
        f"--ckpt_path={run}/checkpoints/last.ckpt",
    )


def test_each_clip_has_its_scores_and_the_log_their_means(run: Path) -> None:
    with (run / "csv" / "metrics.csv").open() as file:
        last = [row for row in csv.DictReader(file) if row["streamed/stoi"]][-1]
    samples = run / "samples" / "step-000004"
    with (samples / "scores.csv").open() as file:
        clips = [row for row in csv.DictReader(file) if row["way"] == "streamed"]
    assert len(clips) == 3 and len({row["key"] for row in clips}) == 3
    for name in ("stoi", "visqol", "pesq_wb", "seam_db"):
        assert np.mean([float(row[name]) for row in clips]) == pytest.approx(
            float(last[f"streamed/{name}"]), rel=1e-4
        )
    frames = [float(row["frames"]) for row in clips]
    for name in ("mel_l1", "gap"):
        mean = np.average([float(row[name]) for row in clips], weights=frames)
        assert mean == pytest.approx(float(last[f"streamed/{name}"]), rel=1e-4)
    assert json.loads((samples / "latency.json").read_text())["wait_ms"] == 480


def test_quality_within_a_bound_counts_only_if_the_wait_for_tokens_is_below_it(run: Path) -> None:
    with (run / "csv" / "metrics.csv").open() as file:
        last = [row for row in csv.DictReader(file) if row["streamed/stoi"]][-1]
    for name, worst in (("stoi", 0.0), ("pesq_wb", 1.0), ("visqol", 1.0)):
        assert float(last[f"streamed_within_250_ms/{name}"]) == worst  # this layout waits for 480 ms
        for bound in (500, 1000):
            assert last[f"streamed_within_{bound}_ms/{name}"] == last[f"streamed/{name}"]


def test_runs_of_a_wandb_agent_have_their_own_folders_under_the_ids_of_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    def look(self: fit.FitCLI) -> None:
        trainer = self.config.fit.trainer
        seen.append((trainer.default_root_dir, trainer.logger[0].init_args.id))
        raise KeyboardInterrupt

    monkeypatch.setattr(fit.FitCLI, "instantiate_classes", look)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    for id_ in ("one", "two"):
        monkeypatch.setenv("WANDB_RUN_ID", id_)
        with pytest.raises(SystemExit):
            fit.main(["--config", str(DEMO), f"--trainer.default_root_dir={tmp_path}"])
    assert seen == [(f"{tmp_path}/one", "one"), (f"{tmp_path}/two", "two")]


@pytest.mark.parametrize("config", ["demo", "vocoder_small"])
def test_seed_sets_the_seeds_of_trainer_model_and_data(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def look(self: fit.FitCLI) -> None:
        seeds.extend(part.seed for part in (self.config.fit.model, self.config.fit.data))
        seeds.append(self.config.fit.seed_everything)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit.FitCLI, "before_instantiate_classes", look)
    for more, expected in (["--seed=3"], [3, 3, 3]), (["--seed_everything=4", "--data.seed=5"], [0, 5, 4]):
        seeds.clear()
        with pytest.raises(SystemExit):
            fit.main(["--config", str(DEMO.with_name(f"{config}.yaml")), *more])
        assert seeds == expected


@pytest.mark.parametrize("option", ["--seed=-1", "--seed=4294967296", "--seed_everything=-1", "--model.seed=-1"])
def test_a_seed_out_of_range_is_one_line_with_the_option(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit.main(["--config", str(DEMO), option])
    name, value = option.removeprefix("--model.").split("=")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{name} is {value}: expected an integer from 0 to" in error


def test_the_logged_config_has_commit_shards_layout_field_and_latency(run: Path, shards: ShardSet) -> None:
    record = yaml.safe_load((run / "csv" / "hparams.yaml").read_text())
    assert record["shards"][str(shards.folder)] == [shard.digest for shard in shards.manifest.shards]
    assert "back 1, ahead 1" in record["layout_picture"] and (record["field_back"], record["field_ahead"]) == (1, 1)
    assert record["wait_ms"] == 480 and record["commit"]
    layout = record["config"]["model"]["layout"]
    assert (layout["backward"], layout["num_layers"]) == (1, 2) and "__path__" not in layout
    assert record["config"]["model"]["dit"]["width"] == 32 and record["config"]["trainer"]["max_steps"] == 4
    records = b"".join(wandb_records(next(run.glob("wandb/offline-run-*/*.wandb"))))
    for name in (
        "commit",
        "layout_picture",
        "field_back",
        "wait_ms",
        "streamed/stoi",
        "streamed/visqol",
        "train/loss",
    ):
        assert name.encode() in records, name


def test_shards_are_built_and_shown_and_a_second_set_reuses_the_tokenizer_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    audio = write_corpus(tmp_path / "audio", clips=6)
    common = ["build", f"--audio={audio}", "--vocabulary=40"]
    shards.main([*common, f"--out={tmp_path}/sets/train"])
    shards.main([*common, f"--out={tmp_path}/sets/dev"])
    assert "fitted before" in capsys.readouterr().out
    shards.main(["build", f"--audio={audio}", f"--out={tmp_path}/sets/other"])  # without --vocabulary
    digests = {ShardSet(tmp_path / "sets" / name).manifest.tokenizer.digest for name in ("train", "dev", "other")}
    assert len(digests) == 1
    shards.main(["inspect", f"--shards={tmp_path}/sets/dev"])
    assert "6 clips" in capsys.readouterr().out


@pytest.mark.parametrize("command", [decode, evaluate, export, fit, shards, sweep])
def test_every_command_has_a_version(command: ModuleType, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(["--version"])
    name = command.__name__.rpartition(".")[2]
    assert exit_.value.code == 0 and capsys.readouterr().out == f"sf-{name} {sf_lightning.__version__}\n"


@pytest.mark.parametrize("command", [fit, decode])
def test_a_command_prints_a_completion_script_with_its_options(
    command: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(["--print_completion=shtab-bash"])
    script = capsys.readouterr().out
    option = {fit: "--trainer.max_steps", decode: "--lookahead"}[command]
    assert exit_.value.code == 0 and option in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize("command", ["sf-fit", "sf-shards", "sf-decode"])
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture) -> None:
    main = {"sf-fit": fit.main, "sf-shards": shards.main, "sf-decode": decode.main}[command]
    args = {"sf-fit": ["fit", "--help"], "sf-shards": ["build", "--help"], "sf-decode": ["--help"]}[command]
    with pytest.raises(SystemExit) as exit_:
        main(args)
    assert exit_.value.code == 0
    page = capsys.readouterr().out
    ours = re.findall(r"^  (--(?:model|data)\.[\w.]+|--[a-z_]+) [A-Z{\[].*?(?=^  -|\Z)", page, re.M | re.S)
    assert len(ours) > 4
    for name, body in re.findall(r"^  (--(?:model|data)\.[\w.]+) (.*?)(?=^  -|^\S|\Z)", page, re.M | re.S):
        words = re.sub(r"\(type:.*|\(required.*", "", body, flags=re.S)
        assert len(words.split()) > 3 or "CONFIG" in body, f"{name} is not explained: {body}"


@pytest.mark.parametrize("preset", Layout.presets())
def test_every_layout_is_accepted_by_name(preset: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        fit.main(["--config", str(DEMO), f"--model.layout={preset}", "--print_config"])
    assert exit_.value.code == 0
    layout = yaml.safe_load(capsys.readouterr().out)["model"]["layout"]
    expected = yaml.safe_load(Layout.presets()[preset].read_text())
    assert layout["num_layers"] == 8
    assert {name: layout[name] for name in expected} == expected
