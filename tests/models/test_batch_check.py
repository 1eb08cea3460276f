"""One image per step, with batch norms of one value per channel."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers.commands import Refuse
from torch import nn

from ecanet.attention import list_attention
from ecanet.config import ClassificationSettings
from ecanet.data import load_data
from ecanet.errors import UserError
from ecanet.models import create_model
from ecanet.models.batch_check import check_batch_norms
from ecanet.training.classification import ClassificationTask


@pytest.mark.parametrize("attention", list_attention())
def test_batches_that_fail_are_refused(attention: str) -> None:
    model = create_model("resnet20", attention=attention).train()
    values = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    if attention in ("srm", "ge"):
        with pytest.raises(UserError, match="give a --batch-size of at least 2 for each device"):
            check_batch_norms(model, 1, 32)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            copy.deepcopy(model)(torch.zeros(1, 3, 32, 32))
    else:
        check_batch_norms(model, 1, 32)
        copy.deepcopy(model)(torch.zeros(1, 3, 32, 32))
    check_batch_norms(model, 2, 32)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "passes"), [("resnest14d", False), ("regnety_002", True)])
def test_networks_of_timm(name: str, passes: bool) -> None:
    """The attention of a ResNeSt has a norm after its global pooling."""
    model = create_model(name, num_classes=3)
    if passes:
        check_batch_norms(model, 1, 64)
        model.train()(torch.zeros(1, 3, 64, 64))
        return
    with pytest.raises(UserError, match="one image per step is too few for ResNet"):
        check_batch_norms(model, 1, 64)


def test_before_training(refuse: Refuse, tmp_path: Path) -> None:
    words = ("train", "--data", "digits", "--attention", "srm", "--batch-size", "1")
    out = tmp_path / "run"
    refuse("one image per step is too few for SRM", *words, "--out", out, after_logs=True)
    assert not out.exists()


@pytest.mark.parametrize("sync_batchnorm", [False, True])
def test_one_image_per_device(sync_batchnorm: bool) -> None:
    """Synchronized batch norms compute their statistics of the images of all devices."""
    settings = ClassificationSettings(
        model="resnet20", attention="srm", batch_size=2, devices=2, sync_batchnorm=sync_batchnorm
    )
    data = load_data("digits")
    settings.image_size = data.image_size
    refused = pytest.raises(UserError, match="one image per step is too few for SRM")
    with nullcontext() if sync_batchnorm else refused:
        ClassificationTask.check(settings, data)


def test_a_batch_norm_of_the_network_after_pooling() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))
    with pytest.raises(UserError, match="too few for Sequential"):
        check_batch_norms(model, 1, 32)
