"""Run timm's own tests of models on the models that ecanet registers with it.

    python benchmarks/timm_tests.py [-k eca_resnet18 ...]

timm's sources of the installed version are downloaded from PyPI, with tests/test_models.py, whose tests are
of every name in timm's registry: ours are added to it, and all others left out. Arguments are pytest's.
The exit status is pytest's; what is left out by timm's own limits on the size of models counts as skipped.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm

import ecanet.models  # noqa: F401  # registers our models before timm's tests list all

SOURCES = Path(__file__).parents[1] / "build" / "timm"


def ours() -> set[str]:
    """Return the names in timm's registry that ecanet has added."""
    return {
        name
        for name in timm.list_models()
        if timm.model_entrypoint(name).__module__.startswith("ecanet.")
    }


def sources() -> Path:
    """Return the folder of timm's sources, downloaded if it is not there."""
    name = f"timm-{timm.__version__}"
    archive = SOURCES / f"{name}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary"]
        command += [":all:", f"timm=={timm.__version__}", "--dest", str(SOURCES)]
        subprocess.run(command, check=True)
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(SOURCES)
    return SOURCES / name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of our models."""
    names = ours()
    kept = [
        item
        for item in items
        if getattr(item, "callspec", None) and item.callspec.params.get("model_name") in names  # type: ignore[attr-defined]
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def main() -> int:
    """Run the tests with the command line's arguments."""
    folder = sources()
    arguments = ["-c", str(folder / "pyproject.toml"), "--rootdir", str(folder), "-q", "-rs"]
    tests = str(folder / "tests" / "test_models.py")
    return pytest.main([*arguments, tests, *sys.argv[1:]], plugins=[sys.modules[__name__]])


if __name__ == "__main__":
    sys.exit(main())
