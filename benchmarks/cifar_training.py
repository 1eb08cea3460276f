"""Training ResNet-20 on CIFAR-10: ecanet beside the usual script, in one run, as a ratio.

    python benchmarks/cifar_training.py PATH/cifar10

PATH/cifar10 is a folder with train/ and test/, a folder of image files per class. Each side runs in a
process of its own, and they take turns, so that a busy or throttling machine slows both. A side's
figure is the median over the turns; the ratio is the median of the ratios turn by turn.

The usual script: torchvision's ImageFolder, RandomCrop(32, 4), RandomHorizontalFlip, ToTensor and
Normalize on PIL images in two DataLoader workers; float32, contiguous memory, eager. ecanet: its
Batches, and precision and memory format as its trainer chooses them. ``--knobs`` adds the steps in
between. Model (ecanet's resnet20), batch, SGD and loss are the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecanet.environment import cpu_cores
from ecanet.training.device import worker_variables

Batch = tuple[Tensor, Tensor]


@dataclass
class Side:
    """One way to train."""

    name: str
    loader: str
    """usual or ecanet."""
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    runs: int = 1
    """Runs that train at the same time, each on its share of the cores; their images are added."""


def sides(precision: str, cores: int) -> list[Side]:
    """Return the usual script, one run of ours, and as many as ``ecanet compare`` trains at once."""
    one = Side("ecanet, one run", "ecanet", precision, channels_last=True)
    many = Side(f"ecanet, {cores} runs at once", "ecanet", precision, True, runs=cores)
    return [Side("usual script", "usual"), one, *([many] if cores > 1 else [])]


def knob_sides(precision: str) -> list[Side]:
    """Return the steps from the usual script to ecanet, and compilation, which short runs go without."""
    return [
        Side("usual script", "usual"),
        Side("+ images in memory", "ecanet"),
        Side("+ channels last", "ecanet", channels_last=True),
        Side("ecanet", "ecanet", precision, channels_last=True),
        Side("ecanet, compiled", "ecanet", precision, channels_last=True, compile=True),
        Side("ecanet, contiguous", "ecanet", precision),
        Side("ecanet, contiguous, compiled", "ecanet", precision, compile=True),
    ]


def usual_batches(folder: Path, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Yield batches for ever, the way most scripts for CIFAR-10 make them."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ]
    )
    loader = DataLoader(
        datasets.ImageFolder(str(folder / "train"), transform),
        batch_size,
        shuffle=True,
        num_workers=2,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    while True:
        for images, labels in loader:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def ecanet_batches(
    folder: Path, batch_size: int, device: torch.device, channels_last: bool
) -> Iterator[Batch]:
    """Yield batches for ever from ecanet's images in memory."""
    from ecanet.config import Augmentation
    from ecanet.data import DeviceBatches, Split, load_data
    from ecanet.data.augment import normalize

    data = load_data(folder)
    mean, std = data.preprocessing.statistics(device)
    assert isinstance(data.train, Split)
    batches = DeviceBatches(
        data.train,
        data,
        batch_size,
        augmentation=Augmentation(flip=True, crop_padding=4),
        shuffle=True,
        device=device,
        channels_last=channels_last,
        drop_last=True,
    )
    for epoch in range(sys.maxsize):
        batches.seek(epoch)
        for batch in batches:
            yield normalize(batch.images, mean, std, channels_last), batch.labels


