"""Which weights a study starts from, and which are left when it has ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import ecanet
from ecanet.config import ClassificationSettings, EvaluateSettings, StudySettings
from ecanet.errors import UserError
from ecanet.experiments.study.study import load_study
from ecanet.experiments.study.weights import best_runs, prune_weights
from ecanet.experiments.study.worker import work
from ecanet.models.weights.save import save_weights
from ecanet.predictions import PREDICTIONS
from ecanet.record import read_record
from ecanet.training.evaluate import evaluate_classifier

SETTINGS = ClassificationSettings(
    epochs=2, batch_size=256, device="cpu", precision="float32", metric="loss", select="best"
)


def left(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder / "runs")) for p in folder.rglob("*.safetensors"))


@pytest.mark.slow
def test_other_weights_in_the_same_file_are_refused(tmp_path: Path) -> None:
    file, folder = tmp_path / "w.safetensors", tmp_path / "study"
    settings = replace(SETTINGS, epochs=1, weights=str(file), metric="accuracy", select=None)
    study = StudySettings(attention=["none"], seeds=1)

    def write() -> None:
        shape = {"num_classes": 7, "in_chans": 1}
        model = ecanet.create_model("resnet20", **shape)
        save_weights(file, model.state_dict(), model="resnet20", attention="none", **shape)

    write()
    ecanet.compare(folder, settings, study, jobs=1)
    ecanet.compare(folder, settings, study, jobs=1)
    write()
    with pytest.raises(UserError, match="the file of --weights has changed"):
        ecanet.compare(folder, settings, study, jobs=1)
    with pytest.raises(UserError, match="safetensors is not the file that"):
        work(load_study(folder))


@pytest.mark.slow
def test_the_tested_weights_of_the_best_run_of_each_module_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ecanet")
    study = StudySettings(attention=["none", "eca"], seeds=2)
    summary = ecanet.compare(tmp_path, SETTINGS, study, jobs=1)
    assert summary.answers is not None
    assert not summary.answers.missing
    assert summary.metric.key == "test_loss"
    best = best_runs(load_study(tmp_path, "read"))
    assert best[0].mean <= best[-1].mean, "of losses the lowest"
    kept = sorted(one.run for one in best)
    assert len(kept) == 2
    assert left(tmp_path) == [f"{run}/best.safetensors" for run in kept]
    assert len(list(tmp_path.glob(f"runs/*/{PREDICTIONS}"))) == 4
    for run in kept:
        record = read_record(tmp_path / "runs" / run / "record.json")
        assert record is not None
        losses = [row["val_loss"] for row in record.epochs]
        assert record.final["val_loss"] == min(losses)
        settings = EvaluateSettings(
            weights=str(tmp_path / "runs" / run / "best.safetensors"), device="cpu", workers=0
        )
        measured = evaluate_classifier(Path("digits"), settings)
        assert measured["accuracy"] == record.final["test_accuracy"]
        assert measured["loss"] == pytest.approx(record.final["test_loss"], abs=1e-5)

    # Extended, it keeps its rule, and the weights that it has removed are no error.
    summary = ecanet.compare(
        tmp_path, SETTINGS, StudySettings(attention=["none", "eca"], seeds=3), jobs=1
    )
    assert len(summary.records) == 6
    assert len(left(tmp_path)) <= 2

    summary = ecanet.compare(
        tmp_path,
        SETTINGS,
        StudySettings(attention=["none", "eca"], seeds=3, keep_weights="none"),
        jobs=1,
    )
    assert left(tmp_path) == []


@pytest.mark.slow
def test_all_weights_or_none(tmp_path: Path) -> None:
    settings = ClassificationSettings(epochs=1, batch_size=256, device="cpu", precision="float32")
    for rule, files in (("last", ["none-seed0/last.safetensors"]), ("none", [])):
        study = StudySettings(attention=["none"], seeds=1, keep_weights=rule)
        ecanet.compare(tmp_path / rule, settings, study, jobs=1)
        assert left(tmp_path / rule) == files


@pytest.mark.slow
def test_studies_from_before_keep_what_they_have(tmp_path: Path) -> None:
    """Their plan has neither rule nor metric."""
    settings = ClassificationSettings(epochs=1, batch_size=256, device="cpu", precision="float32")
    study = StudySettings(attention=["none"], seeds=1, keep_weights="last")
    ecanet.compare(tmp_path, settings, study, jobs=1)
    opened = load_study(tmp_path)

    def older(plan: dict) -> dict:
        del plan["keep_weights"]
        for name in ("metric", "class_weights", "balanced_sampling"):
            del plan["settings"][name]
        return plan

    opened.queue.change_study("plan", older)
    (tmp_path / "runs" / "none-seed0" / PREDICTIONS).unlink()
    opened = load_study(tmp_path)
    prune_weights(opened)
    assert left(tmp_path) == ["none-seed0/last.safetensors"]
    summary = ecanet.compare(tmp_path, settings, StudySettings(attention=["none"], seeds=2), jobs=1)
    assert len(summary.records) == 2
    assert summary.answers is not None
    assert summary.answers.missing == ["none seed 0"]
    assert len(left(tmp_path)) == 2
