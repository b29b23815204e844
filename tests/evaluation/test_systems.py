"""Systems of an evaluation: combinations, layouts, labels and digests."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sf_lightning.audio.mel import MelConfig
from sf_lightning.evaluation.run import METRICS_NICE, _lower_priority, input_digests
from sf_lightning.evaluation.selection import ClipSelection
from sf_lightning.evaluation.systems import (
    DecodingGrid,
    System,
    distinguishing_labels,
    join_labels,
    plan_systems,
    read_layout,
)
from sf_lightning.model.layout import Layout
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.config import VocoderConfig
from tests.toys.evaluation import make_candidate
from tests.toys.vocoder_files import write_vocoder


def test_each_combination_is_one_system_and_shared_systems_appear_once() -> None:
    grid = DecodingGrid(("own", "full"), (1, 2, 3), (2, 4), (0.0, 0.5), ("own", "griffin_lim"))
    candidates = [make_candidate(), make_candidate("b.ckpt")]
    systems = [system for group in plan_systems(candidates, grid) for system in group.systems]
    assert len(set(systems)) == len(systems)
    kinds = ("copy_synthesis", "offline", "streamed")
    counts = {kind: sum(system.kind == kind for system in systems) for kind in kinds}
    # The checkpoints' own vocoder is Griffin-Lim with the same iterations: one vocoder. Offline has no look-ahead.
    assert counts == {"copy_synthesis": 1, "offline": 2 * 2 * 2 * 2, "streamed": 2 * 2 * 2 * 2 * 3}


def test_settings_default_to_those_of_the_checkpoint() -> None:
    (group,) = plan_systems([make_candidate(steps=3, method="rk4", guidance=0.7, lookahead=2)], DecodingGrid())
    settings = [(system.kind, system.lookahead, system.nfe, system.guidance) for system in group.systems]
    assert settings == [
        ("copy_synthesis", None, 0, 0.0),
        ("offline", None, 12, 0.7),
        ("streamed", 2, 12, 0.7),
    ]
    assert group.decode_config(group.systems[2]) == DecodeConfig(
        steps=3, method="rk4", guidance=0.7, lookahead=2, first_chunk=1
    )
    offline = make_candidate(mode="offline")
    (group,) = plan_systems([offline], DecodingGrid())
    assert [system.kind for system in group.systems] == ["copy_synthesis", "offline"]
    with pytest.raises(ValueError, match=r"--lookahead has no effect on .*last\.ckpt, which is decoded offline"):
        plan_systems([offline], DecodingGrid(lookaheads=(1,)))


def test_ids_do_not_change_between_versions() -> None:
    griffin_lim = VocoderConfig("griffin_lim")
    assert System("copy_synthesis", griffin_lim, MelConfig()).id == "4d53d042a6"
    assert System("streamed", griffin_lim, MelConfig(), "a.ckpt", "own", 4, 0.5, 1).id == "faadc35f87"


def test_a_layout_or_vocoder_that_changes_under_its_name_changes_its_digest(tmp_path: Path) -> None:
    layout, vocoder = tmp_path / "mine.yaml", tmp_path / "voice"

    def digests(forward: str, seed: int) -> dict[str, str]:
        layout.write_text(f"backward: [1]\nforward: [{forward}]\n")
        write_vocoder(vocoder, seed)
        grid = DecodingGrid(layouts=("own", str(layout)), vocoders=(str(vocoder),))
        return input_digests(plan_systems([make_candidate("a.ckpt")], grid))

    before = digests("2", 0)
    names = ["a.ckpt", f"vocoder {vocoder}", f"layout {layout} of a.ckpt"]
    assert set(before) == set(names) and before["a.ckpt"] == "digest"
    assert digests("2", 0) == before
    for changed, after in ((names[2], digests("", 0)), (names[1], digests("2", 1))):
        assert [name for name in names if after[name] != before[name]] == [changed]


def test_scoring_processes_get_a_lower_priority_and_never_a_higher_one() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for before, after in ((0, METRICS_NICE), (15, 15)):
            os.setpriority(os.PRIO_PROCESS, process.pid, max(before, os.getpriority(os.PRIO_PROCESS, process.pid)))
            _lower_priority(process.pid)
            assert os.getpriority(os.PRIO_PROCESS, process.pid) >= after
    finally:
        process.communicate(b"\n")
    _lower_priority(process.pid)  # an ended process is no error


def test_network_evaluations_must_make_whole_solver_steps() -> None:
    (group,) = plan_systems([make_candidate(method="midpoint")], DecodingGrid(nfes=(6,)))
    assert group.decode.steps == 3
    with pytest.raises(ValueError, match=r"--nfe is 5, but the checkpoint's solver midpoint makes 2 evaluations"):
        plan_systems([make_candidate(method="midpoint")], DecodingGrid(nfes=(5,)))


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
    with pytest.raises(FileNotFoundError, match=r"--layout: layout 'fulll': expected backward_only, .* or own"):
        read_layout("fulll", own)


def test_labels_name_the_settings_that_differ_and_no_others() -> None:
    candidates = [make_candidate(), make_candidate("runs/b/checkpoints/last.ckpt")]
    groups = plan_systems(candidates, DecodingGrid(lookaheads=(1, 2)))
    labels = distinguishing_labels([system for group in groups for system in group.systems])
    assert [join_labels(row) for row in labels[:4]] == [
        "copy-synthesis",
        "offline, a/last",
        "streamed, a/last, look-ahead 1",
        "streamed, a/last, look-ahead 2",
    ]
    assert list(labels[0]) == ["mode", "checkpoint", "look-ahead"]


def test_labels_are_unique_whatever_distinguishes_the_systems() -> None:
    own = VocoderConfig("v/last.ckpt", iterations=2)
    mel = MelConfig(f_max=7600.0)
    candidates = [make_candidate("a.ckpt", own), make_candidate("b.ckpt", mel=mel), make_candidate("c.ckpt")]
    grid = DecodingGrid(guidances=(0.5, 0.50000001), vocoders=("own", "v/last.ckpt", "griffin_lim"))
    systems = [system for group in plan_systems(candidates, grid) for system in group.systems]
    # A vocoder checkpoint has no iterations, so that "own" and its path are one vocoder.
    assert {system.vocoder for system in systems} == {VocoderConfig("v/last.ckpt"), VocoderConfig("griffin_lim")}
    assert sum(system.kind == "copy_synthesis" for system in systems) == 4
    labels = [join_labels(row) for row in distinguishing_labels(systems)]
    assert len(set(labels)) == len(labels) == len(set(systems))
    assert labels[0] == "copy-synthesis, v/last, mel f_max 8000"


def test_clips_whose_speaker_has_another_recording_are_kept_first() -> None:
    clips = [SimpleNamespace(clip=SimpleNamespace(key=f"c{i}"), is_own_reference=i not in (3, 6)) for i in range(8)]
    selection = ClipSelection(SimpleNamespace(draw=lambda requirements, count: clips), 8)  # type: ignore[arg-type]
    (group,) = plan_systems([make_candidate()], DecodingGrid())
    assert selection.kept_keys(group, 2) == {"c3", "c6"}
    assert {"c3", "c6"} < selection.kept_keys(group, 4) and len(selection.kept_keys(group, 4)) == 4
