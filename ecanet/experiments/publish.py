"""Publish weights with a model card: as a folder, or as a repository of the Hugging Face Hub.

The folder has ``model.safetensors``, the card ``README.md`` and, where they are known, ``recipe.yaml`` with
the settings of the run, ``metrics.csv`` and, of a study, ``report/``. Networks that timm can build get timm's
``config.json`` too.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from ecanet.config import ClassificationSettings, DetectionSettings, as_recipe
from ecanet.detection.convert import convert_detector, is_our_detector
from ecanet.errors import UserError, did_you_mean, disk_is_full, one_line
from ecanet.experiments.analysis.compare import RECIPE, StudySummary, metric_of, summarise
from ecanet.experiments.analysis.statistics import study_statistics
from ecanet.experiments.analysis.sweep import Trial
from ecanet.experiments.plans.compare import ComparePlan
from ecanet.experiments.report.card import Card, Measured, StudyResult, card_text
from ecanet.experiments.report.page import recipe_text
from ecanet.experiments.run import write_report_for_others
from ecanet.experiments.study.location import locate
from ecanet.experiments.study.study import load_study
from ecanet.experiments.study.weights import best_runs
from ecanet.experiments.study.winner import find_weights, holds_study
from ecanet.files import temporary_folder, write_atomic
from ecanet.inputs import HUB_PREFIX
from ecanet.metrics import top5_tells
from ecanet.models.weights.convert import convert_weights
from ecanet.models.weights.files import weight_file
from ecanet.models.weights.hub import CONFIG, WEIGHTS, is_on_hub
from ecanet.plugins import load_plugins
from ecanet.predictions import PREDICTIONS, read_predictions
from ecanet.record import Record, read_record
from ecanet.statistics.design import Interval
from ecanet.typed import typed

log = logging.getLogger(__name__)

CARD = "README.md"
_PLACES = ("data", "weights", "backbone_weights")  # settings that are paths
# Licenses that the Hub knows by these identifiers; huggingface_hub has no list of them. It grows by those of
# single language models: any other is published as "other".
LICENSES = frozenset((
    "apache-2.0", "mit", "openrail", "openrail++", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl",
    "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl",
    "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "unknown",
    "other",
))  # fmt: skip


@dataclass
class Published:
    """What :func:`publish` has written."""

    place: str
    """The folder, or the address of the repository."""
    files: dict[str, int]
    """Bytes of each file."""


@dataclass
class _Source:
    """The weights that are published, and what is known of them."""

    weights: Path
    study: Path | None = None
    record: Record | None = None
    metrics: Path | None = None
    plugins: Sequence[str] = field(default_factory=list)


def publish(
    source: str,
    to: str,
    *,
    license: str,
    private: bool = False,
    dry_run: bool = False,
    plugin: Sequence[str] = (),
) -> Published:
    """Write weights, a model card, the recipe and, of a study, its report to a folder or the Hub.

    Args:
        source: a file of weights, or the folder of a run or of a study, whose best run is taken.
        to: a folder, which must be new or empty, or ``hf-hub:OWNER/NAME``, which is created if missing. The
            token is where huggingface_hub looks for it.
        license: as the Hub names it: ``mit``, ``apache-2.0``, ``cc-by-4.0``, ``other``.
        private: make a new repository private.
        dry_run: write and send nothing.
        plugin: Python files that register the network's attention module.

    Raises:
        UserError: the license is unknown, the weights cannot be found or published, the folder is not
            empty, or the Hub refuses.
        OSError: the disk is full; the folder is as it was.
    """
    if license not in LICENSES:
        raise UserError(
            f"--license {license}: give it as the Hub names it, such as mit, apache-2.0 or cc-by-4.0; "
            f"a license that the Hub has no name for is other."
            f"{did_you_mean(license.lower(), LICENSES, listed=())}"
        )
    repository = _repository(to) if is_on_hub(to) else None
    if private and repository is None:
        raise UserError(f"--private is for --to hf-hub:OWNER/NAME, and {to} is a folder")
    out = Path(to).expanduser()
    if repository is None and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise UserError(f"{out} is not empty: choose another folder for --to")
    load_plugins(list(plugin))
    found = _find(source, list(plugin))
    with _build_folder(None if repository or dry_run else out) as folder:
        _fill(folder, found, license, f"hf-hub:{repository}" if repository else None)
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        if dry_run:
            return Published(to, files)
        if repository:
            return Published(_push(folder, repository, private), files)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    return Published(str(out), files)


def _repository(to: str) -> str:
    name = HUB_PREFIX.sub("", to, count=1)
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if name.count("/") != 1:
        raise UserError(f"--to {to}: a repository of the Hub is named hf-hub:OWNER/NAME")
    return name


@contextmanager
def _build_folder(out: Path | None) -> Iterator[Path]:
    """Yield a new folder beside ``out``, to be renamed to it, or in the system's temporary folder."""
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    with temporary_folder(out.absolute().parent) as folder:
        yield folder


