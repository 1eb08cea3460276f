"""Speed of ``ecanet train`` beside another checkout of ecanet, in turns.

    python benchmarks/engine_speed.py --before CHECKOUT --cifar FOLDER [--repeats 5] [--python OTHER_PYTHON]

In each turn both trees train ResNet-20 on a subset of CIFAR-10 and on digits with the same flags, in
memory. Given are images/s (median over the epochs but the first) and what a digits run takes beside its
epochs (imports, reading, checkpoints, evaluation, test), in wall time and in CPU time; ratios are medians
over the turns.
"""

from __future__ import annotations

import argparse
import csv
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from same_results import COMMON, ROOT, SMALL, ecanet_of, subset

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
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in trees}
    images = 0.9 * 10 * flags.images // 128 * 128
    for turn in range(flags.repeats):
        for name in list(trees)[:: 1 if turn % 2 else -1]:
            seconds, _, _ = train(*trees[name], [folder, *CIFAR], work / "run")
            epochs, wall, cpu = train(*trees[name], ["digits", *DIGITS], work / "run")
            speed = images / statistics.median(seconds[1:])
            found[name].append((speed, wall - sum(epochs), cpu - sum(epochs)))
            print(f"{name}: {speed:.0f} images/s, digits beside its epochs {found[name][-1][1]:.2f} s "
                  f"of wall time, {found[name][-1][2]:.2f} s of CPU time", flush=True)  # fmt: skip
    shutil.rmtree(work)
    for index, what in enumerate(("images/s", "overhead of digits, wall", "overhead, CPU")):
        ratios = [
            now[index] / before[index]
            for now, before in zip(found["now"], found["before"], strict=True)
        ]
        print(f"{what}, now / before: median {statistics.median(ratios):.3f}, "
              f"from {min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} turns")  # fmt: skip


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
