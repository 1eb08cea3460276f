"""All that a few minutes of one GPU can say of the fused passes, beside what was expected of them.

    python benchmarks/measure_gpu.py --part 1 --out results/gpu
    python benchmarks/measure_gpu.py --part 2 --out results/gpu --resume --data cifar10.tar.xz
    TINY=1 python benchmarks/measure_gpu.py --part 1 --out /tmp/gpu  # on a CPU: whether the steps run at all

Part 1 takes at most 210 seconds, part 2 at most 390. The steps are in the order of the worth of their
answers. Each runs in a process of its own and is recorded at once; --resume leaves out those that have ended
well. In the end ``--out`` has record.jsonl, measure-gpu.md (claims with their bars, measured and predicted;
steps; kernels) and measure-gpu.json; the tables of claims and steps are printed last. `make gpu-wheels`
downloads the packages that are missing on a machine with torch and little else.

Networks are measured in bf16, channels last, 256 images of 224 pixels. There are two baselines without
attention: the stock one, which is also what torch.compile starts from, and in eager mode the one with the
same fused ending, as the fusion of batch norm, addition and ReLU is no merit of ECA.
"""

from __future__ import annotations

import os

# Before torch is imported: asking for a device must leave CUDA alone, which no fork survives.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import argparse
import copy
import fcntl
import importlib
import importlib.util
import json
import math
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import timm
import torch
import torch._dynamo
import torch.nn.functional as F
import yaml
from forked_steps import (
    Found,
    Here,
    NotHere,
    Result,
    Step,
    append,
    read_record,
    run_steps,
    side_by_side,
)
from gpu_claims import FUSED, SAME, SINGLE, STOCK, TIMM, TIMM_ECA, write_tables
from torch import Tensor, nn

from ecanet.attention import operators
from ecanet.environment import environment
from ecanet.models import create_model
from ecanet.models.residual import set_fused
from ecanet.profiling.speed import interleaved_rates, make_batch, make_subject, train_peak
from ecanet.training.compilation import compiling
from ecanet.training.device import fastest_convolutions

ROOT = Path(__file__).resolve().parents[1]

TINY = bool(os.environ.get("TINY"))
DEVICE = torch.device("cpu" if TINY else "cuda")
NETWORK, TIMMS = ("resnet20", "resnet10t") if TINY else ("resnet50", "resnet50")
BATCH, SIDE = (2, 32) if TINY else (256, 224)
REPEATS, SECONDS = (1, 0.01) if TINY else (5, 0.3)
LAST = torch.channels_last
# The ends of ResNet-50's branches: channels, side, and how many there are of them.
SHAPES = [(256, 56, 3), (512, 28, 4), (1024, 14, 6), (2048, 7, 3)]
if TINY:
    SHAPES = [(64, 14, 1)]

EAGER = [STOCK, SAME, FUSED, SINGLE, TIMM, TIMM_ECA]
COMPILED = [STOCK, FUSED, TIMM_ECA]
# Which ratios are recorded.
RATIOS = [
    *((FUSED, below) for below in (STOCK, SAME, TIMM_ECA, SINGLE)),
    *((above, STOCK) for above in (SAME, SINGLE, TIMM, TIMM_ECA)),
]

# ---- networks and their speed


def networks() -> dict[str, Callable[[], nn.Module]]:
    # On a CPU the compiled passes are fused on demand only.
    fused: Any = True if TINY else "auto"
    return {
        STOCK: lambda: create_model(NETWORK, fused=False),
        SAME: lambda: create_model(NETWORK, fused=fused),
        FUSED: lambda: create_model(NETWORK, attention="eca", fused=fused),
        SINGLE: lambda: create_model(NETWORK, attention="eca", fused=False),
        TIMM: lambda: timm.create_model(TIMMS),
        TIMM_ECA: lambda: timm.create_model(TIMMS, block_args={"attn_layer": "eca"}),
    }


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def compiled_here(models: int = 1) -> AbstractContextManager[None]:
    """Return a context in which torch.compile fails rather than leave anything eager."""
    if TINY:  # the compiler's front end alone
        torch.compile = partial(torch.compile, backend="aot_eager")
    return compiling(models)


def quartiles(values: Any) -> Found:
    low, median, high = (round(float(v), 4) for v in np.percentile(values, (25, 50, 75)))
    return {"median": median, "low": low, "high": high}


