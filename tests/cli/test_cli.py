"""The commands as a user meets them: the whole road once, and one clear line for each mistake."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import wandb
import yaml

from sf_lightning.cli import decode, fit, shards
from sf_lightning.data.shards import ShardSet
from tests.helpers import wandb_records, write_corpus

DEMO = Path(__file__).parents[2] / "experiments" / "demo.yaml"

TOY = [
    "--model.layout={num_layers: 2, backward: [0], forward: [1]}",
    "--model.dit={width: 32, num_heads: 2, token_width: 16, speaker_width: 8, vocabulary: 50}",
    "--model.speaker={channels: 8, crop_seconds: 0.5}",
    "--model.decode.steps=2",
    "--model.vocoder.iterations=4",
    "--data.pack_frames=192",
    "--data.val_clips=3",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--trainer.log_every_n_steps=1",
]


def arguments(shards: ShardSet, run: Path, *more: str) -> list[str]:
    """A toy run of the demo's config."""
    where = [
        f"--data.train={shards.folder}",
        f"--data.val={shards.folder}",
        f"--trainer.default_root_dir={run}",
    ]
    return ["--config", str(DEMO), *TOY, *where, *more]


@pytest.fixture
def fitted(shards: ShardSet) -> ShardSet:
    """The shard set under a name that the module of the same name does not hide."""
    return shards


@pytest.fixture(scope="module")
def run(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run."""
    folder = tmp_path_factory.mktemp("run") / "toy"
    preset = folder.with_name("layout.yaml")
    preset.write_text("backward: 1\nforward: 1\n")
    fit.main(arguments(shards, folder, f"--model.layout={preset}"))
    wandb.finish()  # as the end of the command does
    return folder


def mistake(capsys: pytest.CaptureFixture, command, *args: str) -> str:
    """Runs a command that must end with 2 and one line; returns the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        command(list(args))
    said = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert exit_.value.code == 2 and len(errors) == 1 and "Traceback" not in "\n".join(said), said
    return errors[0]


def test_a_run_leaves_metrics_sound_pictures_and_checkpoints(run: Path) -> None:
    csv = (run / "csv" / "metrics.csv").read_text()
    for way in ("streamed", "offline", "copy_synthesis", "look_up"):
        for name in ("pesq_wb", "stoi", "visqol", "mel_l1", "seam_db", "no_score"):
            assert f"{way}/{name}" in csv
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
    assert len(list(samples.glob("*.png"))) == 3  # two clips, and what streaming costs and loses
    for path in samples.glob("*.wav"):
        assert soundfile.info(path).samplerate == 16000
    page = (run / "report.html").read_text()
    assert page.count("<audio") == 2 * 3 and page.count("data:image/png") == 2 and page.count("<svg") == 4
    assert "Held-out clips" in page and "Cost against position" in page
    summary = (run / "summary.md").read_text()
    assert all(way in summary for way in ("copy-synthesis", "look-up", "offline", "streamed", "first packet"))


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


def test_quality_counts_if_the_wait_for_tokens_lies_within_the_bound(run: Path) -> None:
    with (run / "csv" / "metrics.csv").open() as file:
        last = [row for row in csv.DictReader(file) if row["streamed/stoi"]][-1]
    for name, worst in (("stoi", 0.0), ("pesq_wb", 1.0), ("visqol", 1.0)):
        assert float(last[f"streamed_within_250_ms/{name}"]) == worst  # it waits for 480
        for bound in (500, 1000):
            assert last[f"streamed_within_{bound}_ms/{name}"] == last[f"streamed/{name}"]


def test_runs_of_wandbs_agent_lie_in_folders_of_their_own_under_the_ids_that_it_gives(
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
def test_one_seed_draws_everything_anew(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def look(self: fit.FitCLI) -> None:
        drawn.extend(each.seed for each in (self.config.fit.model, self.config.fit.data))
        drawn.append(self.config.fit.seed_everything)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit.FitCLI, "before_instantiate_classes", look)
    for more, seeds in (["--seed=3"], [3, 3, 3]), (["--seed_everything=4", "--data.seed=5"], [0, 5, 4]):
        drawn.clear()
        with pytest.raises(SystemExit):
            fit.main(["--config", str(DEMO.with_name(f"{config}.yaml")), *more])
        assert drawn == seeds


def test_the_config_of_a_run_says_commit_shards_layout_field_and_latency(run: Path, shards: ShardSet) -> None:
    record = yaml.safe_load((run / "csv" / "hparams.yaml").read_text())
    assert record["shards"][str(shards.folder)] == [shard.digest for shard in shards.manifest.shards]
    assert "back 1, ahead 1" in record["layout_picture"] and (record["field_back"], record["field_ahead"]) == (1, 1)
    assert record["wait_ms"] == 480 and record["commit"]
    layout = record["config"]["model"]["layout"]
    assert (layout["backward"], layout["num_layers"]) == (1, 2) and "__path__" not in layout
    assert record["config"]["model"]["dit"]["width"] == 32 and record["config"]["trainer"]["max_steps"] == 4
    kept = b"".join(wandb_records(next(run.glob("wandb/offline-run-*/*.wandb"))))
    for name in (
        "commit",
        "layout_picture",
        "field_back",
        "wait_ms",
        "streamed/stoi",
        "streamed/visqol",
        "train/loss",
    ):
        assert name.encode() in kept, name


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--model.layout.blok_size=12"], "blok_size"),
        (["--model.dit.vocabulary=60"], "has vocabulary 50, the model has 60: set --model.dit.vocabulary"),
        (["--model.mel.f_max=7600"], "has mel .* the model has .*: set --model.mel"),
        (["--model.tokenizer=s3"], "has tokenizer kmeans, the model has s3"),
        (
            ["--model.layout.backward=[0, 7]"],
            "layout.backward names layer 7, which does not exist: the layers are 0 to 1",
        ),
        (["--data.train=/nowhere"], "no shard set at /nowhere"),
        (["--model.vocoder.checkpoint=/nowhere/g.pt"], "/nowhere/g.pt is missing"),
        (["--ckpt_path=/nowhere/last.ckpt"], "/nowhere/last.ckpt"),
        (["--ckpt_path=/"], "--ckpt_path: / is a folder, of shards: go on with --trainer.strategy=fsdp2"),
        (["--trainer.accelerator=gpu"], "gpu|GPU|CUDA|cuda"),
        (["--trainer.max_steps=-1"], "--trainer.max_steps is -1"),
        (["--model.dit.speaker_width=0"], "speaker_width 0"),
        (["--model.optimizer.learning_rat=1"], "learning_rat"),
        (["--model.decode.method=heun"], "--model.decode.method is heun: wanted euler or midpoint or rk4$"),
        (["--model.layout=streamflow"], "--model.layout: streamflow: wanted a file of settings"),
        (["--data.lanes=0"], "data.lanes is 0: wanted 1 or more"),
    ],
)
def test_a_mistake_in_a_run_is_one_line(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture, more: list[str], said: str
) -> None:
    line = mistake(capsys, fit.main, *arguments(shards, tmp_path / "run", *more))
    assert re.search(said, line), line


