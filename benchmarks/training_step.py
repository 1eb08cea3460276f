"""A training step of ECA-ResNet-50: as ecanet's trainer runs it beside NCHW float32 eager, as a ratio.

    python benchmarks/training_step.py --batch-size 64 --image-size 176

The same model, batch, SGD and loss on both sides; ecanet's takes the device's best precision and
channels last. The sides take turns step by step; a side's figure is the median over the turns, the
ratio the median of the ratios turn by turn. On a CPU both have all cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from sides import rates_and_ratio, seconds_in_turns, write_record
from torch import nn

from ecanet.heap import keep_freed_memory
from ecanet.models import create_model
from ecanet.training.device import (
    autocast_dtype,
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
    record = {
        "what": f"training step of {flags.model}, {'x'.join(map(str, shape))}",
        **rates_and_ratio(seconds_in_turns(steps, flags.repeats), flags.batch_size),
        "repeats": flags.repeats,
    }
    write_record(flags.out, f"training-step-{flags.model}-{device.type}", record, device)


if __name__ == "__main__":
    main()
