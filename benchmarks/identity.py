"""How exactly do timm's CNNs compute the same with attention that starts as the identity?

    python benchmarks/identity.py [--out results/benchmarks/identity.csv] [--models PATTERN]
    python benchmarks/identity.py --weights FILE --data FOLDER

The first goes through all architectures of timm, transformers included, in one process. A network that
``insert_attention`` accepts gets random weights: scales of norms and layers from 0.5 to 1.5, and the
statistics of batch norms from random images, so that a branch that is scaled wrongly shows in the logits.
Then each module is inserted with ``identity=True``, and the largest difference of the logits of a random
image is divided by the largest logit. Images have 128x64 pixels, or the network's own size where it does not
take that. A row is written as soon as its network is done, and a second call resumes. The column rounding
is the difference that the plain network makes of its images times 1.0000002, a step or two of float32.

The second holds the predictions of a weight file on a folder of images, one by one, against those of the same
weights with attention, each network saved to a file and read again.
"""

from __future__ import annotations

import argparse
import csv
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ecanet.config import EvaluateSettings
from ecanet.data.listing import list_evaluated
from ecanet.data.preprocessing import Preprocessing
from ecanet.errors import UserError
from ecanet.models import attention_modules, insert_attention
from ecanet.models.factory import model_home
from ecanet.models.hooks import run_in_evaluation
from ecanet.models.identity import SCALE
from ecanet.models.probe import small_image
from ecanet.models.weights.identify import read_weights
from ecanet.models.weights.load import build_from_weights
from ecanet.models.weights.save import save_weights
from ecanet.training.evaluate import evaluate_images

MODULES = ("se", "cbam", "eca")
COLUMNS = ["model", "parameters", "places", "scaled", *MODULES, "rounding", "seconds", "note"]
BOUND = 1e-5
SECONDS = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/identity.csv"))
    parser.add_argument("--models", default="*", help="pattern of timm's names")
    parser.add_argument("--weights", type=Path, help="file of a classifier, instead")
    parser.add_argument("--data", type=Path, help="images for --weights, with a folder val/")
    flags = parser.parse_args()
    if flags.weights:
        compare_predictions(flags.weights, flags.data)
    else:
        survey(flags.out, flags.models)


# ---- every architecture, with random weights


def survey(out: Path, pattern: str) -> None:
    done = {row["model"] for row in rows_of(out)}
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        if not done:
            writer.writeheader()
        names = [n for n in timm.list_models(pattern) if model_home(n).startswith("timm.")]
        random.Random(0).shuffle(names)  # what is done so far is a fair sample of all
        for name in names:
            if name not in done:
                writer.writerow({"model": name, **measure(name)})
                file.flush()
    print(summary(rows_of(out)))


def measure(name: str) -> dict[str, Any]:
    """Return a row: differences of the logits, or why there are none."""
    began = time.perf_counter()
    try:
        with torch.device("meta"):
            insert_attention(timm.create_model(name), "eca")
    except UserError as error:
        return {"note": f"refused: {error}"}
    torch.manual_seed(0)
    try:
        with at_most(SECONDS):
            model = timm.create_model(name).eval()
    except TimeoutError:
        return {"note": f"takes over {SECONDS} s to build"}
    images = torch.randn(2, *small_image(model, "").shape[1:])
    image = images[:1]
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "scaled": 0}
    for module in MODULES:
        # Anew for each module, as a division changes weights that stay so when the module is removed.
        randomize(model, images)
        plain = run_in_evaluation(model, image)
        if "rounding" not in row:
            nudged = run_in_evaluation(model, image * (1 + 2e-7))
            row["rounding"] = f"{difference(nudged, plain):.1e}"
        insert_attention(model, module, identity=True)
        modules = attention_modules(model).values()
        row["places"] = len(modules)
        row["scaled"] = max(row["scaled"], sum(hasattr(module, SCALE) for module in modules))
        row[module] = f"{difference(run_in_evaluation(model, image), plain):.1e}"
        insert_attention(model, "none")
    return row | {"seconds": f"{time.perf_counter() - began:.0f}"}


@torch.no_grad()
def randomize(model: nn.Module, images: Tensor) -> None:
    """Give norms and layer scales random values, and batch norms the statistics of images."""
    for name, parameter in model.named_parameters():
        is_scale = parameter.ndim == 1 and not name.endswith("bias")
        if is_scale or "gamma" in name or "layer_scale" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.1)
    norms: list[Any] = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(images)
    model.eval()
    for norm in norms:
        if norm.running_var is not None:
            # Channels that these few images hardly move would be amplified, and rounding with them.
            norm.running_var.fill_(norm.running_var.mean())


def difference(logits: Tensor, others: Tensor) -> float:
    return float((logits - others).abs().max() / others.abs().max())


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError inside ``with`` after some seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def rows_of(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def summary(rows: list[dict[str, str]]) -> str:
    measured = [row for row in rows if row["places"]]
    good = [row for row in measured if all(float(row[m]) <= BOUND for m in MODULES)]
    slow = [row for row in rows if row["note"].startswith("takes")]
    lines = [
        f"{len(rows)} architectures, {len(measured) + len(slow)} accept attention, {len(slow)} of them take "
        f"over {SECONDS} s to build",
        f"{len(good)} of {len(measured)} ({len(good) / max(1, len(measured)):.1%}) within {BOUND:g} for "
        f"{', '.join(MODULES)}",
    ]
    others = [row for row in measured if row not in good] + slow
    lines += [", ".join(f"{k} {row[k]}" for k in COLUMNS if row[k]) for row in others]
    return "\n".join(lines)


# ---- real weights


def compare_predictions(file: Path, data: Path) -> None:
    weights = read_weights(file)
    preprocessing = Preprocessing.from_metadata(weights.metadata)
    labels: Any = None
    for attention in ("none", *MODULES):
        for identity in (True, False)[: 1 if attention == "none" else 2]:
            torch.manual_seed(0)
            model = build_from_weights(file)
            if attention != "none":
                insert_attention(model, attention, identity=identity)
            with tempfile.TemporaryDirectory() as folder:
                saved = Path(folder) / "model.safetensors"
                save_weights(
                    saved,
                    model.state_dict(),
                    model=weights.model,
                    attention=attention,
                    num_classes=weights.num_classes,
                    in_chans=weights.in_chans,
                    preprocessing=preprocessing,
                )
                settings = EvaluateSettings(weights=str(saved), device="cpu", precision="float32")
                _, images = list_evaluated(str(data), settings)
                metrics, found = evaluate_images(images, settings)
            if labels is None:
                labels = found.predicted
            start = "" if attention == "none" else ", identity" if identity else ", as built"
            print(
                f"{attention}{start}: top-1 {metrics['accuracy']:.2%}, predictions changed for "
                f"{(found.predicted != labels).sum()} of {len(labels)} images"
            )


if __name__ == "__main__":
    main()
