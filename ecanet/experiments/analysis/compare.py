"""A comparison, finished or not, reduced to plain values for its report."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from ecanet.config import AnySettings, OutsideSettings, as_recipe
from ecanet.errors import UserError, capitalized
from ecanet.experiments.analysis.predictions import Answers, answers_of
from ecanet.experiments.plans.controls import Control, is_control
from ecanet.metrics import METRICS, metric_named
from ecanet.predictions import PREDICTIONS
from ecanet.record import Cost, Record
from ecanet.statistics.design import Design
from ecanet.statistics.difference import Pairing
from ecanet.typed import typed

if TYPE_CHECKING:
    from ecanet.experiments.study.study import Study

PRECISIONS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""COCO's, in the order of its tables."""


@dataclass(frozen=True)
class Metric:
    """The metric by which a study judges its runs, and its names in a report."""

    name: str
    """In a sentence: test accuracy."""
    short: str
    """Where the split is clear: accuracy."""
    plural: str
    key: str
    """Its column in a record's ``final``: test_accuracy."""
    columns: tuple[str, ...]
    """Columns of the epochs that a sweep may optimize; the first is drawn: val_accuracy, val_loss."""
    measured: tuple[str, ...]
    """Columns of ``final`` that the tables of a sweep show."""
    place: str
    """What it is measured on, as a sentence about a value ends: on the test split."""
    heading: str
    curve: str
    """The same over the epochs, as a title: Validation accuracy."""
    loss_unit: str
    splits: str
    """Which images were used for what."""
    selection: str
    """The images by which a sweep selects."""
    sweep_splits: str
    """Which images a sweep uses for what."""
    higher_is_better: bool = True
    is_share: bool = True
    """A fraction of 1, shown in percent, differences in percentage points."""
    own_unit: str = "nats"
    """The unit of what is no share; "" if it has none, or it is unknown."""
    program: str = "ecanet"
    """The command line whose `compare` measures it."""
    of_classifiers: bool = False
    """Whether it is of classifiers that ecanet trains."""
    reported_by: str = ""
    """The trainer, if that is not ecanet, of which no more is known than what it reports."""
    shares_seed: bool = True
    """Whether runs of one seed are known to share initial weights, order of images and augmentation."""

    @property
    def most(self) -> float:
        """The highest value that there is."""
        return 1.0 if self.is_share else math.inf

    @property
    def stored_unit(self) -> str:
        """The unit of values in files."""
        return "fractions of 1" if self.is_share else self.unit or "as reported"

    @property
    def unit(self) -> str:
        """The unit in which it is shown."""
        return "%" if self.is_share else self.own_unit

    @property
    def scale(self) -> float:
        """What a value is multiplied by to be shown."""
        return 100.0 if self.is_share else 1.0

    @property
    def digits(self) -> str:
        """The format of a value that is shown."""
        return ".2f" if self.is_share else ".4f"

    def text(self, value: float, sd: float | None = None) -> str:
        """Return a value with its unit, and its standard deviation if there is one: ``92.31 ± 0.20 %``."""
        spread = "" if sd is None else f" ± {self.scale * sd:{self.digits}}"
        return f"{self.scale * value:{self.digits}}{spread} {self.unit}".rstrip()

    def interval(self, low: float, high: float) -> str:
        """Return an interval of values with its unit."""
        both = f"{self.scale * low:{self.digits}} to {self.scale * high:{self.digits}}"
        return f"{both} {self.unit}".rstrip()

    def difference(self, value: float, sign: bool = True) -> str:
        """Return a difference without its unit, in percentage points for a share.

        A zero has the sign of what was rounded to it: an interval from −1.59 to −0.00 leaves 0 out.
        """
        exact = round(self.scale * value, 9) + 0.0  # without the noise of floating point
        return f"{exact:{'+' if sign else ''}{self.digits}}".replace("-", "\N{MINUS SIGN}")

    def amount(self, value: float) -> str:
        """Return the size of a difference with its unit: ``0.80 points``."""
        return f"{self.difference(abs(value), sign=False)} {self.difference_unit}".rstrip()

    @property
    def difference_unit(self) -> str:
        """The unit of :meth:`difference`."""
        return "points" if self.is_share else self.unit

    @property
    def curve_key(self) -> str:
        """The column of the epochs that is drawn."""
        return self.columns[0]


def column_name(column: str) -> str:
    """Return a column of a record as text: ``validation loss``, ``box AP50``."""
    split, _, name = column.partition("_")
    if split in ("val", "test") and name in METRICS and name != "loss":
        column = f"{split}_{METRICS[name].title}"
    return column.replace("val_", "validation ").replace("_", " ")


