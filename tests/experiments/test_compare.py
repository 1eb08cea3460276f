import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import filelock
import pytest
from PIL import Image

import ecanet
from ecanet.config import Augmentation, RunSettings, StudySettings
from ecanet.errors import UserError
from ecanet.experiments.single import train_one
from ecanet.experiments.study.study import load_study, summarise
from ecanet.models import attention_modules, built_in_attention
from ecanet.models.weights.load import build_from_weights

SETTINGS = RunSettings(
    epochs=1,
    batch_size=256,
    device="cpu",
    precision="float32",
    augmentation=Augmentation(flip=False, crop_padding=1),
)
COMMAND = [
    sys.executable, "-m", "ecanet", "compare", "--attention", "none,eca", "--seeds", "2",
    "--epochs", "2", "--batch-size", "256", "--device", "cpu", "--precision", "float32",
    "--augmentation.flip", "false",
]  # fmt: skip


def outcome(folder: Path) -> dict[tuple[str, int], list[float]]:
    """Every run's validation losses and its test loss."""
    records = summarise(folder).records
    return {
        (r.attention, r.seed): [e.val_loss for e in r.epochs] + [r.final.test_loss]  # type: ignore[union-attr]
        for r in records
    }


def test_one_call_from_data_to_report(tmp_path: Path) -> None:
    news: list[str] = []
    study = StudySettings(attention=["none", "eca"], seeds=2)
    summary = ecanet.compare(tmp_path / "study", SETTINGS, study, say=news.append)
    assert {(r.attention, r.seed) for r in summary.records} == {
        ("none", 0), ("none", 1), ("eca", 0), ("eca", 1),
    }  # fmt: skip
    assert summary.settings["precision"] == "float32"
    assert summary.settings["compile"] == "off", "auto is resolved"
    assert [c.attention for c in summary.costs] == ["none", "eca"]
    assert summary.costs[1].parameters - summary.costs[0].parameters == 27
    assert sum("validation" in line for line in news) == 4
    page = (tmp_path / "study/report/index.html").read_text()
    assert "eca" in page
    report = json.loads((tmp_path / "study/report/report.json").read_text())
    assert report

    # Again: nothing is trained, nothing changes. With one more seed: one more run each.
    before = outcome(tmp_path / "study")
    news.clear()
    ecanet.compare(tmp_path / "study", SETTINGS, study, say=news.append)
    assert not any("validation" in line for line in news)
    assert outcome(tmp_path / "study") == before
    ecanet.compare(tmp_path / "study", SETTINGS, replace(study, seeds=3), say=news.append)
    assert sum("validation" in line for line in news) == 2
    after = outcome(tmp_path / "study")
    assert {run: after[run] for run in before} == before

    with pytest.raises(UserError, match="epochs: 1 there, 2 asked"):
        ecanet.compare(tmp_path / "study", replace(SETTINGS, epochs=2), study)
    assert outcome(tmp_path / "study") == after


def test_ones_own_module_from_a_file(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import torch\n"
        "from ecanet.attention import register_attention\n\n"
        "@register_attention('halve')\n"
        "class Halve(torch.nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.full((channels, 1, 1), 0.5))\n"
        "    def forward(self, x):\n"
        "        return x * self.scale\n"
    )
    study = StudySettings(attention=["none", "halve"], seeds=1, plugin=[str(plugin)])
    summary = ecanet.compare(tmp_path / "study", SETTINGS, study)
    assert len(summary.records) == 2
    assert summary.costs[1].attention_parameters == 3 * (16 + 32 + 64)


def test_a_module_that_fails_in_the_model_stops_before_the_first_run(tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        "import torch\n"
        "from ecanet.attention import register_attention\n\n"
        "@register_attention('broken')\n"
        "class Broken(torch.nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        return x[:, :3] * 2\n"
    )
    study = StudySettings(attention=["none", "broken"], seeds=1, plugin=[str(plugin)])
    with pytest.raises(UserError, match="broken fails in resnet20") as error:
        ecanet.compare(tmp_path / "study", SETTINGS, study)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("attention", ["srm", "ge"])
def test_one_image_a_step_is_refused_before_the_first(attention: str, tmp_path: Path) -> None:
    study = StudySettings(attention=["none", attention], seeds=1)
    with pytest.raises(UserError, match="one image a step is too few for") as error:
        ecanet.compare(tmp_path / "study", replace(SETTINGS, batch_size=1), study)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "study").exists()


def lopsided(root: Path) -> Path:
    """Images of 8 pixels, 207 to train on, three quarters of the test split of one class."""
    for split, counts in (("train", (150, 80)), ("test", (30, 10))):
        for label, count in zip("ab", counts, strict=True):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                color = (i % 7, i % 5, i % 3)
                Image.new("RGB", (8, 8), color).save(root / split / label / f"{i}.png")
    return root


def test_what_a_comparison_cannot_show_is_said_first(tmp_path: Path) -> None:
    """A gate in every arm, an epoch of one step, accuracies of a mere guess: line, record, report."""
    settings = replace(
        SETTINGS,
        data=str(lopsided(tmp_path / "data")),
        batch_size=128,
        model="mobilenetv3_small_050",
    )
    news: list[str] = []
    study = StudySettings(["none", "eca"], seeds=1)
    summary = ecanet.compare(tmp_path / "study", settings, study, jobs=1, say=news.append)
    first = next(i for i, line in enumerate(news) if line.startswith("[1/2]"))
    before = "\n".join(news[:first])
    assert (
        "mobilenetv3_small_050, has 9 SE modules of its own in every arm, none included" in before
    )
    assert "with --replace-attention it takes their places" in before
    assert "an epoch is 1 step: 207 training images in batches of 128" in before
    assert "--batch-size 16 makes it 12 steps" in before
    assert "would be right for 75.00 % of the test split" in before
    assert [record.built_in for record in summary.records] == [{"SE": 9}] * 2
    report = json.loads((tmp_path / "study/report/report.json").read_text())
    assert report["majority_share"] == 0.75
    assert report["built_in_attention"] == {"SE": 9}
    assert report["notices"] == news[-3:]
    assert "No accuracy is better than that of one answer" in report["notices"][2]
    page = (tmp_path / "study/report/index.html").read_text()
    assert page.index("Know this first") < page.index("9 SE modules") < page.index(">Answer<")
    assert "75.00\xa0% of the test split" in page


