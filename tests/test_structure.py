"""The house: imports run one way, without circles, and every import has its declared dependency."""

from __future__ import annotations

import ast
import functools
import itertools
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from ecanet.attention import operators

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ecanet"

# From the ground up: what stands in a line imports nothing of the lines below it. A name is that of a file
# or of a package with all that is in it.
LAYERS = [
    "errors activity",
    "children network redaction signals typed aliases",
    "files yaml_file frames notebook",
    "config record environment heap inputs names",
    "metrics statistics",
    "predictions",
    "attention",
    "plugins",
    "recipe_file",
    "data",
    "models",
    "training",
    "detection",
    "profiling export explain",
    "integrations",
    "experiments.study",
    "experiments.plans",
    "experiments.analysis",
    "experiments.report",
    "experiments.costs experiments.controls experiments.result experiments.live",
    "experiments.evaluate experiments.predict",
    "experiments.explain experiments.run",
    "experiments.compare",
    "experiments.sweep experiments.cells experiments.dryrun",
    "experiments.publish",
    "cli",
]


@functools.cache
def modules() -> dict[str, Path]:
    """Return every module of the package but those that are packages' doors, and its file."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__"):
            found[".".join(parts)] = file
    return found


def imports(name: str, lazy: bool) -> Iterator[str]:
    """Yield what a module imports at its head, or with ``lazy`` anywhere; not for types alone."""
    tree = ast.parse(modules()[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    nodes = ast.walk(tree) if lazy else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ["ecanet", *name.split(".")[: -node.level]] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@functools.cache
def graph(lazy: bool) -> dict[str, set[str]]:
    """Return which modules of ours each module imports."""
    known = modules()
    found: dict[str, set[str]] = {name: set() for name in known}
    for name in known:
        for imported in imports(name, lazy):
            if not imported.startswith("ecanet."):
                continue
            inner = imported.removeprefix("ecanet.")
            target = inner if inner in known else inner.rpartition(".")[0]
            if target in known and target != name:
                found[name].add(target)
    return found


def layer(name: str) -> int:
    for number, names in enumerate(LAYERS):
        if any(name == one or name.startswith(f"{one}.") for one in names.split()):
            return number
    raise AssertionError(f"{name} stands in no layer")


def test_no_circles_among_files() -> None:
    try:
        list(TopologicalSorter(graph(lazy=False)).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_imports_run_downwards() -> None:
    upwards = [
        f"{name} imports {target}"
        for name, targets in graph(lazy=True).items()
        for target in sorted(targets)
        if layer(target) > layer(name)
    ]
    assert not upwards


def test_attention_stands_alone() -> None:
    inside = {name for name in modules() if name.startswith("attention.")}
    for name in inside:
        assert graph(lazy=True)[name] <= inside | {"errors", "plugins"}, name


def test_no_function_has_over_twelve_parameters() -> None:
    long = []
    for name, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                count = len([a for a in arguments if a.arg not in ("self", "cls")])
                kernel = any(
                    "jit" in ast.dump(one) or "_kernel" in ast.dump(one)
                    for one in node.decorator_list
                )
                # An operator of torch takes each tensor by itself.
                kernel = kernel or node.name in operators.SCHEMAS
                if count > 12 and not kernel:
                    long.append(f"{name}.{node.name}: {count}")
    assert not long


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def normalized(lines: list[str]) -> set[str]:
    """Return the names of the packages that lines of requirements are of."""
    return {re.split(r"[^\w-]", line)[0].lower().replace("_", "-") for line in lines}


@functools.cache
def declared() -> set[str]:
    """Return the packages that the project declares, extras included."""
    extras = project()["optional-dependencies"].values()
    return normalized([*project()["dependencies"], *itertools.chain(*extras)])


def test_every_import_is_declared_and_every_dependency_imported() -> None:
    homes = packages_distributions()
    used: dict[str, list[str]] = {}
    missing = []
    for name in modules():
        for imported in imports(name, lazy=True):
            top = imported.partition(".")[0]
            if top in sys.stdlib_module_names or top in (
                "ecanet",
                "triton",
            ):  # Triton comes with torch
                continue
            found = [home.lower().replace("_", "-") for home in homes.get(top, [top])]
            used[top] = found
            if not set(found) & declared():
                missing.append(f"{top} in {name}")
    assert not missing
    plain = normalized(project()["dependencies"])
    assert plain <= {home for homes in used.values() for home in homes}, (
        "declared, and imported nowhere"
    )
