"""The most likely mistakes of new users, and the error line of each mistake."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sf_lightning.cli import decode, fit, shards
from sf_lightning.data.shards import ShardSet
from sf_lightning.vocoder.config import SHIPPED
from tests.toys.cli import decoder_arguments, error_line

EXPORT = Path(__file__).parents[1] / "model" / "exports" / "format-1"
DECODE = [f"--ckpt={EXPORT}", "--tokens=tokens.npy", "--out=out.wav"]

MISTAKES: dict[str, tuple[Callable, list[str], str]] = {
    "misspelt option": (
        fit.main,
        ["--trainer.max_stps=5"],
        r"--trainer.max_stps is no option; did you mean --trainer.max_steps\?$",
    ),
    "value of another type": (
        fit.main,
        ["--trainer.max_steps=many"],
        "--trainer.max_steps is many; expected an integer$",
    ),
    "number out of range": (decode.main, [*DECODE, "--steps=0"], "--steps is 0; expected 1 or more$"),
    "option left out": (decode.main, ["--tokens=tokens.npy"], "required: --ckpt; see --help$"),
    "unknown recipe": (
        fit.main,
        ["--config=demoo"],
        "--config demoo: no such file; expected a YAML file or one of demo,",
    ),
    "unknown layout": (
        fit.main,
        ["--model.layout=streamflow"],
        "--model.layout.*streamflow.*; expected.* streamflow_sr",
    ),
    "home directory behind =": (
        fit.main,
        ["--data.train=~/shards"],
        "--data.train: no shard set at HOME/shards .*sf-shards build",
    ),
    "missing folder": (shards.main, ["build", "--audio=speech", "--out=set"], "no folder speech: .* --audio$"),
    "shard set instead of audio": (
        shards.main,
        ["build", "--audio=SHARDS", "--out=set"],
        "--audio .* is a shard set; expected a folder of audio files or of tars$",
    ),
    "audio instead of a shard set": (
        fit.main,
        ["--data.val=."],
        "--data.val: no shard set at . .*sf-shards build",
    ),
    "vocabulary of other shards": (
        fit.main,
        ["--model.dit.vocabulary=60"],
        ".* has vocabulary 50, the model requires 60: .*--model.dit.vocabulary=50$",
    ),
    "folder of another run": (
        fit.main,
        ["--trainer.default_root_dir=RUN"],
        ".*/old holds a run already: .*--ckpt_path=last, .*--trainer.default_root_dir$",
    ),
    "folder that cannot be written": (
        shards.main,
        ["build", "--audio=AUDIO", "--vocabulary=40", "--out=/sys/kernel/set"],
        "/sys/.*: (permission denied|operation not permitted|read-only file system)",
    ),
    "vocoder instead of a decoder": (
        decode.main,
        [f"--ckpt={SHIPPED}/small", *DECODE[1:]],
        "(--ckpt: )?.*small is .*vocoder.*",
    ),
    "unknown id on the hub": (decode.main, ["--ckpt=owner/name", *DECODE[1:]], "--ckpt:? .*owner/name"),
    "tokens that are no integers": (
        decode.main,
        [*DECODE, "--tokens=floats.npy"],
        "--tokens: floats.npy holds float64.*\\[L\\]$",
    ),
    "missing speaker": (decode.main, [*DECODE, "--speaker=voice.wav"], "--speaker: no file voice.wav"),
    "device of another machine": (
        decode.main,
        [*DECODE, "--device=gpu"],
        "--device is gpu; expected cpu, cuda or another device of PyTorch$",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_common_mistake_is_one_line_with_value_expectation_and_option(
    fitted: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    mistake: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("tokens.npy", np.arange(5))
    np.save("floats.npy", np.arange(5.0))
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    (tmp_path / "old" / "checkpoints" / "last.ckpt").touch()
    before = sorted(tmp_path.rglob("*"))
    command, args, expected = MISTAKES[mistake]
    places = {"SHARDS": fitted.folder, "AUDIO": Path(fitted.folder).with_name("audio"), "RUN": tmp_path / "old"}
    for name, path in places.items():
        args = [arg.replace(name, str(path)) for arg in args]
    if command is fit.main and "--config=demoo" not in args:
        args = decoder_arguments(fitted, tmp_path / "run", *args)
    line = error_line(capsys, command, *args)
    assert re.match(f"error: {expected.replace('HOME', str(Path.home()))}", line), line
    assert sorted(tmp_path.rglob("*")) == before
