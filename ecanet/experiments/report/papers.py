"""The tables of a comparison for papers, in LaTeX and Markdown.

A table is made once, of plain text; how a character is written is a matter of the format alone.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ecanet.errors import counted, percent
from ecanet.experiments.analysis.compare import PRECISIONS, Metric, StudySummary, column_title
from ecanet.experiments.analysis.statistics import (
    Comparison,
    ModuleStatistics,
    StudyStatistics,
)
from ecanet.experiments.report.page import PaperFormat, amount, minus
from ecanet.experiments.report.style import printable
from ecanet.metrics import METRICS, format_metric
from ecanet.record import Cost
from ecanet.statistics.design import Interval

NONE = "—"
Mean = tuple[float, float | None]
"""Mean and standard deviation, None for a single run."""

_OVER = "mean ± standard deviation over seeds"
_KINDS = {"box": "boxes", "mask": "masks"}
# Columns of results.csv: how they are called, and how a value is written.
_COSTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "training_length": ("Training\nlength", "{:.2f}".format),
    "parameters": ("Parameters", "{:,}".format),
    "macs": ("MACs", amount),
    "train_ratio": ("Training\nspeed", "{:.2f}".format),
    "inference_ratio": ("Inference\nspeed", "{:.2f}".format),
}

# Hyphens in a row would join to a dash; an asterisk or a bracket that begins a row would be read as an
# argument of the end of the row before.
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "`": "{`}", "-": "-{}",
    "*": "{*}", "[": "{[}", "]": "{]}", "\N{MINUS SIGN}": "$-$", "±": r"$\pm$", "×": r"$\times$",
    "–": "--", "—": "---", "µ": r"$\mu$", "\xa0": "~",
}  # fmt: skip
_LATEX_SPECIAL = re.compile(f"-(?=-)|[{re.escape(''.join(_LATEX.keys() - {'-'}))}]")
_MARKDOWN_SPECIAL = re.compile(r"[\\`*_{}\[\]<>#|~$&!]")


def latex_text(text: str) -> str:
    """Return text so that LaTeX sets it as it is, on one line."""
    written = _LATEX_SPECIAL.sub(lambda found: _LATEX[found[0]], _plain(text))
    return written.replace(r" \%", r"~\%")


def markdown_text(text: str) -> str:
    """Return text so that Markdown shows it as it is, in the cell of a table too."""
    return _MARKDOWN_SPECIAL.sub(r"\\\g<0>", _plain(text))


def _plain(text: str) -> str:
    return printable(" ".join(text.split()))


def label(text: str) -> str:
    """Return text as a part of a label: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@dataclass(frozen=True)
class PaperTable:
    """A table of plain text. Its first column holds names, the others numbers."""

    name: str
    title: str
    label: str
    caption: str
    """Sentences that say what the table shows, and under which conditions it was measured."""
    head: Sequence[str]
    """Titles of the columns, with a line break where LaTeX is to break them."""
    rows: Sequence[Sequence[str]]
    bold: Collection[tuple[int, int]] = ()
    """Row and column of the cells in bold."""

    @property
    def latex(self) -> str:
        """The table as a float of LaTeX, which needs the package booktabs."""
        # Titles of two lines keep columns narrow.
        above, below = zip(*(_two_lines(title) for title in self.head), strict=True)
        heads = [above, below] if any(above) else [below]
        lines = [
            r"\begin{table*}[tbp]",
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{3pt}",
            r"\setlength{\belowcaptionskip}{4pt}",
            textwrap.fill(
                rf"\caption{{{latex_text(self.caption)}}}",
                100,
                break_long_words=False,
                break_on_hyphens=False,
            ),
            rf"\label{{tab:{self.label}}}",
            rf"\begin{{tabular}}{{@{{}}l{'r' * (len(self.head) - 1)}@{{}}}}",
            r"\toprule",
            *(_latex_row(map(latex_text, head)) for head in heads),
            r"\midrule",
            *map(_latex_row, self._cells(latex_text, r"\textbf{%s}")),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
        ]
        return "\n".join(lines) + "\n"

    @property
    def markdown(self) -> str:
        """The table as GitHub's Markdown, its caption below."""
        rows = [
            [markdown_text(title) for title in self.head],
            ["---", *["---:"] * (len(self.head) - 1)],
            *self._cells(markdown_text, "**%s**"),
        ]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([*lines, "", markdown_text(self.caption)]) + "\n"

    def _cells(self, write: Callable[[str], str], bold: str) -> list[list[str]]:
        """Return the rows as a format writes them."""
        return [
            [
                bold % write(cell) if (i, j) in self.bold else write(cell)
                for j, cell in enumerate(row)
            ]
            for i, row in enumerate(self.rows)
        ]


