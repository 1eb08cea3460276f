"""What ECA and SE cost in a network: timm's, the usual layer, ours one by one and fused.

    python benchmarks/eca_cost.py --model resnet50 --out results/benchmarks
    python benchmarks/eca_cost.py --model resnet20 --image-size 32 --batch-size 128 --compile off
    python benchmarks/eca_cost.py --layer --out results/benchmarks

Training and inference, eager and compiled: the networks take turns, a network's figure is the median over
the turns, and its ratios are medians of the ratios turn by turn: to timm's network without attention (ours if
timm has none), and to ours without attention but with the same fused ending, which is the fair baseline in
eager mode. Compiled, these two are the same. --layer measures the ECA layer by itself, forward and backward,
beside timm's.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from sides import write_record
from timm.layers import EcaModule
from torch import Tensor, nn

from ecanet.attention import ECA
from ecanet.files import write_atomic
from ecanet.heap import keep_freed_memory
from ecanet.models import create_model
from ecanet.models.residual import ResidualEnd
from ecanet.profiling.speed import Subject, interleaved_rates, make_batch, make_subject, train_peak
from ecanet.training.compilation import compiling
from ecanet.training.device import fastest_convolutions, resolve_device, resolve_precision

PLAIN = "timm, plain"
SAME_ENDING = "ecanet, plain, fused"

LAYER_SHAPES = [(64, 256, 56), (64, 512, 28), (64, 1024, 14), (64, 2048, 7), (64, 64, 112)]


class UsualECA(nn.Module):
    """ECA as it is usually written: pooling, a 1-D convolution of the transposed, expand, multiply."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        k = ECA(channels).conv.kernel_size[0]
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.avg_pool(x).squeeze(-1).transpose(-1, -2))
        return x * torch.sigmoid(y.transpose(-1, -2).unsqueeze(-1)).expand_as(x)


def with_layer(layer: Callable[[int], nn.Module], name: str) -> nn.Module:
    model = create_model(name, attention="eca", fused=False)
    for module in model.modules():
        if isinstance(module, ResidualEnd):
            module.attention = layer(module.last_norm().num_features)  # type: ignore[arg-type]
    return model


def builders(name: str) -> dict[str, Callable[[], nn.Module]]:
    """Return what is compared: the network without attention, layer by layer, first."""
    theirs = {"mobilenet_v2": "mobilenetv2_100"}.get(name, name)
    made: dict[str, Callable[[], nn.Module]] = {}
    if theirs in timm.list_models():
        made[PLAIN] = partial(timm.create_model, theirs)
        if name.startswith("resnet"):
            for module in ("eca", "se"):
                made[f"timm, {module}"] = partial(
                    timm.create_model, theirs, block_args={"attn_layer": module}
                )
    else:
        made["ecanet, plain, one by one"] = partial(create_model, name, fused=False)
        made["timm's layer, eca"] = partial(with_layer, EcaModule, name)
    made["usual layer, eca"] = partial(with_layer, UsualECA, name)
    for module in ("plain", "eca", "se"):
        for way, fused in {"one by one": False, "fused": "auto"}.items():
            made[f"ecanet, {module}, {way}"] = partial(
                create_model, name, attention=None if module == "plain" else module, fused=fused
            )
    return made


def copy_bandwidth(device: torch.device) -> float:
    """Return bytes a second, read and written, of copying a large tensor."""
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates = interleaved_rates([lambda: target.copy_(source)], device, 7, 0.2)  # type: ignore[list-item]
    return float(np.median(rates)) * 2 * source.numel()


