"""timm's own tests of models, on the smallest of ours; `make timm-tests` runs them on all."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_timms_tests_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = importlib.import_module("timm_tests")
    assert {"eca_resnet18", "eca_resnet152", "eca_mobilenet_v2"} <= script.ours()
    try:
        script.sources()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"timm's sources cannot be downloaded: {error}")
    command = [sys.executable, script.__file__, "-k", "eca_resnet18 or eca_mobilenet_v2"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    passed = re.search(r"^(\d+) passed", run.stdout, re.MULTILINE)
    assert passed, run.stdout
    assert int(passed[1]) >= 15
