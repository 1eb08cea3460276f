"""Is the baseline of a comparison trained well enough to be compared with?

A module may look good because the plain network was trained badly. Each check looks at the finished runs
of the baseline alone and gives its evidence with numbers. A baseline that passes them all may still be
improved. docs/adequacy.md gives the reasons for the thresholds; benchmarks/adequacy.py holds them against
real studies.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ecanet.config import Optimizer, with_lr
from ecanet.errors import counted
from ecanet.experiments.analysis.compare import ACCURACY, BOX_AP, StudySummary
from ecanet.experiments.analysis.statistics import has_diverged
from ecanet.record import Record
from ecanet.yaml_file import read_yaml

DETECT = 0.005
"""The smallest difference that matters, as a fraction of 1, where the study's is in another unit."""
STEEP = 0.03
"""Rise of the training accuracy in the last epoch of an annealed run above which it has not settled."""
ANNEALED = 0.1
"""Share of the peak learning rate that an annealed run is at or below when it ends."""
LOW_RATE = 0.05
"""Share of the usual learning rate below which a rate is low, ..."""
FITTED = 0.95
"""... and training accuracy from which on that does not matter."""
ODDS = 0.5
"""Share of the odds of a reference (right over wrong answers) below which a run is far below it."""
GAP = 0.4
"""Training accuracy minus test accuracy above which a network has memorized its images."""
PEAK = 0.02
"""Fall of the validation accuracy from its peak to the end above which it has overfit."""
LEARNED = 0.1
"""Share of the way from guessing to perfect training accuracy below which nothing was learned."""
COLLAPSED = 0.05
"""Distance below the median run above which a run, if its odds are halved as well, has collapsed."""

NOTHING_LEARNED = "nothing learned"
_LEARN = "check the labels, the learning rate and its schedule, and train longer"

# Validation images, where their number is not known.
_IMAGES = 1000
_REFERENCES = Path(__file__).with_name("references.yaml")

Outcome = Literal["passed", "failed", "not checked"]


@dataclass(frozen=True)
class Check:
    """What one check found about the baseline."""

    name: str
    """The defect that was looked for: rate not annealed."""
    outcome: Outcome
    evidence: str
    """A clause with the numbers, or why there are none."""
    remedy: str = ""
    """What to do about it, a clause; only of a check that failed."""
    flags: str = ""
    """Of the study's command, that do it; "" if none does by itself."""


@dataclass(frozen=True)
class _Baseline:
    """The baseline's finished runs, and the names of what they measured."""

    summary: StudySummary
    runs: list[Record]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.summary.settings

    @property
    def classifier(self) -> bool:
        return self.summary.metric.of_classifiers

    @property
    def detect(self) -> float:
        """The smallest difference that matters, as a fraction of 1."""
        return self.summary.margin if self.summary.metric.is_share else DETECT

    @property
    def what(self) -> str:
        return "validation accuracy" if self.classifier else "box AP"

    @property
    def fine_tuned(self) -> bool:
        """Whether the runs start from weights of the whole network."""
        return bool(self.settings.get("pretrained") or self.settings.get("weights"))

    @property
    def score(self) -> float:
        """The mean test accuracy, or box AP; NaN if no run has one."""
        return _mean(self.scores().values())

    def scores(self) -> dict[int, float]:
        """Return the test accuracy, or box AP, by seed."""
        column = "test_accuracy" if self.classifier else "box_AP"
        found = {run.seed: run.final.get(column, math.nan) for run in self.runs}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def curves(self) -> np.ndarray[Any, Any]:
        """Return what is measured after each epoch, (runs, epochs); of runs that lack no value."""
        column = "val_accuracy" if self.classifier else "box_AP"
        found = [[row.get(column, math.nan) for row in run.epochs] for run in self.runs]
        epochs = max(map(len, found))
        whole = [curve for curve in found if len(curve) == epochs and np.isfinite(curve).all()]
        return np.array(whole).reshape(len(whole), epochs)

    def last(self, column: str, back: int = 1) -> float:
        """Return the mean over runs of a column of the last epoch, or an earlier one; NaN if none has it."""
        rows = [run.epochs[-back] for run in self.runs if len(run.epochs) >= back]
        return _mean(row.get(column, math.nan) for row in rows)

    def final(self, column: str) -> float:
        return _mean(run.final.get(column, math.nan) for run in self.runs)

    def images(self) -> int | None:
        """Return how many images an epoch trains on; None if the records do not hold it."""
        rows = [row for run in self.runs for row in run.epochs]
        found = [
            row.get("images_per_second", math.nan) * row.get("seconds", math.nan) for row in rows
        ]
        finite = [count for count in found if math.isfinite(count)]
        return round(float(np.median(finite)) / self.settings.get("repeats", 1)) if finite else None

    def final_rate(self) -> float | None:
        """Return the share of the peak learning rate at the end, the largest of all runs."""
        rates = [[row["lr"] for row in run.epochs if "lr" in row] for run in self.runs]
        shares = [rate[-1] / max(rate) for rate in rates if rate and max(rate) > 0]
        # A rate that was divided by ten may exceed a tenth in its last digit.
        return round(max(shares), 9) if shares else None

    @property
    def is_annealed(self) -> bool:
        """Whether the learning rate ends low, as far as it is recorded."""
        return (self.final_rate() or 0.0) <= ANNEALED

    def usual_rate(self) -> float:
        """Return the learning rate that a classifier's optimizer has by default, from scratch."""
        optimizer = Optimizer(name=self.settings["optimizer"]["name"])
        rate = with_lr(optimizer, self.settings["batch_size"]).lr
        assert rate is not None
        return rate

    def peak_rate(self) -> float:
        return max((row.get("lr", 0.0) for run in self.runs for row in run.epochs), default=0.0)


