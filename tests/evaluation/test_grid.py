"""What is evaluated, and what becomes of numbers: ways, layouts, means, tables, the folder of results."""

import csv
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.evaluation import table
from sf_lightning.evaluation.bootstrap import mean_of, mean_over
from sf_lightning.evaluation.grid import Options, Subject, Way, describe, label, plan, read_layout
from sf_lightning.evaluation.report import page_of
from sf_lightning.evaluation.results import Identity, Line, Results
from sf_lightning.evaluation.run import METRICS_NICE, _put_behind, digests_of
from sf_lightning.evaluation.scores import Scoring
from sf_lightning.evaluation.table import Findings, flat, markdown, write_csv
from sf_lightning.metrics import predicted
from sf_lightning.metrics.jumps import level_jump, pitch_jump
from sf_lightning.model.layout import Layout
from sf_lightning.model.pretrained import Description, ModelConfig, TokenizerName, WeightsOf
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.bigvgan import BigVGANVocoder
from sf_lightning.vocoder.config import VocoderConfig
from sf_lightning.vocoder.files import TrainedVocoder, save_vocoder
from sf_lightning.vocoder.generator import GeneratorConfig
from tests.helpers import SMALL, voice

TOY = GeneratorConfig((10, 16), (20, 32), channels=16, kernel_sizes=(3,), dilations=(1,))

IDENTITY = Identity("clips", "1", 4, "", (), "cpu")


def write_vocoder(folder: Path, seed: int) -> None:
    """Writes a small vocoder, in place of another."""
    torch.manual_seed(seed)
    made = BigVGANVocoder(TOY.hyperparameters(MelConfig()), MelConfig())
    shutil.rmtree(folder, ignore_errors=True)
    save_vocoder(folder, TrainedVocoder(made.generator.state_dict(), TOY, MelConfig(), 7), "a card\n")


def subject(
    path: str = "runs/a/checkpoints/last.ckpt",
    speaks: VocoderConfig = VocoderConfig(),
    mel: MelConfig = MelConfig(),
    **decode: object,
) -> Subject:
    """A checkpoint of which nothing but the description is asked."""
    model = ModelConfig(Layout(4, 24, (0,), (2,)), SMALL, mel, MelScale(), SpeakerConfig(channels=8))
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


def test_the_interval_is_that_of_the_normal_law_where_that_holds_and_leaves_nan_out() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    found = mean_of([*values, math.nan])
    assert found.mean == pytest.approx(values.mean()) and (found.number, found.num_nan) == (400, 1)
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.02)
    assert mean_of([*values, math.nan]) == found
    assert math.isnan(mean_of([2.0]).low) and mean_of([2.0]).mean == 2.0
    assert math.isnan(mean_of([math.nan]).mean) and mean_of([math.nan]).num_nan == 1


@pytest.mark.parametrize("listeners", [2, 3, 5])
def test_the_interval_over_few_listeners_holds_what_all_would_say_as_often_as_it_claims(listeners: int) -> None:
    random, runs = np.random.default_rng(listeners), 400
    strictness = random.normal(0.0, 0.5, (runs, listeners, 1))  # what one of them says hangs together
    said = 3.0 + strictness + random.normal(0.0, 0.5, (runs, listeners, 10))
    owners = np.repeat(np.arange(listeners), 10).tolist()
    found = [mean_over(owners, each.ravel()) for each in said]
    assert found[0].mean == pytest.approx(said[0].mean()) and found[0].number == 10 * listeners
    held = np.mean([each.low <= 3.0 <= each.high for each in found])
    assert held == pytest.approx(0.95, abs=0.03)
    assert math.isnan(mean_over(["a", "a"], [1.0, 2.0]).low) and math.isnan(mean_over([], []).mean)


def tone(pitches: list[float], gains: list[float]) -> Tensor:
    """A buzz of so many chunks of 0.24 s, whose phase is unbroken."""
    frequency = torch.tensor(pitches).repeat_interleave(3840)
    phase = 2 * math.pi * torch.cumsum(frequency.double() / 16000, 0)
    wave = sum(torch.sin(k * phase) / k for k in range(1, 15))
    assert isinstance(wave, Tensor)
    return (wave * torch.tensor(gains).repeat_interleave(3840)).float() / 4


def test_a_step_of_pitch_or_level_at_the_edges_is_measured_and_elsewhere_is_not() -> None:
    edges, up = torch.arange(1, 8) * 3840, 2 ** (2 / 12)
    flat_ = tone([120.0] * 8, [1.0] * 8)
    stepping = tone([120.0, 120.0 * up] * 4, [1.0] * 8)
    pulsing = tone([120.0] * 8, [1.0, 0.5] * 4)
    assert abs(pitch_jump(flat_, edges, 16000)) < 0.1 and abs(level_jump(flat_, edges, 16000)) < 0.3
    assert pitch_jump(stepping, edges, 16000) == pytest.approx(2.0, abs=0.3)
    assert level_jump(pulsing, edges, 16000) == pytest.approx(6.0, abs=1.0)
    assert abs(pitch_jump(stepping, edges + 1920, 16000)) < 0.4  # the steps are elsewhere: no jump at these edges
    for wave in (torch.zeros(8 * 3840), flat_[:100]):
        assert math.isnan(pitch_jump(wave, edges, 16000)) and math.isnan(level_jump(wave, edges, 16000))
    assert math.isnan(pitch_jump(flat_, edges[:0], 16000))


