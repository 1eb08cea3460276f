"""A report: one page that opens offline, and the same numbers as CSV, JSON and PNG files beside it."""

from __future__ import annotations

import base64
import csv
import functools
import gzip
import io
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ecanet.config import flatten
from ecanet.errors import UserError, capitalized, disk_is_full
from ecanet.experiments.analysis.compare import column_title
from ecanet.experiments.report.image import Format, draw
from ecanet.experiments.report.style import Chart, cut, printable
from ecanet.files import no_formula, read_json, write_atomic
from ecanet.metrics import METRICS

if TYPE_CHECKING:
    import jinja2

    from ecanet.experiments.analysis.cells import CellsSummary
    from ecanet.experiments.analysis.compare import StudySummary
    from ecanet.experiments.analysis.sweep import SweepSummary

PaperFormat = Literal["latex", "markdown", "svg", "pdf", "methods"]

REPORT = "report.json"

_HEADING = re.compile('<h2 id="([^"]+)">(.*?)</h2>')
_ANCHORED = r'<h2 id="\1">\2<a class="anchor" href="#\1" tabindex="-1" aria-hidden="true"></a></h2>'

UNITS = {"train_seconds, seconds": "seconds", "epoch": "counted from 0"}


@dataclass
class Report:
    """What a report is made of; a kind of study fills it."""

    summary: StudySummary | SweepSummary | CellsSummary
    template: str
    """Of the page, in ``templates/``."""
    context: dict[str, Any]
    """What the template needs beside what every page has."""
    tables: dict[str, list[dict[str, Any]]]
    """The CSV files, without their suffix: a row each."""
    numbers: dict[str, Any]
    """What ``report.json`` holds beside title and date."""
    charts: list[Chart]
    """Of the page."""
    images: dict[str, list[str]]
    """The PNG files, without their suffix: the names of the charts in each, those that are there."""
    environments: Iterable[dict[str, Any]]
    """Those of the runs."""
    files: dict[str, str] = field(default_factory=dict)
    """Further files: name to content."""
    texts: dict[PaperFormat, dict[str, str]] = field(default_factory=dict)
    """Files for papers in each format that is text."""

    def write(self, out: Path, formats: Collection[PaperFormat] | None = ()) -> list[Path]:
        """Write all files into the folder ``out``, each atomically, the page last.

        Files for papers that an earlier report of this study has left there are written anew too, so that
        none contradicts the page.

        Args:
            out: the folder.
            formats: of files for papers; None: all that there are.

        Returns:
            The paths of the files for papers in these formats, and last that of the page, index.html.

        Raises:
            UserError: the study has nothing in one of the formats, or the folder cannot be written.
            OSError: the disk is full; the old files, if any, are intact.
        """
        written = now()
        about = {"title": self.summary.title, "written": written}
        papers = self._for_papers([*self.texts, "svg", "pdf"] if formats is None else formats)
        there = read_json(out / REPORT) or {}
        kept = self._left_for_papers(out) if there.get("title") == self.summary.title else []
        files: dict[str, str | bytes] = {
            **{f"{name}.csv": csv_text(rows) for name, rows in self.tables.items()},
            REPORT: json_text(about | self.numbers),
            **self.files,
            **self._figures("png"),
            **{
                name: content
                for name, content in self._for_papers(kept).items()
                if (out / name).is_file()
            },
            **papers,
        }
        files["index.html"] = page_text(
            self.template,
            self.summary,
            self.charts,
            written,
            sorted(files),
            varying=varying_environment(self.environments),
            **self.context,
        )
        write_files(out, files)
        return [out / name for name in (*papers, "index.html")]

    def _left_for_papers(self, out: Path) -> list[PaperFormat]:
        """Return the formats in which there are files for papers in ``out``."""
        names: dict[PaperFormat, list[str]] = {key: [*files] for key, files in self.texts.items()}
        names |= {"svg": [f"{name}.svg" for name in self.images]}
        names |= {"pdf": [f"{name}.pdf" for name in self.images]}
        return [key for key, found in names.items() if any((out / f).is_file() for f in found)]

    def _for_papers(self, formats: Collection[PaperFormat]) -> dict[str, str | bytes]:
        """Return the files for papers in some formats.

        Raises:
            UserError: the study has nothing in one of them.
        """
        files: dict[str, str | bytes] = {}
        for format in formats:
            if format == "svg" or format == "pdf":
                files |= self._figures(format)
            elif format in self.texts:
                files |= self.texts[format]
            else:
                raise UserError(
                    f"--format {format} is for comparisons of modules: this study has svg and pdf"
                )
        return files

    def _figures(self, format: Format) -> dict[str, bytes]:
        charts = {chart.name: chart for chart in self.charts}
        return {
            f"{name}.{format}": draw(drawn, format)
            for name, names in self.images.items()
            if (drawn := [charts[chart] for chart in names if chart in charts])
        }


