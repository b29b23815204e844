"""What is evaluated: ways, layouts, what tells a row from the others, who is put behind."""

import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sf_lightning.audio.mel import MelConfig
from sf_lightning.evaluation.grid import Options, Subject, describe, label, plan, read_layout
from sf_lightning.evaluation.run import METRICS_NICE, Drawing, _put_behind, digests_of
from sf_lightning.model.layout import Layout
from sf_lightning.model.pretrained import Description, ModelConfig, TokenizerName, WeightsOf
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.bigvgan import BigVGANVocoder
from sf_lightning.vocoder.config import VocoderConfig
from sf_lightning.vocoder.files import TrainedVocoder, save_vocoder
from sf_lightning.vocoder.generator import GeneratorConfig
from tests.toys.networks import SMALL_DIT

TOY = GeneratorConfig((10, 16), (20, 32), channels=16, kernel_sizes=(3,), dilations=(1,))


def write_vocoder(folder: Path, seed: int) -> None:
    """Writes a small vocoder, in place of another."""
    torch.manual_seed(seed)
    made = BigVGANVocoder(TOY.hyperparameters(MelConfig()), MelConfig())
    shutil.rmtree(folder, ignore_errors=True)
    save_vocoder(
        folder, TrainedVocoder(made.generator.state_dict(), TOY, MelConfig(), WeightsOf(7, True)), "a card\n"
    )


def subject(
    path: str = "runs/a/checkpoints/last.ckpt",
    speaks: VocoderConfig = VocoderConfig(),
    mel: MelConfig = MelConfig(),
    **decode: object,
) -> Subject:
    """A checkpoint of which nothing but the description is asked."""
    model = ModelConfig(Layout(4, 24, (0,), (2,)), SMALL_DIT, mel, MelScale(), SpeakerConfig(channels=8))
    how = asdict(replace(DecodeConfig(steps=4), **decode))
    description = Description(model, TokenizerName("kmeans", None), WeightsOf(1, True), how, asdict(speaks))
    return Subject(path, description, "digest", lambda: pytest.fail("weights are not asked for"))


def test_every_combination_is_a_way_and_what_they_share_is_there_once() -> None:
    options = Options(("own", "full"), (1, 2, 3), (2, 4), (0.0, 0.5), ("own", "griffin_lim"))
    ways = [way for group in plan([subject(), subject("b.ckpt")], options) for way in group.ways]
    assert len(set(ways)) == len(ways)
    of_kind = {kind: sum(way.kind == kind for way in ways) for kind in ("copy_synthesis", "offline", "streamed")}
    # Its own vocoder is Griffin-Lim with the same iterations: the two are one. Offline has no look-ahead.
    assert of_kind == {"copy_synthesis": 1, "offline": 2 * 2 * 2 * 2, "streamed": 2 * 2 * 2 * 2 * 3}


def test_by_default_it_is_as_the_checkpoint_says() -> None:
    (group,) = plan([subject(steps=3, method="rk4", guidance=0.7, lookahead=2)], Options())
    kinds = [(way.kind, way.lookahead, way.nfe, way.guidance) for way in group.ways]
    assert kinds == [
        ("copy_synthesis", None, 0, 0.0),
        ("offline", None, 12, 0.7),
        ("streamed", 2, 12, 0.7),
    ]
    assert group.config(group.ways[2]) == DecodeConfig(
        steps=3, method="rk4", guidance=0.7, lookahead=2, first_chunk=1
    )
    offline = subject(mode="offline")
    assert [way.kind for way in plan([offline], Options())[0].ways] == ["copy_synthesis", "offline"]
    with pytest.raises(ValueError, match=r"--lookahead: .*last\.ckpt is decoded offline, it waits for all"):
        plan([offline], Options(lookaheads=(1,)))


def test_a_layout_or_a_vocoder_that_changed_under_its_name_has_another_digest(tmp_path: Path) -> None:
    layout, voice_ = tmp_path / "mine.yaml", tmp_path / "voice"

    def digests(ahead: str, seed: int) -> dict[str, str]:
        layout.write_text(f"backward: [1]\nforward: [{ahead}]\n")
        write_vocoder(voice_, seed)
        return digests_of(plan([subject("a.ckpt")], Options(layouts=("own", str(layout)), vocoders=(str(voice_),))))

    before = digests("2", 0)
    names = ["a.ckpt", f"vocoder {voice_}", f"layout {layout} of a.ckpt"]
    assert set(before) == set(names) and before["a.ckpt"] == "digest"
    assert digests("2", 0) == before
    for changed, after in ((names[2], digests("", 0)), (names[1], digests("2", 1))):
        assert [name for name in names if after[name] != before[name]] == [changed]