def column_title(column: str) -> str:
    """Return :func:`column_name` as a title begins."""
    name = column_name(column)
    return name if name[1:2].isupper() else capitalized(name)  # mAP is spelled so


def _classifiers(name: str) -> Metric:
    """Return a metric of classifiers as what their runs are judged by."""
    what = METRICS[name]
    own = (f"val_{name}", f"test_{name}")
    return Metric(
        name=f"test {what.title}",
        short=what.title,
        plural=what.plural,
        key=f"test_{name}",
        columns=tuple(dict.fromkeys((own[0], "val_accuracy", "val_loss"))),
        measured=tuple(
            dict.fromkeys(("val_loss", "val_accuracy", *own, "test_accuracy", "test_loss"))
        ),
        place="on the test split",
        heading=f"{column_title(what.title)} on the test split",
        curve=f"Validation {what.title}",
        loss_unit="nats",
        splits="Curves and every choice come from the validation split: val/, or images held out of train. "
        "The test split was read once per run, at its end.",
        selection="validation split",
        sweep_splits="Every choice was made on the validation split: val/, or images held out of train. No "
        "trial has read the test split.",
        higher_is_better=what.higher_is_better,
        is_share=what.is_share,
        of_classifiers=True,
    )


RECIPE = "recipe.yaml"
"""Name of the file in a report that begins the study anew."""

ACCURACY = _classifiers("accuracy")
BOX_AP = Metric(
    name="box AP",
    short="AP",
    plural="APs",
    key="box_AP",
    columns=("box_AP",),
    measured=("box_AP", "box_AP50", "box_AP75"),
    place="box AP on the evaluation images",
    heading="Box AP on the evaluation images",
    curve="Box AP",
    loss_unit="sum of all parts",
    splits="Nothing was chosen by the evaluation images: each run counts as it is after its last epoch. AP "
    "is COCO's, the mean over IoU thresholds of 0.5 to 0.95, in percent.",
    selection="evaluation images",
    sweep_splits="Every choice was made by the evaluation images, which the confirming runs are evaluated "
    "on too: nothing here is a test on unseen images.",
    program="ecanet detect",
)


def _of_trainer(settings: OutsideSettings) -> Metric:
    """Return the metric of runs that somebody else's trainer trains and judges."""
    name = settings.best
    what = metric_named(name)
    direction = getattr(settings, "direction", None)
    return Metric(
        name=what.title,
        short=what.title,
        plural=what.plural,
        key=name,
        columns=(name,),
        measured=(name,),
        place=f"in {what.title}",
        heading=column_title(what.title),
        curve=column_title(what.title),
        loss_unit="as reported",
        splits=f"The figures are those that {settings.trainer_name} reports. Which images they are of, and "
        "what was chosen by them, is up to that trainer.",
        selection="images that the trainer judges by",
        sweep_splits="",
        higher_is_better=what.higher_is_better if direction is None else direction == "max",
        is_share=what.is_share,
        own_unit="",
        program=settings.program,
        reported_by=settings.trainer_name,
        shares_seed=settings.shares_seed,
    )


def metric_of(settings: AnySettings) -> Metric:
    """Return what the runs of a study with these settings are judged by."""
    if isinstance(settings, OutsideSettings):
        return _of_trainer(settings)
    name: str | None = getattr(settings, "metric", None)
    return _classifiers(name) if name else BOX_AP


