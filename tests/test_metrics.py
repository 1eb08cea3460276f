"""Metrics of classifiers, held to scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as reference

from ecanet.metrics import (
    METRICS,
    classification_metrics,
    confusion_matrix,
    per_class,
    reliability,
)


def _drawn(classes: int = 7, images: int = 300, absent: int | None = None):
    random = np.random.default_rng(3)
    labels = random.integers(classes, size=images)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % classes
    scores = random.normal(size=(images, classes))
    scores[np.arange(images), labels] += 1
    return scores.astype(np.float32), labels


@pytest.mark.parametrize("absent", [None, 2])
def test_metrics_agree_with_scikit_learn(absent: int | None) -> None:
    scores, labels = _drawn(absent=absent)
    there = np.unique(labels)
    predicted, probabilities = scores.argmax(1), softmax(scores.astype(float), axis=1)
    found = classification_metrics(scores, labels)
    assert found.keys() == METRICS.keys() | {"top5"}
    areas = [reference.roc_auc_score(labels == c, probabilities[:, c]) for c in there]
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "top5": reference.top_k_accuracy_score(labels, scores, k=5, labels=range(7)),
        "balanced_accuracy": np.mean(
            [reference.recall_score(labels == c, predicted == c) for c in there]
        ),
        "macro_f1": reference.f1_score(labels, predicted, labels=there, average="macro"),
        "auroc": np.mean(areas),
        "loss": reference.log_loss(labels, probabilities, labels=range(7)),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_calibration_error_is_the_weighted_gap_between_confidence_and_accuracy() -> None:
    # Two groups: 4 images at confidence 0.8, 3 of them right; 6 images at 0.6, all right.
    logit = {0.8: math.log(4), 0.6: math.log(1.5)}
    scores = np.array([[logit[0.8], 0.0]] * 4 + [[logit[0.6], 0.0]] * 6)
    labels = np.array([0, 0, 0, 1] + [0] * 6)
    found = classification_metrics(scores, labels)
    assert found["calibration_error"] == pytest.approx((4 * 0.05 + 6 * 0.4) / 10)
    bins = reliability(softmax(scores, axis=1).max(1), scores.argmax(1) == labels)
    assert bins["images"].sum() == 10
    filled = bins["images"] > 0
    assert sorted(bins["accuracy"][filled]) == [0.75, 1.0]
    assert np.isnan(bins["accuracy"][~filled]).all()


def test_confusion_matrix_and_classes_agree_with_scikit_learn() -> None:
    scores, labels = _drawn(absent=4)
    predicted = np.where(scores.argmax(1) == 6, 0, scores.argmax(1))  # class 6 is never predicted
    table = confusion_matrix(labels, predicted, 7)
    np.testing.assert_array_equal(
        table, reference.confusion_matrix(labels, predicted, labels=range(7))
    )
    found = per_class(table)
    precision, recall, f1, images = reference.precision_recall_fscore_support(
        labels, predicted, labels=range(7), zero_division=np.nan
    )
    np.testing.assert_allclose(found["precision"], precision)
    np.testing.assert_allclose(found["recall"], recall)
    np.testing.assert_array_equal(found["images"], images)
    there = images > 0
    np.testing.assert_allclose(found["f1"][there], f1[there])
    assert np.isnan(found["f1"][4])


def test_a_diverged_model_has_no_area_and_no_loss() -> None:
    scores, labels = _drawn()
    scores[:] = np.nan
    found = classification_metrics(scores, labels)
    assert math.isnan(found["auroc"])
    assert math.isnan(found["loss"])
    assert math.isnan(found["top5"])


def test_rounded_scores_keep_what_was_predicted() -> None:
    scores = np.array([[1.0, 1.0001], [3.0, 0.0]])
    labels = np.array([1, 0])
    rounded = scores.astype(np.float16)
    found = classification_metrics(rounded, labels, scores.argmax(1))
    assert found["accuracy"] == 1.0
    assert classification_metrics(rounded, labels)["accuracy"] == 0.5
