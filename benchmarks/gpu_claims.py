"""What measure_gpu.py's numbers should be, each with its bar and what was predicted of it; and its tables.

The predictions were written before anything was measured: from the bytes that each path moves, counted in the
compiler's code and kernel by kernel, and the copy bandwidth of an H100.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from forked_steps import Found, Result

from ecanet.files import write_atomic, write_json

# The networks that are measured.
STOCK, SAME = "plain, stock", "plain, same ending"
FUSED, SINGLE = "eca, fused", "eca, one by one"
TIMM, TIMM_ECA = "timm, plain", "timm, eca"

KERNELS = [
    "image_moments", "batch_moments", "gate_add", "gate_add_backward", "norm_backward", "norm_eca",
    "norm_eca_backward", "eca", "eca_backward",
]  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """A number of what a step has found, and what it should be."""

    what: str
    step: str
    value: Callable[[Found], Any]
    """A number, or a dictionary with its median and quartiles."""
    predicted: str
    bar: float | None = None
    least: bool = True
    """Whether the bar is the least that meets it, not the most."""


def _ratio(mode: str, above: str, below: str) -> Callable[[Found], Any]:
    return lambda found: found[mode]["ratios"][f"{above} / {below}"]


def _peak(above: str, below: str) -> Callable[[Found], Any]:
    return lambda found: found["training"]["peak MB"][above] / found["training"]["peak MB"][below]


def _norms_fused(found: Found) -> int:
    plain, fused = (found["first step"][f"batch norms, {name}"]["count"] for name in (STOCK, FUSED))
    return plain - fused


def _share(kernel: str) -> Callable[[Found], Any]:
    return lambda found: found["share of the copy"][kernel]


def _trainer(found: Found) -> float:
    return found["images/s, trainer"] / found["images/s, bare step"]


def _claims() -> list[Claim]:
    train, infer, once = "training", "inference", False

    step = "compiled training"
    claims = [
        Claim(f"{step}: ECA over plain", step, _ratio(train, FUSED, STOCK), "0.975 to 0.99", 0.97),
        Claim(f"{step}: ECA over timm's ECA", step, _ratio(train, FUSED, TIMM_ECA), "1.11 to 1.15", 1.12),
        Claim(f"{step}: peak memory over plain", step, _peak(FUSED, STOCK), "1.00 to 1.02", 1.02, once),
        Claim(f"{step}: graph breaks", step, lambda f: f["graph breaks"], "0", 0, once),
        Claim(f"{step}: norms that are fused", step, _norms_fused, "16", 16),
        Claim(f"{step}: timm's ECA over plain", step, _ratio(train, TIMM_ECA, STOCK), "0.86 to 0.88"),
    ]  # fmt: skip

    step, mode = "eager, batch 256", "eager training"
    same, stock = "plain with the same ending", "stock plain"
    claims += [
        Claim(f"{mode}: ECA over {same}", step, _ratio(train, FUSED, SAME), "0.985 to 1", 0.98),
        Claim(f"{mode}: ECA over {stock}", step, _ratio(train, FUSED, STOCK), "1.03 to 1.10", 1.0),
        Claim(f"{mode}: ECA over timm's ECA", step, _ratio(train, FUSED, TIMM_ECA), "1.23 to 1.37", 1.12),
        Claim(f"{mode}: {same} over {stock}", step, _ratio(train, SAME, STOCK), "1.07 to 1.13"),
        Claim(f"{mode}: ECA one by one over {stock}", step, _ratio(train, SINGLE, STOCK), "0.88 to 0.90"),
        Claim(f"{mode}: timm's ECA over {stock}", step, _ratio(train, TIMM_ECA, STOCK), "0.80 to 0.84"),
        Claim(f"{mode}: peak memory over {same}", step, _peak(FUSED, SAME), "1.00", 1.02, once),
        Claim(f"{mode}: peak memory over {stock}", step, _peak(FUSED, STOCK), "0.8 to 1.0", 1.02, once),
    ]  # fmt: skip
    mode = "eager inference"
    claims += [
        Claim(f"{mode}: ECA over {stock}", step, _ratio(infer, FUSED, STOCK), "1.15 to 1.25", 1.1),
        Claim(f"{mode}: ECA over {same}", step, _ratio(infer, FUSED, SAME), "0.97 to 1"),
        Claim(f"{mode}: ECA over timm's ECA", step, _ratio(infer, FUSED, TIMM_ECA), "1.3 to 1.5", 1.12),
    ]  # fmt: skip

    step = "compiled inference"
    claims += [
        Claim(f"{step}: ECA over plain", step, _ratio(infer, FUSED, STOCK), "0.965 to 0.975", 0.97),
        Claim(f"{step}: ECA over timm's ECA", step, _ratio(infer, FUSED, TIMM_ECA), "1.17 to 1.19", 1.12),
        Claim(f"{step}: graph breaks", step, lambda f: f["graph breaks"], "0", 0, once),
    ]  # fmt: skip

    step = "kernels, channels last"
    claims += [
        Claim(f"{kernel}: bandwidth over the copy's", step, _share(kernel), "0.80 to 0.90", 0.8)
        for kernel in KERNELS
    ]
    claims += [
        Claim("gradients: error over that one by one, worst network", "gradients",
              lambda f: max(one["ratio"] for one in f.values()), "0.9 to 1.1", 1.2, once),
        Claim("over 2^31 values: largest relative error", "many values", lambda f: f["worst"],
              "below 0.01", 0.01, once),
        Claim("tests on the device that fail", "tests", lambda f: f["failures"], "0", 0, once),
        Claim("launches of a step with ECA beyond the same ending's", "profile",
              lambda f: f[FUSED]["launches"] - f[SAME]["launches"], "30 to 150"),
        Claim("eager training, batch 64: ECA over stock plain", "eager, batch 64",
              _ratio(train, FUSED, STOCK), "0.95 to 1.05"),
        Claim("eager training, fp16: ECA over stock plain", "eager, fp16",
              _ratio(train, FUSED, STOCK), "0.97 to 1.02"),
        Claim("CIFAR-10, ResNet-18: seconds to 92 %", "cifar", lambda f: f["seconds to 92 %"], "25 to 45"),
        Claim("CIFAR-10, ResNet-18: seconds to 94 %", "cifar", lambda f: f["seconds to 94 %"],
              "45 to 55 with lossless images, perhaps never with JPEGs"),
        Claim("CIFAR-10, ResNet-18: test accuracy", "cifar", lambda f: f["test accuracy"], "0.93 to 0.94"),
        Claim("CIFAR-10, ResNet-18: images/s of a run", "cifar", lambda f: f["images/s, trainer"],
              "25,000 to 40,000"),
        Claim("CIFAR-10, ResNet-18: images/s of a run over the bare step's", "cifar", _trainer,
              "0.7 to 0.95"),
        Claim("CIFAR-10, study: ECA less none, points", "study", lambda f: f["difference, points"],
              "-0.3 to 0.3"),
        Claim("Mask R-CNN, training step: over torchvision's in float32", "detector",
              lambda f: f["train"]["ratio"]["median"], "1.3 to 2"),
    ]  # fmt: skip
    return claims


CLAIMS = _claims()


def judge(claim: Claim, results: Mapping[str, Result]) -> dict[str, Any]:
    """Return a row: the claim, what was measured, and whether its bar is met."""
    row: dict[str, Any] = {"what": claim.what, "predicted": claim.predicted, "bar": None}
    if claim.bar is not None:
        row["bar"] = f"{'at least' if claim.least else 'at most'} {claim.bar:g}"
    try:
        value = claim.value(results[claim.step].found)
    except (KeyError, ValueError):  # the step was not run, or stopped before it found that
        value = None
    if value is None:
        return row | {"measured": None, "verdict": "not measured"}
    if isinstance(value, dict):
        row |= {"low": value["low"], "high": value["high"]}
        value = value["median"]
    verdict = ""
    if claim.bar is not None:
        met = value >= claim.bar if claim.least else value <= claim.bar
        verdict = "met" if met else "missed"
    return row | {"measured": value, "verdict": verdict}


def claims_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | measured (quartiles) | predicted | bar | |", "|---|---|---|---|---|"]
    for row in rows:
        measured = "" if row["measured"] is None else f"{row['measured']:.4g}"
        if "low" in row:
            measured += f" ({row['low']:.3f} to {row['high']:.3f})"
        cells = row["what"], measured, row["predicted"], row["bar"] or "", row["verdict"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def steps_table(results: Mapping[str, Result]) -> str:
    lines = ["| step | ended | seconds | predicted |", "|---|---|---|---|"]
    for result in results.values():
        ended = ": ".join(filter(None, [result.ended, *result.why.strip().splitlines()[-1:]]))
        ended = re.sub(r"[|\n]", "/", ended)[:160]
        lines.append(f"| {result.step} | {ended} | {result.seconds:.0f} | {result.prediction} |")
    return "\n".join(lines) + "\n"


def kernels_table(results: Mapping[str, Result]) -> str:
    """Return GB/s of the kernels at each shape, in both memory layouts."""
    lines = []
    for layout in ("channels last", "NCHW"):
        result = results.get(f"kernels, {layout}")
        if result is None or not result.found:
            continue
        by_kernel = result.found["GB/s"]
        shapes = list(next(iter(by_kernel.values()), {}))
        lines += ["", f"| GB/s, {layout} | {' | '.join(shapes)} | all branches | of the copy |"]
        lines.append("|---" * (len(shapes) + 3) + "|")
        for name, rates in by_kernel.items():
            cells = [f"{rates[shape]:,}" if shape in rates else "" for shape in shapes]
            cells.append(f"{result.found['GB/s over all branches'][name]:,}")
            cells.append(f"{100 * result.found['share of the copy'][name]:.0f} %")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_tables(out: Path, results: Mapping[str, Result], command: str, conditions: str) -> str:
    """Write measure-gpu.md and measure-gpu.json; return the tables of claims and steps."""
    rows = [judge(claim, results) for claim in CLAIMS]
    about = results["about"].found if "about" in results else {}
    versions = {"triton": about.get("triton", "unknown"), **about.get("versions", {})}
    where = ", ".join(f"{name} {version}" for name, version in versions.items())
    head = (
        f"# The fused passes on a GPU\n\n    {command}\n\n"
        f"{date.today()}, {about.get('device', 'device unknown')}, commit {about.get('commit')}, {where}.\n"
        f"{conditions}\n\n"
        f"'{STOCK}' is the network without attention as PyTorch runs it, '{SAME}' the same with the fused "
        "ending. Predictions were written before anything was measured.\n\n"
    )
    counts = Counter(row["verdict"] for row in rows if row["bar"])
    verdicts = ", ".join(f"{counts[v]} {v}" for v in ("met", "missed", "not measured"))
    tables = (
        f"{claims_table(rows)}\nOf {counts.total()} bars: {verdicts}.\n\n{steps_table(results)}"
    )
    write_atomic(out / "measure-gpu.md", head + tables + kernels_table(results))
    record = {
        "command": command,
        "date": date.today().isoformat(),
        "environment": about,
        "claims": rows,
        "steps": {name: asdict(result) for name, result in results.items()},
    }
    write_json(out / "measure-gpu.json", record)
    return tables