def _find(source: str, plugins: Sequence[str]) -> _Source:
    """Find the weights, and beside them the record of their run.

    Raises:
        UserError: there are none.
    """
    name = find_weights(source)
    assert name is not None
    weights, study = weight_file(name), Path(source).expanduser()
    if is_on_hub(source):
        raise UserError(
            f"{source} is on the Hub already: give a file, or a run's or study's folder"
        )
    # The record is of weights under the names that a run gives them.
    own = weights.name in ("best.safetensors", "last.safetensors")
    record = read_record(weights.parent / "record.json") if own else None
    named = record.settings.get("plugin", []) if record else []
    metrics = weights.with_name("metrics.csv")
    return _Source(
        weights,
        study if holds_study(study) else None,
        record,
        metrics if record and metrics.is_file() else None,
        [*dict.fromkeys(PurePath(file).name for file in (*named, *plugins))],
    )


def _fill(folder: Path, found: _Source, license: str, name: str | None) -> None:
    """Write everything into an empty folder, the card last."""
    detector = is_our_detector(found.weights)
    described, classes = _write_weights(found.weights, folder, detector)
    record = found.record
    card = Card(
        title=described,
        name=name or "FOLDER",
        license=license,
        detector=detector,
        in_timm=(folder / CONFIG).is_file(),
        plugins=found.plugins,
    )
    if record:
        card = _with_run(card, record, found.weights.parent)
        if not top5_tells(classes):
            known = [one for one in card.measured if not one.key.endswith("_top5")]
            card = replace(card, measured=known)
        write_atomic(folder / RECIPE, _run_recipe(record, card))
        if found.metrics:
            shutil.copyfile(found.metrics, folder / found.metrics.name)
    if found.study:
        card = _with_study(card, found, folder / "report")
    write_atomic(folder / CARD, card_text(card))


def _write_weights(weights: Path, folder: Path, detector: bool) -> tuple[str, int]:
    """Write the weights, for timm where it has the network.

    Returns:
        What they are of, and a classifier's number of classes (0 for a detector).
    """
    if detector:
        return convert_detector(weights, folder / WEIGHTS).split("\n")[0], 0
    try:
        converted = convert_weights(weights, folder, "hub")
    except UserError:
        # timm has no such network; whatever else is wrong is raised again.
        converted = convert_weights(weights, folder / WEIGHTS)
    of = converted.weights
    title = of.model if of.attention == "none" else f"{of.model} with attention {of.attention}"
    return title, of.num_classes


def _last_part(path: str) -> str:
    """Return the name of a file or folder without where it is on this machine."""
    return path if is_on_hub(path) else path.rstrip("/").rpartition("/")[2]


def _without_places(summary: Any) -> Any:
    """Return the summary of a study without the host names of its machines and without where its data are."""
    paths = [str(summary.settings.get(name) or "") for name in _PLACES]
    short = {path: _last_part(path) for path in paths if os.sep in path and not is_on_hub(path)}

    def cleaned(value: Any) -> Any:
        if isinstance(value, str):
            return functools.reduce(
                lambda text, path: text.replace(path, short[path]), short, value
            )
        if isinstance(value, dict):
            return {key: cleaned(inner) for key, inner in value.items() if key != "host"}
        if isinstance(value, list):
            return [cleaned(inner) for inner in value]
        if isinstance(value, (Record, Trial)):
            return with_cleaned(value)
        return value

    def with_cleaned(value: Any) -> Any:
        return replace(
            value, **{one.name: cleaned(getattr(value, one.name)) for one in fields(value)}
        )

    return with_cleaned(summary)