def test_a_checkpoint_that_a_run_cannot_go_on_with_leaves_the_run_as_it_was(
    run: Path, fitted: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def files() -> dict[str, bytes]:
        return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = files()
    torch.save({"state_dict": {}}, tmp_path / "old.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    for more, said in (
        ([f"--ckpt_path={tmp_path}/text.ckpt"], "--ckpt_path: .*/text.ckpt is no file of torch weights"),
        ([f"--ckpt_path={tmp_path}/old.ckpt"], "no number of its format: it is not one of sf-fit, or from before"),
        (["--ckpt_path=last"], "--model.layout: the checkpoint has forward"),
        ([f"--ckpt_path={run}/checkpoints/last.ckpt"], "--model.layout: the checkpoint has forward"),
    ):
        line = mistake(capsys, fit.main, *arguments(fitted, run, *more))
        assert re.search(said, line), line
        assert files() == before


def test_who_goes_on_where_nothing_is_hears_that_the_run_begins_anew(
    fitted: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fit.main(arguments(fitted, tmp_path, "--ckpt_path=last", "--trainer.max_steps=1"))
    wandb.finish()
    assert f"nothing to go on with in {tmp_path}: begins anew" in capsys.readouterr().out


def test_what_lightnings_own_requeueing_left_is_not_taken_for_a_checkpoint(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "hpc_ckpt_3.ckpt").touch()
    for more in ([], ["--ckpt_path=last"]):
        said = mistake(capsys, fit.main, *arguments(shards, tmp_path, *more))
        assert "hpc_ckpt_3.ckpt is of Lightning's own requeueing" in said and "move it away" in said
    assert [*tmp_path.iterdir()] == [tmp_path / "hpc_ckpt_3.ckpt"]


def test_shards_that_do_not_fit_are_refused_before_anything_is_written(
    fitted: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    mistake(capsys, fit.main, *arguments(fitted, tmp_path / "run", "--model.dit.vocabulary=60"))
    assert not (tmp_path / "run").exists()


def test_shards_are_built_and_shown_and_the_second_set_takes_the_tokenizer_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    audio = write_corpus(tmp_path / "audio", clips=6)
    common = ["build", f"--audio={audio}", "--vocabulary=40"]
    shards.main([*common, f"--out={tmp_path}/sets/train"])
    shards.main([*common, f"--out={tmp_path}/sets/dev"])
    assert "fitted before" in capsys.readouterr().out
    shards.main(["build", f"--audio={audio}", f"--out={tmp_path}/sets/other"])  # says no vocabulary
    digests = {ShardSet(tmp_path / "sets" / name).manifest.tokenizer.digest for name in ("train", "dev", "other")}
    assert len(digests) == 1
    shards.main(["inspect", f"--shards={tmp_path}/sets/dev"])
    assert "6 clips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["build", "--audio=/nowhere", "--out=OUT/x"], "no folder /nowhere"),
        (["build", "--audio=OUT", "--out=OUT/x"], "no audio under"),
        (["build", "--audio=OUT", "--out=OUT"], "is there already"),
        (["build", "--audio=OUT/audio", "--out=OUT/x", "--tokenizer=/nowhere.npz"], "no file /nowhere.npz"),
        (["inspect", "--shards=OUT"], "no shard set at"),
        (["inspect", "--shards=SETS"], "no shard set at .*did you mean .*/set[?]"),
        (["build", "--audio=x", "--out=OUT/x", "--audi0=x"], "audi0"),
        (
            ["build", "--audio=OUT/audio", "--out=OUT/x", "--vocabulary=7", "--tokenizer=TOKENS"],
            "has 50 codes: leave",
        ),
    ],
)
def test_a_mistake_with_shards_is_one_line(
    fitted: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture, args: list[str], said: str
) -> None:
    if "OUT/audio" in args[1]:
        write_corpus(tmp_path / "audio", clips=2)
    tokens = str(fitted.folder.parent / "kmeans-50.npz")
    line = mistake(
        capsys,
        shards.main,
        *(
            arg.replace("OUT", str(tmp_path)).replace("TOKENS", tokens).replace("SETS", str(fitted.folder.parent))
            for arg in args
        ),
    )
    assert re.search(said, line), line


@pytest.mark.parametrize(
    ("tokens", "more", "said"),
    [
        (np.array([3, 50]), [], "token 50 is outside the vocabulary of 50 codes"),
        (np.array([0.5]), [], "holds float64: wanted whole numbers"),
        (np.arange(0), [], "no sound: no token came"),
        (np.arange(5), ["--mode=stream"], "--mode is stream: wanted cached or windowed or offline$"),
        (np.arange(5), ["--tokens=GARBAGE"], "GARBAGE is a file: wanted a .npy of whole numbers, or the folder"),
        (np.arange(5), ["--vocoder=/nowhere"], "/nowhere.* is missing: .*; or a name: griffin_lim"),
        (np.array(["a"]), [], "wanted whole numbers"),
        (np.arange(5), ["--out=name"], "wanted a name that ends in .wav or .flac"),
        (np.arange(5), ["--ckpt=GARBAGE"], "GARBAGE is no checkpoint of sf-fit"),
        (np.arange(5), ["--speaker=SILENT"], "SILENT is no voice to speak in: silent"),
        (None, [], "--tokens: no file"),
        (np.arange(5), ["--speaker=/nowhere.wav"], "--speaker: no file /nowhere.wav"),
        (np.arange(5), ["--steps=0"], "steps is 0"),
    ],
)
def test_a_mistake_in_decoding_is_one_line(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tokens: np.ndarray,
    more: list[str],
    said: str,
) -> None:
    if tokens is not None:
        np.save(tmp_path / "t.npy", tokens)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "GARBAGE").write_bytes(b"garbage")
    soundfile.write(tmp_path / "SILENT", np.zeros(16000), 16000, format="WAV")
    args = [
        f"--ckpt={run}/checkpoints/last.ckpt",
        f"--tokens={tmp_path}/t.npy",
        f"--out={tmp_path}/o.wav",
        *more,
    ]
    assert re.search(said, mistake(capsys, decode.main, *args))
    assert not (tmp_path / "o.wav").exists()


