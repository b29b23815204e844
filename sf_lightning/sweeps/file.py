"""What is to be tried: the sweep file of W&B, read and checked. Knows nothing of how trials are run.

What `sf-sweep` does, it does as W&B documents it (docs.wandb.ai/models/sweeps/sweep-config-keys); all else is
refused.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

SAYS = {"name", "description", "project", "entity", "program", "command", "run_cap"}
DECIDES = {"method", "metric", "parameters", "early_terminate"}
METHODS = ("grid", "random", "bayes")
DISTRIBUTIONS = {
    "constant": {"value"},
    "categorical": {"values"},
    "int_uniform": {"min", "max"},
    "uniform": {"min", "max"},
    "q_uniform": {"min", "max", "q"},
    "log_uniform_values": {"min", "max"},
}
"""Kinds of parameters, and what each of them must say."""

DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")


@dataclass(frozen=True)
class SweepFile:
    """A sweep file of W&B.

    Args:
        path: Where it lies.
        content: What it says.

    Raises:
        ValueError: if it says what W&B does not document, or what `sf-sweep` cannot do.
    """

    path: Path
    content: Mapping[str, Any]

    def __post_init__(self) -> None:
        known = SAYS | DECIDES
        if unknown := [key for key in self.content if key not in known]:
            raise ValueError(f"{self.path}: {unknown[0]} is unknown: wanted {', '.join(sorted(known))}")
        if self.method not in METHODS:
            raise ValueError(f"{self.path}: method is {self.method}: wanted {', '.join(METHODS)}")
        metric = self.content.get("metric")
        if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
            raise ValueError(f"{self.path}: wanted a metric with a name, such as streamed_within_500_ms/stoi")
        if unknown := [key for key in metric if key not in ("name", "goal")]:
            raise ValueError(f"{self.path}: metric.{unknown[0]} is unknown to sf-sweep: wanted name and goal")
        if self.goal not in ("minimize", "maximize"):
            raise ValueError(f"{self.path}: metric.goal is {self.goal}: wanted minimize or maximize")
        cap = self.content.get("run_cap", 1)
        if type(cap) is not int or cap < 1:
            raise ValueError(f"{self.path}: run_cap is {cap!r}: wanted a number of trials, 1 or more")
        if not isinstance(self.content.get("command", []), list):
            raise ValueError(f"{self.path}: command is {self.content['command']!r}: wanted a list of words")
        if not isinstance(self.content.get("parameters"), dict) or not self.content["parameters"]:
            raise ValueError(f"{self.path}: wanted parameters, each with a value, values, or min and max")
        _ = self.points, self.distributions, self.pruner, self.command([])

    @staticmethod
    def read(path: Path) -> "SweepFile":
        """Reads a file.

        Raises:
            FileNotFoundError: if it is missing.
            ValueError: if it is no YAML; and as the class.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no sweep file {path}: those of this project are in experiments/sweeps")
        try:
            content = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path}: wanted names and values, as W&B's sweep files have them")
        return SweepFile(path, content)

    @property
    def name(self) -> str:
        """Of the sweep, and of its group of runs."""
        return str(self.content.get("name") or self.path.stem)

    @property
    def method(self) -> str:
        """How points are chosen."""
        return str(self.content.get("method"))

    @property
    def metric(self) -> str:
        """What a trial is judged by: the last value that it logs under this name."""
        return str(self.content["metric"]["name"])

    @property
    def goal(self) -> str:
        """Whether more of it is better, or less."""
        return str(self.content["metric"].get("goal", "minimize"))

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it another sweep if it changes; a plain value."""
        return {key: self.content.get(key) for key in sorted(DECIDES | {"program", "command"})}

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Parameters that are the same in all trials."""
        return {name: spec["value"] for name, spec in self._specs.items() if spec["distribution"] == "constant"}

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What the other parameters are drawn from."""
        return {name: _drawn(spec) for name, spec in self._specs.items() if spec["distribution"] != "constant"}

    @cached_property
    def points(self) -> list[dict[str, Any]] | None:
        """All points of a grid, the last parameter changing fastest; None of a sweep that draws them."""
        if self.method != "grid":
            return None
        axes = [self._axis(name, each) for name, each in self.distributions.items()]
        return [dict(zip(self.distributions, point, strict=True)) for point in product(*axes)]

    @property
    def corner(self) -> dict[str, Any]:
        """A point of the sweep: of each parameter the first value or the least."""
        return {
            name: getattr(each, "choices", [getattr(each, "low", None)])[0]
            for name, each in self.distributions.items()
        }

    def _axis(self, name: str, drawn: BaseDistribution) -> Sequence[Any]:
        if isinstance(drawn, CategoricalDistribution):
            return drawn.choices
        if isinstance(drawn, IntDistribution):
            return range(drawn.low, drawn.high + 1, drawn.step)
        assert isinstance(drawn, FloatDistribution)
        if drawn.step is None:
            raise ValueError(f"{self.path}: method is grid, but {name} has no steps: give it values, or a q")
        return [drawn.low + i * drawn.step for i in range(round((drawn.high - drawn.low) / drawn.step) + 1)]

    @cached_property
    def _specs(self) -> dict[str, dict[str, Any]]:
        return {name: self._spec(name, given) for name, given in self.content["parameters"].items()}

    def _spec(self, name: str, given: Any) -> dict[str, Any]:
        """A parameter with its distribution named, as W&B infers it."""
        if not isinstance(given, dict) or "parameters" in given:
            raise ValueError(
                f"{self.path}: {name}: wanted value, values, or min and max; nested names are written a.b"
            )
        bounds = [given.get(key) for key in ("min", "max")]
        whole = all(isinstance(each, int) for each in bounds)
        inferred = "constant" if "value" in given else "categorical" if "values" in given else None
        kind = given.get("distribution", inferred or ("int_uniform" if whole else "uniform"))
        if kind not in DISTRIBUTIONS:
            raise ValueError(
                f"{self.path}: {name}: distribution {kind} is unknown: wanted {', '.join(DISTRIBUTIONS)}"
            )
        says = {"q": 1} | given if kind == "q_uniform" else given
        if (wanted := DISTRIBUTIONS[kind]) != says.keys() - {"distribution"}:
            said = ", ".join(given) or "nothing"
            raise ValueError(f"{self.path}: {name} ({kind}) says {said}: wanted {', '.join(sorted(wanted))}")
        numbers = [says[key] for key in ("min", "max", "q") if key in says]
        if any(not isinstance(each, int | float) or isinstance(each, bool) for each in numbers):
            raise ValueError(f"{self.path}: {name}: {numbers} are not all numbers (YAML wants 1.0e-4, not 1e-4)")
        low = 0 if kind == "log_uniform_values" else -float("inf")
        if "min" in says and not low < says["min"] <= says["max"]:
            raise ValueError(
                f"{self.path}: {name}: min {says['min']} and max {says['max']} leave nothing to draw from"
            )
        if kind == "categorical" and (not isinstance(says["values"], list) or not says["values"]):
            raise ValueError(f"{self.path}: {name}: values is {says['values']!r}: wanted a list")
        return {**says, "distribution": kind}

    @cached_property
    def pruner(self) -> BasePruner:
        """What ends trials early; it counts how often the metric was logged.

        W&B's hyperband is one bracket, whose rungs lie at min_iter * eta^k: successive halving.
        """
        if (early := self.content.get("early_terminate")) is None:
            return NopPruner()
        counts = {"min_iter", "max_iter", "s", "eta"}
        forms = ({"min_iter"}, {"max_iter", "s"})
        if not isinstance(early, dict) or early.get("type") != "hyperband":
            raise ValueError(f"{self.path}: early_terminate is {early}: wanted type hyperband")
        if early.keys() - {"type", "eta"} not in forms or not all(
            type(early[key]) is int and early[key] >= 1 + (key == "eta") for key in counts & early.keys()
        ):
            raise ValueError(
                f"{self.path}: early_terminate is {early}: wanted min_iter, or max_iter and s, and eta from 2 up "
                "(3 by default), all whole numbers"
            )
        eta = early.get("eta", 3)
        first = early["min_iter"] if "min_iter" in early else early["max_iter"] // eta ** early["s"]
        return SuccessiveHalvingPruner(min_resource=max(1, first), reduction_factor=eta)

    def sampler(self, number: int) -> BaseSampler:
        """What draws the point of a trial, which follows from its number and, for bayes, what is known by then."""
        if self.method == "bayes":
            return TPESampler(seed=number, constant_liar=True)
        return RandomSampler(seed=number)

    def command(self, args: Sequence[str]) -> list[str]:
        """Returns the command of a trial, as W&B's agent makes it.

        Args:
            args: What stands for `${args}`.

        Raises:
            ValueError: if it has macros that are not known, or none for the arguments.
        """
        macros = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": [sys.executable],
            "${program}": [str(self.content.get("program", ""))],
            "${args}": list(args),
        }
        said = [str(each) for each in self.content.get("command") or DEFAULT_COMMAND]
        if "${args}" not in said or ("${program}" in said and not self.content.get("program")):
            raise ValueError(
                f"{self.path}: command is {' '.join(said)}: wanted ${{args}} in it, and program if named"
            )
        done: list[str] = []
        for each in said:
            plain = re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda found: os.environ.get(found[1], found[1]), each)
            if each not in macros and re.fullmatch(r"\$\{.*\}", plain):
                raise ValueError(f"{self.path}: command has {each}: wanted {', '.join(macros)} or ${{envvar:NAME}}")
            done += macros.get(each, [plain])
        return done

    def arguments(self, drawn: Mapping[str, Any]) -> list[str]:
        """Returns the arguments of a trial that say its point, in the order of the file.

        Args:
            drawn: Values of the parameters that are not the same in all trials.
        """
        values = self.constants | dict(drawn)
        return [f"--{name}={values[name]}" for name in self.content["parameters"]]


def _drawn(spec: Mapping[str, Any]) -> BaseDistribution:
    """Optuna's distribution for a parameter whose distribution is named."""
    kind = spec["distribution"]
    if kind == "categorical":
        # What a command line is told: a list has no other form there.
        scalars = (bool, int, float, str, type(None))
        return CategoricalDistribution(
            [each if isinstance(each, scalars) else str(each) for each in spec["values"]]
        )
    if kind == "int_uniform":
        return IntDistribution(spec["min"], spec["max"])
    step = spec.get("q")
    if step is not None and all(isinstance(spec[key], int) for key in ("min", "max", "q")):
        return IntDistribution(spec["min"], spec["max"], step=step)
    return FloatDistribution(spec["min"], spec["max"], step=step, log=kind == "log_uniform_values")