def make_step(
    side: Side, folder: Path, batch_size: int, device: torch.device
) -> Callable[[], Tensor]:
    """Return a function that trains one step and returns the loss."""
    from ecanet.models import create_model

    torch.manual_seed(0)
    model: nn.Module = create_model("resnet20", num_classes=10).to(device).train()
    if side.channels_last:
        model = model.to(memory_format=torch.channels_last)
    forward = torch.compile(model) if side.compile else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    if side.loader == "usual":
        batches = usual_batches(folder, batch_size, device)
    else:
        batches = ecanet_batches(folder, batch_size, device, side.channels_last)

    def step() -> Tensor:
        images, labels = next(batches)
        with torch.autocast(device.type, torch.bfloat16, enabled=side.precision == "bf16"):
            logits = forward(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def work(side: Side, folder: Path, batch_size: int, steps: int, device: torch.device) -> None:
    """Run one side: for each line on stdin train ``steps`` steps and print what they took, as JSON."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    started = time.perf_counter()
    step = make_step(side, folder, batch_size, device)
    for _ in range(3):
        step()
    synchronize()
    print(json.dumps({"startup_seconds": time.perf_counter() - started}), flush=True)
    # Batches that the loader's workers made while the others had their turn are not counted
    ahead = 5
    for _ in sys.stdin:
        for _ in range(ahead):
            step()
        synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize()
        seconds = time.perf_counter() - started
        turn = {
            "images_per_second": steps * batch_size / seconds,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "worker_mb": sum(map(private_mb, child_pids())),
        }
        if device.type == "cuda":
            turn["device_mb"] = torch.cuda.max_memory_allocated() / 2**20
        print(json.dumps(turn), flush=True)


def child_pids() -> list[int]:
    """Return the processes that this one started: the loader's workers."""
    with contextlib.suppress(OSError):
        lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
        return [int(pid) for line in lists for pid in line.split()]
    return []


def private_mb(pid: int) -> float:
    """Return the memory of a process that no other shares, in MiB; 0 where it cannot be told."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
    return 0.0


class Worker:
    """A side in its processes, one for each of its runs, started as ``ecanet compare`` starts them."""

    def __init__(self, side: Side, arguments: list[str]) -> None:
        self.side = side
        command = [sys.executable, __file__, "--worker", json.dumps(asdict(side)), *arguments]
        ours = side.loader == "ecanet"
        variables = worker_variables(max(1, cpu_cores() // side.runs)) if ours else dict(os.environ)
        self.processes = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
            )
            for _ in range(side.runs)
        ]
        self.startup_seconds = max(said["startup_seconds"] for said in self._read())
        self.turns: list[dict[str, Any]] = []

    def _read(self) -> list[dict[str, Any]]:
        said = []
        for process in self.processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{self.side.name} ended early: its error is above")
            said.append(json.loads(line))
        return said

    def take_turn(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            print("go", file=process.stdin, flush=True)
        said = self._read()
        self.turns.append({key: sum(one[key] for one in said) for key in said[0]})

    def close(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def summarize(workers: list[Worker]) -> list[dict[str, Any]]:
    """Return a row per side: images a second, over the usual script, memory."""
    rows = []
    for worker in workers:
        rates = [turn["images_per_second"] for turn in worker.turns]
        ratios = [
            turn["images_per_second"] / base["images_per_second"]
            for turn, base in zip(worker.turns, workers[0].turns, strict=True)
        ]
        rows.append(
            {
                **asdict(worker.side),
                "images_per_second": statistics.median(rates),
                "range": [min(rates), max(rates)],
                "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
                "peak_mb": max(turn["peak_rss_mb"] + turn["worker_mb"] for turn in worker.turns),
                "device_mb": max(turn.get("device_mb", 0) for turn in worker.turns) or None,
                "startup_seconds": worker.startup_seconds,
                "turns": worker.turns,
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]], note: str) -> str:
    """Return the rows as a table with ``note`` below."""
    lines = [
        "| side | images/s, median (range) | over the usual script (range) | peak memory, MB |",
        "|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["range"]
        ratio_low, ratio_high = row["ratio_range"]
        lines.append(
            f"| {row['name']} | {row['images_per_second']:,.0f} ({low:,.0f} to {high:,.0f}) "
            f"| {row['ratio']:.2f} ({ratio_low:.2f} to {ratio_high:.2f}) | {row['peak_mb']:,.0f} |"
        )
    return "\n".join([*lines, "", note, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with train/ and test/")
    parser.add_argument("--steps", type=int, default=30, help="steps a turn (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images a step (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    parser.add_argument("--knobs", action="store_true", help="measure the steps in between too")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder (%(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    from ecanet.data import load_data
    from ecanet.environment import cpu_cores, environment
    from ecanet.files import write_atomic, write_json
    from ecanet.heap import keep_freed_memory
    from ecanet.training.device import resolve_device, resolve_precision

    device = resolve_device(arguments.device)
    if arguments.worker:
        side = Side(**json.loads(arguments.worker))
        if side.loader == "ecanet" and device.type == "cpu":
            keep_freed_memory()
        work(side, arguments.data, arguments.batch_size, arguments.steps, device)
        return

    load_data(arguments.data)  # decode, with progress, before anyone waits for a turn
    precision = resolve_precision("auto", device)
    cores = cpu_cores() if device.type == "cpu" else 1
    compared = knob_sides(precision) if arguments.knobs else sides(precision, cores)
    options = ["data", "steps", "batch_size"]
    settings = {name: getattr(arguments, name) for name in (*options, "repeats")}
    passed = [str(arguments.data), "--device", arguments.device]
    passed += ["--steps", str(arguments.steps), "--batch-size", str(arguments.batch_size)]
    workers = []
    try:
        for side in compared:
            workers.append(Worker(side, passed))
            print(f"{side.name}: ready after {workers[-1].startup_seconds:.0f} s", file=sys.stderr)
        for repeat in range(arguments.repeats):
            for worker in workers:
                worker.take_turn()
            rates = (f"{w.turns[-1]['images_per_second']:,.0f}" for w in workers)
            print(f"turn {repeat + 1}: {', '.join(rates)} images/s", file=sys.stderr)
    finally:
        for worker in workers:
            worker.close()

    rows = summarize(workers)
    about = {key: value for key, value in environment(device).items() if key != "host"}
    settings["data"] = arguments.data.name
    note = (
        f"{about['device']}, torch {about['versions']['torch']}, {date.today()}, ResNet-20, batch "
        f"{arguments.batch_size}, {arguments.repeats} turns of {arguments.steps} steps each; peak memory "
        "is the process's largest resident set and what its loader's workers share with nobody."
    )
    name = f"cifar-training-{device.type}{'-knobs' if arguments.knobs else ''}"
    result = {"date": str(date.today()), "settings": settings, "environment": about, "sides": rows}
    write_json(arguments.out / f"{name}.json", result)
    table = markdown(rows, note)
    write_atomic(arguments.out / f"{name}.md", table)
    print(table)


if __name__ == "__main__":
    main()