def test_built_in_attention_replaced(tmp_path: Path) -> None:
    settings = replace(
        SETTINGS,
        data=str(lopsided(tmp_path / "data")),
        batch_size=64,
        model="mobilenetv3_small_050",
        replace_attention=True,
    )
    news: list[str] = []
    record = train_one(tmp_path / "run", settings, "eca", say=news.append)
    assert any("is without its own 9 SE modules" in line for line in news)
    assert record.built_in == {}
    assert record.settings["replace_attention"] is True
    model = build_from_weights(tmp_path / "run/best.safetensors")
    assert len(attention_modules(model)) == 9
    assert built_in_attention(model) == {}
    with pytest.raises(UserError, match="no attention module but the one"):
        train_one(tmp_path / "other", replace(settings, model="resnet20"), "eca")


def test_a_run_that_fails_is_named_and_tried_again(tmp_path: Path) -> None:
    """A module that breaks later, in some runs only: the others end, and the next call mends it."""
    plugin = tmp_path / "later.py"
    switch = tmp_path / "switch"
    plugin.write_text(
        "import os, torch\n"
        "from ecanet.attention import register_attention\n\n"
        "@register_attention('later')\n"
        "class Later(torch.nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        f"        if len(x) == 143 and os.path.exists({str(switch)!r}):\n"
        "            raise RuntimeError('first line\\nsecond line')\n"
        "        return x\n"
    )
    switch.touch()
    study = StudySettings(attention=["none", "later"], seeds=1, plugin=[str(plugin)])
    summary = ecanet.compare(tmp_path / "study", SETTINGS, study)
    assert [r.attention for r in summary.records] == ["none"]
    assert summary.failed == [
        {"attention": "later", "seed": 0, "error": "RuntimeError: first line second line"}
    ]
    assert "second line" in (tmp_path / "study/runs/later-seed0/error.txt").read_text()
    switch.unlink()
    summary = ecanet.compare(tmp_path / "study", SETTINGS, study)
    assert len(summary.records) == 2
    assert summary.failed == []


def test_two_commands_on_one_folder(tmp_path: Path) -> None:
    study = StudySettings(attention=["none"], seeds=1)
    ecanet.compare(tmp_path, SETTINGS, study)
    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(UserError, match="another process works on"),
    ):
        ecanet.compare(tmp_path, SETTINGS, replace(study, seeds=2))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_and_ctrl_c_lose_at_most_an_epoch(tmp_path: Path) -> None:
    """The command is killed or interrupted again and again; what comes out is what would have."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*COMMAND, "--out", str(whole)], check=True, capture_output=True)
    chance = random.Random(0)
    for attempt in range(30):
        process = subprocess.Popen(
            [*COMMAND, "--out", str(cut)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        # Let it get into a run: two more epochs than before, or the end.
        before = _epochs(cut)
        while process.poll() is None and _epochs(cut) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.random() * 0.3)
        process.send_signal(signal.SIGKILL if attempt % 2 else signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert "Traceback" not in err
        if process.returncode == 0:
            break
        assert process.returncode in (130, -signal.SIGKILL), err
        assert _epochs(cut) > before, "an epoch that ended is kept"
        subprocess.run(
            [sys.executable, "-m", "ecanet", "report", str(cut)], check=True, capture_output=True
        )
    assert outcome(cut) == outcome(whole)
    trials = load_study(cut).trials.get_trials(deepcopy=False)
    assert sum(t.state.name == "COMPLETE" for t in trials) == 4


def _epochs(folder: Path) -> int:
    """Epochs kept so far, over all runs."""
    files = folder.glob("runs/*/metrics.csv")
    return sum(len(file.read_text().splitlines()) - 1 for file in files)


@pytest.mark.slow
def test_several_workers_end_with_the_same_results(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run([*COMMAND, "--out", str(one), "--jobs", "1"], check=True, capture_output=True)
    done = subprocess.run(
        [*COMMAND, "--out", str(two), "--jobs", "2"], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(two / "report/index.html")
    assert "[4/4]" in done.stderr
    assert outcome(one) == outcome(two), "to the last digit, whatever the number of workers"


def test_a_full_disk_is_one_line_and_the_study_goes_on(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        # Big enough for the study, not for the checkpoint of ResNet-20 as well.
        filler = small / "filler"
        command = [*COMMAND, "--out", str(small / "study"), "--seeds", "1"]
        filler.write_bytes(b"0" * 2_000_000)
        full = subprocess.run(command, capture_output=True, text=True)
        assert full.returncode == 2
        lines = full.stderr.splitlines()
        assert lines[-1].startswith("ecanet: the disk is full")
        assert "Traceback" not in full.stderr
        filler.unlink()
        subprocess.run(
            ["mount", "-o", "remount,size=64m", str(small)], check=True, capture_output=True
        )
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(summarise(small / "study").records) == 2, (full.stderr, done.stderr)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
