"""The wheel and the source package: what is in them, and that the wheel works without the clone.

`make wheel` does so in an environment that has nothing else; here it has the packages of this one.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
pytest.importorskip("build")
pytest.importorskip("hatchling")


def command(*arguments: object, cwd: Path) -> str:
    """Run a command without what this environment adds to Python's path; return what it prints."""
    done = subprocess.run(
        [str(one) for one in arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the source package, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    command(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


def contents(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as file:
        return {one.filename: one.CRC for one in file.infolist()}


def test_what_is_in_the_wheel(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(contents(wheel))
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"ecanet"}
    tracked = subprocess.run(
        ["git", "ls-files", "ecanet"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "ecanet/py.typed" in names
    assert set(tracked) <= names, "recipes, templates and all else that the package reads"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_source_package_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")  # built from the source package
    command(
        sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, ROOT,
        cwd=tmp_path,
    )  # fmt: skip
    (direct,) = tmp_path.glob("*.whl")
    assert contents(direct) == contents(wheel)
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/test_package.py"} <= names


def test_the_metadata_is_valid(built: Path) -> None:
    pytest.importorskip("twine")
    command(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), cwd=built)


def test_the_wheel_works_in_an_empty_folder(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    empty, venv = tmp_path / "empty", tmp_path / "venv"
    empty.mkdir()
    command(sys.executable, "-m", "venv", "--without-pip", venv, cwd=empty)
    python = venv / "bin/python"
    command(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel,
        cwd=empty,
    )  # fmt: skip
    # All but ecanet itself is that of this environment.
    site = command(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=empty
    )
    Path(site.strip(), "rest.pth").write_text(sysconfig.get_path("purelib"))
    where = command(python, "-c", "import ecanet; print(ecanet.__file__)", cwd=empty)
    assert where.startswith(str(venv))
    assert command(venv / "bin/ecanet", "--version", cwd=empty).startswith("ecanet ")
    assert "eca" in command(venv / "bin/ecanet", "list", "attention", cwd=empty)
    page = command(
        venv / "bin/ecanet", "compare", "--recipe", "smoke/digits", "--epochs", 1, "--seeds", 1,
        "--attention", "none,eca", "--jobs", 1, "--out", "study", cwd=empty,
    )  # fmt: skip
    assert Path(empty, page.splitlines()[-1]).is_file()
