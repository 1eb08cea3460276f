"""Which packages are missing on a machine that has torch and little else, so that ecanet runs there.

    python benchmarks/gpu_wheels.py                # of a machine with BARE and what those need
    pip list --format freeze >there.txt            # on that machine
    python benchmarks/gpu_wheels.py --have there.txt

Prints a line NAME==VERSION for each, of the versions that are installed here: pure Python, which runs
anywhere; with --compiled those with compiled code too, for which pip must be told Python and platform. `make
gpu-wheels` downloads them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
BARE = ["torch", "torchvision", "timm", "triton", "numpy", "scipy", "pytest", "pytest-xdist"]
# Of the packages for development, what the tests on a device import.
TESTS = {"hypothesis", "pytest-timeout"}
# Reads videos and some images; its compiled code fits one version of torch.
NOT_NEEDED = {"torchcodec"}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> list[str]:
    """Return the requirements of ecanet, and of its tests on a device."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    of_tests = [
        line
        for line in project["optional-dependencies"]["dev"]
        if normalized(Requirement(line).name) in TESTS
    ]
    return [*project["dependencies"], *of_tests]


def with_all_they_need(requirements: Iterable[str], have: Collection[str] = ()) -> set[str]:
    """Return the names of packages and of all that they require in turn, as far as it is installed here.

    Those of ``have`` are left out, with what only they require: they work where they are.
    """
    found: set[str] = set()
    waiting = [Requirement(line) for line in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = normalized(requirement.name)
        if name in have:
            continue
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        for extra in ["", *requirement.extras]:
            if (name, extra) not in seen:
                seen.add((name, extra))
                needed = map(Requirement, lines)
                waiting += [
                    r for r in needed if r.marker is None or r.marker.evaluate({"extra": extra})
                ]
    return found


def is_pure(name: str) -> bool:
    wheel = importlib.metadata.distribution(name).read_text("WHEEL") or ""
    return "Root-Is-Purelib: true" in wheel


def missing(have: Iterable[str]) -> list[str]:
    """Return the packages that are needed where those of ``have`` are."""
    return sorted(with_all_they_need(required(), NOT_NEEDED | {normalized(name) for name in have}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--have", type=Path, help="file that lists that machine's packages")
    parser.add_argument("--compiled", action="store_true", help="list those with compiled code too")
    flags = parser.parse_args()
    if flags.have:
        have: Iterable[str] = re.findall(
            r"^\s*([A-Za-z][\w.-]*)", flags.have.read_text(), re.MULTILINE
        )
    else:
        have = with_all_they_need(BARE)
    wanted = missing(have)
    compiled = [name for name in wanted if not is_pure(name)]
    if compiled and not flags.compiled:
        print(f"with compiled code, not listed: {' '.join(compiled)}", file=sys.stderr)
        wanted = [name for name in wanted if name not in compiled]
    for name in wanted:
        print(f"{name}=={importlib.metadata.version(name)}")


if __name__ == "__main__":
    main()