def measure(
    subjects: list[Subject], modes: list[str], device: torch.device, repeats: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield a row per subject and mode: images per second, and ratios to those of the baselines."""
    names = [subject.name for subject in subjects]
    batch_size = len(subjects[0].batch[0])
    for mode in modes:
        steps = [s.infer if mode == "inference" else s.train_step for s in subjects]
        rates = batch_size * interleaved_rates(steps, device, repeats, seconds)
        ratios = rates / rates[0]
        for subject, own, ratio in zip(subjects, rates, ratios, strict=True):
            row: dict[str, Any] = {
                "mode": mode,
                "model": subject.name,
                "images_per_second": float(np.median(own)),
                "ratio": float(np.median(ratio)),
                "low": float(np.percentile(ratio, 25)),
                "high": float(np.percentile(ratio, 75)),
            }
            if SAME_ENDING in names:
                fair = own / rates[names.index(SAME_ENDING)]
                row["ratio_to_same_ending"] = float(np.median(fair))
            if mode == "training":
                row["peak_bytes"] = train_peak(subject, device)
            yield row


def measure_networks(flags: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    precision = resolve_precision(flags.precision, device)
    shape = f"{flags.batch_size}x3x{flags.image_size}x{flags.image_size}"
    rows = []
    for compiled in [False, True] if flags.compile == "both" else [flags.compile == "on"]:
        made = builders(flags.model)
        kept = [
            name
            for i, name in enumerate(made)
            if i == 0 or not flags.only or any(part in name for part in flags.only)
        ]
        classes = 1000 if kept[0] == PLAIN else 10
        batch = make_batch(flags.batch_size, 3, flags.image_size, classes, device)
        subjects = [
            make_subject(name, made[name](), *batch, precision, compile=compiled) for name in kept
        ]
        print(f"{'compiled' if compiled else 'eager'}, {precision}, channels last, {shape}")
        with fastest_convolutions(), compiling(len(subjects)) if compiled else nullcontext():
            for row in measure(subjects, flags.modes, device, flags.repeats, flags.seconds):
                print(
                    f"  {row['mode']:10} {row['model']:26} {row['images_per_second']:9.1f} images/s "
                    f"{row['ratio']:6.3f} ({row['low']:.3f} to {row['high']:.3f})"
                    f" {row.get('ratio_to_same_ending', float('nan')):6.3f} of plain with this ending"
                )
                rows.append({"compiled": compiled, **row})
    return {
        "what": f"cost of attention in {flags.model}, {shape}, {precision}, channels last",
        "rows": rows,
    }


def layer_step(layer: nn.Module, x: Tensor, grad: Tensor) -> None:
    layer(x).backward(grad)


def measure_layer(flags: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Forward and backward of the layer alone, beside timm's; share of the copy bandwidth."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    bandwidth = copy_bandwidth(device)
    rows = []
    for n, channels, side in LAYER_SHAPES:
        x = torch.randn(n, channels, side, side, device=device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        grad = torch.randn_like(x)
        layers = EcaModule(channels), ECA(channels)
        steps: list[Callable[[], None]] = [
            partial(layer_step, layer.to(device, dtype), x, grad) for layer in layers
        ]
        theirs, ours = interleaved_rates(steps, device, flags.repeats, flags.seconds)
        # Forward reads twice and writes once; backward reads x and twice the gradient, writes once.
        floor = 7 * x.numel() * x.element_size() / bandwidth
        row: dict[str, Any] = {
            "shape": f"{n}x{channels}x{side}x{side}",
            "ratio": float(np.median(ours / theirs)),
            "low": float(np.percentile(ours / theirs, 25)),
            "high": float(np.percentile(ours / theirs, 75)),
            "share_of_copy_bandwidth": floor * float(np.median(ours)),
        }
        print(
            f"{row['shape']:16} {row['ratio']:5.2f} times timm's ({row['low']:.2f} to "
            f"{row['high']:.2f}), {100 * row['share_of_copy_bandwidth']:.0f} % of copying"
        )
        rows.append(row)
    return {
        "what": f"ECA layer, forward and backward, {dtype}, channels last, beside timm's",
        "copy_bytes_per_second": bandwidth,
        "rows": rows,
    }


def as_table(record: dict[str, Any]) -> str:
    lines = [
        "| | model | images/s | over plain (quartiles) | over plain with the same ending | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        how = f"{row['mode']}, {'compiled' if row['compiled'] else 'eager'}"
        fair = f"{row['ratio_to_same_ending']:.3f}" if "ratio_to_same_ending" in row else ""
        peak = f"{row['peak_bytes'] / 2**20:,.0f}" if "peak_bytes" in row else ""
        lines.append(
            f"| {how} | {row['model']} | {row['images_per_second']:.1f} | {row['ratio']:.3f} "
            f"({row['low']:.3f} to {row['high']:.3f}) | {fair} | {peak} |"
        )
    return "\n".join(lines) + "\n"


def plot(record: dict[str, Any], path: Path) -> None:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in record["rows"]:
        how = f"{row['mode']}, {'compiled' if row['compiled'] else 'eager'}"
        groups.setdefault(how, []).append(row)
    figure, axes = plt.subplots(
        1, len(groups), figsize=(1 + 3.2 * len(groups), 3.6), sharey=True, layout="constrained"
    )
    for ax, (how, rows) in zip(np.atleast_1d(axes), groups.items(), strict=True):
        ratios = [row["ratio"] for row in rows]
        spread = [[r["ratio"] - r["low"] for r in rows], [r["high"] - r["ratio"] for r in rows]]
        colours = ["#2a6fbb" if "fused" in row["model"] else "#b0b7c0" for row in rows]
        ax.barh([row["model"] for row in rows], ratios, xerr=spread, color=colours)
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set(title=how, xlim=(0.5, max(1.1, *ratios) + 0.05))
    np.atleast_1d(axes)[0].invert_yaxis()
    about = f"speed over the plain network: {record['what']}"
    figure.supxlabel(textwrap.fill(about, 44 + 36 * (len(groups) - 1)), fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="resnet50", help="resnet50, resnet18, mobilenet_v2 ...")
    parser.add_argument("--batch-size", type=int, help="by default 256 on a GPU, 8 on a CPU")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, help="of a CPU; by default all cores")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--precision", default="auto", help="auto, float32, bf16, fp16")
    parser.add_argument("--compile", choices=["both", "on", "off"], default="both")
    parser.add_argument(
        "--modes", nargs="*", choices=["inference", "training"], default=["inference", "training"]
    )
    parser.add_argument("--only", nargs="*", help="parts of the names of what is measured")
    parser.add_argument("--layer", action="store_true", help="measure the ECA layer by itself")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="folder for the record, its table and its plot")
    flags = parser.parse_args()
    device = resolve_device(flags.device)
    flags.batch_size = flags.batch_size or (8 if device.type == "cpu" else 256)
    if device.type == "cpu":
        keep_freed_memory()
    if flags.threads:
        torch.set_num_threads(flags.threads)
    record = (measure_layer if flags.layer else measure_networks)(flags, device)
    record["repeats"] = flags.repeats
    if flags.out:
        size = "" if flags.image_size == 224 else f"-{flags.image_size}px"
        way = "-compiled" if flags.compile == "on" else ""
        what = f"{flags.model}{size}-{resolve_precision(flags.precision, device)}{way}"
        what = "layer" if flags.layer else what
        path = flags.out / f"eca-cost-{what}-{device.type}"
        write_record(flags.out, path.name, record, device)
        if not flags.layer:
            write_atomic(path.with_suffix(".md"), as_table(record))
            plot(record, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