def speeds(
    names: Sequence[str],
    *,
    precision: str = "bf16",
    batch: int = BATCH,
    modes: Sequence[str] = ("training", "inference"),
    compiled: bool = False,
) -> Iterator[Found]:
    """Yield, for each mode, images a second, the ratios turn by turn, and the peak memory of training."""
    data = make_batch(batch, 3, SIDE, 1000, DEVICE, LAST)
    subjects = []
    for name in names:
        torch.manual_seed(0)
        subjects.append(make_subject(name, networks()[name](), *data, precision, compile=compiled))
    for mode in modes:
        steps = [s.train_step if mode == "training" else s.infer for s in subjects]
        peaks = {}
        with fastest_convolutions():
            rates = batch * interleaved_rates(steps, DEVICE, REPEATS, SECONDS)
            if mode == "training":
                peaks = {s.name: round(train_peak(s, DEVICE) / 2**20, 1) for s in subjects}
        by_name = dict(zip(names, rates, strict=True))
        found: Found = {
            "images/s": {name: round(float(np.median(rate)), 1) for name, rate in by_name.items()},
            "ratios": {
                f"{above} / {below}": quartiles(by_name[above] / by_name[below])
                for above, below in RATIOS
                if above in by_name and below in by_name
            },
            "peak MB": peaks,
        }
        yield {mode: found}


def eager(here: Here) -> Iterator[Found]:
    yield from speeds(EAGER)


