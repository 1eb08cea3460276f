"""``ecanet profile``."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecanet.cli.options import OneLineParser
from ecanet.cli.output import say, show
from ecanet.errors import UserError

if TYPE_CHECKING:
    from ecanet.profiling.profile import ModelSpec

_DESCRIPTION = """\
Tell what models cost: parameters, multiply-adds, memory, the share of their attention modules in
each stage, and with --batch-sizes how fast they are, side by side. Or, with --check-claims, hold
the published figures of ECA-Net against ours; exit code 1 if one is contradicted.
"""
_EXAMPLES = """\
examples:
  ecanet profile                                      the six published models
  ecanet profile -m resnet50 --attention none se eca  one model, three ways
  ecanet profile -m resnet18 eca_resnet18 --batch-sizes 1 8 64 --train --out costs
  ecanet profile --check-claims
"""


def run(arguments: list[str]) -> int:
    """Profile models, or check the published figures; print tables."""
    flags = _parser().parse_args(arguments)
    if flags.check_claims:
        _refuse(
            flags, set(vars(flags)) - {"check_claims", "markdown", "out"}, "with --check-claims"
        )
    else:
        _refuse(flags, {"markdown"}, "without --check-claims")
        if not flags.batch_sizes:
            timing = {"train", "device", "precision", "repeats"}
            _refuse(flags, timing, "without --batch-sizes: nothing is timed")
    if flags.out:
        _make_folder(flags.out)
    return _check_claims(flags) if flags.check_claims else _profile(flags)


def _parser() -> OneLineParser:
    parser = OneLineParser(
        "ecanet profile",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    models = parser.add_argument_group("models")
    models.add_argument(
        "-m",
        "--model",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="of ecanet, timm or torchvision/NAME; by default the six published models, with the "
        "kernels of the released weights",
    )
    models.add_argument(
        "--attention",
        nargs="+",
        action="extend",
        metavar="MODULE",
        help="attention modules to put into each model: none se eca:kernel_size=9",
    )
    models.add_argument(
        "--kernel-sizes",
        metavar="DIGITS",
        help="ECA's kernel size in each stage: 3557 is that of the released ECA-ResNet-50",
    )
    models.add_argument("--image-size", type=_positive, metavar="PIXELS", help="side; default 224")
    models.add_argument(
        "--num-classes", type=_positive, metavar="N", help="length of the output; default 1000"
    )
    models.add_argument(
        "--plugin",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="Python files that register attention modules or models of your own",
    )
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--batch-sizes",
        nargs="+",
        action="extend",
        type=_positives,
        metavar="N",
        help="images a step, 1 8 64: time inference in turns",
    )
    speed.add_argument("--train", action="store_true", default=None, help="time training steps too")
    speed.add_argument("--device", help="auto (default), cpu, cuda, cuda:1, mps")
    speed.add_argument(
        "--precision",
        choices=["auto", "float32", "bf16", "fp16"],
        help="auto (default): bf16 where the device computes in it",
    )
    speed.add_argument(
        "--repeats", type=_positive, metavar="N", help="measurements of each; default 5"
    )
    claims = parser.add_argument_group("published figures")
    claims.add_argument(
        "--check-claims",
        action="store_true",
        default=None,
        help="the figures of the ECA-Net paper and its repository beside ours",
    )
    claims.add_argument(
        "--markdown",
        choices=["short", "all"],
        help="print Markdown: the table of the README, or docs/claims.md",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write CSV and JSON files here as well"
    )
    return parser


def _profile(flags: argparse.Namespace) -> int:
    batch_sizes = [size for sizes in flags.batch_sizes or [] for size in sizes]
    image_size, num_classes = flags.image_size or 224, flags.num_classes or 1000

    import torch

    from ecanet.plugins import load_plugins
    from ecanet.profiling import tables
    from ecanet.profiling.profile import profile_models
    from ecanet.profiling.speed import device_and_threads
    from ecanet.training.device import environment, resolve_device, resolve_precision

    device = resolve_device(flags.device or "auto") if batch_sizes else torch.device("cpu")
    precision = resolve_precision(flags.precision or "auto", device)
    load_plugins(_split(flags.plugin))
    profiles = profile_models(
        _specs(flags),
        image_size=image_size,
        num_classes=num_classes,
        batch_sizes=batch_sizes,
        device=device,
        precision=precision,
        train=bool(flags.train),
        repeats=flags.repeats or 5,
        say=say,
    )
    show(tables.text(profiles, image_size, f"{device_and_threads(device)}, {precision}"))
    if flags.out:
        rows = tables.rows(profiles)
        settings = {"image_size": image_size, "num_classes": num_classes}
        if batch_sizes:
            settings |= {"device": device_and_threads(device), "precision": precision}
        _write(flags.out, "profile", {**settings, **rows, "environment": environment(device)})
        for name, table in rows.items():
            _write_csv(flags.out / f"{name}.csv", table)
        say(f"wrote {flags.out}/profile.json and {', '.join(f'{n}.csv' for n in rows if rows[n])}")
    return 0


def _specs(flags: argparse.Namespace) -> list[ModelSpec]:
    from ecanet.profiling.profile import PUBLISHED, ModelSpec

    if not flags.model:
        _refuse(flags, {"attention", "kernel_sizes"}, "without -m: name the models they go into")
        return PUBLISHED
    modules: list[str | None] = [*_split(flags.attention)] or [None]
    return [
        ModelSpec(name, attention, flags.kernel_sizes if attention != "none" else None)
        for name in _split(flags.model)
        for attention in modules
    ]


def _check_claims(flags: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ecanet.profiling import claims_text
    from ecanet.profiling.claims import CONTRADICTED, check_claims

    claims = check_claims()
    forms = {"short": claims_text.short_markdown, "all": claims_text.long_markdown}
    show(forms.get(flags.markdown, claims_text.text)(claims))
    if flags.out:
        table = [asdict(claim) for claim in claims]
        _write(flags.out, "claims", table)
        _write_csv(flags.out / "claims.csv", table)
        say(f"wrote {flags.out}/claims.json and claims.csv")
    return 1 if any(claim.verdict == CONTRADICTED for claim in claims) else 0


def _write(folder: Path, name: str, value: Any) -> None:
    from ecanet.files import write_json

    write_json(folder / f"{name}.json", value)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    from ecanet.files import write_atomic

    if rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(path, text.getvalue())


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: {error.strerror or error}") from None


def _refuse(flags: argparse.Namespace, names: set[str], why: str) -> None:
    """Refuse those of the flags that were given.

    Raises:
        UserError: one was.
    """
    for name in vars(flags):
        if name in names and getattr(flags, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} changes nothing {why}")


def _split(values: Sequence[str] | None) -> list[str]:
    """Return the items of ``a b`` and of ``a,b``."""
    return [item.strip() for value in values or [] for item in value.split(",") if item.strip()]


def _positives(text: str) -> list[int]:
    return [_positive(item) for item in _split([text])]


def _positive(text: str) -> int:
    # More digits than any of them needs are not even read.
    if not text.isdecimal() or len(text) > 7 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1 to 9999999")
    return int(text)
