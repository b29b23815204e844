"""Reads and checks W&B's sweep files: which trials there are and which command runs one.

Keys mean what W&B documents (docs.wandb.ai/models/sweeps/sweep-config-keys); any other key or value is refused.
"""

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sf_lightning.files.yaml_files import read_yaml

DEFINITION = ("command", "early_terminate", "method", "metric", "parameters", "program")
"""Keys that define a sweep: a folder accepts only workers with the same values."""
KEYS = (*DEFINITION, "name", "description", "project", "entity", "run_cap")
METHODS = ("grid", "random", "bayes")
DISTRIBUTIONS = {
    "constant": {"value"},
    "categorical": {"values"},
    "int_uniform": {"min", "max"},
    "uniform": {"min", "max"},
    "q_uniform": {"min", "max", "q"},
    "log_uniform_values": {"min", "max"},
}
"""Distributions of a parameter and the keys that each of them requires."""
MAX_POINTS = 100_000
"""Largest number of points of a grid."""
DEFAULT_COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving (arXiv 1810.05934), which W&B calls hyperband with one bracket.

    Attributes:
        first: Number of logged values of the metric at the first rung.
        eta: Rung k is at `first * eta**k` values; about one trial in `eta` continues past each rung.
    """

    first: int
    eta: int

    def keeps(self, value: float, others: Sequence[float], maximize: bool) -> bool:
        """Returns whether a trial with this value at a rung continues, given the values of others at the rung."""
        ranked = sorted((value, *others), reverse=maximize)
        worst = ranked[max(len(ranked) // self.eta, 1) - 1]
        return value >= worst if maximize else value <= worst


class SweepFile:
    """A W&B sweep file, read and checked.

    Args:
        path: Path of the file.

    Attributes:
        definition: Values of the keys in `DEFINITION`.
        name: Name of the sweep and of its group of W&B runs.
        method: How points are chosen: "grid", "random" or "bayes".
        metric: Name of the metric whose last logged value is a trial's result.
        maximize: Whether larger values of the metric are better.
        run_cap: Number of trials, if the file limits it.
        constants: Values of the parameters that are the same in all trials.
        distributions: Distributions of the other parameters.
        halving: Rule that ends trials early (`early_terminate`), if any.
        points: All points of a grid, the last parameter varying fastest; None for the other methods.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not YAML, or has keys or values that `sf-sweep` does not support.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_yaml(path)
        try:
            self._parse(content)
            self.command([])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _parse(self, content: Any) -> None:
        _require(isinstance(content, dict), "it is no mapping", "keys and values, as in W&B's sweep files")
        for key in content:
            _require(key in KEYS, f"{key} is not a key of a sweep file", ", ".join(KEYS))
        self.definition: dict[str, Any] = {key: content.get(key) for key in DEFINITION}
        self.name = str(content.get("name") or self.path.stem)
        self.method, self.run_cap, metric = content.get("method"), content.get("run_cap"), content.get("metric")
        _require(self.method in METHODS, f"method is {self.method}", ", ".join(METHODS))
        counts = self.run_cap is None or (type(self.run_cap) is int and self.run_cap >= 1)
        _require(counts, f"run_cap is {self.run_cap!r}", "a number of trials")
        named = isinstance(metric, dict) and isinstance(metric.get("name"), str)
        _require(named, f"metric is {metric}", "a name, such as streamed_within_500_ms/stoi")
        for key in metric:
            _require(key in ("name", "goal"), f"metric.{key} is not supported", "name and goal")
        self.metric, goal = metric["name"], metric.get("goal", "minimize")
        _require(goal in ("minimize", "maximize"), f"metric.goal is {goal}", "minimize or maximize")
        self.maximize = goal == "maximize"
        command, parameters = content.get("command") or DEFAULT_COMMAND, content.get("parameters")
        _require(isinstance(command, list), f"command is {command!r}", "a list of words")
        self._words = [str(word) for word in command]
        some = isinstance(parameters, dict) and parameters
        _require(some, f"parameters is {parameters!r}", "names, each with a value, values, or min and max")
        specs = {name: _parameter(name, spec) for name, spec in parameters.items()}
        self.constants = {name: spec["value"] for name, spec in specs.items() if "value" in spec}
        self.distributions = {name: _distribution(spec) for name, spec in specs.items() if "value" not in spec}
        self.halving = _halving(content.get("early_terminate"))
        self.points: list[dict[str, Any]] | None = None
        if self.method == "grid":
            axes = [_grid_values(name, distribution) for name, distribution in self.distributions.items()]
            count = math.prod(map(len, axes))
            _require(count <= MAX_POINTS, f"the grid has {count} points", f"at most {MAX_POINTS}")
            self.points = [dict(zip(self.distributions, point, strict=True)) for point in product(*axes)]

    def arguments(self, point: Mapping[str, Any]) -> list[str]:
        """Returns the arguments of a trial at a point: `--name=value` in the order of the file."""
        values = {**self.constants, **point}
        return [
            f"--{name}={'null' if values[name] is None else values[name]}" for name in self.definition["parameters"]
        ]

    def contains(self, point: Mapping[str, Any]) -> bool:
        """Returns whether a trial of this sweep may have these parameters."""
        if self.points is not None:
            return repr(dict(point)) in map(repr, self.points)  # where 1 is not True
        axes = self.distributions
        return point.keys() == axes.keys() and all(_contains(axes[name], value) for name, value in point.items())

    def command(self, args: Sequence[str]) -> list[str]:
        """Returns the command line of a trial, as W&B's agent builds it; `args` replace `${args}`.

        Raises:
            ValueError: if the command has an unknown macro, no `${args}`, or `${program}` and the file no program.
        """
        program, words = self.definition["program"], self._words
        macros = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": [sys.executable],
            "${program}": [str(program)],
            "${args}": list(args),
        }
        complete = "${args}" in words and (program or "${program}" not in words)
        _require(complete, f"command is {' '.join(words)}", "${args} in it, and the key program for ${program}")
        line: list[str] = []
        for word in words:
            plain = re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda name: os.environ.get(name[1], name[1]), word)
            known = word in macros or not re.fullmatch(r"\$\{.*\}", plain)
            _require(known, f"command has {word}", f"{', '.join(macros)} or ${{envvar:NAME}}")
            line += macros.get(word, [plain])
        return line


