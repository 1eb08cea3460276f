"""Parameters and multiply-adds against hand counts and the figures measured on the official code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ecanet.models import create_model
from ecanet.profiling import count_macs, count_parameters


@pytest.mark.parametrize(
    ("name", "kernel_sizes", "binary_giga"),
    [
        ("eca_resnet18", "3577", 1.690),
        ("eca_resnet34", "3357", 3.412),
        ("eca_resnet50", "3557", 3.808),
        ("eca_resnet101", "3357", 7.266),
        ("eca_resnet152", "3357", 10.723),
        ("eca_mobilenet_v2", None, 286.8 / 1024),
    ],
)
def test_official_models(name: str, kernel_sizes: str | None, binary_giga: float) -> None:
    with torch.device("meta"):
        model = create_model(name, kernel_sizes=kernel_sizes)
    assert count_macs(model, 224) / 2**30 == pytest.approx(binary_giga, abs=0.0006)


def test_by_hand_and_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, groups=2),
        nn.BatchNorm2d(6),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(6 * 25, 4),
    )
    model[1].eval()
    assert count_macs(model, 5, 2) == 25 * 6 * (1 * 9) + 6 * 25 * 4
    assert count_parameters(model) == 6 * 9 + 6 + 12 + 600 + 4
    assert [module.training for module in model] == [True, False, True, True, True]
    assert model[1].num_batches_tracked == 0


def test_shared_weights_count_once() -> None:
    layer = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(layer, nn.ReLU(), layer)) == 12