@pytest.mark.parametrize("command", ["sf-fit", "sf-shards", "sf-decode"])
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture) -> None:
    main = {"sf-fit": fit.main, "sf-shards": shards.main, "sf-decode": decode.main}[command]
    args = {"sf-fit": ["fit", "--help"], "sf-shards": ["build", "--help"], "sf-decode": ["--help"]}[command]
    with pytest.raises(SystemExit) as exit_:
        main(args)
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    ours = re.findall(r"^  (--(?:model|data)\.[\w.]+|--[a-z_]+) [A-Z{\[].*?(?=^  -|\Z)", said, re.M | re.S)
    assert len(ours) > 4
    for name, body in re.findall(r"^  (--(?:model|data)\.[\w.]+) (.*?)(?=^  -|^\S|\Z)", said, re.M | re.S):
        words = re.sub(r"\(type:.*|\(required.*", "", body, flags=re.S)
        assert len(words.split()) > 3 or "CONFIG" in body, f"{name} is not explained: {body}"


@pytest.mark.parametrize("preset", sorted((DEMO.parent / "layouts").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_and_layout_is_accepted(preset: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        fit.main(["--config", str(DEMO), f"--model.layout={preset}", "--print_config"])
    assert exit_.value.code == 0
    layout = yaml.safe_load(capsys.readouterr().out)["model"]["layout"]
    wanted = yaml.safe_load(preset.read_text())
    assert layout["num_layers"] == 8
    assert {name: layout[name] for name in wanted} == wanted
