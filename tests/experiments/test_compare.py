import itertools
import json
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import pytest
from helpers import stub_study
from helpers.commands import Run
from helpers.photographs import draw_photographs
from helpers.plugins import write_plugin
from helpers.runs import settings_of, untimed
from helpers.synthetic import make_summary
from helpers.waiting import wait_until
from PIL import Image
from safetensors.torch import load_file

import ecanet
from ecanet.cli.options import SettingsParser, pick
from ecanet.config import (
    Augmentation,
    ClassificationSettings,
    Optimizer,
    Schedule,
    StudySettings,
)
from ecanet.errors import UserError
from ecanet.experiments.analysis.compare import summarise
from ecanet.experiments.compare import plan_comparison, power_of
from ecanet.experiments.plans.compare import ComparePlan, run_name
from ecanet.experiments.report.compare import make_report
from ecanet.experiments.run import log_answer, write_report
from ecanet.experiments.study.location import Location
from ecanet.experiments.study.queue import Counts
from ecanet.experiments.study.study import create_study, load_study
from ecanet.models import attention_modules, built_in_attention
from ecanet.models.weights.load import build_from_weights

SETTINGS = ClassificationSettings(
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
    records = summarise(load_study(folder)).records
    return {
        (r.attention, r.seed): [e["val_loss"] for e in r.epochs] + [r.final["test_loss"]]  # type: ignore[union-attr]
        for r in records
    }


def test_one_call_from_data_to_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ecanet")
    study = StudySettings(attention=["none", "eca"], seeds=2)
    summary = ecanet.compare(tmp_path / "study", SETTINGS, study)
    runs = {(r.attention, r.seed) for r in summary.records}
    assert runs == set(itertools.product(["none", "eca"], [0, 1]))
    assert summary.settings["precision"] == "float32"
    assert summary.settings["compile"] == "off", "auto is resolved"
    assert [c.attention for c in summary.costs] == ["none", "eca"]
    assert summary.costs[1].parameters - summary.costs[0].parameters == 27
    assert sum("validation loss" in line for line in caplog.messages) == 4
    assert "eca" in (tmp_path / "study/report/index.html").read_text()
    assert json.loads((tmp_path / "study/report/report.json").read_text())

    # Again: nothing is trained, nothing changes. With one more seed: one more run each.
    before = outcome(tmp_path / "study")
    caplog.clear()
    ecanet.compare(tmp_path / "study", SETTINGS, study, jobs=1)
    assert not any("validation loss" in line for line in caplog.messages)
    assert outcome(tmp_path / "study") == before
    ecanet.compare(tmp_path / "study", SETTINGS, replace(study, seeds=3), jobs=1)
    assert sum("validation loss" in line for line in caplog.messages) == 2
    after = outcome(tmp_path / "study")
    assert {run: after[run] for run in before} == before

    with pytest.raises(UserError, match="epochs: 1 there, 2 requested"):
        ecanet.compare(tmp_path / "study", replace(SETTINGS, epochs=2), study, jobs=1)
    assert outcome(tmp_path / "study") == after


def test_the_report_has_a_recipe_that_begins_the_study_anew(tmp_path: Path) -> None:
    settings = replace(
        SETTINGS, optimizer=Optimizer(lr=0.05), schedule=Schedule(name="step", milestones=[1])
    )
    study = StudySettings(attention=["none", "eca:kernel_size=5"], detect=0.7, max_seeds=4)
    study = replace(study, first_seed=3, confidence=0.9, pairing="unpaired")
    plan, data = plan_comparison(settings, study)
    folder = tmp_path / "MY STUDY"
    create_study(Location(folder), plan, [], {"date": "today"})
    write_report(load_study(folder), data=data)
    parser = SettingsParser("compare", "", StudySettings, ClassificationSettings)
    machine = ["--device", "cpu", "--precision", "float32"]
    flags = parser.parse(["--recipe", str(folder / "report/recipe.yaml"), *machine])
    again = pick(ClassificationSettings, flags, attention=None, seed=0), pick(StudySettings, flags)
    assert plan_comparison(*again)[0] == plan


@pytest.mark.slow
def test_the_next_command_names_the_folders_there_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def following() -> list[str]:
        (line,) = [line for line in caplog.messages if line.startswith("next: ")]
        caplog.clear()
        return shlex.split(line.removeprefix("next: "))

    caplog.set_level("INFO", "ecanet")
    folder = tmp_path / "MY_STUDY/a b's"
    study = StudySettings(attention=["none", "eca"], seeds=3)
    summary = ecanet.compare(folder, replace(SETTINGS, model="resnet20"), study, jobs=1)
    recipe, out = f"{folder}/report/recipe.yaml", f"{folder}-better-trained"
    command = ["ecanet", "compare", "--recipe", recipe, "--epochs", "2", "--out", out]
    assert following() == command
    monkeypatch.chdir(folder)
    log_answer(load_study(Path(".")), summary, Path("STUDY"))
    command[3] = "STUDY/recipe.yaml"
    assert following() == command


def test_a_recipe_says_which_seeds_it_cannot_name(tmp_path: Path) -> None:
    summary = make_summary({"none": [0.9], "eca": [0.9]})
    summary.seeds, summary.recipe = [0, 1, 5, 6], {"first_seed": 0, "seeds": 4}
    recipe = make_report(summary).files["recipe.yaml"]
    assert "# Its own seeds have gaps: 0, 1, 5, 6.\nfirst_seed: 0\nseeds: 4\n" in recipe


def plan_of(there: ComparePlan | None = None, **study: Any) -> ComparePlan:
    settings = StudySettings(attention=["none", "eca"], **study)
    return plan_comparison(SETTINGS, settings, there)[0]


@pytest.mark.parametrize(
    ("begun", "wanted", "says"),
    [
        (None, {"seeds": 2}, "2 seeds cannot decide anything: give at least 3, or --seeds auto"),
        (
            None,
            {"seeds": 6},
            "with 6 seeds, 80 % of studies find a true difference that is 1.5 times as large as its",
        ),
        (
            {"seeds": 2},
            {"seeds": 6},
            "with 6 seeds, 80 % of studies find a true difference that is 1.5",
        ),
        ({"seeds": 6}, {"seeds": 8}, "planned with --seeds 6, and its tests have used up most"),
        ({"seeds": 6}, {"seeds": "auto"}, "fresh seeds (--first-seed) and --seeds auto"),
        ({"seeds": 6}, {"seeds": 6}, None),
        ({"seeds": "auto"}, {"seeds": "auto", "max_seeds": 20}, None),
        (None, {"seeds": "auto"}, None),
    ],
)
def test_what_the_wanted_seeds_can_decide(
    begun: dict[str, Any] | None, wanted: dict[str, Any], says: str | None
) -> None:
    there = plan_of(**begun) if begun else None
    lines = power_of(plan_of(there, **wanted), there)
    assert len(lines) == (says is not None)
    assert (says or "") in "".join(lines)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"confidence": 0.9}, "confidence 0.99, not 0.9"),
        ({"pairing": "unpaired"}, "pairing paired, not unpaired"),
        ({"detect": 2.0}, "detect 1, not 2"),
    ],
)
def test_a_study_keeps_its_design(wanted: dict[str, Any], says: str) -> None:
    there = plan_of(confidence=0.99, pairing="paired", detect=1.0)
    plan_of(there)
    plan_of(there, confidence=0.99, pairing="paired", detect=1.0)
    with pytest.raises(
        UserError, match=f"begun with another design .{says}.: choose another --out"
    ):
        plan_of(there, **wanted)