def test_a_larger_jump_of_pitch_never_scores_less() -> None:
    edges = torch.arange(1, 8) * 3840
    waves = [tone([120.0, 120.0 * 2 ** (jump / 12)] * 4, [1.0] * 8) for jump in (0, 1, 3, 5, 6.5, 8, 12)]
    found = [pitch_jump(wave, edges, 16000) for wave in waves]
    assert all(after > before - 0.05 for before, after in itertools.pairwise(found)), found
    assert found[-1] == pytest.approx(6.0, abs=0.3)
    worst = tone([120.0, 180.0, 120.0, 120.0, 120.0, 120.0, 120.0, 120.0], [1.0] * 8)
    assert pitch_jump(worst, edges, 16000) == pytest.approx(2 * 6 / 7, abs=0.2)  # some edges are broken, not all


def test_a_silent_clip_has_no_scores_and_a_bad_one_has_worse_than_a_good_one() -> None:
    said = torch.from_numpy(voice(1.5))
    noisy = said + 0.05 * torch.randn(len(said), generator=torch.Generator().manual_seed(0))
    mel, edges = torch.zeros(150, 80), torch.arange(1, 6) * 3840
    scoring = Scoring(embed=lambda wave: np.abs(np.fft.rfft(wave[:8000]))[:500])
    pending = [scoring.start("a", wave, said, mel, mel, edges) for wave in (said, noisy, torch.zeros_like(said))]
    same, worse, silent = (each.collect() for each in pending)
    for name in ("pesq_wb", "stoi", "visqol", "similarity"):
        assert same[name] > worse[name] and math.isnan(silent[name])
    assert same["similarity"] == pytest.approx(1.0, abs=1e-4) and silent["mel_l1"] == 0.0


def test_predicted_opinions_are_left_out_with_a_reason_unless_their_weights_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicted, "HOME", tmp_path)
    found, lacking = predicted.judges()
    assert not found and "no " in lacking["nisqa"] and "nisqa.tar" in lacking["nisqa"] and "dnsmos" in lacking
    monkeypatch.setattr("torchmetrics.functional.audio.nisqa.NISQA_DIR", str(tmp_path / "NISQA"))
    (tmp_path / "NISQA").mkdir()
    (tmp_path / "NISQA" / "nisqa.tar").write_bytes(b"broken")
    assert "Error" in predicted.judges()[1]["nisqa"]
    monkeypatch.setitem(predicted.JUDGES, "nisqa", lambda wave, rate: 3.0)
    found, lacking = predicted.judges()
    assert list(found) == ["nisqa"] and list(lacking) == ["dnsmos"]


def lines(way: Way, scores: list[float], languages: tuple[str, ...] = ("en",)) -> list[Line]:
    """Clips with a score each, in turn in each language."""
    return [
        Line(way.id, f"clip{i}", languages[i % len(languages)], 100, {"stoi": score})
        for i, score in enumerate(scores)
    ]


def opened(folder: Path, *ways: Way, **change: object) -> Results:
    """An evaluation of these ways."""
    return Results.open(folder, replace(IDENTITY, **change), ways, {"a.ckpt": "1"}, {"data": ("clips",)})


OFFLINE = Way("offline", VocoderConfig("griffin_lim"), MelConfig(), "a.ckpt", "own", 4, 0.5)
STREAMED = Way("streamed", VocoderConfig("griffin_lim"), MelConfig(), "a.ckpt", "own", 4, 0.5, 1)


