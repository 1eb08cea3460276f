"""``ecanet profile``."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import result, show
from ecanet.config import ProfileSettings
from ecanet.errors import UserError

if TYPE_CHECKING:
    from ecanet.profiling.profile import ModelSpec

log = logging.getLogger(__name__)


def parser() -> SettingsParser:
    """Return the command's parser."""
    return SettingsParser(
        "ecanet profile",
        "Report what models cost: parameters, multiply-adds, memory, the share of the attention modules in "
        "each stage and, with --batch-sizes, speed. With --check-claims, compare the published figures of "
        "ECA-Net with ours.",
        ProfileSettings,
    )


def run(arguments: list[str]) -> int:
    """Profile models, or check the published figures; print tables."""
    settings = pick(ProfileSettings, parser().parse(arguments))
    _refuse_unused(settings)
    if settings.out:
        try:
            Path(settings.out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {settings.out}: {error.strerror or error}") from None
    return _check_claims(settings) if settings.check_claims else _profile(settings)


def _refuse_unused(settings: ProfileSettings) -> None:
    """Refuse settings that differ from their defaults where they change nothing."""
    if settings.check_claims:
        used = {"check_claims", "markdown", "out"}
        unused = {name: "with --check-claims" for name in vars(settings) if name not in used}
    else:
        unused = {"markdown": "without --check-claims"}
        if not settings.batch_sizes:
            timing = ("train", "device", "precision", "repeats")
            unused |= dict.fromkeys(timing, "without --batch-sizes: nothing is timed")
        if not settings.model:
            unused |= dict.fromkeys(("attention", "kernel_sizes"), "without -m: name the models")
    for name, default in vars(ProfileSettings()).items():
        if name in unused and getattr(settings, name) != default:
            raise UserError(f"--{name.replace('_', '-')} changes nothing {unused[name]}")


def _profile(settings: ProfileSettings) -> int:
    import torch

    from ecanet.environment import environment
    from ecanet.plugins import load_plugins
    from ecanet.profiling import tables
    from ecanet.profiling.profile import profile_models
    from ecanet.profiling.speed import device_and_threads
    from ecanet.training.device import resolve_device, resolve_precision

    timed = bool(settings.batch_sizes)
    device = resolve_device(settings.device) if timed else torch.device("cpu")
    precision = resolve_precision(settings.precision, device)
    load_plugins(settings.plugin)
    profiles = profile_models(
        _specs(settings),
        image_size=settings.image_size,
        num_classes=settings.num_classes,
        batch_sizes=settings.batch_sizes,
        device=device,
        precision=precision,
        train=settings.train,
        repeats=settings.repeats,
    )
    hardware = device_and_threads(device)
    show(tables.text(profiles, settings.image_size, f"{hardware}, {precision}"))
    rows = tables.rows(profiles)
    content = {
        "image_size": settings.image_size,
        "num_classes": settings.num_classes,
        **({"device": hardware, "precision": precision} if timed else {}),
        **rows,
        "environment": environment(device),
    }
    result(content)
    if settings.out:
        _write(settings.out, "profile", content, rows)
    return 0


def _specs(settings: ProfileSettings) -> list[ModelSpec]:
    from ecanet.profiling.profile import PUBLISHED, ModelSpec

    modules: list[str | None] = [*settings.attention] or [None]
    return [
        ModelSpec(name, attention, settings.kernel_sizes if attention != "none" else None)
        for name in settings.model
        for attention in modules
    ] or PUBLISHED


def _check_claims(settings: ProfileSettings) -> int:
    from ecanet.profiling import claims_text
    from ecanet.profiling.claims import CONTRADICTED, check_claims

    claims = check_claims()
    texts = {"short": claims_text.short_markdown, "all": claims_text.long_markdown}
    show(texts.get(settings.markdown or "", claims_text.text)(claims))
    table = [asdict(claim) for claim in claims]
    result(table)
    if settings.out:
        _write(settings.out, "claims", table, {"claims": table})
    return 1 if any(claim.verdict == CONTRADICTED for claim in claims) else 0


def _write(folder: str, name: str, content: Any, tables: dict[str, list[dict[str, Any]]]) -> None:
    """Write ``content`` as NAME.json, and each of the tables that has rows as a CSV file."""
    from ecanet.experiments.report.page import csv_text
    from ecanet.files import write_atomic, write_json

    write_json(Path(folder, f"{name}.json"), content)
    written = [f"{folder}/{name}.json"]
    for title, rows in tables.items():
        if rows:
            write_atomic(Path(folder, f"{title}.csv"), csv_text(rows))
            written.append(f"{title}.csv")
    log.info(f"wrote {', '.join(written)}")
