"""Mistakes of users: one error line each, and no file is written."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import wandb

from sf_lightning.cli import decode, export, fit, shards, sweep
from sf_lightning.data.shards import ShardSet
from sf_lightning.vocoder.config import SHIPPED
from tests.toys.audio import write_corpus
from tests.toys.cli import decoder_arguments, error_line

EXPORT = Path(__file__).parents[1] / "model" / "exports" / "format-1"
"""Folder of an exported decoder."""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.layout.blok_size=12"], "blok_size is no option; did you mean --model.layout.block_size[?]"),
        (
            ["--model.dit.vocabulary=60"],
            "has vocabulary 50, the model requires 60: .* or train with --model.dit.vocabulary=50",
        ),
        (
            ["--model.mel.f_max=7600"],
            "has mel f_max 8000.0, the model requires 7600.0: .* train with --model.mel.f_max=8000.0",
        ),
        (["--model.tokenizer=s3"], "has tokenizer kmeans, the model requires s3"),
        (
            ["--model.layout.backward=[0, 7]"],
            "layout.backward lists layer 7: expected layers 0 to 1",
        ),
        (["--data.train=/nowhere"], "no shard set at /nowhere"),
        (["--model.vocoder.checkpoint=/nowhere/g.pt"], "vocoder: no file or folder /nowhere/g.pt"),
        (["--ckpt_path=/nowhere/last.ckpt"], "/nowhere/last.ckpt"),
        (["--ckpt_path=/"], "--ckpt_path: / is nothing that sf-lightning can load: expected a decoder checkpoint"),
        (["--trainer.accelerator=gpu"], "gpu|GPU|CUDA|cuda"),
        (["--trainer.max_steps=-1"], "--trainer.max_steps is -1"),
        (["--model.dit.speaker_width=0"], "speaker_width 0"),
        (["--model.optimizer.learning_rat=1"], "learning_rat"),
        (["--model.decode.method=heun"], "--model.decode.method is heun; expected euler, midpoint or rk4$"),
        (["--model.layout=streamflow"], "--model.layout is streamflow; expected .*streamflow_sr.*, a YAML file or"),
        (["--trainer.max_stps=5"], "--trainer.max_stps is no option; did you mean --trainer.max_steps[?]"),
        (["--trainer.gradient_clip_algorithm=value"], "--trainer.gradient_clip_algorithm is value"),
        ([f"--model.vocoder.checkpoint={EXPORT}"], "format-1 is the folder of an exported decoder: expected"),
        ([f"--model.init_from={SHIPPED}/small"], "small is a BigVGAN .*, which --vocoder takes: "),
        (["--data.lanes=0"], "data.lanes is 0: expected 1 or more"),
    ],
)
def test_a_mistake_with_sf_fit_is_one_line(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture, more: list[str], message: str
) -> None:
    line = error_line(capsys, fit.main, *decoder_arguments(shards, tmp_path / "run", *more))
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_cannot_be_resumed_leaves_the_run_unchanged(
    run: Path, fitted: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def files() -> dict[str, bytes]:
        # Without the logs of W&B's own service, which may write later.
        paths = [path for path in run.rglob("*") if path.is_file() and path.suffix != ".log"]
        return {str(path.relative_to(run)): path.read_bytes() for path in paths}

    before, resume = files(), ["--ckpt_path=last", f"--model.layout={run.with_name('layout.yaml')}"]
    torch.save({"state_dict": {}}, tmp_path / "old.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    for more, message in (
        ([f"--ckpt_path={tmp_path}/text.ckpt"], "--ckpt_path: .*/text.ckpt is no readable file of torch weights"),
        ([f"--ckpt_path={tmp_path}/old.ckpt"], "old.ckpt is nothing that sf-lightning can load: expected a d"),
        (["--ckpt_path=last"], "--model.layout: the checkpoint has forward"),
        ([f"--ckpt_path={run}/checkpoints/last.ckpt"], "--model.layout: the checkpoint has forward"),
        (
            [*resume, "--model.optimizer.learning_rate=1e-9"],
            "has learning_rate 0.0.*, this run has 1e-09: use the value",
        ),
        ([*resume, "--data.lanes=4"], "data.lanes is 4 but the checkpoint was trained with 1: lanes cannot"),
        (
            [*resume, f"--data.train=[{fitted.folder},{fitted.folder}]"],
            "data.train has 2 training sets but the checkpoint was trained with 1",
        ),
    ):
        line = error_line(capsys, fit.main, *decoder_arguments(fitted, run, *more))
        assert re.search(message, line), line
        assert files() == before


def test_resuming_without_a_checkpoint_starts_a_new_run_and_reports_it(
    fitted: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fit.main(decoder_arguments(fitted, tmp_path, "--ckpt_path=last", "--trainer.max_steps=1"))
    wandb.finish()
    assert (
        f"--ckpt_path=last: no checkpoint in {tmp_path}/checkpoints, starting a new run" in capsys.readouterr().out
    )


@pytest.mark.parametrize("name", ["summary.md", "csv", "samples/step-000002"])
def test_a_run_folder_with_a_link_to_elsewhere_is_refused_and_nothing_is_written_through_it(
    fitted: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    (tmp_path / "mine").mkdir()
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "mine")
    message = error_line(capsys, fit.main, *decoder_arguments(fitted, tmp_path / "run"))
    assert f"{link} is a symbolic link" in message
    assert list((tmp_path / "mine").iterdir()) == []


def test_checkpoints_of_lightnings_own_requeueing_are_refused(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "hpc_ckpt_3.ckpt").touch()
    for more in ([], ["--ckpt_path=last"]):
        line = error_line(capsys, fit.main, *decoder_arguments(shards, tmp_path, *more))
        assert "hpc_ckpt_3.ckpt is of Lightning's own requeueing" in line and "move it away" in line
    assert [*tmp_path.iterdir()] == [tmp_path / "hpc_ckpt_3.ckpt"]


def test_shards_of_another_vocabulary_are_refused_before_anything_is_written(
    fitted: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    error_line(capsys, fit.main, *decoder_arguments(fitted, tmp_path / "run", "--model.dit.vocabulary=60"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["build", "--audio=/nowhere", "--out=OUT/x"], "no folder /nowhere"),
        (["build", "--audio=OUT", "--out=OUT/x"], "no audio under"),
        (["build", "--audio=OUT", "--out=OUT"], "exists already"),
        (["build", "--audio=OUT/audio", "--out=OUT/x", "--tokenizer=/nowhere.npz"], "nowhere.npz: no such file"),
        (["inspect", "--shards=OUT"], "no shard set at"),
        (["build", "--vocabulary=a"], "--vocabulary is a; expected an integer"),
        (["build"], "required: --audio, --out; see --help"),
        (["inspect", "--shards=SETS"], "no shard set at .*did you mean .*/set[?]"),
        (["build", "--audio=x", "--out=OUT/x", "--audi0=x"], "audi0"),
        (
            ["build", "--audio=OUT/audio", "--out=OUT/x", "--vocabulary=7", "--tokenizer=TOKENS"],
            "has 50 codes: leave",
        ),
    ],
)
def test_a_mistake_with_sf_shards_is_one_line(
    fitted: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture, args: list[str], message: str
) -> None:
    if "--audio=OUT/audio" in args:
        write_corpus(tmp_path / "audio", clips=2)
    tokens = str(fitted.folder.parent / "kmeans-50.npz")
    line = error_line(
        capsys,
        shards.main,
        *(
            arg.replace("OUT", str(tmp_path)).replace("TOKENS", tokens).replace("SETS", str(fitted.folder.parent))
            for arg in args
        ),
    )
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        (export.main, [], "required: CKPT, OUT; see --help"),
        (export.main, ["a", "b", "--average=x"], "--average is x; expected true or false"),
        (export.main, ["a", "b", "--licence=mit"], "--licence is no option; did you mean --license[?]"),
        (export.main, [str(EXPORT), "OUT"], "format-1 is the folder of an exported decoder: expected"),
        (export.main, ["RUN", "OUT"], "is the folder of a training run, whose checkpoints are in"),
        (sweep.main, [], "required: FILE; see --help"),
        (fit.main, [], "required: --data.train, --data.val; see --help"),
    ],
)
def test_a_mistake_with_another_command_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, command: Any, args: list[str], message: str
) -> None:
    args = [arg.replace("OUT", str(tmp_path / "out")).replace("RUN", str(run)) for arg in args]
    assert re.search(message, line := error_line(capsys, command, *args)), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tokens", "more", "message"),
    [
        (np.array([3, 50]), [], "token 50 is outside the vocabulary of 50 codes"),
        (np.array([0.5]), [], "holds float64: expected integers"),
        (np.arange(0), [], "no tokens received"),
        (np.arange(5), ["--mode=stream"], "--mode is stream; expected cached, windowed or offline$"),
        (np.arange(5), ["--tokens=GARBAGE"], "GARBAGE is a file: expected a .npy of integers, or the directory"),
        (np.arange(5), ["--vocoder=/nowhere"], "vocoder: no file or folder /nowhere.*; or a name: griffin_lim"),
        (np.array(["a"]), [], "expected integers"),
        (np.arange(5), ["--out=name"], "expected a name that ends in .wav or .flac"),
        (np.arange(5), ["--ckpt=GARBAGE"], "GARBAGE is no readable file of torch weights"),
        (np.arange(5), ["--ckpt=SMALL"], "small is a BigVGAN .*, which --vocoder takes: "),
        (np.arange(5), [f"--vocoder={EXPORT}"], "is the folder of an exported decoder: expected"),
        (np.arange(5), ["--look=2"], "--look is no option"),
        (np.arange(5), ["--speaker=SILENT"], "SILENT cannot be used as a reference: silent"),
        (None, [], "--tokens: no file"),
        (np.arange(5), ["--speaker=/nowhere.wav"], "--speaker: no file /nowhere.wav"),
        (np.arange(5), ["--steps=0"], "steps is 0"),
        (np.arange(5), ["--device=gpu"], "--device is gpu; expected cpu, cuda or"),
    ],
)
def test_a_mistake_with_sf_decode_is_one_line(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tokens: np.ndarray,
    more: list[str],
    message: str,
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
        *(arg.replace("SMALL", str(SHIPPED / "small")) for arg in more),
    ]
    assert re.search(message, error_line(capsys, decode.main, *args))
    assert not (tmp_path / "o.wav").exists()
