"""What the pages of all reports share: templates, numbers as text, and the files beside a page."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecanet.errors import UserError, disk_is_full
from ecanet.experiments.study.plan import flatten
from ecanet.files import write_atomic

if TYPE_CHECKING:
    import jinja2


def page_templates() -> jinja2.Environment:
    """Return the templates of pages, with the filters that they use."""
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
        amount=_amount,
        mebibytes=lambda v: f"{v / 2**20:,.0f} MiB" if v >= 2**24 else f"{v / 2**20:.2g} MiB",
        # A long name may break behind its punctuation.
        broken=lambda v: Markup("<wbr>").join(re.split(r"(?<=[:,_.])", v)),
        # No line ends between a number and its sign or unit.
        unbroken=lambda v: (
            v.replace(" %", "\xa0%")
            .replace("± ", "±\xa0")
            .replace(" ×", "\xa0×")
            .replace("p = ", "p\xa0=\xa0")
        ),
        signed=lambda v: minus(f"{v:+,}"),
    )
    return environment


def write_files(out: Path, files: Mapping[str, str | bytes]) -> None:
    """Write a report's files into the folder ``out``, each atomically, in their order.

    Raises:
        UserError: the folder cannot be written.
        OSError: the disk is full; the old files, if any, are intact.
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


def elsewhere(environments: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Return what is not the same in the environments of all runs, but for the date, and its values."""
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


def _amount(value: float) -> str:
    """Return a count with its SI prefix and three or more digits: ``41.2 M``."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g} {prefix}"
    return f"{value:.4g}"


def minus(text: str) -> str:
    """Return the text with true minus signs."""
    return text.replace("-", "\N{MINUS SIGN}")


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Return rows of the same keys as CSV; nothing for none.

    A text that a spreadsheet would take for a formula gets a quote before it.
    """
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _no_formula(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    """Return ``value`` so that a spreadsheet shows it: names and errors come from anywhere."""
    formula = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if formula else value


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
