"""``ecanet fold``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import result, show
from ecanet.config import FoldSettings
from ecanet.errors import UserError, counted
from ecanet.inputs import RUNS, check_weights


@dataclass
class _Command:
    """The network, and where the new weights are written."""

    source: str | None = None
    """File of weights, or the folder of a run or a study, of which the best run with attention is used."""
    out: str | None = None
    """File for the new weights, NAME.safetensors."""


def parser() -> SettingsParser:
    """Return the command's parser."""
    return SettingsParser(
        "ecanet fold",
        "Turn gates that barely depend on the image into constants, and merge these into the norms before "
        "them, so that they cost nothing. Report how the accuracy changes.",
        _Command,
        FoldSettings,
        positional="source",
    )


def run(arguments: list[str]) -> int:
    """Fold attention that barely depends on the image; print what that changes."""
    flags = parser().parse(arguments)
    command, settings = pick(_Command, flags), pick(FoldSettings, flags)
    if command.source is None:
        raise UserError("which weights? ecanet fold FILE|RUN|STUDY --out FILE")
    if command.out is None:
        raise UserError("where to? Give --out FILE.safetensors")
    check_weights(command.source, RUNS)
    from ecanet.experiments.study.winner import find_weights
    from ecanet.explain.fold import fold_weights

    weights = find_weights(command.source, attended=True)
    assert weights is not None
    out = Path(command.out).expanduser()
    found = fold_weights(weights, out, settings)
    for layer in found.layers:
        show(
            f"{layer.name}: index {layer.index:.2g}, {counted(layer.channels, 'channel')}: {layer.outcome}"
        )
    show(f"{found.source}: {100 * found.changed:.2f} % of the predictions changed")
    if found.before is not None and found.after is not None and found.interval is not None:
        low, high = found.interval
        show(
            f"accuracy {100 * found.before:.2f} % before, {100 * found.after:.2f} % after: "
            f"{100 * (found.after - found.before):+.2f} points "
            f"(95 % interval over images like these {100 * low:+.2f} to {100 * high:+.2f})"
        )
    show(f"{out}: {found.weights}")
    kept = {k: v for k, v in vars(found).items() if k not in ("weights", "layers")}
    result({"out": out, **kept, "layers": [asdict(layer) for layer in found.layers]})
    return 0