def page_text(
    template: str,
    summary: Any,
    charts: Iterable[Chart],
    written: str,
    files: Sequence[str],
    varying: Mapping[str, list[str]] | None = None,
    **context: Any,
) -> str:
    """Return a page that opens offline.

    Args:
        template: an extension of ``page.html.j2``, in ``templates/``.
        summary: what the page is of, with ``title``, ``environment`` and ``skipped_images``.
        charts: of the page.
        written: when, in words.
        files: the names of those beside it.
        varying: in what the environments of its runs differ.
        context: what the template needs beside that.
    """
    by_name = {chart.name: chart for chart in charts}
    return (
        page_templates()
        .get_template(template)
        .render(
            summary=summary,
            charts=by_name,
            figures=_packed_figures(by_name),
            plotly=_packed_plotly() if by_name else None,
            environment=flat(summary.environment),
            varying=varying or {},
            written=written,
            files=files,
            **context,
        )
    )


def _packed(text: str) -> str:
    """Compress text for a page, where report.js unpacks it: gzip in base64, a third of the text's length."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@functools.cache
def _packed_plotly() -> str:
    from plotly.offline import get_plotlyjs

    return _packed(get_plotlyjs())


def _packed_figures(charts: Mapping[str, Chart]) -> str:
    figures = (f"{json.dumps(name)}: {chart.figure.to_json()}" for name, chart in charts.items())
    return _packed(f"{{{', '.join(figures)}}}")


def write_files(out: Path, files: Mapping[str, str | bytes]) -> None:
    """Write the files of a report into a folder, each atomically.

    Raises:
        UserError: the folder cannot be written.
        OSError: the disk is full.
    """
    try:
        for name, content in files.items():
            write_atomic(out / name, content)
    except OSError as error:
        if disk_is_full(error):
            raise
        raise UserError(
            f"cannot write the report to {out} ({error.strerror or error}): "
            "`ecanet report STUDY --out FOLDER` writes it elsewhere"
        ) from None


def now() -> str:
    """Return the time as pages have it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def page_templates() -> jinja2.Environment:
    """Return the templates of pages, with their filters."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        # Names of modules, errors and paths may hold anything.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=lambda v: f"{100 * v:.2f} %",
        speed=lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.3g}",
        amount=amount,
        capitalized=capitalized,
        mebibytes=lambda v: f"{v / 2**20:,.0f} MiB" if v >= 2**24 else f"{v / 2**20:.2g} MiB",
        # A long name may break behind its punctuation, a number nowhere.
        broken=lambda v: Markup("<wbr>").join(re.split(r"(?<=[:,_.])(?!\d)", v)),
        # No line ends between a number and its sign, unit or name.
        unbroken=lambda v: re.sub(
            r" (?=[%×±])|(?<=±) |(?<=\bp) (?==)|(?<=\bp =) |(?<=\w) (?=\d)", "\xa0", v
        ),
        headings=lambda v: [(id, Markup(title)) for id, title in _HEADING.findall(v)],
        # A heading links to itself, for the mouse: the keyboard has the contents. Not one that unfolds.
        anchored=lambda v: Markup(re.sub("(?<!<summary>)" + _HEADING.pattern, _ANCHORED, str(v))),
        # Names of classes and images come from elsewhere.
        name=lambda v: cut(printable(v), 40),
        metric_title=lambda v: column_title(METRICS[v].title),
        # Plus 0.0 makes -0.0 positive.
        points=lambda v: minus(f"{round(100 * v, 1) + 0.0:+.1f}"),
        column_title=column_title,
        signed=lambda v: minus(f"{v:+,}"),
    )
    return environment


def varying_environment(environments: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Return what differs between the runs' environments, except the date, and its values."""
    found: dict[str, list[str]] = {}
    for environment in environments:
        for key, value in flat(environment).items():
            if key != "date" and value not in found.setdefault(key, []):
                found[key].append(value)
    return {key: values for key, values in found.items() if len(values) > 1}


def flat(values: dict[str, Any]) -> dict[str, str]:
    """Flatten nested settings to dotted names and text."""
    return {
        name: value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
        for name, value in flatten(values).items()
    }


def amount(value: float) -> str:
    """Return a count with its SI prefix and three or more digits: ``41.2 M``."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g} {prefix}"
    return f"{value:.4g}"


def minus(text: str) -> str:
    """Return the text with true minus signs."""
    return text.replace("-", "\N{MINUS SIGN}")


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Return rows as CSV, with a column for each key of any; nothing for none.

    A text that a spreadsheet would take for a formula gets a quote before it.
    """
    text = io.StringIO()
    if rows:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: no_formula(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def recipe_text(lines: Iterable[str], settings: Mapping[str, Any]) -> str:
    """Return settings as a recipe, with lines that say what it is and how it is used."""
    import yaml

    header = "\n".join("# " + line.replace("\n", " ") for line in lines)
    return f"{header}\n{yaml.safe_dump(dict(settings), sort_keys=False)}"


def json_text(value: Any) -> str:
    """Return ``value`` as indented JSON."""
    return json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def plain(value: Any) -> Any:
    """Return what JSON can hold: numbers that are not finite become None, the unknown its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)
