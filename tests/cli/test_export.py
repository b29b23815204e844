"""`sf-export`: the folder decodes as the checkpoint does, the card describes it, each mistake gets one line."""

import re
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch

from sf_lightning.cli import decode, export
from sf_lightning.data.shards import ShardSet
from sf_lightning.streaming.loading import load_decoder, load_pretrained
from sf_lightning.training.module import StreamFlowModule
from tests.toys.audio import synthetic_voice
from tests.toys.cli import error_line
from tests.toys.decoder import decoder_data, decoder_module, example_velocity, fit_decoder
from tests.toys.networks import randomize_weights

METRICS = """\
step,train/loss,val/loss,streamed/stoi,streamed/gap,copy_synthesis/stoi,latency/first_packet_ms
0,0.9,,,,,
0,,0.5,0.61,0.01,0.98,500
1,,0.4,0.72,0.02,,510
2,,0.3,0.83,0.03,,520
"""
"""Metrics of a run with a validation after each of three steps; the checkpoint is that of the second step."""


@pytest.fixture(scope="module")
def checkpoint(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains two steps; the averaged weights differ from the raw ones, and neither is silent."""
    folder = tmp_path_factory.mktemp("run")
    module = decoder_module()
    randomize_weights(module.model).train()
    fit_decoder(folder / "checkpoints", module, decoder_data(shards), 2)
    (folder / "csv").mkdir(parents=True)
    (folder / "csv" / "metrics.csv").write_text(METRICS)
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of the exported checkpoint."""
    out = tmp_path_factory.mktemp("export") / "decoder"
    export.main([str(checkpoint), str(out), "--license=cc-by-4.0"])
    return out


def test_an_export_has_the_velocity_of_the_averaged_weights(checkpoint: Path, folder: Path) -> None:
    module = StreamFlowModule.load_from_checkpoint(checkpoint)
    exported, raw = example_velocity(load_pretrained(folder).model), example_velocity(module.model.eval())
    assert torch.equal(exported, example_velocity(module.average.eval()))
    assert exported.abs().max() > 0.1 and not torch.equal(exported, raw)


def test_an_export_streams_with_the_settings_of_training(checkpoint: Path, folder: Path) -> None:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 50, 20))
    trained = StreamFlowModule.load_from_checkpoint(checkpoint).decoder()
    waves = []
    for decoder in (trained, load_decoder(folder), load_decoder(checkpoint)):
        stream = decoder.open()
        waves.append(torch.cat([stream.push(tokens), stream.flush()]))
    assert torch.equal(waves[0], waves[1]) and torch.equal(waves[0], waves[2]) and waves[0].abs().max() > 0.01


def test_the_raw_weights_are_exported_on_demand(checkpoint: Path, tmp_path: Path) -> None:
    export.main([str(checkpoint), str(tmp_path / "raw"), "--average=false"])
    model = StreamFlowModule.load_from_checkpoint(checkpoint).model.eval()
    assert torch.equal(example_velocity(load_pretrained(tmp_path / "raw").model), example_velocity(model))
    card = (tmp_path / "raw" / "README.md").read_text()
    assert "raw weights of step 2" in card and "with the averaged weights; this model has the raw ones" in card


@pytest.mark.parametrize("more", [[], ["--mode=offline", "--steps=3", "--seed=4"], ["--bf16"]])
def test_sf_decode_writes_the_same_bytes_with_the_folder(
    checkpoint: Path, folder: Path, tmp_path: Path, more: list[str]
) -> None:
    np.save(tmp_path / "t.npy", np.random.default_rng(0).integers(0, 50, 33))
    soundfile.write(tmp_path / "v.wav", synthetic_voice(1.0), 16000)
    for ckpt, out in ((checkpoint, "a.wav"), (folder, "b.wav")):
        args = [f"--ckpt={ckpt}", f"--tokens={tmp_path}/t.npy", f"--speaker={tmp_path}/v.wav", *more]
        decode.main([*args, f"--out={tmp_path}/{out}"])
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert np.abs(soundfile.read(tmp_path / "a.wav")[0]).max() > 0.01


def test_the_hub_can_read_the_card_and_it_describes_the_decoder(folder: Path) -> None:
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "cc-by-4.0",
        "sf-lightning",
        "text-to-speech",
    )
    for words in (
        "# decoder\n",
        "    layer 0: back 1, ahead 0\n      1 0 0 0 0 0\n      1 1 0 0 0 0\n",
        "| receptive field | 1 blocks back, 1 ahead; a block is 240 ms |",
        "| first chunk needs | 480 ms of tokens |",
        f"| parameters | {sum(p.numel() for p in load_pretrained(folder).model.parameters()):,} in ",
        "| training | averaged weights of step 2 |",
        "| mel | 80 bands of 0 to 8000 Hz, 16000 Hz, hop 160, window 640, FFT 1024 |",
        "License: cc-by-4.0.",
        "**TO BE FILLED IN: data.**",
    ):
        assert words in card.content
    assert re.search(r"\| tokens \| kmeans \(digest `[0-9a-f]{16}`\), 50 codes, 25 per second \|", card.content)