@dataclass
class StudySummary:
    """A study as :func:`ecanet.experiments.report.compare.write_report` reads it; lists may be empty."""

    title: str
    attention: list[str]
    """Modules of the comparison, the baseline first."""
    seeds: list[int]
    """Seeds that every module is to be trained with."""
    settings: dict[str, Any]
    """The study's settings as resolved."""
    environment: dict[str, Any]
    """Versions, commit, device and date."""
    records: list[Record] = field(default_factory=list)
    """The finished runs."""
    costs: list[Cost] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    """Runs that stopped with an error: ``attention``, ``seed`` and ``error`` of each."""
    skipped_images: list[str] = field(default_factory=list)
    """Images that could not be read and were skipped."""
    metric: Metric = ACCURACY
    built_in: dict[str, int] = field(default_factory=dict)
    """Attention modules that the network has, or had, of its own: how many of each kind."""
    notices: list[str] = field(default_factory=list)
    """Warnings on network and settings from before the first step, one per line."""
    answers: Answers | None = None
    """What the runs answered for each test image; None if none of them can be reached."""
    majority: float | None = None
    """Share of the test split's most frequent class, 0..1, if known."""
    images: dict[str, int] = field(default_factory=dict)
    """Number of images in each split; empty if unknown."""
    controls: dict[str, Control] = field(default_factory=dict)
    """Those among ``attention`` that are the plain network with the cost of a module."""
    design: Design | None = None
    """When results are looked at; by default once, with all seeds."""
    margin: float = 0.005
    """Smallest difference that matters."""
    pairing: Pairing = "auto"
    resolution: float = 0.0
    """Step between two possible values of the metric: 1 / test images for a share; 0 if unknown."""
    queued: list[tuple[str, int]] = field(default_factory=list)
    """Module and seed of every run that was queued; by default every module with every seed."""
    most_seeds: int = 0
    """Seeds that a module gets at most."""
    keeps_weights: bool = True
    """Whether weights are left that images can be classified with."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The study's settings as a recipe that begins it anew; empty if unknown."""

    @property
    def unfinished(self) -> list[tuple[str, int]]:
        """The queued runs that have neither finished nor failed."""
        done = {(record.attention, record.seed) for record in self.records}
        done |= {(run["attention"], run["seed"]) for run in self.failed}
        return [run for run in self.planned if run not in done]

    @property
    def planned(self) -> list[tuple[str, int]]:
        """Module and seed of every run that the study is to have, as far as it knows yet."""
        return self.queued or list(itertools.product(self.attention, self.seeds))


def _recipe(plan: Any) -> dict[str, Any]:
    """Return the settings of a comparison's plan as a recipe."""
    seeds = [*plan.seeds, *plan.more_seeds]
    count = {"max_seeds": len(seeds)} if plan.sequential else {"seeds": len(seeds)}
    # Twelve digits: 100 * 0.007 is 0.7000000000000001.
    detect = float(f"{metric_of(plan.settings).scale * plan.margin:.12g}")
    study = {
        "attention": plan.attention,
        **count,
        "first_seed": min(seeds, default=0),
        "detect": detect,
    }
    study |= {"confidence": plan.confidence, "pairing": plan.pairing}
    if plan.keep_weights and not isinstance(plan.settings, OutsideSettings):
        study["keep_weights"] = plan.keep_weights
    return as_recipe(replace(plan.settings, plugin=plan.plugin), study)


def record_of(attributes: dict[str, Any]) -> Record:
    """Return the record among the attributes of a run that is complete.

    Raises:
        UserError: what is stored there is no record.
    """
    try:
        record = Record.from_dict(attributes["record"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        run = ascii(attributes.get("run"))
        raise UserError(f"the record of the run {run} cannot be read ({error})") from None
    arm = attributes.get("attention")
    return replace(record, arm=arm) if arm and is_control(arm) else record


def summarise(study: Study) -> StudySummary:
    """Gather what the report of a comparison needs from the study alone."""
    plan: Any = study.plan()
    attributes = study.trials.user_attrs
    trials = study.read_trials()
    runs = [run.attributes for run in plan.runs()] + [trial.user_attrs for trial in trials]
    queued = list(dict.fromkeys((run["attention"], run["seed"]) for run in runs))
    order = {run: i for i, run in enumerate(queued)}
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    complete.sort(key=lambda t: order[t.user_attrs["attention"], t.user_attrs["seed"]])
    return StudySummary(
        title=plan.settings.title(),
        attention=plan.attention,
        seeds=sorted({seed for _, seed in queued}),
        queued=queued,
        design=plan.design(),
        margin=plan.margin,
        pairing=plan.pairing,
        resolution=plan.resolution,
        most_seeds=len(plan.seeds) + len(plan.more_seeds),
        keeps_weights=plan.keep_weights != "none",
        recipe=_recipe(plan),
        settings=plan.to_dict()["settings"],
        environment=attributes["environment"],
        records=[record_of(trial.user_attrs) for trial in complete],
        costs=[typed(Cost, cost) for cost in attributes["costs"]],
        failed=[
            {key: found.get(key) for key in ("attention", "seed", "error")}
            for found in study.failed_runs()
        ],
        skipped_images=plan.skipped_images,
        metric=metric_of(plan.settings),
        built_in=plan.built_in,
        notices=[
            *plan.notices,
            *(one.describe(name, plan.settings) for name, one in plan.controls.items()),
        ],
        controls=plan.controls,
        majority=plan.majority,
        images=plan.images,
        answers=answers_of(
            (run["attention"], run["seed"], study.run_folder(run["run"]) / PREDICTIONS)
            for run in (trial.user_attrs for trial in complete)
        ),
    )