@pytest.mark.slow
def test_ones_own_module_from_a_file(tmp_path: Path) -> None:
    study = StudySettings(attention=["none", "halve"], seeds=1)
    settings = replace(SETTINGS, plugin=[write_plugin(tmp_path / "mine.py", "halve")])
    summary = ecanet.compare(tmp_path / "study", settings, study, jobs=1)
    assert len(summary.records) == 2
    assert summary.costs[1].attention_parameters == 3 * (16 + 32 + 64)


@pytest.mark.parametrize(
    ("attention", "batch_size", "says"),
    [
        ("broken", 256, "broken fails in resnet20"),
        ("srm", 1, "one image per step is too few for"),
        ("ge", 1, "one image per step is too few for"),
    ],
)
def test_a_module_that_fails_in_the_model_stops_before_the_first_run(
    own_registry: None, tmp_path: Path, attention: str, batch_size: int, says: str
) -> None:
    plugin = write_plugin(tmp_path / "broken.py", "broken", "return x[:, :3] * 2")
    settings = replace(SETTINGS, batch_size=batch_size, plugin=[plugin])
    with pytest.raises(UserError, match=says) as error:
        ecanet.compare(
            tmp_path / "study", settings, StudySettings(["none", attention], seeds=1), jobs=1
        )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "study").exists()