def test_the_card_has_the_scores_of_the_last_validation_before_the_checkpoint(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "Held-out clips at step 2:" in card
    assert re.search(r"\| streamed \|.* 0.720 \|.* 0.0200 \| 73% \|", card)
    assert re.search(r"\| copy-synthesis \|.* 0.980 \|", card)  # scored once, in the first validation
    assert "loss 0.4; first packet after 510 ms" in card


def test_the_card_marks_missing_metrics_and_license(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.ckpt").write_bytes(checkpoint.read_bytes())
    export.main([str(tmp_path / "alone.ckpt"), str(tmp_path / "decoder")])
    card = huggingface_hub.ModelCard.load(tmp_path / "decoder" / "README.md")
    assert card.data.license is None and "**TO BE FILLED IN: license.**" in card.content
    assert "None: no validation was found beside the checkpoint." in card.content


def test_the_python_code_of_the_card_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    assert names["wave"].shape == (50 * 640,) and names["wave"].abs().max() > 0


def edited(checkpoint: Path, where: Path, edit: Any) -> str:
    """Writes an edited copy of a checkpoint and returns its path."""
    content = torch.load(checkpoint, weights_only=True)
    edit(content)
    torch.save(content, where)
    return str(where)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(format=99), "odd.ckpt has format 99, sf-lightning .* reads up to 1: install a newer"),
        (lambda c: c.pop("format"), "odd.ckpt has no format number: checkpoints from before there was one"),
        (lambda c: c["hyper_parameters"].pop("decode"), "odd.ckpt: its hyperparameters have no decode"),
        (lambda c: c["hyper_parameters"]["dit"].update(colour=1), "odd.ckpt: model.dit.colour is unknown"),
        (
            lambda c: c["hyper_parameters"]["dit"].update(vocabulary=60),
            r"odd.ckpt: dit.tokens.* is \[.*\], expected \[.*\] by the configuration",
        ),
        (
            lambda c: c["state_dict"].pop("average.dit.from_mel.bias"),
            "odd.ckpt: dit.from_mel.bias is missing, expected",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_used_gets_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, edit: Any, message: str
) -> None:
    odd = edited(checkpoint, tmp_path / "odd.ckpt", edit)
    np.save(tmp_path / "t.npy", np.arange(9))
    assert re.search(message, error_line(capsys, export.main, odd, str(tmp_path / "out")))
    args = [f"--ckpt={odd}", f"--tokens={tmp_path}/t.npy", f"--out={tmp_path}/o.wav"]
    assert re.search(message, error_line(capsys, decode.main, *args))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.ckpt", "t.npy"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file or folder .*/x.ckpt: expected a decoder checkpoint of sf-fit or a vocoder"),
        (b"garbage", "x.ckpt is no readable file of torch weights"),
        (b"", "x.ckpt is no readable file of torch weights"),
    ],
)
def test_a_file_that_is_no_checkpoint_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "x.ckpt").write_bytes(content)
    assert re.search(message, error_line(capsys, export.main, str(tmp_path / "x.ckpt"), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole = checkpoint.read_bytes()
    (tmp_path / "x.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "x.ckpt is no readable file of torch weights" in error_line(
        capsys, export.main, f"{tmp_path}/x.ckpt", f"{tmp_path}/out"
    )


def test_an_existing_folder_is_not_overwritten(
    checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    message = error_line(capsys, export.main, str(checkpoint), str(folder))
    assert message.endswith(f"{folder} exists already: give another path, or move it away")
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_checkpoint_of_a_newer_format_or_without_one_is_not_resumed(
    checkpoint: Path, tmp_path: Path, shards: ShardSet
) -> None:
    newer = edited(checkpoint, tmp_path / "newer.ckpt", lambda content: content.update(format=99))
    other = edited(checkpoint, tmp_path / "other.ckpt", lambda content: content.pop("format"))
    message = "this checkpoint has format 99, sf-lightning .* reads up to 1: install"
    with pytest.raises(ValueError, match=message):
        StreamFlowModule.load_from_checkpoint(newer)
    with pytest.raises(ValueError, match=message):
        fit_decoder(tmp_path / "a", decoder_module(), decoder_data(shards), 3, ckpt_path=newer)
    with pytest.raises(ValueError, match="the checkpoint has no format number"):
        fit_decoder(tmp_path / "b", decoder_module(), decoder_data(shards), 3, ckpt_path=other)
