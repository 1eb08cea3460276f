"""The published figures and ours as text: for the terminal, the README and the docs."""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from ecanet.errors import capitalized
from ecanet.profiling.claims import CONTRADICTED, EXACT, NOT_CHECKED, Claim

_WIDTH = 80


def text(claims: Sequence[Claim]) -> str:
    """Return all figures for a terminal: checked ones one per line, the others by table."""
    lines: list[str] = []
    for title, group, is_new in _groups([c for c in claims if c.verdict != NOT_CHECKED]):
        if is_new:
            lines += ["", *_wrapped(title), f"  {'':27}{'printed':>10}{'ours':>12}"]
        lines += [f"  {c.subject:27}{c.printed:>10}{c.ours:>12}  {c.verdict}" for c in group]
        lines += _wrapped(group[0].note or "", "  ")
    lines += [
        "",
        *_wrapped(
            "not checked, as they need images, weights or a GPU; with a command that checks the first of "
            "each"
        ),
    ]
    for title, group, _ in _groups([c for c in claims if c.verdict == NOT_CHECKED]):
        # Non-breaking spaces keep a figure and its subject on one line.
        figures = "; ".join(f"{c.subject} {c.printed}".replace(" ", "\xa0") for c in group)
        lines += ["", *_wrapped(title), *_wrapped(figures, "  ")]
        lines += _wrapped(group[0].check or "", "  > ")
    return "\n".join([*lines[1:], "", *_wrapped(summary(claims))])


def _wrapped(line: str, indent: str = "") -> list[str]:
    subsequent = " " * len(indent)
    lines = textwrap.wrap(
        line, _WIDTH, initial_indent=indent, subsequent_indent=subsequent, break_on_hyphens=False
    )
    return [part.replace("\xa0", " ") for part in lines]


def summary(claims: Sequence[Claim]) -> str:
    """Return one line with the numbers of figures that hold, are contradicted or not checked."""
    count = Counter(c.verdict for c in claims)
    near = sum(c.holds for c in claims) - count[EXACT]
    return (
        f"{count[EXACT]} figures hold in every printed digit, {near} within a tolerance; "
        f"{count[CONTRADICTED]} contradicted; {count[NOT_CHECKED]} not checked"
    )


def short_markdown(claims: Sequence[Claim]) -> str:
    """Return the sizes and multiply-adds of the published models as the README's table."""
    lines = [
        "| model | parameters, printed | ours | multiply-adds, printed | ours | verdict |",
        "|---|---|---|---|---|---|",
    ]
    placed = {(c.subject, c.column): c for c in claims if c.column}
    for subject in dict.fromkeys(subject for subject, _ in placed):
        both = placed[subject, "parameters"], placed[subject, "multiply-adds"]
        cells = [f"{value} {c.unit[0]}" for c in both for value in (c.printed, c.ours)]
        cells.append(", ".join(dict.fromkeys(c.verdict for c in both)))
        lines.append(f"| {subject} | {' | '.join(cells)} |")
    others = [c for c in claims if c.verdict != NOT_CHECKED and not c.column]
    failed = [c for c in others if not c.holds]
    more = f"{len(others)} more figures hold: kernel sizes, the 80 parameters, SE and plain models."
    if failed:
        more = f"{len(failed)} of {len(others)} further figures are contradicted."
    open_ = sum(c.verdict == NOT_CHECKED for c in claims)
    return "\n".join(
        [
            *lines,
            "",
            "M is 2^20 and G is 2^30 for classifiers; 10^6, trainable alone, and 10^9 for detectors. "
            "Multiply-adds",
            f"are counted as the paper's tools did. {more}",
            f"{open_} are not checked, because they need images, weights or a GPU:",
            "[the whole list](docs/claims.md), with the command that checks each.",
        ]
    )


def long_markdown(claims: Sequence[Claim]) -> str:
    """Return every figure with its source, verdict and check, as docs/claims.md."""
    lines = [
        "# The published figures, and ours",
        "",
        "Made by `ecanet profile --check-claims --markdown all`; the figures as printed are in",
        "`ecanet/profiling/claims.yaml`. How each is counted: [profiling](profiling.md).",
        "",
        f"{summary(claims)}.",
        "",
        "## Checked",
    ]
    for title, group, is_new in _groups([c for c in claims if c.verdict != NOT_CHECKED]):
        lines += ["", f"### {title}"] if is_new else []
        lines += ["", "| | printed | ours | verdict |", "|---|---|---|---|"]
        lines += [f"| {c.subject} | {c.printed} | {c.ours} | {c.verdict} |" for c in group]
        lines += ["", f"{capitalized(group[0].note)}."] if group[0].note else []
    lines += ["", "## Not checked", "", "These need images, weights or a GPU."]
    for title, group, is_new in _groups([c for c in claims if c.verdict == NOT_CHECKED]):
        lines += ["", f"### {title}"] if is_new else []
        lines += ["", "| | printed | what would check it |", "|---|---|---|"]
        lines += [f"| {c.subject} | {c.printed} | {_code(c.check or '')} |" for c in group]
    return "\n".join(lines)


def _groups(claims: Sequence[Claim]) -> Iterator[tuple[str, list[Claim], bool]]:
    """Yield groups of figures of one kind, their title, and whether it differs from the previous one."""
    last = None
    for (title, _), group in itertools.groupby(claims, lambda c: (_title(c), c.note)):
        yield title, list(group), title != last
        last = title


def _title(claim: Claim) -> str:
    return f"{claim.quantity}{f', {claim.unit}' if claim.unit else ''} ({claim.source})"


def _code(check: str) -> str:
    return f"`{check}`" if check.startswith("ecanet") and "," not in check else check