def _with_run(card: Card, record: Record, folder: Path) -> Card:
    """Add what a run's record has: metrics on its own images, settings, machine."""
    settings, versions = record.settings, record.environment.get("versions", {})
    start = settings.get("weights") or settings.get("backbone_weights")
    pretrained = "the ImageNet weights of its library" if settings.get("pretrained") else "scratch"
    own = re.compile(r"test_.*|(box|mask)_AP(50|75)?")
    metrics = {key: value for key, value in record.final.items() if own.fullmatch(key)}
    # Without a test split there are those that the weights were selected by.
    metrics = metrics or {k: v for k, v in record.final.items() if k.startswith("val_")}
    return replace(
        card,
        data=_last_part(settings["data"]),
        seed=record.seed,
        epochs=int(settings["epochs"]),
        start=_last_part(start) if start else pretrained,
        select=settings.get("select", "last"),
        measured=[Measured(key, value, _interval(key, folder)) for key, value in metrics.items()],
        software=", ".join(f"{name} {version}" for name, version in versions.items()),
        device=str(record.environment.get("device", "")),
    )


def _interval(key: str, folder: Path) -> Interval | None:
    """Return the 95 % Wilson interval of a run's accuracy over test images; None of another metric."""
    if key != "test_accuracy":
        return None
    try:
        right = read_predictions(folder / PREDICTIONS).right
    except (FileNotFoundError, UserError):
        return None
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(int(right.sum()), len(right), method="wilson")
    return float(low), float(high)


def _run_recipe(record: Record, card: Card) -> str:
    """Return the settings of a run as a recipe, without paths of this machine."""
    cls = DetectionSettings if card.detector else ClassificationSettings
    own = dict(record.settings)
    for name in _PLACES:
        if own.get(name):
            own[name] = _last_part(own[name])
    own["plugin"] = list(card.plugins)
    settings = typed(cls, own)
    lines = [f"The run that the weights are of: {settings.title()}.", f"Command:  {card.command}"]
    return recipe_text(lines, as_recipe(settings, {"attention": settings.attention}))


def _with_study(card: Card, found: _Source, out: Path) -> Card:
    """Write the study's report to ``out``, and add its results."""
    assert found.study
    study = load_study(locate(found.study), "read")
    plan = study.plan()
    best = best_runs(study)[0]
    if not isinstance(plan, ComparePlan):
        write_report_for_others(study, out, _without_places)
        return replace(card, study=StudyResult(best.run, best.module, best.runs, plan.metric))
    write_report_for_others(study, out, _without_places, ["markdown"])
    table = (out / "table.md").read_text().split("\n\n|")[0]
    summary: StudySummary = summarise(study)
    statistics = study_statistics(summary)
    chosen = next(one for one in statistics.modules if one.attention == best.module)
    metric = metric_of(plan.settings)
    result = StudyResult(
        run=best.run,
        module=best.module,
        runs=best.runs,
        selected_by=plan.metric,
        table=table,
        command=f"{metric.program} compare --recipe report/{RECIPE} --out FOLDER",
        mean=Measured(metric.key, chosen.mean, chosen.interval)
        if chosen.mean is not None
        else None,
        images=summary.images,
    )
    return replace(card, study=result)


def _push(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder; return the address of the repository.

    Raises:
        UserError: there is no token, or the Hub refuses or cannot be reached.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Weights and model card by ecanet",
        )
    except LocalTokenNotFoundError:
        raise UserError(_LOG_IN.format(repository)) from None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise UserError(_LOG_IN.format(repository)) from error
        raise UserError(f"the Hub refuses {repository}: {one_line(error)}") from error
    except Exception as error:  # of the HTTP library
        if disk_is_full(error):
            raise
        raise UserError(
            f"the Hub cannot be reached ({one_line(error)}): check the network"
        ) from error
    return str(address)


_LOG_IN = (
    "the Hub does not let you write to {}: log in with 'hf auth login', with a token that may write"
)
