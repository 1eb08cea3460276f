"""What a study's verdicts come to, and the lines that a command ends with."""

from __future__ import annotations

import pytest
from helpers.synthetic import make_accuracies, make_summary

from ecanet.experiments.analysis.adequacy import baseline_adequacy
from ecanet.experiments.analysis.recommendation import closing_lines, recommend
from ecanet.experiments.analysis.statistics import study_statistics
from ecanet.experiments.plans.controls import Control
from ecanet.statistics.design import Design


def advice(
    effects: dict[str, float], seeds: int = 8, **summary_values: object
) -> tuple[str, str, str]:
    summary = make_summary(make_accuracies(effects, seeds), epochs=0)
    for name, value in summary_values.items():
        setattr(summary, name, value)
    found = recommend(summary, study_statistics(summary))
    return found.headline, found.reason, found.command


def test_the_best_of_the_better_modules_is_recommended_with_its_price() -> None:
    headline, reason, command = advice({"none": 0.0, "se": 0.02, "eca": 0.012})
    assert headline == "Use se."
    assert "better than the plain network by 2." in reason
    assert "It trains at 0.93 × the speed of the plain network" in reason
    assert "eca is better too" not in reason, "se is better than eca"
    assert command == "ecanet predict IMAGES --weights STUDY"
    _, _, command = advice({"none": 0.0, "se": 0.02}, keeps_weights=False)
    assert command == ""


def test_a_module_that_cannot_be_told_from_the_best_is_named() -> None:
    _, reason, _ = advice({"none": 0.0, "se": 0.0121, "eca": 0.012}, margin=0.0005)
    assert "is better too, and cannot be distinguished from" in reason


def test_a_gain_that_does_not_matter_is_no_reason_to_switch() -> None:
    headline, reason, _ = advice({"none": 0.0, "eca": 0.012}, margin=0.03)
    assert headline.startswith("Keep the plain network, unless 1.")
    assert "better, but by less than 3.00 points" in reason


def test_without_a_gain_the_baseline_stays() -> None:
    headline, reason, command = advice({"none": 0.0, "se": -0.01, "eca": -0.02})
    assert (headline, command) == ("Keep the plain network.", "")
    assert "No module is better" in reason
    headline, reason, _ = advice({"none": 0.0, "eca": -0.0015})
    assert headline == "Keep the plain network."
    assert "equivalent within 0.50 points" in reason


def test_a_module_without_results_is_named() -> None:
    accuracies = make_accuracies({"none": 0.0, "eca": 0.02}, 8)
    summary = make_summary(accuracies | {"se": []}, epochs=0)
    found = recommend(summary, study_statistics(summary))
    assert found.headline == "Use eca."
    assert found.reason.endswith(" se has no results.")


def test_an_undecided_study_points_to_its_plan() -> None:
    headline, reason, command = advice({"none": 0.0, "eca": 0.001}, seeds=4, margin=0.001)
    assert (headline, command) == ("Keep the plain network for now.", "ecanet plan STUDY")
    assert "eca is undecided" in reason


def test_an_unfinished_study_points_to_its_progress() -> None:
    summary = make_summary(make_accuracies({"none": 0, "eca": 0}, 3), seeds=8, epochs=0)
    found = recommend(summary, study_statistics(summary))
    assert (found.headline, found.command) == ("No answer yet.", "ecanet study watch STUDY")
    summary = make_summary({"none": [], "eca": []}, seeds=8, epochs=0)
    assert recommend(summary, study_statistics(summary)).headline == "No answer yet."


@pytest.mark.parametrize(
    ("effects", "headline", "reason"),
    [
        (
            (0.0, 0.02),
            "Keep the plain network, and train it longer.",
            "At the cost of eca, that gains ",
        ),
        (
            (0.02, 0.0),
            "Use eca.",
            "more than using the same cost to train the plain network longer gives",
        ),
        ((0.02, 0.04), "Keep the plain network, and train it longer.", "more than eca does"),
        (
            (0.02, 0.0199),
            "Use eca.",
            "not shown to be better than using the same cost to train the plain network longer",
        ),
    ],
)
def test_a_control_is_weighed_against_its_module(
    effects: tuple[float, float], headline: str, reason: str
) -> None:
    names = ("eca", "control:time")
    control = Control("time", "eca", 1.2, 1.2, epoch_length=1.2)
    found = advice(
        {"none": 0.0, **dict(zip(names, effects, strict=True))}, controls={"control:time": control}
    )
    assert found[0] == headline
    assert reason in found[1]


def test_a_badly_trained_baseline_comes_before_any_verdict() -> None:
    summary = make_summary(make_accuracies({"none": 0.0, "eca": 0.02}, 8))
    for record in summary.records:
        for epoch in record.epochs:
            epoch["lr"] = 0.1
    found = recommend(summary, study_statistics(summary), baseline_adequacy(summary))
    assert (found.headline, found.command) == ("Train the plain network better first.", "")
    assert "Apart from that: use eca." in found.reason


@pytest.mark.parametrize(
    ("rate", "flags"),
    [
        (0.01, "--epochs 20 --schedule.milestones '[6,8]'"),
        (0.1, "--epochs 20 --schedule.name cosine"),
    ],
)
def test_a_badly_trained_baseline_gets_the_command_that_trains_it_better(
    rate: float, flags: str
) -> None:
    summary = make_summary(make_accuracies({"none": 0.0, "eca": 0.02}, 8))
    for record in summary.records:
        for number, epoch in enumerate(record.epochs):
            epoch |= {"lr": rate if number > 3 else 0.1, "val_accuracy": 0.1 * number}
    summary.settings |= {"epochs": 10, "schedule": {"name": "step", "milestones": [3, 4]}}
    summary.recipe = {"data": "digits", "plugin": ["/my own.py"]}
    command = recommend(summary, study_statistics(summary), baseline_adequacy(summary)).command
    assert command == (
        "ecanet compare --recipe STUDY/report/recipe.yaml --plugin '/my own.py' "
        f"{flags} --out STUDY-better-trained"
    )


def test_commands_end_with_a_verdict_per_module() -> None:
    summary = make_summary(make_accuracies({"none": 0, "se": 0.02, "triplet": 0}, 8), epochs=0)
    summary.design = Design(12)
    statistics = study_statistics(summary)
    lines = closing_lines(statistics, recommend(summary, statistics))
    assert [line.split()[0] for line in lines[:2]] == ["se", "triplet"]
    assert lines[0].startswith("se       better than none by 2.")
    assert lines[2].startswith("Use se. It is better")
    only = make_summary({"none": [0.9]}, epochs=0)
    statistics = study_statistics(only)
    assert closing_lines(statistics, recommend(only, statistics)) == []