def test_tables_have_means_intervals_and_what_is_undefined_for_all_and_for_each_language(tmp_path: Path) -> None:
    results = opened(tmp_path / "out", OFFLINE, STREAMED)
    for line in lines(OFFLINE, [0.5, 0.7, 0.9, math.nan], ("en", "zh")):
        results.add(line)
    found = Findings.of(results)
    (row,) = found.rows
    assert (row.number, row.clips, row.means["stoi"].mean) == (1, 4, pytest.approx(0.7))
    spoken = {row.language: row.means["stoi"] for row in found.language_rows}
    assert spoken["en"].mean == pytest.approx(0.7) and (spoken["zh"].mean, spoken["zh"].num_nan) == (0.7, 1)
    text = markdown(found)
    assert "| 1 | offline | 4 | 0.700 (0.500 to 0.900, 1 undefined) |" in text and "## By language" in text
    write_csv(found, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        (whole, en, zh) = csv.DictReader(file)
    assert (whole["language"], en["language"], zh["language"]) == ("", "en", "zh")
    assert float(whole["stoi"]) == pytest.approx(0.7) and whole["stoi_nan"] == "1" and whole["nfe"] == "4"
    assert len(flat(found)[1]) == 3


def test_what_is_a_mean_over_frames_weighs_clips_by_theirs_and_times_have_no_interval(tmp_path: Path) -> None:
    results = opened(tmp_path / "out", STREAMED)
    for clip, frames, value in (("a", 300, 1.0), ("b", 100, 5.0), ("c", 100, math.nan)):
        times = {"first_packet_ms": 100.0 * value} if clip != "c" else {}
        results.add(Line(STREAMED.id, clip, "", frames, {"mel_l1": value, "gap": value, "stoi": value} | times))
    (row,) = Findings.of(results).rows
    assert (row.means["mel_l1"].mean, row.means["gap"].mean, row.means["stoi"].mean) == (2.0, 2.0, 3.0)
    late = row.means["first_packet_ms"]
    assert (late.mean, late.number) == (300.0, 2) and math.isnan(late.low) and math.isnan(late.high)
    assert "are of the 3 longest clips alone, and have no interval" in markdown(Findings.of(results))
    results.close()
    assert Results.read(tmp_path / "out").lines.keys() == results.lines.keys()


def test_intervals_are_made_once_for_all_that_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = opened(tmp_path / "out", OFFLINE)
    for line in lines(OFFLINE, [0.5, 0.7], ("en", "zh")):
        results.add(line)
    found = Findings.of(results)
    monkeypatch.setattr(table, "mean_of", lambda *_: pytest.fail("made again"))
    assert "0.600" in markdown(found) and flat(found)[1] and page_of(found).tables


def test_a_folder_goes_on_behind_its_last_whole_line_and_takes_more_ways(tmp_path: Path) -> None:
    results = opened(tmp_path / "out", OFFLINE)
    for line in lines(OFFLINE, [0.5, math.nan]):
        results.add(line)
    results.close()
    path = tmp_path / "out" / "results.jsonl"
    path.write_text(path.read_text() + '{"way": "half a li')
    again = opened(tmp_path / "out", STREAMED)
    assert list(again.ways.values()) == [OFFLINE, STREAMED]
    assert [line.clip for line in again.of(OFFLINE)] == ["clip0", "clip1"]
    assert math.isnan(again.of(OFFLINE)[1].scores["stoi"])
    again.add(lines(STREAMED, [0.4])[0])
    again.close()
    assert len(path.read_text().splitlines()) == 3
    assert Results.read(tmp_path / "out").lines.keys() == again.lines.keys()


def test_to_read_a_folder_leaves_it_to_the_program_that_writes_it(tmp_path: Path) -> None:
    results = opened(tmp_path / "out", OFFLINE)
    (first,) = lines(OFFLINE, [0.5])
    results.add(first)
    path = tmp_path / "out" / "results.jsonl"
    with path.open("a") as file:
        file.write('{"way": "half a li')  # the other program is writing it
    assert list(Results.read(tmp_path / "out").lines.values()) == [first]
    with pytest.raises(BlockingIOError):
        opened(tmp_path / "out", STREAMED)
    assert path.read_text().endswith("half a li")
    results.close()
    opened(tmp_path / "out", OFFLINE).close()
    assert len(path.read_text().splitlines()) == 1


def test_a_folder_of_another_version_is_not_called_damaged(tmp_path: Path) -> None:
    opened(tmp_path / "out", OFFLINE).close()
    path = tmp_path / "out" / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(
        ValueError, match=r"evaluation.json has format 1, this version writes 2: give another --out"
    ):
        Results.read(tmp_path / "out")


def test_what_several_commands_said_is_said_of_all(tmp_path: Path) -> None:
    for machine, checkpoint in (("H100", "a, step 1"), ("H200", "b, step 2"), ("H100", "a, step 1")):
        facts = {"data": ("clips",), "device": (machine,), "checkpoint": (checkpoint,)}
        Results.open(tmp_path / "out", IDENTITY, [OFFLINE], {}, facts).close()
    said = {"data": "clips", "device 1": "H100", "device 2": "H200"}
    assert Results.read(tmp_path / "out").said == said | {"checkpoint 1": "a, step 1", "checkpoint 2": "b, step 2"}


def test_a_folder_of_another_evaluation_is_refused_and_stays_what_it_is(tmp_path: Path) -> None:
    results = opened(tmp_path / "out", OFFLINE)
    with pytest.raises(BlockingIOError, match="another sf-eval is at it"):
        opened(tmp_path / "out", OFFLINE)
    results.close()
    before = (tmp_path / "out" / "evaluation.json").read_bytes()
    with pytest.raises(FileExistsError, match="another evaluation, with clips 4 where this one has 8"):
        opened(tmp_path / "out", OFFLINE, clips=8)
    with pytest.raises(FileExistsError, match=r"results of a\.ckpt as it was before it changed"):
        Results.open(tmp_path / "out", IDENTITY, [OFFLINE], {"a.ckpt": "2"}, {})
    opened(tmp_path / "out", OFFLINE).close()  # who was refused does not keep others from it
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before
    with pytest.raises(FileExistsError, match="holds something else than an evaluation"):
        opened(tmp_path, OFFLINE)
    with pytest.raises(FileNotFoundError, match="is no folder of sf-eval"):
        Results.read(tmp_path)
