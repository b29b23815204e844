"""Sweep files: what W&B documents is what is read, and every point of each grid is one that `sf-fit` takes."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import SuccessiveHalvingPruner
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

from sf_lightning.cli import fit
from sf_lightning.files.records import from_plain
from sf_lightning.model.layout import Layout
from sf_lightning.sweeps.file import SweepFile

FILES = sorted((Path(__file__).parents[2] / "experiments" / "sweeps").glob("*.yaml"), key=lambda path: path.stem)
GRID = {"method": "grid", "metric": {"name": "loss"}, "program": "p", "parameters": {"a": {"values": [1, 2]}}}


class _Ready(Exception):
    """The parser of `sf-fit` is there."""


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    """The parser of `sf-fit`, made once."""
    made = []

    def keep(self: Any, parser: ArgumentParser, args: Any) -> None:
        made.append(parser)
        raise _Ready

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit.FitCLI, "parse_arguments", keep)
        with pytest.raises(_Ready):
            fit.main.__wrapped__(["fit"])
    return made[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_point_of_a_grid_is_accepted_by_sf_fit_and_is_a_layout(
    path: Path, parser: ArgumentParser, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parents[2])
    file = SweepFile.read(path)
    assert file.points
    seen = set()
    for point in file.points:
        env, program, *args = file.command([*file.arguments(point), "--print_config"])
        assert (env, program) == ("/usr/bin/env", "sf-fit")
        with pytest.raises(SystemExit) as exit_:
            parser.parse_args(["fit", *fit.expand_presets(fit.expand_configs(args))])
        assert exit_.value.code == 0
        said = yaml.safe_load(capsys.readouterr().out)
        layout = from_plain(Layout, said["model"]["layout"], "layout")
        assert said["data"]["pack_frames"] % layout.block_size == 0
        assert layout.block_size % said["model"]["dit"].get("frames_per_token", 4) == 0
        seen.add((layout, said.get("seed")))
    assert len(seen) == len(file.points), "two points are the same"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_as_wandb_documents_it_and_its_agent_would_run_the_same_command(path: Path) -> None:
    content = load_sweep_config(str(path))
    assert content is not None
    # docs.wandb.ai/models/sweeps/sweep-config-keys: what is required, and what there is.
    assert {"program", "method", "parameters"} <= content.keys()
    assert content.keys() <= {
        *("program", "entity", "project", "description", "name", "method", "metric", "parameters"),
        *("early_terminate", "command", "run_cap"),
    }
    assert content["method"] in ("grid", "random", "bayes")
    assert content["metric"].keys() <= {"name", "goal", "target"}
    assert content["metric"]["goal"] in ("minimize", "maximize")
    assert all(spec.keys() in ({"value"}, {"values"}) for spec in content["parameters"].values())
    file = SweepFile.read(path)
    assert file.points
    for point in file.points:
        values = file.constants | point
        args = create_sweep_command_args({"args": {n: {"value": values[n]} for n in content["parameters"]}})
        macros = {"env": ["/usr/bin/env"], "program": [content["program"]], "args": args["args"]}
        agents = []
        for each in create_sweep_command(list(content["command"])):
            agents += macros[each[2:-1]] if each.startswith("${") else [each]
        assert agents == file.command(file.arguments(point))


def test_presets_and_numbers_of_layers_are_both_swept() -> None:
    layouts = SweepFile.read(next(path for path in FILES if path.stem == "mask_layouts")).points
    assert layouts is not None
    assert {point["model.layout"] for point in layouts} > Layout.presets().keys()
    assert any("placement" in each["model.layout"] for each in layouts)


@pytest.mark.parametrize(
    ("spec", "wanted"),
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
def test_a_parameter_is_drawn_as_wandb_says(spec: dict[str, Any], wanted: Any) -> None:
    file = SweepFile(Path("f"), GRID | {"method": "random", "parameters": {"a": spec, "b": {"value": 3}}})
    assert file.distributions == {"a": wanted} and file.constants == {"b": 3}


def test_a_grid_has_all_points_with_steps_and_integers_too() -> None:
    parameters = {
        "a": {"min": 1, "max": 2},
        "b": {"min": 0.0, "max": 0.5, "q": 0.25, "distribution": "q_uniform"},
        "c": {"value": 7},
    }
    file = SweepFile(Path("f"), GRID | {"parameters": parameters})
    assert file.points == [{"a": a, "b": b} for a in (1, 2) for b in (0.0, 0.25, 0.5)]
    assert file.arguments(file.points[1]) == ["--a=1", "--b=0.25", "--c=7"]


def test_the_rungs_of_hyperband_are_those_of_wandb() -> None:
    # min_iter * eta^k; or, from the end, max_iter / eta^s as the first.
    for early, first in (({"min_iter": 2}, 2), ({"max_iter": 27, "s": 2}, 3), ({"min_iter": 1, "eta": 4}, 1)):
        pruner = SweepFile(Path("f"), GRID | {"early_terminate": {"type": "hyperband", **early}}).pruner
        assert isinstance(pruner, SuccessiveHalvingPruner)
        assert (pruner._min_resource, pruner._reduction_factor) == (first, early.get("eta", 3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "genetic"}, "method is genetic: wanted grid, random, bayes"),
        ({"methd": "grid"}, "methd is unknown"),
        ({"metric": None}, "wanted a metric with a name"),
        ({"metric": {"name": "a", "goal": "up"}}, "metric.goal is up"),
        ({"metric": {"name": "a", "target": 1}}, "metric.target is unknown"),
        ({"parameters": {}}, "wanted parameters"),
        ({"parameters": {"a": {"min": 0.0, "max": 1.0}}}, "method is grid, but a has no steps"),
        (
            {"parameters": {"a": {"distribution": "beta"}}},
            "distribution beta is unknown: wanted constant, categorical",
        ),
        ({"parameters": {"a": {"distribution": "uniform", "min": 0}}}, "says distribution, min: wanted max, min"),
        ({"parameters": {"a": {"min": 2, "max": 1}}}, "min 2 and max 1 leave nothing"),
        ({"parameters": {"a": {"min": "1e-5", "max": 1}}}, "YAML wants 1.0e-4"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}}}, "nested names are written a.b"),
        ({"early_terminate": {"type": "envelope"}}, "wanted type hyperband"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, "wanted min_iter"),
        ({"command": ["${program}"]}, "wanted \\${args} in it"),
        ({"command": ["${args_json}", "${args}"]}, "command has \\${args_json}: wanted"),
        ({"program": None}, "and program if named"),
    ],
)
def test_what_is_not_known_is_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SweepFile(Path("f.yaml"), GRID | change)
