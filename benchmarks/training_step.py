"""A training step of ECA-ResNet-50: as ecanet's trainer runs it beside NCHW float32 eager, as a ratio.

    python benchmarks/training_step.py --batch-size 64 --image-size 176

The same model, batch, SGD and loss on both sides; ecanet's takes the device's best precision and
channels last. The sides take turns step by step; a side's figure is the median over the turns, the
ratio the median of the ratios turn by turn. On a CPU both have all cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import nn

from ecanet.data.memory import keep_freed_memory
from ecanet.models import create_model
from ecanet.training.device import (
    autocast_dtype,
    environment,
    resolve_device,
    resolve_precision,
)


def make_step(
    model_name: str,
    shape: tuple[int, ...],
    device: torch.device,
    precision: str,
    channels_last: bool,
) -> Callable[[], None]:
    """Return a function that trains one step."""
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = create_model(model_name).to(device, memory_format=layout).train()  # type: ignore[call-overload]
    images = torch.randn(shape).to(device, memory_format=layout)
    labels = torch.randint(1000, shape[:1]).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    dtype = autocast_dtype(precision)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="eca_resnet50")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=176)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="folder for the record")
    flags = parser.parse_args()
    device = resolve_device(flags.device)
    if device.type == "cpu":
        keep_freed_memory()
    precision = resolve_precision("auto", device)
    shape = (flags.batch_size, 3, flags.image_size, flags.image_size)
    steps = {
        "NCHW float32": make_step(flags.model, shape, device, "float32", False),
        f"ecanet: channels last {precision}": make_step(
            flags.model, shape, device, precision, True
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(flags.repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first chooses algorithms and fills caches
                seconds[name].append(time.perf_counter() - start)
    usual, ours = seconds.values()
    ratios = [a / b for a, b in zip(usual, ours, strict=True)]
    record = {
        "what": f"training step of {flags.model}, {'x'.join(map(str, shape))}",
        "images_per_second": {
            n: flags.batch_size / statistics.median(s) for n, s in seconds.items()
        },
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        "repeats": flags.repeats,
        "environment": {k: v for k, v in environment(device).items() if k != "host"},
        "date": date.today().isoformat(),
    }
    for name, times in seconds.items():
        print(f"{name:30} {flags.batch_size / statistics.median(times):8.1f} images/s")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    if flags.out:
        flags.out.mkdir(parents=True, exist_ok=True)
        name = f"training-step-{flags.model}-{device.type}.json"
        (flags.out / name).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