def test_a_process_that_scores_is_put_behind_and_never_before_where_it_was() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for was, then in ((0, METRICS_NICE), (15, 15)):
            os.setpriority(os.PRIO_PROCESS, process.pid, max(was, os.getpriority(os.PRIO_PROCESS, process.pid)))
            _put_behind(process.pid)
            assert os.getpriority(os.PRIO_PROCESS, process.pid) >= then
    finally:
        process.communicate(b"\n")
    _put_behind(process.pid)  # it has ended meanwhile


def test_evaluations_are_made_of_whole_steps() -> None:
    (group,) = plan([subject(method="midpoint")], Options(nfes=(6,)))
    assert group.decode.steps == 3
    with pytest.raises(ValueError, match=r"--nfe 5: the checkpoint's midpoint makes 2 a step, wanted a multiple"):
        plan([subject(method="midpoint")], Options(nfes=(5,)))


def test_a_layout_is_a_preset_or_a_file_scaled_to_the_depth_of_the_checkpoint(tmp_path: Path) -> None:
    own = Layout(8, 24, (0, 6), (3,))
    assert read_layout("own", own) is own
    assert read_layout("full", own) == Layout(8, 24, (), (), "all")
    assert read_layout("streamflow_sr", own).spans == own.spans
    path = tmp_path / "mine.yaml"
    path.write_text("backward: [1]\nforward: []\nblock_size: 12\n")
    assert read_layout(str(path), own) == Layout(8, 12, (1,), ())
    path.write_text("num_layers: 4\nbackward: []\nforward: []\n")
    with pytest.raises(ValueError, match="has 4 layers, the checkpoint has 8"):
        read_layout(str(path), own)
    path.write_text("backwards: [1]\n")
    with pytest.raises(ValueError, match=r"layout\.backwards is unknown"):
        read_layout(str(path), own)
    with pytest.raises(FileNotFoundError, match="--layout fulll: no such file, and none of own, backward_only, "):
        read_layout("fulll", own)


def test_a_row_says_what_tells_it_from_the_others_and_no_more() -> None:
    options = Options(lookaheads=(1, 2))
    ways = [
        way for group in plan([subject(), subject("runs/b/checkpoints/last.ckpt")], options) for way in group.ways
    ]
    told = describe(ways)
    assert [label(each) for each in told[:4]] == [
        "copy-synthesis",
        "offline, a/last",
        "streamed, a/last, look-ahead 1",
        "streamed, a/last, look-ahead 2",
    ]
    assert list(told[0]) == ["way", "checkpoint", "look-ahead"]


def test_every_row_has_a_name_of_its_own_whatever_tells_it_apart() -> None:
    own = VocoderConfig("v/last.ckpt", iterations=2)
    spoken = [subject("a.ckpt", own), subject("b.ckpt", mel=MelConfig(f_max=7600.0)), subject("c.ckpt")]
    options = Options(guidances=(0.5, 0.50000001), vocoders=("own", "v/last.ckpt", "griffin_lim"))
    groups = plan(spoken, options)
    ways = [way for group in groups for way in group.ways]
    # A vocoder from a checkpoint has no iterations, and is the one that is given by name; each mel has its ceiling.
    assert {way.vocoder for way in ways} == {VocoderConfig("v/last.ckpt"), VocoderConfig("griffin_lim")}
    assert sum(way.kind == "copy_synthesis" for way in ways) == 4
    labels = [label(each) for each in describe(ways)]
    assert len(set(labels)) == len(labels) == len(set(ways))
    assert labels[0] == "copy-synthesis, v/last, mel f_max 8000"


def test_sound_is_kept_of_clips_whose_speaker_has_another_before_all_others() -> None:
    clips = [SimpleNamespace(clip=SimpleNamespace(key=f"c{i}"), is_own_reference=i not in (3, 6)) for i in range(8)]
    drawing = Drawing(None, 8)  # type: ignore[arg-type]
    drawing.of = lambda group: clips  # type: ignore[assignment,return-value,method-assign]
    assert drawing.shown(None, 2) == {"c3", "c6"}  # type: ignore[arg-type]
    assert {"c3", "c6"} < drawing.shown(None, 4) and len(drawing.shown(None, 4)) == 4  # type: ignore[arg-type]
