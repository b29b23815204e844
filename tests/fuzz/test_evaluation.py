"""Random damage to evaluations, ratings and sweeps: each case succeeds, or is one error that names the file."""

import json
import random
from pathlib import Path

import pytest

from sf_lightning.audio.mel import MelConfig
from sf_lightning.evaluation.listening import add_ratings, write_opinions
from sf_lightning.evaluation.results import ClipScores, Identity, Results
from sf_lightning.evaluation.systems import System
from sf_lightning.evaluation.table import Findings, write_tables
from sf_lightning.sweeps.file import SweepFile
from sf_lightning.sweeps.trials import Sweep, read_trials
from sf_lightning.vocoder.config import VocoderConfig
from tests.toys.fuzz import damage, damage_text, mutate
from tests.toys.sweep import sweep_file

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))]
CASES = 100


def damaged(draw: random.Random, path: Path) -> bytes:
    """Returns the content of a file of JSON lines, or of text, with damage."""
    content = path.read_bytes()
    if path.suffix == ".csv" or draw.random() < 0.2:
        return damage(draw, content)
    lines = content.splitlines() if path.suffix == ".jsonl" else [content]
    number = draw.randrange(len(lines))
    lines[number] = damage_text(draw, json.dumps(mutate(draw, json.loads(lines[number]))))
    return b"\n".join(lines) + b"\n"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_evaluation_is_read_or_refused_by_the_name_of_the_file(tmp_path: Path, seed: int) -> None:
    draw, folder = random.Random(seed), tmp_path / "eval"
    system = System("streamed", VocoderConfig("griffin_lim"), MelConfig(), "a.ckpt", "own", 4, 0.5, 1)
    identity = Identity("clips", "1", 2, "", ("nisqa",), "cpu")
    results = Results.open(folder, identity, [system], {"a.ckpt": "1"}, {"data": ("clips",)})
    for clip, language in (("a", "en"), ("b", "no")):
        results.add(ClipScores(system.id, clip, language, 100, {"stoi": 0.5, "mel_l1": 1.0}, (10.0, 11.0)))
    results.close()
    key = {"test": "abc", "seed": 0, "systems": ["x", "y"], "sounds": {"001": {"clip": "a", "system": "x"}}}
    ratings = {"test": "abc", "listener": "Ada", "ratings": {"001": {"naturalness": 3, "similarity": 4}}}
    (folder / "listening-key.json").write_text(json.dumps(key))
    (tmp_path / "ada.json").write_text(json.dumps(ratings))
    paths = [
        tmp_path / "ada.json",
        *(folder / n for n in ("evaluation.json", "results.jsonl", "listening-key.json")),
    ]
    for _ in range(CASES):
        path = draw.choice(paths)
        before = path.read_bytes()
        path.write_bytes(damaged(draw, path))
        try:
            write_tables(Findings.from_results(Results.read(folder)), folder)
            write_opinions(folder, add_ratings(folder, [tmp_path / "ada.json"]))
        except ValueError as error:
            assert path.name in str(error) or tmp_path.name in str(error), (path, error)
        path.write_bytes(before)
        for stored in (folder / "ratings").glob("*"):
            stored.unlink()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_trial_is_read_or_refused_by_the_name_of_the_file(tmp_path: Path, seed: int) -> None:
    draw, folder = random.Random(seed), tmp_path / "sweep"
    parameters = {"rate": {"min": 1.0, "max": 2.0}, "layout": {"values": ["a", "b"]}}
    file = SweepFile(sweep_file(tmp_path, method="random", run_cap=2, parameters=parameters))
    sweep = Sweep(file, folder)
    sweep.join()
    claimed = sweep.claim()
    assert claimed
    trial, lock = claimed
    lock.close()
    (trial.folder / "result.json").write_text('{"state": "complete", "value": 0.5, "error": ""}')
    (trial.folder / "csv").mkdir()
    (trial.folder / "csv" / "metrics.csv").write_text(f"step,{file.metric}\n0,0.25\n1,0.5\n")
    names = ("parameters.json", "result.json", "csv/metrics.csv")
    paths = [folder / "sweep.json", *(trial.folder / name for name in names)]
    for _ in range(CASES):
        path = draw.choice(paths)
        before = path.read_bytes()
        path.write_bytes(damaged(draw, path))
        try:
            sweep.join()
            for found in sweep.trials:
                assert not found.parameters or file.contains(found.parameters)
                assert all(isinstance(number, float) for number in found.metrics.values())
        except ValueError as error:
            assert str(tmp_path) in str(error), (path, error)
        path.write_bytes(before)
    assert read_trials(folder)[0].value == 0.5
