"""A comparison on streamed photographs: memory per worker, and images/s beside ``ecanet train``.

    python benchmarks/streamed_study.py --photographs FOLDER --work FOLDER --out results/benchmarks

``--photographs`` is a folder of JPEGs at any depth. Crops of them make 20,000 images of 224 pixels in ten
classes, which stay in ``--work`` for the next time. In each turn the same run is trained once by ``ecanet
train`` and once by ``ecanet compare``, with one thread and one image reader. A worker's memory is the most
that it and all its children hold at one time (proportional set size), looked at once a second: to read it
holds up a process that allocates memory.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from PIL import Image
from sides import in_words, ratio_of, write_record

SIDE = 224
CLASSES = 10
SETTINGS = [
    "--storage", "stream", "--attention", "none", "--epochs", "1", "--image-size", str(SIDE),
    "--batch-size", "64", "--threads", "1", "--workers", "1", "--device", "cpu", "--precision", "float32",
    "--compile", "off",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--model", default="mobilenetv3_small_050")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    folder = make_images(flags.photographs, flags.work / f"images-{flags.images}", flags.images)
    shared = [str(folder), "--model", flags.model, *SETTINGS]
    commands = {
        "compare": [*shared, "--seeds", "1", "--jobs", "1"],
        "train": shared,
    }
    rates: dict[str, list[float]] = {name: [] for name in commands}
    most: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(flags.turns):
        for name in list(commands)[:: 1 if turn % 2 else -1]:
            out = flags.work / name
            shutil.rmtree(out, ignore_errors=True)
            held = memory_of([name, *commands[name], "--out", str(out)])
            rates[name].append(images_per_second(out))
            most[name].append(held)
            print(f"{name}: {rates[name][-1]:.1f} images/s, {held / 1e9:.2f} GB", flush=True)
    ratio = ratio_of(*rates.values())
    print(f"compare over train: {in_words(ratio)}")
    record = {
        "model": flags.model,
        "images": flags.images,
        "images_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "ratio": ratio,
        "bytes_per_worker": {name: max(found) for name, found in most.items()},
    }
    write_record(flags.out, "streamed_study", record)


def make_images(photographs: Path, folder: Path, count: int) -> Path:
    """Write random crops of the photographs, a fifth of them as test, unless they are there."""
    if folder.is_dir():
        return folder
    files = sorted(p for p in photographs.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    images = [Image.open(file).convert("RGB") for file in files]
    draw = random.Random(0)
    half = folder.with_name(f"{folder.name}.half")
    for number in range(count):
        image = images[number % len(images)]
        side = draw.randint(min(image.size) // 2, min(image.size))
        left, top = (draw.randint(0, edge - side) for edge in image.size)
        crop = image.resize((SIDE, SIDE), box=(left, top, left + side, top + side))
        split = "test" if number // len(images) % 5 == 4 else "train"
        path = half / split / f"class{number % len(images) % CLASSES}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.save(path, quality=90)
    half.rename(folder)
    return folder


def memory_of(arguments: list[str]) -> float:
    """Run ``ecanet``; return the most bytes that it and its children held at one time."""
    most = 0
    with subprocess.Popen(
        [sys.executable, "-m", "ecanet", *arguments], stderr=subprocess.PIPE
    ) as run:
        process = psutil.Process(run.pid)
        while run.poll() is None:
            most = max(most, sum(map(bytes_of, [process, *children_of(process)])))
            time.sleep(1)
        assert run.stderr is not None
        if run.returncode:
            sys.exit(run.stderr.read().decode())
    return most


def children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def bytes_of(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:  # it has ended
        return 0


def images_per_second(out: Path) -> float:
    """Return the speed of the only epoch of the only run in ``out``."""
    (metrics,) = out.rglob("metrics.csv")
    with metrics.open(newline="") as file:
        return float(list(csv.DictReader(file))[-1]["images_per_second"])


if __name__ == "__main__":
    main()
