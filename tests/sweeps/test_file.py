"""Sweep files are read as W&B documents them, and `sf-fit` accepts every point of the shipped grids."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

from sf_lightning.cli import fit
from sf_lightning.files.records import from_plain
from sf_lightning.model.layout import Layout
from sf_lightning.sweeps.file import Halving, SweepFile

FILES = sorted((Path(__file__).parents[2] / "experiments" / "sweeps").glob("*.yaml"), key=lambda path: path.stem)
GRID = {"method": "grid", "metric": {"name": "loss"}, "program": "p", "parameters": {"a": {"values": [1, 2]}}}


def sweep_file(folder: Path, content: dict[str, Any]) -> SweepFile:
    """Writes a sweep file and reads it."""
    path = folder / "f.yaml"
    path.write_text(yaml.safe_dump(content))
    return SweepFile(path)


class _ParserReady(Exception):
    """Raised once `sf-fit` has built its parser."""


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    """Returns the parser of `sf-fit`, built once."""
    parsers = []

    def keep(self: Any, parser: ArgumentParser, args: Any) -> None:
        parsers.append(parser)
        raise _ParserReady

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit.FitCLI, "parse_arguments", keep)
        with pytest.raises(_ParserReady):
            fit.main.__wrapped__(["fit"])
    return parsers[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sf_fit_accepts_every_point_of_a_grid_as_a_different_run(
    path: Path, parser: ArgumentParser, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parents[2])
    file = SweepFile(path)
    assert file.points
    runs = set()
    for point in file.points:
        env, program, *args = file.command([*file.arguments(point), "--print_config"])
        assert (env, program) == ("/usr/bin/env", "sf-fit")
        with pytest.raises(SystemExit) as exit_status:
            parser.parse_args(["fit", *fit.expand_presets(fit.expand_configs(args))])
        assert exit_status.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        layout = from_plain(Layout, config["model"]["layout"], "layout")
        assert config["data"]["pack_frames"] % layout.block_size == 0
        assert layout.block_size % config["model"]["dit"].get("frames_per_token", 4) == 0
        runs.add((layout, config.get("seed")))
    assert len(runs) == len(file.points), "two points are the same"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_has_the_documented_keys_and_wandbs_agent_builds_the_same_command(path: Path) -> None:
    content = load_sweep_config(str(path))
    assert content is not None
    # docs.wandb.ai/models/sweeps/sweep-config-keys: required keys and all keys.
    assert {"program", "method", "parameters"} <= content.keys()
    assert content.keys() <= {
        *("program", "entity", "project", "description", "name", "method", "metric", "parameters"),
        *("early_terminate", "command", "run_cap"),
    }
    assert content["method"] in ("grid", "random", "bayes")
    assert content["metric"].keys() <= {"name", "goal", "target"}
    assert content["metric"]["goal"] in ("minimize", "maximize")
    assert all(spec.keys() in ({"value"}, {"values"}) for spec in content["parameters"].values())
    file = SweepFile(path)
    assert file.points
    for point in file.points:
        values = {**file.constants, **point}
        args = create_sweep_command_args({"args": {n: {"value": values[n]} for n in content["parameters"]}})
        macros = {"env": ["/usr/bin/env"], "program": [content["program"]], "args": args["args"]}
        line = []
        for word in create_sweep_command(list(content["command"])):
            line += macros[word[2:-1]] if word.startswith("${") else [word]
        assert line == file.command(file.arguments(point))


def test_the_layout_sweep_has_all_presets_and_layouts_given_as_numbers() -> None:
    layouts = SweepFile(next(path for path in FILES if path.stem == "mask_layouts")).points
    assert layouts is not None
    assert {point["model.layout"] for point in layouts} > Layout.presets().keys()
    assert any("placement" in point["model.layout"] for point in layouts)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"values": ["a", 1, None]}, CategoricalDistribution(["a", 1, None])),
        ({"values": [[0, 6], []]}, CategoricalDistribution(["[0, 6]", "[]"])),
        ({"min": 1, "max": 9}, IntDistribution(1, 9)),
        ({"min": 1, "max": 9, "distribution": "int_uniform"}, IntDistribution(1, 9)),
        ({"min": 1, "max": 9.0}, FloatDistribution(1, 9)),
        ({"min": 1, "max": 9, "distribution": "uniform"}, FloatDistribution(1, 9)),
        ({"min": 8, "max": 48, "q": 8, "distribution": "q_uniform"}, IntDistribution(8, 48, step=8)),
        ({"min": 0.0, "max": 1.0, "q": 0.25, "distribution": "q_uniform"}, FloatDistribution(0, 1, step=0.25)),
        ({"min": 1e-5, "max": 1e-3, "distribution": "log_uniform_values"}, FloatDistribution(1e-5, 1e-3, log=True)),
    ],
)
def test_a_parameter_has_the_distribution_that_wandb_documents(
    tmp_path: Path, spec: dict[str, Any], expected: Any
) -> None:
    file = sweep_file(tmp_path, GRID | {"method": "random", "parameters": {"a": spec, "b": {"value": 3}}})
    assert file.distributions == {"a": expected} and file.constants == {"b": 3}


def test_a_grid_has_all_points_of_values_integers_and_steps(tmp_path: Path) -> None:
    parameters = {
        "a": {"min": 1, "max": 2},
        "b": {"min": 0.0, "max": 0.5, "q": 0.25, "distribution": "q_uniform"},
        "c": {"value": 7},
    }
    file = sweep_file(tmp_path, GRID | {"parameters": parameters})
    assert file.points == [{"a": a, "b": b} for a in (1, 2) for b in (0.0, 0.25, 0.5)]
    assert file.arguments(file.points[1]) == ["--a=1", "--b=0.25", "--c=7"]
    file = sweep_file(tmp_path, GRID | {"parameters": {"a": {"values": [1, None]}, "b": {"values": [None, 0.5]}}})
    assert file.arguments(file.points[2]) == ["--a=null", "--b=null"]


@pytest.mark.parametrize(
    ("early", "expected"),
    [
        ({"min_iter": 2}, Halving(2, 3)),
        ({"max_iter": 27, "s": 2}, Halving(3, 3)),  # from the end: max_iter / eta^s
        ({"min_iter": 1, "eta": 4}, Halving(1, 4)),
    ],
)
def test_the_rungs_of_hyperband_are_those_of_wandb(
    tmp_path: Path, early: dict[str, int], expected: Halving
) -> None:
    content = GRID | {"early_terminate": {"type": "hyperband", **early}}
    assert sweep_file(tmp_path, content).halving == expected


def test_a_rung_keeps_the_best_trial_in_eta() -> None:
    halving = Halving(1, 3)
    assert halving.keeps(0.2, [], maximize=True)
    assert halving.keeps(0.3, [0.1, 0.2], maximize=True) and not halving.keeps(0.2, [0.1, 0.3], maximize=True)
    assert halving.keeps(0.1, [0.3, 0.2], maximize=False) and not halving.keeps(0.2, [0.1, 0.3], maximize=False)
    losses = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert halving.keeps(0.15, losses, maximize=False) and not halving.keeps(0.25, losses, maximize=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "genetic"}, "method is genetic; expected grid, random, bayes"),
        ({"methd": "grid"}, "methd is not a key of a sweep file; expected command, "),
        ({"metric": None}, "metric is None; expected a name"),
        ({"metric": {"name": "a", "goal": "up"}}, "metric.goal is up; expected minimize or maximize"),
        ({"metric": {"name": "a", "target": 1}}, "metric.target is not supported"),
        ({"parameters": {}}, "parameters is {}; expected names"),
        ({"parameters": {"a": {"min": 0.0, "max": 1.0}}}, "method is grid but a is continuous"),
        ({"parameters": {"a": {"distribution": "beta"}}}, "a.distribution is beta; expected constant, categorical"),
        ({"parameters": {"a": {"distribution": "uniform", "min": 0}}}, "has distribution, min; expected max, min"),
        ({"parameters": {"a": {"min": 2, "max": 1}}}, "a has min 2 and max 1; expected -inf < min <= max"),
        ({"parameters": {"a": {"min": "1e-5", "max": 1}}}, "in YAML 1.0e-4, not 1e-4"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}}}, "nested names are written a.b"),
        ({"parameters": {"a": {"values": []}}}, "a.values is \\[\\]; expected a list"),
        ({"early_terminate": {"type": "envelope"}}, "expected type hyperband"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, "expected integers: min_iter"),
        ({"command": ["${program}"]}, "expected \\${args} in it"),
        ({"command": ["${args_json}", "${args}"]}, "command has \\${args_json}; expected"),
        ({"program": None}, "and the key program for \\${program}"),
    ],
)
def test_an_unsupported_key_or_value_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"f.yaml: .*{message}"):
        sweep_file(tmp_path, GRID | change)