def baseline_adequacy(summary: StudySummary) -> list[Check]:
    """Return what each check found about the baseline; nothing before one of its runs has finished."""
    baseline = summary.attention[0] if summary.attention else ""
    runs = [run for run in summary.records if run.attention == baseline and run.epochs]
    # How somebody else's trainer trains is unknown.
    if runs and not summary.metric.of_classifiers and (nothing := _found_nothing(summary, runs)):
        return [nothing]
    if not runs or not (summary.metric.of_classifiers or summary.metric == BOX_AP):
        return []
    base = _Baseline(summary, runs)
    checks = [_settled, _annealed, _reference, _completed]
    if base.classifier:
        checks[2:2] = [_rate, _learned, _generalizes]
    return [check(base) for check in checks]


def failed(checks: Sequence[Check]) -> list[Check]:
    """Return the checks that failed."""
    return [check for check in checks if check.outcome == "failed"]


def warnings(checks: Sequence[Check]) -> list[str]:
    """Return a sentence for each check that failed, without its period."""
    return [
        f"the baseline is not trained well enough to be compared with ({check.name}): {check.evidence}; "
        f"{check.remedy}"
        for check in failed(checks)
    ]


# The checks


def _settled(base: _Baseline) -> Check:
    """Was the accuracy still rising when training ended?

    Annealing itself raises it until the rate is near zero, and a run that was long enough is flat in its last
    epoch: there one epoch is looked at. Without annealing a single epoch is noise: there the last quarter of
    the epochs is held against the one before. A gain that few validation images leave to chance is believed
    if the accuracy on the training images, which are many, rose steeply as well.
    """
    name, curves, flags = "still improving", base.curves(), _longer(base)
    remedy = "train for more epochs"
    if not curves.size:
        return Check(name, "not checked", f"no run has a {base.what} for each epoch")
    runs, epochs = curves.shape
    if epochs == 1:
        text = f"a single epoch does not show whether the {base.what} had stopped rising"
        if base.fine_tuned:
            return Check(name, "not checked", text)
        return Check(name, "failed", text, remedy, flags)
    if _dropped_at_the_end(base.settings):
        return Check(
            name, "not checked", "the learning rate was lowered just before the last epoch"
        )
    annealed = base.is_annealed
    window = 1 if annealed else max(1, epochs // 4)
    gains = curves[:, -window:].mean(1) - curves[:, -2 * window : -window].mean(1)
    gain, error = float(gains.mean()), _error(base, curves[:, -1], gains)
    span = "its last epoch" if window == 1 else f"its last {window} epochs"
    text = f"the {base.what} changed by {_points(gain)} in {span}, over {counted(runs, 'run')}"
    if gain - 2 * error > base.detect:
        text += (
            f", more than the difference that matters ({100 * base.detect:g}) and than two standard errors "
            f"({200 * error:.1f})"
        )
        return Check(name, "failed", text, remedy, flags)
    steep = base.last("train_accuracy") - base.last("train_accuracy", 2)
    if annealed and gain > base.detect and steep > STEEP:
        text += f", and the training accuracy by {_points(steep)}"
        return Check(name, "failed", text, remedy, flags)
    return Check(name, "passed", text)


def _longer(base: _Baseline) -> str:
    """Return the flags that train for twice as many epochs."""
    flags, schedule = f"--epochs {2 * base.settings['epochs']}", base.settings.get("schedule") or {}
    # Milestones that do not anneal the rate are replaced by a cosine.
    if (
        base.is_annealed
        and schedule.get("name") == "step"
        and (milestones := schedule.get("milestones"))
    ):
        doubled = ",".join(str(2 * milestone) for milestone in milestones)
        flags += f" --schedule.milestones '[{doubled}]'"
    return flags


def _dropped_at_the_end(settings: Mapping[str, Any]) -> bool:
    schedule = settings.get("schedule") or {}
    milestones = schedule.get("milestones") or []
    return schedule.get("name") == "step" and settings.get("epochs", 0) - 1 in milestones


def _error(base: _Baseline, scores: Any, gains: Any) -> float:
    """Return the standard error of a mean gain: of the seeds, and at least that of so few images."""
    runs = len(gains)
    over_seeds = float(np.std(gains, ddof=1)) / math.sqrt(runs) if runs > 1 else 0.0
    share, images = base.settings.get("validation"), base.images()
    count = images * share / (1 - share) if images and share and share < 1 else _IMAGES
    p = float(np.clip(np.mean(scores), 0, 1))
    return max(over_seeds, math.sqrt(2 * p * (1 - p) / max(count, 1) / runs))


def _annealed(base: _Baseline) -> Check:
    name, share = "rate not annealed", base.final_rate()
    if share is None:
        return Check(name, "not checked", "the runs have not recorded their learning rate")
    schedule, epochs = base.settings.get("schedule") or {}, base.settings.get("epochs")
    if epochs == 1:
        return Check(
            name, "not checked", "the records of a single epoch do not show the peak of the rate"
        )
    peak = base.peak_rate()
    text = f"the learning rate ended at {100 * share:.1f} % of its peak of {peak:.3g}"
    if decay := base.settings.get("ema_decay"):
        text += f", and the weights are averaged with a decay of {decay:g}, which does the same"
        return Check(name, "passed", text)
    if base.fine_tuned and base.classifier and share * peak <= ANNEALED * base.usual_rate():
        text += ", which is low enough for weights that were trained before"
        return Check(name, "passed", text)
    if share <= ANNEALED:
        return Check(name, "passed", text)
    how = str(schedule.get("name", "unknown"))
    if how == "step":
        milestones = ", ".join(map(str, schedule.get("milestones") or []))
        how += f", with milestones {milestones} in {epochs} epochs"
    text += f" (schedule: {how}), so it is partly chance where each run stopped"
    if how in ("cosine", "onecycle"):  # of very few epochs, or after a long warm-up
        return Check(name, "failed", text, "train for more epochs", _longer(base))
    remedy = (
        "give --schedule.name cosine, or milestones that leave a fifth of the epochs after the last"
    )
    return Check(name, "failed", text, remedy, "--schedule.name cosine")


def _rate(base: _Baseline) -> Check:
    name, peak = "rate too low", base.peak_rate()
    if base.fine_tuned:
        return Check(
            name, "not checked", "there is no usual rate for weights that were trained before"
        )
    if base.settings.get("epochs") == 1 or not peak:
        return Check(name, "not checked", "the records do not show the peak of the learning rate")
    usual, trained, settings = base.usual_rate(), base.last("train_accuracy"), base.settings
    text = (
        f"the learning rate peaks at {peak:.3g}, where {usual:.3g} is usual for "
        f"{settings['optimizer']['name']} and batches of {settings['batch_size']}"
    )
    if peak >= LOW_RATE * usual or math.isnan(trained):
        return Check(name, "passed", text)
    text += f", and training accuracy reached {_percent(trained)}"
    if trained >= FITTED:
        return Check(name, "passed", text)
    return Check(
        name,
        "failed",
        text,
        f"leave out --optimizer.lr, or try {usual:.3g}",
        f"--optimizer.lr {usual:.3g}",
    )


def _reference(base: _Baseline) -> Check:
    name = "far below published results"
    if base.fine_tuned:
        return Check(
            name, "not checked", "references are for training from scratch, not from weights"
        )
    found, why = _find_reference(base)
    if found is None:
        return Check(name, "not checked", why)
    published, score = found["value"] / 100, base.score
    if not math.isfinite(score):
        return Check(name, "not checked", "no run has a result on the test split")
    what = "test accuracy" if base.classifier else "box AP"
    by = ": ".join(filter(None, [found["source"], found.get("recipe")]))
    text = (
        f"the {what} of {base.settings['model']} on {found['data']} is {_percent(score)} after "
        f"{counted(base.settings['epochs'], 'epoch')}, where {_percent(published)} is published ({by})"
    )
    if _odds(score) >= ODDS * _odds(published):
        return Check(name, "passed", text)
    return Check(
        name,
        "failed",
        f"{text}: fewer than half as many right answers for each wrong one",
        "train longer, and check the recipe against the published one: learning rate and its schedule, "
        "weight decay, augmentation, and a stem for images of this size",
        _longer(base),
    )


@functools.cache
def references() -> list[dict[str, Any]]:
    """Return the published results, as references.yaml describes them."""
    found: list[dict[str, Any]] = read_yaml(_REFERENCES)
    return found


def _find_reference(base: _Baseline) -> tuple[dict[str, Any] | None, str]:
    """Return the published result for network and data; else None and why."""
    settings, images = base.settings, base.images()
    path = str(settings.get("data", "")).rstrip("/").lower()
    names = {path, path.rpartition("/")[2]} if not path.startswith("hf:") else {path}
    answers = base.summary.answers
    classes = sorted(name.lower() for name in answers.classes) if answers else []
    sets = [r for r in references() if names & set(r["names"]) or classes == r.get("classes")]
    if not sets:
        return None, "no published result is stored for these data"
    one = sets[0]
    if images is None or images < one["images"] / 2:
        return None, f"the runs do not train on all of {one['data']}"
    size = settings.get("image_size") or max(settings.get("min_size") or [0])
    if size and size < one["pixels"]:
        return None, f"published results on {one['data']} are for larger images"
    model = str(settings.get("model")).removeprefix("torchvision/").partition(".")[0]
    model = model.removeprefix("eca_")
    if not base.classifier:
        model = f"{settings.get('detector')} {model}"
    column = "accuracy" if base.classifier else "box_AP"
    for entry in one["published"]:
        if model in entry.get(column, {}):
            return {**entry, "data": one["data"], "value": entry[column][model]}, ""
    floor, parameters = one.get("floor"), _parameters(base)
    if floor and floor["like"] in model and parameters >= floor["parameters"]:
        return {**floor, "data": one["data"], "value": floor["accuracy"]}, ""
    return None, f"no published result of {settings.get('model')} on {one['data']} is stored"


def _parameters(base: _Baseline) -> int:
    baseline = base.summary.attention[0]
    return next((c.parameters for c in base.summary.costs if c.attention == baseline), 0)


def _learned(base: _Baseline) -> Check:
    name, majority = NOTHING_LEARNED, base.summary.majority
    if base.summary.metric.key != ACCURACY.key or majority is None or majority >= 1:
        return Check(name, "not checked", "only accuracies are compared with those of a guess")
    score, trained = base.score, base.last("train_accuracy")
    if math.isnan(score):
        return Check(name, "not checked", "no run has a test accuracy")
    if math.isnan(trained):
        trained = score
    guess = f"predicting the most frequent class is right for {_percent(majority)}"
    if score <= majority:
        text = f"the test accuracy is {_percent(score)}, and {guess}"
        return Check(name, "failed", text, _LEARN)
    text = f"test accuracy is {_percent(score)}, training accuracy {_percent(trained)}; {guess}"
    # Mixed images hold training accuracy down, whatever was learned.
    if max(trained, score) - majority < LEARNED * (1 - majority):
        return Check(name, "failed", text, _LEARN)
    return Check(name, "passed", text)


def _found_nothing(summary: StudySummary, runs: Sequence[Record]) -> Check | None:
    """Return the failed check if a metric that is best at 1 is 0 in all runs."""
    metric = summary.metric
    if not (metric.is_share and metric.higher_is_better):
        return None
    if any(run.final.get(metric.key, math.nan) != 0 for run in runs):
        return None
    text = f"the {metric.short} is 0 in {counted(len(runs), 'run')}"
    return Check(NOTHING_LEARNED, "failed", text, _LEARN)


def _generalizes(base: _Baseline) -> Check:
    name = "overfit"
    remedy = (
        "train on more images, augment more (--augmentation.policy, --augmentation.cutmix), raise the weight "
        "decay, take a smaller network, or start from --pretrained weights"
    )
    trained, score, curve = base.last("train_accuracy"), base.score, base.curves()
    if math.isnan(trained) or math.isnan(score):
        return Check(name, "not checked", "the records lack the accuracy of training or test")
    text = f"training accuracy is {_percent(trained)}, test accuracy {_percent(score)}"
    if trained - score > GAP:
        return Check(name, "failed", f"{text}, {_points(trained - score)} apart", remedy)
    guess, test_loss = _guessing_loss(base), base.final("test_loss")
    if guess is not None and test_loss > guess > 2 * base.last("train_loss"):
        text += f"; the test loss of {test_loss:.2f} is worse than {guess:.2f}, that of guessing"
        return Check(name, "failed", text, remedy)
    if curve.size and base.settings.get("select") != "best":
        mean = curve.mean(0)
        window = max(1, len(mean) // 10)
        smooth = np.convolve(mean, np.ones(window) / window, "valid")
        best = int(smooth.argmax())
        fall, error = float(smooth[best] - smooth[-1]), _error(base, curve[:, -1], curve[:, -1] * 0)
        if fall - 2 * error > PEAK and trained >= FITTED:
            text += f"; validation accuracy fell by {_points(fall)} after its peak in epoch {best + window}"
            return Check(name, "failed", text, f"stop earlier, or {remedy}")
    return Check(name, "passed", text)


def _guessing_loss(base: _Baseline) -> float | None:
    """Return the loss on the test split of predicting its class frequencies, in nats."""
    answers = base.summary.answers
    if answers is None or base.settings.get("loss", "cross_entropy") != "cross_entropy":
        return None
    shares = np.bincount(answers.labels) / len(answers.labels)
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


def _completed(base: _Baseline) -> Check:
    name, baseline = "failed or collapsed runs", base.summary.attention[0]
    scores = base.scores()
    lost = [run["seed"] for run in base.summary.failed if run["attention"] == baseline]
    diverged = [run.seed for run in base.runs if has_diverged(run) or run.seed not in scores]
    median = float(np.median(list(scores.values()))) if scores else math.nan
    fallen = {
        seed: score
        for seed, score in scores.items()
        if median - score > COLLAPSED and _odds(score) < ODDS * _odds(median)
    }
    parts = []
    if lost:
        parts.append(f"{_seeds(lost)} failed")
    if diverged:
        parts.append(f"{_seeds(diverged)} diverged: a loss or the result is not finite")
    if fallen:
        reached = ", ".join(_percent(score) for score in fallen.values())
        parts.append(f"{_seeds(fallen)} reached {reached}, where the median is {_percent(median)}")
    if parts:
        remedy = "lower --optimizer.lr, lengthen the warm-up, or give --clip-grad 1"
        return Check(name, "failed", "; ".join(parts), remedy)
    low, high = min(scores.values()), max(scores.values())
    text = f"all finished runs, {len(scores)}, reached {_percent(low)} to {_percent(high)}"
    return Check(name, "passed", text)


# Words


def _mean(values: Any) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def _odds(share: float) -> float:
    return share / max(1 - share, 1e-6)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points".replace("-", "\N{MINUS SIGN}")


def _seeds(seeds: Any) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