def _require(condition: object, found: str, expected: str) -> None:
    if not condition:
        raise ValueError(f"{found}; expected {expected}")


def _parameter(name: str, given: Any) -> dict[str, Any]:
    """Returns a parameter's keys, checked, with the distribution that W&B infers where none is named."""
    flat = isinstance(given, dict) and "parameters" not in given
    _require(flat, f"{name} is {given}", "value, values, or min and max; nested names are written a.b")
    integers = all(isinstance(given.get(key), int) for key in ("min", "max"))
    inferred = "categorical" if "values" in given else "int_uniform" if integers else "uniform"
    kind = given.get("distribution", "constant" if "value" in given else inferred)
    _require(kind in DISTRIBUTIONS, f"{name}.distribution is {kind}", ", ".join(DISTRIBUTIONS))
    spec = {"q": 1} | given if kind == "q_uniform" else given
    keys, required = ", ".join(given) or "no keys", DISTRIBUTIONS[kind]
    _require(spec.keys() - {"distribution"} == required, f"{name} ({kind}) has {keys}", ", ".join(sorted(required)))
    if "min" in spec:
        bounds = [spec[key] for key in ("min", "max", "q") if key in spec]
        numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds)
        _require(numbers, f"{name} has bounds {bounds}", "numbers (in YAML 1.0e-4, not 1e-4)")
        low, (least, most) = 0 if kind == "log_uniform_values" else -float("inf"), bounds[:2]
        _require(low < least <= most, f"{name} has min {least} and max {most}", f"{low} < min <= max")
    if "values" in spec:
        some = isinstance(spec["values"], list) and spec["values"]
        _require(some, f"{name}.values is {spec['values']!r}", "a list")
    return {**spec, "distribution": kind}


def _distribution(spec: Mapping[str, Any]) -> BaseDistribution:
    """Returns the Optuna distribution of a parameter that is not constant."""
    if "values" in spec:
        # Lists become text: that is what the command line gets, and Optuna accepts scalars only.
        scalars = (bool, int, float, str, type(None))
        choices = [value if isinstance(value, scalars) else str(value) for value in spec["values"]]
        return CategoricalDistribution(choices)
    kind, step = spec["distribution"], spec.get("q")
    if kind == "int_uniform" or (step and all(isinstance(spec[key], int) for key in ("min", "max", "q"))):
        return IntDistribution(spec["min"], spec["max"], step=step or 1)
    return FloatDistribution(spec["min"], spec["max"], step=step, log=kind == "log_uniform_values")


def _contains(distribution: BaseDistribution, value: object) -> bool:
    """Returns whether a value may be drawn from a distribution, up to rounding to its steps."""
    if isinstance(distribution, CategoricalDistribution):
        return any(type(value) is type(choice) and value == choice for choice in distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    is_number = type(value) in ((int,) if isinstance(distribution, IntDistribution) else (int, float))
    return is_number and distribution.low <= value <= distribution.high  # type: ignore[operator]


def _grid_values(name: str, distribution: BaseDistribution) -> Sequence[Any]:
    """Returns all values of a grid's parameter."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if step is None:
        raise ValueError(f"method is grid but {name} is continuous; expected values, or q_uniform with a q")
    count = round((high - low) / step) + 1
    _require(count <= MAX_POINTS, f"{name} has {count} values", f"at most {MAX_POINTS} in a grid")
    return [low + i * step for i in range(count)]


def _halving(early: Any) -> Halving | None:
    """Returns the rule of `early_terminate`; its first rung is at min_iter or at max_iter / eta^s values."""
    if early is None:
        return None
    hyperband = isinstance(early, dict) and early.get("type") == "hyperband"
    _require(hyperband, f"early_terminate is {early}", "type hyperband")
    given = {"eta": 3} | {key: value for key, value in early.items() if key != "type"}
    valid = given.keys() - {"eta"} in ({"min_iter"}, {"max_iter", "s"}) and all(
        type(given[key]) is int and given[key] >= 1 + (key == "eta") for key in given
    )
    expected = "integers: min_iter, or max_iter and s; eta is 2 or more (default 3)"
    _require(valid, f"early_terminate is {early}", expected)
    first = given["min_iter"] if "min_iter" in given else given["max_iter"] // given["eta"] ** given["s"]
    return Halving(max(1, first), given["eta"])