def eager_small(here: Here) -> Iterator[Found]:
    yield from speeds([STOCK, SAME, FUSED, TIMM_ECA], batch=max(2, BATCH // 4))


def eager_fp16(here: Here) -> Iterator[Found]:
    # A CPU has no fast float16.
    yield from speeds([STOCK, SAME, FUSED, TIMM_ECA], precision="bf16" if TINY else "fp16")


def compiled(here: Here, mode: str) -> Iterator[Found]:
    """Speeds of compiled networks, once their kernels have been compiled side by side into the cache."""
    first: dict[str, Callable[[], Found]] = {
        name: partial(first_step, name, mode) for name in COMPILED
    }
    if mode == "training":
        first |= {f"batch norms, {name}": partial(norms_left, name) for name in (STOCK, FUSED)}
    cold: Found = {}
    for name, found in side_by_side(first, here, 2 if TINY else 5):
        cold[name] = found
        yield {"first step": cold}
    with compiled_here(len(COMPILED)):
        yield from speeds(COMPILED, modes=[mode], compiled=True)
    counters = torch._dynamo.utils.counters
    yield {
        "graphs": counters["stats"]["unique_graphs"],
        "graph breaks": sum(counters["graph_break"].values()),
    }


def first_step(name: str, mode: str) -> Found:
    """Compile a network."""
    data = make_batch(BATCH, 3, SIDE, 1000, DEVICE, LAST)
    with compiled_here():
        subject = make_subject(name, networks()[name](), *data, "bf16", compile=True)
        began = time.perf_counter()
        (subject.train_step if mode == "training" else subject.infer)()
        synchronize()
    return {"seconds": round(time.perf_counter() - began, 1)}


def norms_left(name: str) -> Found:
    """Count the batch norms that the compiler gets: those at the ends of branches that are fused are none."""
    count = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        nonlocal count
        count += sum("batch_norm" in str(node.target) for node in graph.graph.nodes)
        return graph.forward

    model = networks()[name]().to(DEVICE, memory_format=LAST).train()  # type: ignore[call-overload]
    images = torch.randn(2, 3, SIDE, SIDE, device=DEVICE).to(memory_format=LAST)
    with compiling(), torch.autocast(DEVICE.type, torch.bfloat16):
        torch.compile(model, backend=backend)(images)
    return {"count": count}


def profile(here: Here) -> Iterator[Found]:
    """Where a training step's time on the device goes, by kinds of kernels, and how many are launched."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for name in (STOCK, SAME, FUSED, TIMM_ECA):
        data = make_batch(BATCH, 3, SIDE, 1000, DEVICE, LAST)
        subject = make_subject(name, networks()[name](), *data, "bf16")
        with fastest_convolutions():
            for _ in range(3):
                subject.train_step()
            synchronize()
            with torch.profiler.profile(activities=activities) as run:
                began = time.perf_counter()
                subject.train_step()
                seconds = time.perf_counter() - began
                synchronize()
        events: dict[str, list[float]] = {}
        for event in run.events():
            # Steps of optimizers are ranges, no kernels.
            if event.device_type.name.lower() == DEVICE.type and "#" not in event.name:
                events.setdefault(_kind(event.name), []).append(event.time_range.elapsed_us() / 1e3)
        yield {
            name: {
                "launches": sum(map(len, events.values())),
                "ms": round(sum(map(sum, events.values())), 2),
                "ms on the host": round(1e3 * seconds, 1),
                "ms and launches": {k: [round(sum(v), 2), len(v)] for k, v in events.items()},
            }
        }


def _kind(kernel: str) -> str:
    """Return which kind of kernel it is, by its name."""
    if kernel.startswith(_our_kernels()):
        return "ours"
    kinds = {
        "batch norm": "batch_?norm|bn_",
        "convolution": "xmma|cutlass|cudnn|gemm|conv|nhwc|nchw|wgrad|dgrad",
        "elementwise": "elementwise",
        "reduction": "reduce",
        "copy": "Memcpy|Memset",
    }
    found = (kind for kind, names in kinds.items() if re.search(names, kernel, re.IGNORECASE))
    return next(found, "other")


@cache
def _our_kernels() -> tuple[str, ...]:
    try:
        kernels = importlib.import_module("ecanet.attention.gpu_kernels")
    except ImportError:
        return ()
    return tuple(name for name in vars(kernels) if name.endswith("_kernel"))


# ---- the machine and its ceilings


def milliseconds(calls: list[Callable[[], object]], seconds: float = 0.03) -> float:
    """Return the median time of a call, of several on different memory, so that no cache holds it.

    On a GPU the calls are one graph: to launch a small kernel takes longer than to run it.
    """
    for call in calls * 2:
        call()
    synchronize()
    if DEVICE.type == "cpu":
        began = time.perf_counter()
        for call in calls:
            call()
        return 1e3 * (time.perf_counter() - began) / len(calls)
    calls = calls * math.ceil(6 / len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < until:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / len(calls))
    return statistics.median(times)


def about(here: Here) -> Iterator[Found]:
    """The environment, and whether our kernels can be launched in it."""
    found = {key: value for key, value in environment(DEVICE).items() if key != "host"}
    found["C compiler"] = shutil.which("cc") or shutil.which("gcc") or "none"
    found["cudnn"] = torch.backends.cudnn.version()
    with_triton = importlib.util.find_spec("triton") is not None
    found["triton"] = importlib.import_module("triton").__version__ if with_triton else "none"
    if DEVICE.type == "cuda":
        found["device memory, GB"] = round(torch.cuda.mem_get_info()[1] / 1e9, 1)
    yield found
    began = time.perf_counter()
    x = torch.randn(4, 16, 8, 8, device=DEVICE)
    usable = operators.usable_kernels(x)
    yield {"kernels": usable is not None, "first launch, s": round(time.perf_counter() - began, 1)}
    if usable is None:
        raise RuntimeError(
            "there are no kernels of ours here: all that follows would measure something else"
        )


def ceilings(here: Here) -> Iterator[Found]:
    """GB/s of a copy, an addition and a sum, of 1 GB each; TFLOP/s of a product of matrices."""
    count, side = (2**16, 64) if TINY else (2**29, 8192)
    a, b, c = (torch.randn(count, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
    p, q = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    moved = 2 * count / 1e6
    for name, size, call in [
        ("copy, GB/s", 2 * moved, lambda: b.copy_(a)),
        ("add, GB/s", 3 * moved, lambda: torch.add(a, b, out=c)),
        ("sum, GB/s", moved, a.sum),
        ("matmul, TFLOP/s", 2 * side**3 / 1e9, lambda: p @ q),
    ]:
        yield {name: float(f"{size / milliseconds([call]):.4g}")}  # type: ignore[list-item]


# ---- kernels


@dataclass
class Kernel:
    """An operator on tensors of one shape."""

    passes: int
    """How often it reads or writes a tensor of this shape, as far as it must."""
    call: Callable[[], object]


def kernels_on(shape: tuple[int, ...], layout: torch.memory_format) -> dict[str, Kernel]:
    """Return the operators that move a branch's output, on random values."""
    run = operators.OPERATORS

    def large() -> Tensor:
        values = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
        return values.contiguous(memory_format=layout)

    n, c = shape[:2]
    x, shortcut, grad = large(), large(), large()
    out = torch.empty_like(x)
    assert operators.usable_kernels(x), "no kernels"
    weight, bias, center, gate = (torch.rand(s, device=DEVICE) for s in (c, c, c, (n, c)))
    kernel, spread = torch.randn(1, 1, 5, device=DEVICE), torch.rand(c, device=DEVICE) + 0.5
    running = torch.zeros(c, device=DEVICE), torch.ones(c, device=DEVICE)
    norm = weight, bias, center, spread, 1e-5
    mean, variance = run.image_moments(x)
    run.gate_add(x, gate, shortcut, *norm, True, out)
    passed, of_shift, of_scale, of_gate = run.gate_add_backward(grad, out, x, gate, *norm)
    whole = x, weight, bias, 1e-5, kernel
    ended, saved = run.norm_eca(*whole, shortcut, *running, 0.1, True)
    _, means, factors = run.eca(x, kernel)
    sums = of_shift, of_scale, of_gate, None, mean, variance
    return {
        "image_moments": Kernel(1, lambda: run.image_moments(x)),
        "batch_moments": Kernel(1, lambda: run.batch_moments(x, weight, bias, 1e-5, *running, 0.1)),
        "gate_add": Kernel(3, lambda: run.gate_add(x, gate, shortcut, *norm, True, out)),
        "gate_add_backward": Kernel(4, lambda: run.gate_add_backward(grad, ended, x, gate, *norm)),
        "norm_backward": Kernel(
            3, lambda: run.norm_backward(passed, x, gate, *sums, weight, center, spread, 1e-5)
        ),
        "norm_eca": Kernel(4, lambda: run.norm_eca(*whole, shortcut, *running, 0.1, True)),
        "norm_eca_backward": Kernel(
            7, lambda: run.norm_eca_backward(grad, ended, *whole, saved)
        ),
        "eca": Kernel(3, lambda: run.eca(x, kernel)),
        "eca_backward": Kernel(4, lambda: run.eca_backward(grad, x, kernel, means, factors)),
    }  # fmt: skip


def kernels(here: Here, layout: torch.memory_format) -> Iterator[Found]:
    """GB/s of each kernel at each of ResNet-50's shapes, and over its 16 branches."""
    rates: dict[str, dict[str, float]] = {}
    totals: dict[str, tuple[float, float]] = {}
    failed: dict[str, str] = {}
    for channels, side, blocks in SHAPES:
        shape = (BATCH, channels, side, side)
        size = 2 * math.prod(shape)
        copies = 1 if TINY else math.ceil(256e6 / size)
        sets = [kernels_on(shape, layout) for _ in range(copies)]
        for name, kernel in sets[0].items():
            try:
                taken = milliseconds([one[name].call for one in sets])
            except Exception as error:  # Triton's too
                failed[name] = str(error).strip().splitlines()[0]
                continue
            moved, milli = totals.get(name, (0.0, 0.0))
            moved += blocks * kernel.passes * size / 1e6
            totals[name] = moved, milli + blocks * taken
            rates.setdefault(name, {})[f"{channels}x{side}x{side}"] = round(
                kernel.passes * size / taken / 1e6
            )
        del sets, kernel
        torch.cuda.empty_cache()
        copy = here.found.get("ceilings", {}).get("copy, GB/s", math.nan)
        all_branches = {name: moved / milli for name, (moved, milli) in totals.items()}
        yield {
            "GB/s": rates,
            "GB/s over all branches": {k: round(v) for k, v in all_branches.items()},
            "share of the copy": {k: round(v / copy, 3) for k, v in all_branches.items()},
            "failed": failed,
        }
    if failed:
        raise RuntimeError(f"kernels failed: {failed}")


# What the kernels could be launched with; see ecanet.attention.gpu_kernels.
CANDIDATES: list[dict[str, int]] = [
    {},
    {"_BLOCK_C": 128},
    {"_BLOCK_C": 256},
    {"_PROGRAMS": 8192},
    {"_BLOCK_C": 128, "_PROGRAMS": 8192},
    {"_STAGES": 3},
    {"_STAGES": 3, "_PROGRAMS": 1024},
    {"_TILE": 4096, "_WARPS": 8},
    {"_TILE": 4096, "_WARPS": 8, "_BLOCK_C": 256},
    {"_TILE": 1024},
]
TIMED = ["batch_moments", "gate_add", "gate_add_backward", "norm_backward"]


def candidates(here: Here) -> Iterator[Found]:
    """Milliseconds of the kernels of training over all branches, by what they are launched with.

    Each candidate compiles its kernels in a process of its own; only one at a time is timed.
    """
    with tempfile.NamedTemporaryFile() as lock:
        tried = CANDIDATES[:2] if TINY else CANDIDATES
        named = {" ".join(f"{k[1:]}={v}" for k, v in c.items()) or "as it is": c for c in tried}
        runs = {name: partial(candidate, c, lock.name) for name, c in named.items()}
        for name, found in side_by_side(runs, here, 2 if TINY else len(runs)):
            yield {name: found}


def candidate(constants: dict[str, int], lock: str) -> Found:
    try:
        module = importlib.import_module("ecanet.attention.gpu_kernels")
    except ImportError:
        if not TINY:
            raise
        module = sys.modules[__name__]
    for name, value in constants.items():
        if not TINY and not hasattr(module, name):
            raise AttributeError(f"the kernels have no {name}")
        setattr(module, name, value)
    found: dict[str, float] = {}
    with open(lock) as file:
        # Shared while kernels compile: nobody is alone, and measures, before all have done so.
        fcntl.flock(file, fcntl.LOCK_SH)
        for channels, side, _ in SHAPES:
            calls = kernels_on((BATCH, channels, side, side), LAST)
            for name in TIMED:
                calls[name].call()
        del calls
        torch.cuda.empty_cache()
        synchronize()
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.flock(file, fcntl.LOCK_EX)
        for channels, side, blocks in SHAPES:
            calls = kernels_on((BATCH, channels, side, side), LAST)
            for name in TIMED:
                taken = blocks * milliseconds([calls[name].call], 0.02)
                found[name] = found.get(name, 0.0) + taken
    return {"sum": round(sum(found.values()), 3), **{k: round(v, 3) for k, v in found.items()}}


# ---- whether the results are right


# Network, attention, autocast's precision, memory layout.
CHECKED: list[tuple[str, str | None, str, torch.memory_format]] = [
    ("resnet20" if TINY else "resnet18", "eca", "float32", LAST),
    ("resnet50", "eca", "bf16", LAST),
    ("resnet20" if TINY else "resnet50", None, "bf16", LAST),
    ("resnet50", "eca", "fp16", LAST),
    ("resnet18", "srm", "bf16", LAST),
    ("resnet18", "se", "bf16", torch.contiguous_format),
    ("mobilenet_v2", "eca", "bf16", LAST),
]


def gradients(here: Here) -> Iterator[Found]:
    """Errors of all gradients and logits, relative to float64, fused and one by one."""
    torch.backends.cudnn.allow_tf32 = False
    for name, attention, precision, layout in CHECKED[:3:2] if TINY else CHECKED:
        errors: dict[str, list[float]] = {"fused": [], "one by one": []}
        for seed in range(1 if TINY else 3):
            torch.manual_seed(seed)
            model = create_model(name, num_classes=10, attention=attention)
            for module in model.modules():
                # Fresh norms end some branches in zeros, which would hide a wrong gradient.
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.uniform_(module.bias, -0.5, 0.5)
            model = model.to(DEVICE, memory_format=layout)  # type: ignore[call-overload]
            side = 32 if TINY else 96
            images = torch.randn(4 if TINY else 16, 3, side, side, device=DEVICE)
            labels = torch.randint(10, images.shape[:1], device=DEVICE)
            exact = all_gradients(model, images, labels, "float64", fused=False)
            for way in errors:
                found = all_gradients(model, images, labels, precision, fused=way == "fused")
                errors[way].append(float((found - exact).norm() / exact.norm()))
        mean = {way: statistics.fmean(values) for way, values in errors.items()}
        memory = "channels last" if layout is LAST else "NCHW"
        yield {
            f"{name} {attention or 'plain'} {precision} {memory}": {
                **{way: float(f"{value:.3g}") for way, value in mean.items()},
                "ratio": round(mean["fused"] / mean["one by one"], 3),
            }
        }


def all_gradients(
    model: nn.Module, images: Tensor, labels: Tensor, precision: str, *, fused: bool
) -> Tensor:
    """Return the gradients of all parameters, in float64."""
    model = copy.deepcopy(model).train()
    set_fused(model, fused)
    if precision == "float64":
        model, images = model.double(), images.double()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.autocast(DEVICE.type, dtype, enabled=dtype is not None):
        logits = model(images)
    loss = F.cross_entropy(logits if precision == "float64" else logits.float(), labels)
    (1024 * loss).backward()  # small gradients would vanish in float16
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def many_values(here: Here) -> Iterator[Found]:
    """The kernels on more than 2^31 values, copies of a few images: all must give what those give."""
    copies, shape = (3, (2, 64, 14, 14)) if TINY else (350, (2, 1024, 56, 56))
    run, n = operators.OPERATORS, shape[0]
    few = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16).contiguous(memory_format=LAST)
    few_grad = torch.randn_like(few)
    c = shape[1]
    weight, bias = torch.rand(c, device=DEVICE) + 0.5, torch.rand(c, device=DEVICE)
    few_gate = torch.rand(n, c, device=DEVICE)

    def results(x: Tensor, grad: Tensor, gate: Tensor) -> dict[str, Tensor]:
        mean, variance, center, spread, _ = run.batch_moments(
            x, weight, bias, 1e-5, None, None, 0.1
        )
        norm, out = (weight, bias, center, spread, 1e-5), torch.empty_like(x)
        run.gate_add(x, gate, None, *norm, True, out)
        passed, *sums = run.gate_add_backward(grad, out, x, gate, *norm)
        grad_x, *_ = run.norm_backward(
            passed, x, gate, *sums, None, mean, variance, weight, center, spread, 1e-5
        )
        return {"mean": mean, "variance": variance, "out": out, "passed": passed, "grad_x": grad_x}

    def many(x: Tensor) -> Tensor:
        return x.repeat(copies, *[1] * (x.ndim - 1)).contiguous(
            memory_format=LAST if x.ndim == 4 else torch.contiguous_format
        )

    assert operators.usable_kernels(few), "no kernels"
    expected = results(few, few_grad, few_gate)
    x = many(few)
    found = results(x, many(few_grad), many(few_gate))
    errors = {}
    for name, value in expected.items():
        size = value.float().abs().max()
        parts = found[name].split(n)
        worst = torch.stack([(part.float() - value.float()).abs().max() for part in parts]).max()
        errors[name] = float(worst / size)
    yield {"values": x.numel(), "largest error, relative": errors, "worst": max(errors.values())}


def tests(here: Here) -> Iterator[Found]:
    """The tests of the kernels, the fused passes and the networks, on the device."""
    files = ["tests/models/test_on_device.py"]
    if not TINY:
        files += ["tests/attention", "tests/models/test_residual.py"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--maxfail=20", "-m", "not slow"]
    command += ["-p", "no:cacheprovider", *files]
    # A bare machine may lack the plugins.
    if importlib.util.find_spec("xdist") and not TINY:
        command += ["--numprocesses", "6", "--dist", "worksteal"]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", str(round(max(10, here.left() - 15)))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    text = done.stdout + done.stderr
    counts = {
        kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", text)
    }
    failures = counts.get("failed", 0) + counts.get("error", 0) or int(done.returncode != 0)
    yield {"failures": failures, **counts, "end": text[-3000:]}
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {text.strip().splitlines()[-1]}")


# ---- whole runs


@dataclass(frozen=True)
class Images:
    """Where CIFAR-10 is."""

    source: Path | None
    """A folder or an archive that has cifar10/ in it."""
    scratch: Path
    """A folder that lives as long as all steps."""

    def folder(self) -> Path:
        """Return cifar10/, which is unpacked once.

        Raises:
            NotHere: there is none.
        """
        folder = self.source
        if folder is None or not folder.exists():
            raise NotHere("no CIFAR-10: give --data, a folder or archive that has cifar10/ in it")
        if folder.is_file():
            complete = self.scratch / "complete"
            if not complete.exists():
                with tarfile.open(folder) as archive:
                    # From Python 3.10.12 and 3.11.4 on; the archive is our own.
                    archive.extraction_filter = getattr(tarfile, "data_filter", None)
                    archive.extractall(self.scratch)
                complete.touch()
            folder = self.scratch
        found = folder if folder.name == "cifar10" else folder / "cifar10"
        if not (found / "train").is_dir():
            raise NotHere(f"{found} has no train/: it is no CIFAR-10")
        return found


def cifar_settings(folder: Path, **changes: Any) -> Any:
    """Return the settings of the recipe for a GPU, and the data."""
    from ecanet.config import Augmentation, ClassificationSettings, Optimizer, Schedule
    from ecanet.training.train import task_of

    recipe = yaml.safe_load((ROOT / "ecanet" / "recipes" / "cifar10" / "resnet18.yaml").read_text())
    groups = {"augmentation": Augmentation, "optimizer": Optimizer, "schedule": Schedule}
    values = {name: groups[name](**v) if name in groups else v for name, v in recipe.items()}
    values |= {
        "data": str(folder),
        "attention": "none",
        "device": DEVICE.type,
        "compile": "off",
        **changes,
    }
    if TINY:
        values |= {"model": "resnet20", "epochs": 1, "batch_size": 8}
    settings = ClassificationSettings(**values)
    task = task_of(settings)
    data = task.read(settings)
    return task.resolve(settings, data), data


def cifar(here: Here, data: Images, epochs: int = 20) -> Iterator[Found]:
    """Seconds until a ResNet-18 has 92 and 94 % on the images held out of CIFAR-10's train split."""
    from ecanet.training.task import Hooks
    from ecanet.training.train import train_in_study

    began = time.perf_counter()
    settings, images = cifar_settings(data.folder(), epochs=epochs)
    yield {"seconds to read the images": round(time.perf_counter() - began, 1)}
    curve: list[list[float]] = []
    began = time.perf_counter()

    def note(row: dict[str, float]) -> None:
        elapsed = time.perf_counter() - began
        curve.append([round(elapsed, 2), row["val_accuracy"], round(row["images_per_second"])])

    record = None
    with tempfile.TemporaryDirectory() as out, suppress(TimeoutError):
        hooks = Hooks(partial(stop_in_time, here), note)
        record = train_in_study(settings, Path(out), images, hooks=hooks)
    for percent in (92, 94):
        reached = (at for at, accuracy, _ in curve if 100 * accuracy >= percent)
        yield {f"seconds to {percent} %": next(reached, None)}
    yield {
        "seconds an epoch": round(curve[-1][0] / len(curve), 3),
        "images/s, trainer": statistics.median(rate for *_, rate in curve),
        "epochs: seconds, validation accuracy, images/s": curve,
    }
    if record is None:
        raise TimeoutError(f"{len(curve)} of {settings.epochs} epochs were done in time")
    yield {"test accuracy": record.final["test_accuracy"]}
    model = create_model(str(settings.model), num_classes=10, image_size=32)
    batch = make_batch(settings.batch_size, 3, 32, 10, DEVICE, LAST)
    subject = make_subject("", model, *batch, settings.precision)
    rate = interleaved_rates([subject.train_step], DEVICE, REPEATS, SECONDS)
    yield {"images/s, bare step": round(settings.batch_size * float(np.median(rate)))}


def stop_in_time(here: Here) -> None:
    """End a run while there is time to tell what it has found."""
    if here.left() < 5:
        raise TimeoutError


def study(here: Here, data: Images, reserve: float) -> Iterator[Found]:
    """A ResNet-18 with and without ECA on 8 seeds, as long as the time that is left allows."""
    from ecanet.training.task import Hooks
    from ecanet.training.train import train_in_study

    an_epoch = here.found.get("cifar", {}).get("seconds an epoch", 2.0)
    here = replace(here, deadline=min(here.deadline, here.budget_ends - reserve))
    seeds = 2 if TINY else 8
    # Fewer epochs rather than fewer seeds, down to what still trains a network.
    epochs = max(4, min(20, int((here.left() - 15) / (2 * seeds * an_epoch))))
    read = {
        attention: cifar_settings(data.folder(), epochs=epochs, attention=attention)
        for attention in ("none", "eca")
    }
    yield {"epochs": read["eca"][0].epochs}
    runs: dict[str, list[Any]] = {attention: [] for attention in read}
    with suppress(TimeoutError):
        for seed in range(seeds):
            for attention, (settings, images) in read.items():
                with tempfile.TemporaryDirectory() as out:
                    record = train_in_study(
                        replace(settings, seed=seed), Path(out), images, keep_weights=False,
                        hooks=Hooks(partial(stop_in_time, here)),
                    )  # fmt: skip
                runs[attention].append(record)
            yield summary(runs)


def summary(runs: dict[str, list[Any]]) -> Found:
    """Return what pairs of runs say, with the interval of Student's t at 95 %."""
    from scipy.stats import t

    accuracy = {
        name: [one.final["test_accuracy"] for one in records] for name, records in runs.items()
    }
    speed = {
        name: statistics.median(one.epochs[-1]["images_per_second"] for one in records)
        for name, records in runs.items()
    }
    points = 100 * (np.array(accuracy["eca"]) - np.array(accuracy["none"]))
    found: Found = {
        "seeds": len(points),
        "test accuracy": accuracy,
        "difference, points": round(float(points.mean()), 3),
        "images/s": {name: round(value) for name, value in speed.items()},
        "images/s, eca / none": round(speed["eca"] / speed["none"], 4),
    }
    if len(points) > 1:
        half = t.ppf(0.975, len(points) - 1) * points.std(ddof=1) / math.sqrt(len(points))
        found["interval"] = [round(float(points.mean() + side * half), 3) for side in (-1, 1)]
    return found


def detector(here: Here) -> Iterator[Found]:
    """A step of Mask R-CNN beside torchvision's."""
    sizes = ["64", "96", "1", "1"] if TINY else ["800", "1088", "2", "5"]
    options = zip(["--height", "--width", "--batch-size", "--repeats"], sizes, strict=True)
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(ROOT / "benchmarks" / "detector_speed.py"), "--out", out]
        command += [word for option in options for word in option] + ["--device", DEVICE.type]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-1000:])
        (file,) = Path(out).glob("*.json")
        record = json.loads(file.read_text())
    yield {key: record[key] for key in ("what", "train", "predict")}


