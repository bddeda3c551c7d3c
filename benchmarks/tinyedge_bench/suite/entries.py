"""What suite.toml says: the models and the benchmarks of the project's own suite, and the commands they come to."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tinyedge_bench.results import RESULTS

_toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # tomli is what became tomllib

SUITE = RESULTS.parent / "suite.toml"

_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteModel:
    """A model of the suite. `shape` names the random checkpoint to make (`random_checkpoint.SHAPES`); None is the demo."""

    name: str
    about: str
    type_name: str
    shape: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A row of the suite. `command` and `python`, the interpreter that runs it, hold places in braces, see suite.toml."""

    name: str
    about: str
    runs: int
    command: tuple[str, ...]
    python: str = sys.executable

    @property
    def places(self) -> frozenset[str]:
        """The names in braces."""
        return frozenset(name for part in (self.python, *self.command) for name in _PLACE.findall(part))

    def arguments(self, values: Mapping[str, object]) -> list[str]:
        """The command as a process takes it. Raises KeyError for a place that has no value."""
        python, first, *rest = (_PLACE.sub(lambda match: str(values[match[1]]), part) for part in (self.python, *self.command))
        module = "tinyedge" if first == "tinyedge" else f"tinyedge_bench.suite.{first}"
        return [python, "-m", module, *rest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """All of suite.toml."""

    models: tuple[SuiteModel, ...]
    benchmarks: tuple[Benchmark, ...]

    def chosen(self, names: Sequence[str]) -> tuple[Benchmark, ...]:
        """The benchmarks of these names, all when there are none, in the suite's order."""
        return tuple(each for each in self.benchmarks if not names or each.name in names)

    def models_of(self, benchmark: Benchmark) -> tuple[SuiteModel, ...]:
        """The models that its command names, or whose checkpoint it names."""
        return tuple(each for each in self.models if {each.name, f"{each.name}_checkpoint"} & benchmark.places)

    def needs(self, benchmark: Benchmark) -> frozenset[str]:
        """The places that options fill: neither a model nor what the runner itself knows."""
        ours = {name for model in self.models for name in (model.name, f"{model.name}_checkpoint")}
        return benchmark.places - ours - {"runs", "name", "result"}


def read_suite(path: Path = SUITE) -> Suite:
    """The suite that the file describes; a mistake in it is ours, and raises KeyError or TypeError."""
    with path.open("rb") as file:
        table: dict[str, Any] = _toml.load(file)
    return Suite(
        models=tuple(
            SuiteModel(name=name, about=row["about"], type_name=row["type"], shape=row.get("shape"))
            for name, row in table["models"].items()
        ),
        benchmarks=tuple(
            Benchmark(name=name, **row | {"command": tuple(row["command"])}) for name, row in table["benchmarks"].items()
        ),
    )
