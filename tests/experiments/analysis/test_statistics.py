"""The statistics of a study: pairs, verdicts, and studies in which nothing differs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.synthetic import make_accuracies, make_record, make_summary
from scipy import stats

from ecanet.experiments.analysis.compare import ACCURACY
from ecanet.experiments.analysis.statistics import Comparison, mean_interval, study_statistics
from ecanet.statistics.design import Design

pytestmark = pytest.mark.usefixtures("quick_collections")

BASE = [0.900, 0.905, 0.910, 0.902, 0.907, 0.904, 0.909, 0.903]


def comparison_of(
    accuracies: dict[str, list[float]], name: str = "eca", seeds: int | None = None
) -> Comparison:
    found = study_statistics(make_summary(accuracies, seeds=seeds, epochs=0))
    return found.comparisons[name]


def test_mean_interval_is_that_of_student_among_accuracies() -> None:
    values = [0.91, 0.93, 0.92, 0.925, 0.918]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx((low, high), rel=1e-12)
    # By hand: two values a apart have the interval mean ± 12.706 a / 2.
    assert mean_interval([0.5, 0.51]) == pytest.approx((0.505 - 0.06353, 0.505 + 0.06353), abs=1e-5)
    assert mean_interval([0.99, 1.0])[1] == 1.0
    assert mean_interval([0.01, 0.0])[0] == 0.0
    assert [mean_interval(values) for values in ([], [0.9], [0.9, 0.9, 0.9])] == [None] * 3


def test_compares_only_the_seeds_that_both_have() -> None:
    summary = make_summary({"none": [0.90, 0.91, 0.92], "eca": [0.91, 0.93, 0.95]}, epochs=0)
    summary.records = [r for r in summary.records if (r.attention, r.seed) != ("none", 1)]
    found = study_statistics(summary)
    comparison = found.modules[1].comparison
    assert comparison.seeds == [0, 2]
    assert comparison.differences == pytest.approx([0.01, 0.03])
    assert comparison.mean == pytest.approx(0.02)
    assert found.modules[1].mean == pytest.approx(0.93), "the mean is over all of a module's runs"
    assert found.modules[1].sd == pytest.approx(0.02)


def test_the_verdict_names_the_difference() -> None:
    shift = [0.007, 0.008, 0.009, 0.008, 0.006, 0.010, 0.008, 0.008]
    up = [a + s for a, s in zip(BASE, shift, strict=True)]
    down = [a - s for a, s in zip(BASE, shift, strict=True)]
    for finding, accuracies, sign in (("better", up, "+"), ("worse", down, "−")):
        found = comparison_of({"none": BASE, "eca": accuracies})
        assert (found.finding, found.pairing) == (finding, "paired")
        assert found.verdict.startswith(
            f"{finding} than none by 0.80 points (95 % interval {sign}0."
        )
        assert found.verdict.endswith(", 8 seeds)")
    shuffled = comparison_of({"none": BASE, "eca": [*BASE[1:], BASE[0]]})
    assert shuffled.finding == "equivalent"
    assert shuffled.verdict.startswith("equivalent to none within 0.50 points: +0.00 points (95 %")


def test_a_difference_too_small_to_matter_is_named_as_such() -> None:
    up = [a + s for a, s in zip(BASE, [0.002, 0.0021, 0.0019, 0.002] * 2, strict=True)]
    found = comparison_of({"none": BASE, "eca": up})
    assert found.finding == "better"
    assert found.verdict.endswith("though by less than your threshold of 0.50 points")


def test_an_undecided_comparison_names_the_seeds_that_would_tell() -> None:
    x = [0.91, 0.89, 0.92, 0.90, 0.93, 0.90]
    found = comparison_of({"none": BASE[:6], "eca": x})
    assert found.finding == "undecided"
    assert found.interval[0] < 0 < found.interval[1]
    assert found.seeds_needed is not None
    words = f"--first-seed 6 --max-seeds {found.seeds_needed} would probably decide"
    assert words in found.verdict
    longer = comparison_of({"none": BASE, "eca": x})
    assert len(longer.seeds) == 6
    assert "--first-seed 8 " in longer.verdict, "the baseline has had seeds 6 and 7"


def test_a_module_that_was_given_up_is_named_with_the_reason() -> None:
    eca = [0.91, 0.89, 0.92, 0.90, 0.93, 0.88, 0.91, 0.90]
    summary = make_summary({"none": BASE, "eca": eca}, epochs=0)
    summary.design, summary.most_seeds = Design(12), 12
    (note,) = study_statistics(summary).notes
    assert note.startswith("eca got no further seed, though 12 were allowed: the chance of an")
    summary.most_seeds = 8
    assert study_statistics(summary).notes == []
    # Of five seeds there is still hope: the study was cancelled.
    summary = make_summary({"none": BASE[:5], "eca": eca[:5]}, epochs=0)
    summary.design, summary.most_seeds = Design(12), 12
    assert study_statistics(summary).notes == []


def test_verdict_and_interval_never_disagree() -> None:
    for study in range(60):
        accuracies = make_accuracies(
            {"none": 0, "se": 0.002, "eca": 0.005}, 4 + study % 9, generator_seed=study
        )
        for c in study_statistics(make_summary(accuracies, epochs=0)).comparisons.values():
            low, high = c.interval
            assert (c.finding in ("better", "worse")) == (low > 0 or high < 0)
            assert c.mean == pytest.approx((low + high) / 2)


@pytest.mark.parametrize("seeds", [1, 2])
def test_two_seeds_decide_nothing(seeds: int) -> None:
    found = study_statistics(
        make_summary({"none": [0.90, 0.91][:seeds], "eca": [0.95, 0.96][:seeds]}, epochs=0)
    )
    c = found.modules[1].comparison
    assert (c.interval, c.finding) == (None, "undecided")
    assert "+5.00 points against none" in c.verdict
    assert any("nothing can be decided" in note for note in found.notes)


@pytest.mark.parametrize("other", [0.9, 0.8])
def test_runs_that_are_all_alike_decide_nothing(other: float) -> None:
    c = comparison_of({"none": [0.9] * 6, "eca": [other] * 6})
    assert (c.finding, c.interval) == ("undecided", None)
    assert "all runs of a module gave the same" in c.verdict


def test_equal_differences_of_coarse_accuracies_are_no_certainty() -> None:
    base = [300 / 360, 310 / 360, 320 / 360, 305 / 360, 306 / 360, 307 / 360]
    summary = make_summary({"none": base, "eca": [a + 1 / 360 for a in base]}, epochs=0)
    summary.resolution = 1 / 360
    c = study_statistics(summary).comparisons["eca"]
    assert c.interval[1] - c.interval[0] > 0.5 / 360


@pytest.mark.parametrize(
    "runs", [{"none": [], "eca": []}, {"none": [], "eca": [0.9]}, {"none": []}, {}]
)
def test_nothing_to_compare_is_no_error(runs: dict[str, list[float]]) -> None:
    found = study_statistics(make_summary(runs, seeds=6, epochs=0))
    assert all(m.comparison.finding == "no data" for m in found.modules[1:])


def test_a_module_without_runs_still_counts_as_a_comparison() -> None:
    accuracies = make_accuracies({"none": 0, "eca": 0.003}, 6)
    alone, beside = (
        comparison_of(found, seeds=6).interval for found in (accuracies, accuracies | {"se": []})
    )
    assert beside[0] < alone[0] < alone[1] < beside[1]


def test_an_unfinished_fixed_study_is_held_to_its_reserve() -> None:
    accuracies = make_accuracies({"none": 0, "eca": 0.003}, 7)
    found = study_statistics(make_summary(accuracies, seeds=8, epochs=0))
    done = study_statistics(make_summary(accuracies, seeds=7, epochs=0))
    early, late = found.comparisons["eca"].interval, done.comparisons["eca"].interval
    assert early[1] - early[0] > 1.3 * (late[1] - late[0])
    assert any("not complete" in note for note in found.notes)


def test_a_run_that_failed_leaves_the_planned_look_where_it_is() -> None:
    """Else a run that is retried would give a second look at the full level."""
    accuracies = make_accuracies({"none": 0, "eca": 0.003}, 8)
    summary = make_summary(accuracies, epochs=0)
    summary.records = [r for r in summary.records if (r.attention, r.seed) != ("eca", 7)]
    summary.failed = [{"attention": "eca", "seed": 7, "error": "out of memory"}]
    seven = make_summary({name: values[:7] for name, values in accuracies.items()}, epochs=0)
    expected = study_statistics(seven).comparisons["eca"].interval
    found = study_statistics(summary).comparisons["eca"].interval
    assert found[1] - found[0] > 1.3 * (expected[1] - expected[0])


def test_modules_are_compared_with_each_other_as_well() -> None:
    accuracies = make_accuracies({"none": 0, "se": 0, "eca": 0.01, "cbam": 0.001}, 8)
    found = study_statistics(make_summary(accuracies, epochs=0))
    assert set(found.pairs) == {("se", "eca"), ("se", "cbam"), ("eca", "cbam")}
    assert found.pairs["se", "eca"].finding == "worse"
    assert found.pairs["eca", "cbam"].finding == "better"


def test_diverged_runs_count_and_runs_without_accuracy_are_named() -> None:
    summary = make_summary({"none": [0.90, 0.91, 0.92], "eca": [0.10, 0.93, 0.91]})
    diverged, blank = summary.records[3], summary.records[5]
    diverged.epochs[4]["train_loss"] = math.nan
    diverged.final["test_loss"] = math.inf
    blank.final["test_accuracy"] = math.nan
    module = study_statistics(summary).modules[1]
    assert module.diverged == [0]
    assert module.accuracies == [0.10, 0.93], "chance level is a value"
    assert module.without_accuracy == [2]
    assert module.comparison.seeds == [0, 1]


def test_a_module_outside_the_plan_is_not_lost() -> None:
    summary = make_summary({"none": [0.9, 0.91]}, epochs=0)
    summary.records.append(make_record("eca", 0, 0.95, epochs=0))
    assert [m.attention for m in study_statistics(summary).modules] == ["none", "eca"]


def test_points_have_a_sign() -> None:
    found = [ACCURACY.difference(v) for v in (0.00799, -0.0125, 0.0, 0.1 + 0.2 - 0.3, -1e-17)]
    assert found == ["+0.80", "−1.25", "+0.00", "+0.00", "+0.00"]
    # An interval that ends here leaves 0 out.
    assert [ACCURACY.difference(v) for v in (-0.00001, 0.00001)] == ["−0.00", "+0.00"]


# Calibration: studies in which no module makes a difference


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "modules"), [(8, 4), (5, 2)])
@pytest.mark.parametrize("sequential", [False, True])
def test_a_study_without_differences_is_flagged_at_most_at_its_level(
    seeds: int, modules: int, sequential: bool
) -> None:
    """Family-wise: a study counts if any of its modules is called better or worse."""
    names = ["none", *(f"module{i}" for i in range(modules))]
    studies, flagged, findings = 300, 0, 0
    for study in range(studies):
        accuracies = make_accuracies(dict.fromkeys(names, 0.0), seeds, generator_seed=study)
        rounded = {name: [round(a * 10_000) / 10_000 for a in accuracies[name]] for name in names}
        summary = make_summary(rounded, epochs=0, costs=False)
        summary.design = Design(seeds, sequential)
        summary.resolution = 1e-4
        found = study_statistics(summary).comparisons.values()
        hits = [c for c in found if c.finding in ("better", "worse")]
        flagged += bool(hits)
        findings += len(hits)
    # More come once in ten thousand tests if the rate is no higher than the level.
    assert flagged <= stats.binom.ppf(0.9999, studies, 0.05)
    assert findings > 0, "a test that never flags would pass for calibrated"


def test_a_study_with_a_difference_finds_it() -> None:
    found = 0
    for study in range(20):
        accuracies = make_accuracies({"none": 0, "se": 0, "eca": 0.006}, 8, generator_seed=study)
        found += comparison_of(accuracies).finding == "better"
    assert found >= 18
