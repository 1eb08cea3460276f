"""Speed of training beside another checkout of ecanet, in turns.

    python benchmarks/engine_speed.py --before CHECKOUT --cifar FOLDER [--repeats 5] [--python OTHER_PYTHON]

In each turn both trees

- run the sides of cifar_training.py (one run of ecanet, its own batches) and training_step.py of that tree;
- train ResNet-20 on a subset of CIFAR-10 and on digits by ``ecanet train``, in memory, with the same flags:
  images/s (median over the epochs but the first), and what a digits run takes beside its epochs (imports,
  reading, checkpoints, evaluation, test), in wall time and in CPU time.

Ratios are medians over the turns.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from same_results import COMMON, ROOT, SMALL, ecanet_of, subset
from sides import in_words, ratio_of

CIFAR = [*SMALL, "-b", "128", "--augmentation.crop_padding", "4", "--epochs", "4"]
DIGITS = [*SMALL, "-b", "64", "--augmentation.crop_padding", "1", "--epochs", "2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="checkout of the other tree")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the other tree")
    parser.add_argument("--cifar", type=Path, required=True, help="a folder: train/ and test/")
    parser.add_argument("--images", type=int, default=200, help="of each class, from --cifar")
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="engine-speed-"))
    folder = str(subset(flags.cifar, work / "cifar", flags.images))
    trees = {"before": (flags.python, flags.before.resolve()), "now": (sys.executable, ROOT)}
    batches = {name: start_batches(*tree, folder) for name, tree in trees.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    images = 0.9 * 10 * flags.images // 128 * 128
    for turn in range(flags.repeats):
        for name in list(trees)[:: 1 if turn % 2 else -1]:
            python, tree = trees[name]
            seconds, _, _ = train(python, tree, [folder, *CIFAR], work / "run")
            epochs, wall, cpu = train(python, tree, ["digits", *DIGITS], work / "run")
            figures = {
                "cifar_training.py, images/s": one_turn(batches[name]),
                "training_step.py, images/s": training_step(python, tree, work / "step"),
                "ecanet train, images/s": images / statistics.median(seconds[1:]),
                "digits beside its epochs, wall seconds": wall - sum(epochs),
                "digits beside its epochs, CPU seconds": cpu - sum(epochs),
            }
            found[name].append(figures)
            print(f"{name}:", ", ".join(f"{k} {v:.2f}" for k, v in figures.items()), flush=True)
    for process in batches.values():
        process.communicate()
    shutil.rmtree(work)
    for what in found["now"][0]:
        now, before = ([figures[what] for figures in found[name]] for name in ("now", "before"))
        print(f"{what}: {statistics.median(before):.2f} before, {statistics.median(now):.2f} now, "
              f"{in_words(ratio_of(now, before))}")  # fmt: skip


def start_batches(python: str, tree: Path, folder: str) -> subprocess.Popen[str]:
    """Start the side of a tree's cifar_training.py that is one run of ecanet, and wait for it."""
    side = {"name": "ecanet", "loader": "ecanet", "precision": "float32", "channels_last": True}
    process = subprocess.Popen(
        [*script(python, tree, "cifar_training.py"), "--worker", json.dumps(side), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def one_turn(process: subprocess.Popen[str]) -> float:
    """Let a side of cifar_training.py train its steps; return images/s."""
    assert process.stdin is not None
    assert process.stdout is not None
    print("go", file=process.stdin, flush=True)
    return float(json.loads(process.stdout.readline())["images_per_second"])


def training_step(python: str, tree: Path, out: Path) -> float:
    """Run a tree's training_step.py; return images/s of ecanet's side."""
    small = ["--batch-size", "16", "--image-size", "128", "--repeats", "3", "--out", str(out)]
    command = [*script(python, tree, "training_step.py"), *small]
    subprocess.run(command, check=True, capture_output=True)
    (record,) = out.glob("*.json")
    rates = json.loads(record.read_text())["images_per_second"]
    return float(next(rate for name, rate in rates.items() if name.startswith("ecanet")))


def script(python: str, tree: Path, name: str) -> list[str]:
    """Return the command line of a tree's benchmark on the CPU, with that tree's ecanet."""
    path = tree / "benchmarks" / name
    code = (
        f"import runpy, sys; sys.path[:0] = [{str(tree)!r}, {str(path.parent)!r}]; "
        f"sys.argv[0] = {str(path)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return [python, "-P", "-c", code, "--device", "cpu"]


def train(
    python: str, tree: Path, arguments: list[str], out: Path
) -> tuple[list[float], float, float]:
    """Train once; return the seconds of each epoch, and the command's wall and CPU seconds."""
    shutil.rmtree(out, ignore_errors=True)
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*ecanet_of(tree, python), "train", *arguments, *COMMON, "--out", str(out)],
        check=True,
        capture_output=True,
    )
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    with (out / "metrics.csv").open(newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return seconds, time.perf_counter() - began, cpu


if __name__ == "__main__":
    main()