def lopsided(root: Path) -> ClassificationSettings:
    """Of a network with SE modules, on 8-pixel images: 207 to train on, 3/4 of the tests of one class."""
    for split, counts in (("train", (150, 80)), ("test", (30, 10))):
        for label, count in zip("ab", counts, strict=True):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                color = (i % 7, i % 5, i % 3)
                Image.new("RGB", (8, 8), color).save(root / split / label / f"{i}.png")
    return replace(SETTINGS, data=str(root), batch_size=64, model="mobilenetv3_small_050")


@pytest.mark.slow
def test_what_a_comparison_cannot_show_is_said_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A gate in every arm, an epoch of one step, accuracies of a mere guess: line, record, report."""
    settings = replace(lopsided(tmp_path / "data"), batch_size=128)
    caplog.set_level("INFO", "ecanet")
    study = StudySettings(["none", "eca"], seeds=1)
    summary = ecanet.compare(tmp_path / "study", settings, study, jobs=1)
    news = caplog.messages
    first = next(i for i, line in enumerate(news) if line.startswith("[1/2]"))
    before = "\n".join(news[:first])
    assert (
        "mobilenetv3_small_050, has 9 SE modules of its own in every arm, none included" in before
    )
    assert "with --replace-attention it takes their places" in before
    assert "an epoch has only 1 step: 207 training images in batches of 128" in before
    assert "the weights are updated" in before
    assert "--batch-size 16 gives 12 steps" in before
    assert "would be right for 75.00 % of the test split" in before
    assert [record.built_in for record in summary.records] == [{"SE": 9}] * 2
    assert summary.images["train"] == 207
    report = json.loads((tmp_path / "study/report/report.json").read_text())
    assert report["majority_share"] == 0.75
    assert report["built_in_attention"] == {"SE": 9}
    start = news.index(report["notices"][0])
    assert report["notices"] == news[start : start + 4]
    assert "(still improving): a single epoch" in report["notices"][3]
    assert "No accuracy is better than predicting the most frequent" in report["notices"][2]
    page = (tmp_path / "study/report/index.html").read_text()
    assert (
        page.index(">Answer<") < page.index("What limits the answer") < page.index("9 SE modules")
    )
    assert "75.00\xa0% of the test split" in page


def test_built_in_attention_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = replace(lopsided(tmp_path / "data"), attention="eca", replace_attention=True)
    caplog.set_level("INFO", "ecanet")
    record = ecanet.train(settings, tmp_path / "run")
    assert any("is used without its own 9 SE modules" in line for line in caplog.messages)
    assert record.built_in == {}
    assert record.settings["replace_attention"] is True
    model = build_from_weights(tmp_path / "run/best.safetensors")
    assert len(attention_modules(model)) == 9
    assert built_in_attention(model) == {}
    with pytest.raises(UserError, match="no attention module other than that"):
        ecanet.train(replace(settings, model="resnet20"), tmp_path / "other")


def test_a_run_that_fails_is_named_and_tried_again(own_registry: None, tmp_path: Path) -> None:
    """A module that breaks later, in some runs only: the others end, and the next call mends it."""
    switch = tmp_path / "switch"
    switch.touch()
    plugin = write_plugin(
        tmp_path / "later.py",
        "later",
        f"if len(x) == 143 and os.path.exists({str(switch)!r}):\n"
        "    raise RuntimeError('first line\\nsecond line')\n"
        "return x",
    )
    study = StudySettings(attention=["none", "later"], seeds=1)
    settings = replace(SETTINGS, plugin=[plugin])
    summary = ecanet.compare(tmp_path / "study", settings, study, jobs=1)
    assert [r.attention for r in summary.records] == ["none"]
    assert summary.failed == [
        {"attention": "later", "seed": 0, "error": "RuntimeError: first line second line"}
    ]
    assert "second line" in (tmp_path / "study/runs/later-seed0/error.txt").read_text()
    switch.unlink()
    summary = ecanet.compare(tmp_path / "study", settings, study, jobs=1)
    assert len(summary.records) == 2
    assert summary.failed == []


def test_a_run_that_diverges_fails_and_the_others_go_on(own_registry: None, tmp_path: Path) -> None:
    plugin = write_plugin(
        tmp_path / "boom.py", "boom", "return x * float('nan') if self.training else x"
    )
    study = StudySettings(attention=["none", "boom", "eca"], seeds=1)
    settings = replace(SETTINGS, plugin=[plugin], rollbacks=0)
    summary = ecanet.compare(tmp_path / "study", settings, study, jobs=1)
    assert [r.attention for r in summary.records] == ["none", "eca"]
    (failed,) = summary.failed
    assert (failed["attention"], failed["seed"]) == ("boom", 0)
    assert failed["error"].startswith("Diverged: loss or gradients are not finite 3 steps in a row")
    page = (tmp_path / "study/report/index.html").read_text()
    assert "lower --optimizer.lr" in page


def test_two_commands_on_one_folder(tmp_path: Path) -> None:
    study = StudySettings(attention=["none"], seeds=1)
    ecanet.compare(tmp_path, SETTINGS, study, jobs=1)
    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(UserError, match="another process works on"),
    ):
        ecanet.compare(tmp_path, SETTINGS, replace(study, seeds=2), jobs=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_and_ctrl_c_lose_at_most_an_epoch(tmp_path: Path) -> None:
    """The command is killed or interrupted again and again; what comes out is what would have."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [*COMMAND, "--save-every", "0"]
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
    chance = random.Random(0)
    for attempt in range(30):
        process = subprocess.Popen(
            [*command, "--out", str(cut)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        # Let it get into a run: two more epochs than before, or the end.
        before = _epochs(cut)
        wait_until(lambda: process.poll() is not None or _epochs(cut) >= before + 2, 120)  # noqa: B023
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


# Of the workers of each task's study.
KILLS = {"memory": 7, "stream": 7, "detector": 6}


def results(folder: Path) -> dict[str, Any]:
    """Return what each run has measured, without the times, and the bits of its weights."""
    found = {}
    for record in summarise(load_study(folder)).records:
        name = run_name(record.attention, record.settings["seed"])
        weights = load_file(folder / "runs" / name / "last.safetensors")
        found[name] = (
            [untimed(row) for row in record.epochs],
            untimed(record.final),
            {key: tensor.numpy().tobytes() for key, tensor in weights.items()},
        )
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("task", KILLS)
def test_a_study_whose_workers_are_killed_at_random_ends_with_the_same_bits(
    tmp_path: Path, task: str
) -> None:
    settings = replace(settings_of(task, tmp_path), attention=None, save_every=0)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    study = StudySettings(["none", "eca"], seeds=2, keep_weights="last")
    found = ecanet.compare(whole, settings, study, jobs=1)
    plan = load_study(whole).plan()
    create_study(Location(cut), plan, [], {})
    killed = load_study(cut)
    killed.queue.enqueue(plan.runs())

    def checkpoints() -> set[Path]:
        return set(cut.glob("runs/*/checkpoints/*.ckpt"))

    chance = random.Random(0)
    # Half of the training time goes by before the last kill, more or less.
    longest = sum(record.final["train_seconds"] for record in found.records) / KILLS[task]
    for _ in range(KILLS[task]):
        before = checkpoints()
        worker = stub_study.start(killed, cut)
        wait_until(lambda before=before: checkpoints() - before, 240)
        time.sleep(chance.uniform(0, longest))
        assert worker.is_alive()
        worker.kill()
        worker.join()
    worker = stub_study.start(killed, cut)
    worker.join(600)
    assert worker.exitcode == 0
    assert killed.queue.counts() == Counts(complete=4)
    assert results(cut) == results(whole)


# ---- What a comparison takes


@pytest.mark.slow
def test_streamed_photographs_are_compared(tmp_path: Path, run: Run) -> None:
    code, _, err = run(
        "compare", draw_photographs(tmp_path / "data"), "--storage", "stream", "--image-size", "112",
        "--model", "resnet18", "--attention", "none,eca", "--seeds", "1", "--epochs", "1",
        "--batch-size", "4", "--workers", "0", "--device", "cpu", "--precision", "float32",
        "--out", tmp_path / "out", "--jobs", "1",
    )  # fmt: skip
    assert code == 0, err
    summary = summarise(load_study(tmp_path / "out"))
    assert len(summary.records) == len(summary.costs) == 2
    used = {"storage": "stream", "crop_share": 0.875, "lr_batch_size": 256}
    for record in summary.records:
        assert used.items() <= record.settings.items()
        assert record.settings["augmentation"]["scale"] == [0.08, 1.0]
        assert 0 <= record.final["test_accuracy"] <= 1


@pytest.mark.slow
def test_randaugment_mixup_and_a_running_average_are_compared(tmp_path: Path) -> None:
    augmentation = Augmentation(flip=False, crop_padding=1, policy="randaugment", mixup=0.2)
    settings = replace(SETTINGS, augmentation=augmentation, ema_decay=0.9, workers=0)
    study = StudySettings(["none", "eca"], seeds=1)
    summary = ecanet.compare(tmp_path / "study", settings, study, jobs=1)
    plain = ecanet.compare(tmp_path / "plain", SETTINGS, study, jobs=1)
    for record, other in zip(summary.records, plain.records, strict=True):
        assert (record.settings["storage"], record.settings["ema_decay"]) == ("memory", 0.9)
        assert record.epochs[0]["val_loss"] != other.epochs[0]["val_loss"]
        assert record.epochs[0].keys() == other.epochs[0].keys()


@pytest.mark.slow
def test_kernel_sizes_are_compared(tmp_path: Path) -> None:
    settings = replace(SETTINGS, kernel_sizes="579")
    study = StudySettings(["none", "eca"], seeds=1)
    summary = ecanet.compare(tmp_path / "study", settings, study, jobs=1)
    used = {r.attention: r.settings["kernel_sizes"] for r in summary.records}
    assert used == {"none": None, "eca": "579"}
    assert summary.costs[1].attention_parameters == 3 * (5 + 7 + 9)


@pytest.mark.slow
def test_named_data_and_a_folder_are_trained_by_the_same_code(tmp_path: Path) -> None:
    """The same files and metrics of digits, of small images in memory, and of streamed photographs."""
    small = draw_photographs(tmp_path / "data/small", side=16)
    photographs = draw_photographs(tmp_path / "data/photographs")
    digits = replace(SETTINGS, model="resnet20", workers=0, augmentation=Augmentation())
    folder = replace(digits, data=str(small), batch_size=8)
    streamed = replace(folder, data=str(photographs), image_size=112, storage="stream")
    left = []
    for number, settings in enumerate((digits, folder, streamed)):
        record = ecanet.train(settings, tmp_path / f"{number}")
        files = {path.name for path in (tmp_path / f"{number}").iterdir()}
        left.append((files, record.epochs[0].keys(), record.final.keys(), record.settings.keys()))
    assert left[0] == left[1] == left[2]
    assert {"best.safetensors", "last.safetensors", "record.json", "metrics.csv"} <= left[0][0]


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


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_study_resumes(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        # Big enough for the study, not for the checkpoint of ResNet-20 as well.
        filler = small / "filler"
        command = [*COMMAND, "--out", str(small / "study"), "--seeds", "1"]
        filler.write_bytes(b"0" * 2_000_000)
        full = subprocess.run(command, capture_output=True, text=True)
        assert full.returncode == 2
        # Whether this process or one of its workers was the first to find no room.
        line = full.stderr.splitlines()[-1]
        assert re.match("ecanet: (a worker stopped: )?the disk is full: free some space", line)
        assert "Traceback" not in full.stderr
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(summarise(load_study(small / "study")).records) == 2, (full.stderr, done.stderr)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