# ---- the parts


def make_steps(part: int, data: Images) -> list[Step]:
    """Return the steps of a part in their order."""
    if part == 1:
        nchw = torch.contiguous_format
        return [
            Step("about", about, 60, 5, "our kernels can be launched"),
            Step("ceilings", ceilings, 20, 4, "a copy at 4,300 GB/s on an H200, 2,900 on an H100"),
            Step("kernels, channels last", partial(kernels, layout=LAST), 45, 10, "80 to 90 % of the copy"),
            Step("gradients", gradients, 50, 10, "as near to float64 as one by one"),
            Step("many values", many_values, 25, 6, "right"),
            Step("eager, batch 256", eager, 70, 20, "ECA 1.03 to 1.10 of plain, 0.985 with the same ending"),
            Step("tests", tests, 80, 20, "all pass"),
            Step("profile", profile, 30, 8, "10 to 20 launches at the end of a branch, not 85"),
            Step("eager, batch 64", eager_small, 30, 10, "launches no longer hide: 0.95 to 1.05 of plain"),
            Step("eager, fp16", eager_fp16, 35, 12, "plain has cuDNN's norm: 0.97 to 1.02 of it"),
            Step("kernels, NCHW", partial(kernels, layout=nchw), 40, 10, "as fast, with 7x7 slower"),
        ]  # fmt: skip
    return [
        Step("compiled training", partial(compiled, mode="training"), 200, 60, "ECA 0.975 to 0.99 of plain"),
        Step("candidates", candidates, 50, 15, "blocks of 128 or 256 channels take 5 to 15 % less"),
        Step("cifar", partial(cifar, data=data), 110, 30, "92 % within 25 to 45 s"),
        Step("compiled inference", partial(compiled, mode="inference"), 90, 30, "0.965 to 0.975 of plain"),
        Step("study", partial(study, data=data, reserve=35), 240, 40, "no difference that 8 seeds show"),
        Step("detector", detector, 60, 20, "1.3 to 2 times torchvision's float32"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--part", type=int, choices=[1, 2], required=True)
    add("--out", type=Path, required=True, help="folder for the record and its tables")
    add("--budget", type=float, help="seconds for all: by default 210 for part 1, 390 for part 2")
    add("--resume", type=Path, nargs="?", const=Path(), metavar="RECORD",
        help="leave out the steps that ended well there; by default in --out")  # fmt: skip
    add("--only", nargs="*", help="parts of the names of the steps to run")
    add("--data", type=Path, help="folder or archive that has cifar10/ in it, for part 2")
    flags = parser.parse_args()
    # What a step has started must end with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # The imports take their time too.
    ends = time.monotonic() - (time.time() - psutil.Process().create_time())
    ends += flags.budget or {1: 210, 2: 390}[flags.part]

    flags.out.mkdir(parents=True, exist_ok=True)
    record = flags.out / "record.jsonl"
    done: dict[str, Result] = {}
    if flags.resume is not None:
        source = record if flags.resume == Path() else flags.resume
        done = read_record(source)
        if source.exists() and source.resolve() != record.resolve():
            for result in done.values():
                append(record, result)
    if flags.part == 2:  # once, and not in each fork
        importlib.import_module("ecanet.training.classification")
        importlib.import_module("ecanet.training.train")
    words = [f"TINY={os.environ['TINY']}"] if TINY else []
    command = " ".join([*words, "python", "benchmarks/measure_gpu.py", *sys.argv[1:]])
    conditions = (
        f"{NETWORK}, bf16, channels last, batch {BATCH}, {SIDE} pixels, where nothing else is said; "
        "one run." + " TINY: the numbers mean nothing." * TINY
    )
    with tempfile.TemporaryDirectory() as scratch:
        steps = [
            step
            for step in make_steps(flags.part, Images(flags.data, Path(scratch)))
            if flags.only is None or any(part in step.name for part in flags.only)
        ]
        if TINY:  # on a CPU that others use as well
            steps = [replace(step, limit=10 * step.limit) for step in steps]
        results = run_steps(steps, record, ends=ends, done=done)
    print("\n" + write_tables(flags.out, results, command, conditions), flush=True)


if __name__ == "__main__":
    main()
