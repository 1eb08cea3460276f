"""The notebooks run in full, on small data; a real kernel shows live tables and has modules of a cell."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs jupyter's packages")
nbclient = pytest.importorskip("nbclient", reason="needs jupyter's packages")
pytest.importorskip("ipykernel", reason="needs jupyter's packages")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {
    "ECANET_NOTEBOOK_DATA": "digits",
    "ECANET_NOTEBOOK_EPOCHS": "1",
    "ECANET_NOTEBOOK_SEEDS": "1",
    "ECANET_NOTEBOOK_TRIALS": "2",
    "ECANET_NOTEBOOK_IMAGES": "16",
    "ECANET_NOTEBOOK_PRETRAINED": "0",
}


def run(notebook: Any, folder: Path) -> Any:
    """Run a notebook in a folder, and return it with its outputs."""
    nbclient.NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def outputs(cell: Any, kind: str) -> list[str]:
    """Return the outputs of a cell that are of a MIME type."""
    return [out["data"][kind] for out in cell.outputs if kind in out.get("data", {})]


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_in_full(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if file.stem == "detection":
        pytest.importorskip("faster_coco_eval")
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = run(nbformat.read(file, as_version=4), tmp_path)
    assert any(outputs(cell, "text/html") for cell in done.cells if cell.cell_type == "code")


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_what_is_committed_is_small_and_of_no_machine(file: Path) -> None:
    assert file.stat().st_size < 500_000
    text = file.read_text()
    assert not re.findall(r"/(?:tmp|home|root|work|Users)/[\w.]+", text)
    nbformat.validate(nbformat.reads(text, as_version=4))
    for line in nbformat.reads(text, as_version=4).cells:
        for target in re.findall(r"\]\((?!http)([^)#]+)", line.source):
            assert (file.parent / target).exists(), target


CELLS = [
    """
    import logging
    import torch
    import ecanet
    FACTOR = 2.0
    """,
    """
    def double(x):
        return FACTOR * x
    """,
    """
    @ecanet.register_attention("of_a_cell")
    class OfACell(torch.nn.Module):
        def __init__(self, channels: int, power: float = 1.0) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.zeros(channels, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return double(x) * self.scale.sigmoid()
    """,
    """
    study = ecanet.compare(
        "study", data="digits", epochs=1, batch_size=256, device="cpu", precision="float32",
        attention=["none", "of_a_cell"], seeds=1, jobs=2,
    )
    study
    """,
    "print(len(study.records), study.failed)",
]
AGAIN = [*CELLS[:2], CELLS[2].replace("self.scale.sigmoid()", "self.scale.tanh()"), CELLS[3]]


@pytest.mark.slow
def test_a_module_of_a_cell_trains_in_workers_and_may_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))

    def notebook(cells: list[str]) -> Any:
        code = [nbformat.v4.new_code_cell(textwrap.dedent(cell).strip()) for cell in cells]
        return nbformat.v4.new_notebook(cells=code)

    done = run(notebook(CELLS), tmp_path)
    live, shown = outputs(done.cells[3], "text/html")
    assert live.startswith("2 of 2 runs done, in ")
    assert "of_a_cell" in shown
    assert "Open the report" in shown
    assert done.cells[4].outputs[0]["text"] == "2 []\n"
    source = (tmp_path / "study/plugins/of_a_cell.py").read_text()
    for line in ("import torch as torch", "FACTOR = 2.0", "def double(x):", "class OfACell"):
        assert line in source
    assert "__name__" not in source
    again = run(notebook(CELLS), tmp_path)
    assert again.cells[4].outputs[0]["text"] == "2 []\n", "resumed, by another kernel"
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="of_a_cell has changed since"):
        run(notebook(AGAIN), tmp_path)
