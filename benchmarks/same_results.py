"""Hold the metrics of training against those of another checkout, epoch by epoch.

Runs ``ecanet train`` (digits, a folder of CIFAR-10 images) and ``ecanet detect train`` (shapes) in both
trees, with the same flags, once from beginning to end and once killed by SIGKILL in the middle and resumed.

    python benchmarks/same_results.py --before CHECKOUT [--cifar FOLDER] [--epochs 2] [--seeds 2]

Metrics are compared as the log prints them (losses to 4 digits, accuracies and APs to a hundredth of a per
cent), and the largest relative difference of the full numbers is given beside. Columns that only one tree has
are named. Exit code 1: a printed digit differs.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMON = ["--device", "cpu", "--precision", "float32", "--threads", "1"]
SMALL = ["-m", "resnet20", "--augmentation.flip", "false"]
RENAMED = {"val_top1": "val_accuracy", "train_top1": "train_accuracy"}
# What a clock measures, and the rate, which was noted after the last step or before it.
NOT_COMPARED = {"seconds", "images_per_second", "lr"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="checkout of the other tree")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as a folder: train/ and test/")
    parser.add_argument("--images", type=int, default=100, help="of each class, from --cifar")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2)
    flags = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="same-results-"))
    epochs = ["--epochs", str(flags.epochs)]
    kinds = {
        "digits": ["train", "digits", *SMALL, "-b", "64", "--augmentation.crop_padding", "1"],
        "shapes": [
            *("detect", "train", "shapes", "-m", "resnet18", "-b", "4", "--limit", "24"),
            *("--min-size", "96", "--max-size", "96", "--width", "32", "--anchor-size", "8"),
            *(
                "--proposals",
                "50",
                "--box-samples",
                "16",
                "--workers",
                "0",
                "--lr-batch-size",
                "null",
            ),
            *("--optimizer.name", "adamw", "--lr", "0.001", "--save-every", "2"),
        ],
    }
    if flags.cifar:
        folder = subset(flags.cifar, work / "cifar", flags.images)
        kinds["cifar"] = [
            *("train", str(folder), *SMALL, "-b", "64", "--augmentation.crop_padding", "4"),
        ]
    bad = 0
    for kind, command in kinds.items():
        for seed in range(flags.seeds):
            arguments = [*command, *COMMON, *epochs, "--seed", str(seed)]
            rows = {}
            for tree, name in ((flags.before.resolve(), "before"), (ROOT, "now")):
                for killed in (False, True):
                    out = work / f"{kind}-{seed}-{name}-{'killed' if killed else 'whole'}"
                    rows[name, killed] = run(tree, arguments, out, killed)
            for key, found in rows.items():
                bad += report(f"{kind}, seed {seed}", rows["before", False], key, found)
    shutil.rmtree(work)
    sys.exit(bool(bad))


def subset(cifar: Path, out: Path, images: int) -> Path:
    """Copy the first images of each class of train/ and test/."""
    for split in ("train", "test"):
        for label in sorted(path for path in (cifar / split).iterdir() if path.is_dir()):
            target = out / split / label.name
            target.mkdir(parents=True)
            for file in sorted(label.iterdir())[:images]:
                shutil.copy(file, target)
    return out


def ecanet_of(tree: Path, python: str = sys.executable) -> list[str]:
    """Return the command line of ``ecanet`` in a tree."""
    code = (
        f"import sys; sys.path.insert(0, {str(tree)!r}); from ecanet.cli.main import main; "
        "main(sys.argv[1:])"
    )
    return [python, "-P", "-c", code]


def run(tree: Path, arguments: list[str], out: Path, killed: bool) -> list[dict[str, str]]:
    """Train in a tree, with a SIGKILL after the first epoch's end if wanted; return metrics.csv."""
    command = [*ecanet_of(tree), *arguments, "--out", str(out)]
    with (out.with_suffix(".log")).open("a") as log:
        if killed:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            while not (out / "metrics.csv").exists() and process.poll() is None:
                time.sleep(0.02)
            time.sleep(random.uniform(0.0, 0.3))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        subprocess.run(command, check=True, stdout=log, stderr=log)
    with (out / "metrics.csv").open(newline="") as file:
        return [{RENAMED.get(k, k): v for k, v in row.items()} for row in csv.DictReader(file)]


def report(
    what: str, wanted: list[dict[str, str]], key: tuple[str, bool], found: list[dict[str, str]]
) -> int:
    """Print how metrics differ, and return how many printed digits do."""
    name = f"{key[0]}, {'killed and resumed' if key[1] else 'unbroken'}"
    common = [c for c in wanted[0] if c in found[0] and c not in NOT_COMPARED]
    only = sorted(set(wanted[0]) ^ set(found[0]))
    worst, bad = 0.0, int(len(wanted) != len(found))
    for old, new in zip(wanted, found, strict=False):
        for column in common:
            a, b = float(old[column]), float(new[column])
            worst = max(worst, abs(a - b) / max(abs(a), 1e-12))
            if f"{a:.4f}" != f"{b:.4f}":
                print(f"  {what}, {name}: epoch {old['epoch']}, {column}: {a!r} before, {b!r} now")
                bad += 1
    extra = f"; only in one tree: {', '.join(only)}" if only else ""
    print(
        f"{what}: {name}: {len(found)} epochs, {len(common)} metrics, {bad} printed digits differ, "
        f"largest relative difference {worst:.1e}{extra}",
        flush=True,
    )
    return bad


if __name__ == "__main__":
    main()
