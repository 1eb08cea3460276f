"""Which small studies does ``ecanet.experiments.analysis.adequacy`` flag?

    python benchmarks/adequacy.py --cifar FOLDER --work FOLDER [--only PATTERN] [--out results/benchmarks]

``--cifar`` is CIFAR-10 as a folder of train/ and test/; studies on it take 300 training and 100 test images
of each class, most of them at 16 pixels. Every study is a real ``ecanet.compare`` of the plain network
alone, and stays in ``--work``: a second call resumes, and computes the verdicts anew from what is there.

Whether a study is sound follows from its settings, not from its accuracy: the schedule anneals the learning
rate to 2 % of its peak or less, the peak is the default or usual for the optimizer, and a run has at least 8
epochs and 200 steps. Each unsound study breaks one of these rules, or has too few images. The thresholds were
chosen on the design and unsound studies; the 20 held-out studies were looked at for the verdict alone.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sides import write_record

import ecanet
from ecanet.config import (
    Augmentation,
    ClassificationSettings,
    Optimizer,
    Schedule,
    StudySettings,
)
from ecanet.experiments.analysis.adequacy import baseline_adequacy, failed
from ecanet.experiments.analysis.statistics import study_statistics

TRAIN, TEST = 300, 100


@dataclass
class Trial:
    """A study, and what its settings promise."""

    kind: str
    """design, held out or unsound."""
    settings: ClassificationSettings
    wrong: str = ""
    """What is wrong with it."""

    @property
    def seeds(self) -> int:
        """Two, or one where a run takes long."""
        return 2 if self.settings.data == "digits" or self.kind == "design" else 1


def digits(
    model: str = "resnet20", epochs: int = 20, batch: int = 64, size: int = 8, **more: Any
) -> Any:
    shifts = Augmentation(crop_padding=size // 8)  # as `make demo`: 4 would cut half a digit off
    found = settings_of("digits", model, epochs, batch, {"augmentation": shifts, **more})
    return replace(found, image_size=size)


def cifar(
    model: str = "resnet20", epochs: int = 25, batch: int = 64, size: int = 16, **more: Any
) -> Any:
    return replace(settings_of("cifar", model, epochs, batch, more), image_size=size)


def settings_of(
    data: str, model: str, epochs: int, batch: int, more: dict[str, Any]
) -> ClassificationSettings:
    return ClassificationSettings(
        data=data,
        model=model,
        epochs=epochs,
        batch_size=batch,
        device="cpu",
        compile="off",
        precision="float32",
        threads=1,
        **more,
    )


ADAMW = Optimizer(name="adamw", lr=2e-3, weight_decay=0.05)
ONECYCLE = Schedule(name="onecycle")


def step(*milestones: int) -> Schedule:
    return Schedule(name="step", milestones=list(milestones))


SOUND = {
    "design": {
        "digits-resnet20": digits(),
        "digits-resnet20-8-epochs": digits(epochs=8, batch=32),
        "digits-mobilenetv3": digits("mobilenetv3_small_050", 20, 32, 16, optimizer=ADAMW),
        "digits-onecycle": digits(epochs=15, schedule=ONECYCLE),
        "cifar-resnet20": cifar(),
        "cifar-step": cifar(epochs=24, schedule=step(16, 21)),
        "cifar-adamw": cifar(epochs=20, optimizer=ADAMW),
        "cifar-mixup": cifar(epochs=30, augmentation=Augmentation(mixup=0.2)),
    },
    "held out": {
        "digits-40-epochs": digits(epochs=40, batch=128),
        "digits-batch-16": digits(epochs=10, batch=16),
        "digits-batch-128": digits(epochs=25, batch=128),
        "digits-step": digits(schedule=step(12, 17)),
        "digits-adamw": digits(optimizer=ADAMW),
        "digits-adamw-onecycle": digits(epochs=12, optimizer=ADAMW, schedule=ONECYCLE),
        "digits-smoothing": digits(label_smoothing=0.1),
        "digits-ema": digits(epochs=25, ema_decay=0.98),
        "digits-resnet32": digits("resnet32", 15),
        "digits-resnet10t": digits("resnet10t", 12, optimizer=ADAMW),
        "digits-resnet10t-onecycle": digits("resnet10t", 15, 32, schedule=ONECYCLE),
        "digits-mobilenetv3-sgd": digits("mobilenetv3_small_050", 15, 64, 16),
        "digits-long-warmup": digits(epochs=30, schedule=Schedule(warmup_epochs=5.0)),
        "cifar-40-epochs": cifar(epochs=40, batch=128),
        "cifar-10-epochs": cifar(epochs=10, batch=32),
        "cifar-onecycle": cifar(epochs=30, schedule=ONECYCLE),
        "cifar-step-adamw": cifar(epochs=24, optimizer=ADAMW, schedule=step(14, 20)),
        "cifar-cutmix": cifar(epochs=30, augmentation=Augmentation(cutmix=1.0)),
        "cifar-32-pixels": cifar(epochs=15, size=32),
        "cifar-resnet32": cifar("resnet32", 20),
    },
}
SMALL_RATE = Optimizer(lr=5e-4)
UNSOUND = {
    "digits-constant": (digits(schedule=Schedule(name="constant")), "the rate stays at its peak"),
    "digits-late-milestones": (digits(schedule=step(30, 60, 90)), "the rate stays at its peak"),
    "digits-exponential": (digits(schedule=Schedule(name="exponential")), "ends at 68 % of the peak"),
    "digits-warmup": (
        digits(schedule=Schedule(name="step", warmup_epochs=20.0)),
        "half the run is warm-up, the rest at the peak",
    ),
    "digits-small-rate": (digits(optimizer=SMALL_RATE), "a hundredth of the usual rate"),
    "digits-1-epoch": (digits(epochs=1), "one epoch"),
    "digits-3-epochs": (digits(epochs=3), "three epochs of 20 steps"),
    "digits-rate-too-high": (digits(optimizer=Optimizer(lr=5.0)), "a hundred times the usual rate"),
    "cifar-constant": (cifar(schedule=Schedule(name="constant")), "the rate stays at its peak"),
    "cifar-adamw-constant": (
        cifar(optimizer=ADAMW, schedule=Schedule(name="constant")),
        "the rate stays at its peak",
    ),
    "cifar-small-rate": (cifar(optimizer=SMALL_RATE), "a hundredth of the usual rate"),
    "cifar-small-rate-adamw": (
        cifar(optimizer=replace(ADAMW, lr=1e-5)),
        "a hundredth of the usual rate",
    ),
    "cifar-1-epoch": (cifar(epochs=1), "one epoch"),
    "cifar-3-epochs": (cifar(epochs=3), "three epochs of 42 steps"),
    "cifar-60-images": (cifar(epochs=60, batch=20), "six training images a class"),
}  # fmt: skip


def trials() -> dict[str, Trial]:
    found = {
        name: Trial(kind, settings)
        for kind, studies in SOUND.items()
        for name, settings in studies.items()
    }
    return found | {
        name: Trial("unsound", settings, wrong=wrong) for name, (settings, wrong) in UNSOUND.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="*", help="pattern of the studies' names")
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    rows = []
    for name, trial in trials().items():
        if not fnmatch.fnmatch(name, flags.only):
            continue
        began = time.perf_counter()
        if trial.settings.data == "cifar":
            images = 6 if name == "cifar-60-images" else TRAIN
            folder = subset(flags.cifar, flags.work / f"subset-{images}", images)
            trial.settings.data = str(folder)
        rows.append(row := row_of(name, trial, flags.work / "studies" / name))
        seconds = time.perf_counter() - began
        print(
            f"{name}: {row['accuracy']:.4f}, {row['found'] or 'passes'} ({seconds:.0f} s)",
            flush=True,
        )
    for kind in ("design", "held out", "unsound"):
        those = [row for row in rows if row["kind"] == kind]
        print(f"{kind}: {sum(bool(row['found']) for row in those)} of {len(those)} flagged")
    if flags.out:
        with (flags.out / "adequacy.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        write_record(flags.out, "adequacy", {"studies": rows})


def row_of(name: str, trial: Trial, folder: Path) -> dict[str, Any]:
    settings = trial.settings
    summary = ecanet.compare(
        folder,
        settings,
        StudySettings(attention=["none"], seeds=trial.seeds, keep_weights="none"),
        jobs=1,
    )
    found = failed(baseline_adequacy(summary))
    base = study_statistics(summary).modules[0]
    last = [record.epochs[-1] for record in summary.records]
    return {
        "study": name,
        "kind": trial.kind,
        "wrong": trial.wrong,
        "model": settings.model,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "optimizer": settings.optimizer.name,
        "schedule": settings.schedule.name,
        "seeds": len(summary.records),
        "accuracy": base.mean,
        "train_accuracy": sum(row["train_accuracy"] for row in last) / len(last),
        "found": "; ".join(check.name for check in found),
        "evidence": " ".join(check.evidence for check in found),
    }


def subset(cifar: Path, folder: Path, images: int) -> Path:
    """Copy the first images of each class of train/ and test/, unless they are there."""
    if folder.is_dir():
        return folder
    half = folder.with_name(f"{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    for split, count in (("train", images), ("test", TEST)):
        for label in sorted(path for path in (cifar / split).iterdir() if path.is_dir()):
            target = half / split / label.name
            target.mkdir(parents=True)
            for file in sorted(label.iterdir())[:count]:
                shutil.copy(file, target)
    half.rename(folder)
    return folder


if __name__ == "__main__":
    main()