def _two_lines(title: str) -> tuple[str, str]:
    above, _, below = title.rpartition("\n")
    return above, below


def _latex_row(cells: Iterable[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def table_files(tables: Sequence[PaperTable]) -> dict[PaperFormat, dict[str, str]]:
    """Return the files of tables by format: names and contents."""
    return {
        "latex": {"table.tex": "\n".join(table.latex for table in tables)},
        "markdown": {"table.md": "\n".join(table.markdown for table in tables)},
    }


def paper_tables(
    summary: StudySummary,
    statistics: StudyStatistics,
    rows: Sequence[Mapping[str, Any]],
    *,
    pairs: Sequence[tuple[ModuleStatistics, Sequence[Comparison | None]]],
    metrics: Mapping[str, Mapping[str, Mean | None]],
    precisions: Mapping[str, Mapping[str, Sequence[Mean]]],
) -> list[PaperTable]:
    """Return the tables of a comparison that it has numbers for, that of its results first.

    Args:
        rows: of results.csv.
        pairs: each module beside the baseline against all others.
        metrics: of classifiers, by module and name.
        precisions: COCO's, of boxes and of masks, by module.
    """
    tables = [_results(summary, statistics, rows)]
    if pairs:
        tables.append(_pairs(summary, statistics, pairs))
    if metrics:
        names = list(next(iter(metrics.values())))
        units = ["%" if METRICS[name].is_share else "nats" for name in names]
        titles = [column_title(METRICS[name].title) for name in names]
        head = [
            "Module",
            *(f"{title}\n({unit})" for title, unit in zip(titles, units, strict=True)),
        ]
        found = [
            [module, *(_metric(name, row[name]) for name in names)]
            for module, row in metrics.items()
        ]
        caption = f"{summary.title}: all metrics on the test split, {_OVER}."
        tables.append(_table(summary, "metrics", "All metrics", caption, head, found))
    for kind, modules in precisions.items():
        caption = f"{summary.title}: COCO metrics of {_KINDS[kind]} in percent, {_OVER}."
        found = [[module, *map(_precision, row)] for module, row in modules.items()]
        head = ["Module", *PRECISIONS]
        tables.append(
            _table(summary, kind, f"COCO metrics of {_KINDS[kind]}", caption, head, found)
        )
    return tables


def _table(
    summary: StudySummary,
    name: str,
    title: str,
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    bold: Collection[tuple[int, int]] = (),
) -> PaperTable:
    if summary.unfinished:
        done = f"{len(summary.records)} of {counted(len(summary.planned), 'run')}"
        caption += f" Preliminary: {done} finished."
    return PaperTable(name, title, f"{label(summary.title)}-{name}", caption, head, rows, bold)


def _results(
    summary: StudySummary, statistics: StudyStatistics, rows: Sequence[Mapping[str, Any]]
) -> PaperTable:
    metric, baseline = statistics.metric, statistics.baseline
    unit, level = metric.difference_unit, percent(statistics.design.confidence)
    costs = {key: how for key, how in _COSTS.items() if any(row[key] is not None for row in rows)}
    images = any(_ends(row) for row in rows)
    if all(row["training_length"] == 1 for row in rows):
        costs.pop("training_length", None)
    head = [
        "Module",
        "Seeds",
        f"{column_title(metric.name)}\n({metric.unit})",
        f"Difference\n({unit})",
        f"{level}\ninterval",
        *(["On other\nimages"] if images else []),
        "Verdict",
        *(title for title, _ in costs.values()),
    ]
    cells, bold = [], set()
    for i, (module, row) in enumerate(zip(statistics.modules, rows, strict=True)):
        c = module.comparison
        cells.append(
            [
                module.attention,
                str(row["runs"]),
                NONE if module.mean is None else _mean(metric, module.mean, module.sd),
                metric.difference(c.mean) if c and c.mean is not None else NONE,
                interval_text(metric, c.interval if c else None),
                *([interval_text(metric, _ends(row))] if images else []),
                c.finding if c else NONE,
                *(NONE if row[key] is None else form(row[key]) for key, (_, form) in costs.items()),
            ]
        )
        if c and c.finding == "better":
            bold |= {(i, 0), (i, 2), (i, 3), (i, 4), (i, head.index("Verdict"))}
    caption = f"{summary.title}: {metric.name}, {_OVER}"
    caption += "." if metric.higher_is_better else "; lower is better."
    if len(rows) > 1:
        together = (
            "the comparison" if len(rows) == 2 else f"all {len(rows) - 1} comparisons together"
        )
        looks = ", at whatever number of seeds" if statistics.design.sequential else ""
        within = f"{metric.difference(summary.margin, sign=False)} {unit}"
        caption += (
            f" Differences from {baseline}, with {level} intervals that hold for {together}{looks}. "
            f"Equivalent: within {within} of {baseline}. Bold: better than {baseline}."
        )
    if len({row["runs"] for row in rows}) > 1:
        caption += " A difference is over the seeds that both modules have."
    if images:
        caption += " Verdicts and first intervals are of other seeds on these test images."
    if summary.costs:
        caption += (
            " MACs: multiply-adds of an image's forward pass. Speeds are relative to "
            f"{baseline}: {measured(summary.costs)}."
        )
    return _table(summary, "results", "Results", caption, head, cells, bold)


def _pairs(
    summary: StudySummary,
    statistics: StudyStatistics,
    pairs: Sequence[tuple[ModuleStatistics, Sequence[Comparison | None]]],
) -> PaperTable:
    metric = statistics.metric
    names = [module.attention for module, _ in pairs]
    count = len(statistics.pairs)
    together = f", which holds for all {count} pairs together" if count > 1 else ""
    rows = [
        [
            module.attention,
            *(difference_text(metric, c) for c in row),
        ]
        for module, row in pairs
    ]
    caption = (
        f"{summary.title}: difference in {metric.name} of each row from each column, in "
        f"{metric.difference_unit}, and the verdict{together}."
    )
    return _table(summary, "pairs", "Modules against each other", caption, ["Module", *names], rows)


def measured(costs: Sequence[Cost]) -> str:
    """Return how the costs were measured."""
    kinds = {(c.device, c.precision, c.batch_size, c.train.repeats) for c in costs}
    return "; ".join(
        f"{device}, {precision}, batches of {batch} images, {repeats} interleaved repeats"
        for device, precision, batch, repeats in sorted(kinds)
    )


def difference_text(metric: Metric, c: Comparison | None) -> str:
    """Return a difference and its verdict."""
    return f"{metric.difference(c.mean)} ({c.finding})" if c and c.mean is not None else NONE


def interval_text(metric: Metric, ends: Interval | None) -> str:
    """Return the ends of a difference's interval."""
    return " to ".join(map(metric.difference, ends)) if ends else NONE


def _ends(row: Mapping[str, Any]) -> Interval | None:
    """Return the interval of a difference on other images."""
    low, high = row["images_low"], row["images_high"]
    return None if low is None else (low, high)


def _mean(metric: Metric, mean: float, sd: float | None) -> str:
    return metric.text(mean, sd).removesuffix(f" {metric.unit}")


def _metric(name: str, found: Mean | None) -> str:
    if found is None:
        return NONE
    values = [format_metric(name, value) for value in found if value is not None]
    return minus(" ± ".join(values).replace(" %", ""))


def _precision(found: Mean) -> str:
    mean, sd = found
    if mean < 0:  # of no object
        return NONE
    return f"{100 * mean:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")
