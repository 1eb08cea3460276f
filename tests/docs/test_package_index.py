"""The README as a package index shows it: links and pictures lead to the repository."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_links_and_pictures_are_absolute() -> None:
    pytest.importorskip("hatchling")
    pytest.importorskip("hatch_fancy_pypi_readme")
    markdown = pytest.importorskip("readme_renderer.markdown")
    command = [sys.executable, "-m", "hatchling", "metadata"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    metadata = json.loads(done.stdout)
    page = markdown.render(metadata["readme"]["text"])
    assert page
    found = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(found) > 20
    repository = metadata["urls"]["Repository"]
    for link in found:
        assert link.startswith(("https://", "#")), link
    assert sum(link.startswith(f"{repository}/") for link in found) > 10
