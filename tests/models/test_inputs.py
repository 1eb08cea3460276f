"""Preprocessing of images if weights do not describe it, and what is logged."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from helpers.news import news
from PIL import Image
from torch import nn

from ecanet.data.preprocessing import MEAN, STD, Preprocessing
from ecanet.errors import UserError
from ecanet.models import create_model
from ecanet.models.inputs import input_preprocessing


def taken(name: str, **arguments: object) -> tuple[Preprocessing, list[str]]:
    with torch.device("meta"):
        model = create_model(name)
    with news() as said:
        return input_preprocessing(model, name, {}, **arguments), said  # type: ignore[arg-type]


def test_preprocessing_for_pretrained_weights_of_timm() -> None:
    """Earlier it was 224 of 256 pixels, bilinear, with ImageNet's mean for every model."""
    found, said = taken("tf_efficientnet_b1.ns_jft_in1k", pretrained=True)
    config = timm.get_pretrained_cfg("tf_efficientnet_b1.ns_jft_in1k")
    assert (found.size, found.interpolation) == (240, "bicubic")
    assert found.mean == config.mean
    assert int(240 / config.crop_pct) == found.resize
    assert len(said) == 1
    assert "timm's for tf_efficientnet_b1" in said[0]
    halves, _ = taken("mobilenetv3_large_100.miil_in21k", pretrained=True)
    assert halves.mean == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0"])
def test_preprocessing_for_pretrained_weights_of_torchvision(name: str) -> None:
    found, said = taken(f"torchvision/{name}", pretrained=True)
    theirs = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    picture = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    (ours,) = found.batch([picture])
    on_file = theirs(Image.fromarray(picture.permute(1, 2, 0).numpy()))
    assert (ours - on_file).abs().max() < 2.5 / 255 / min(STD)
    assert "torchvision's" in said[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eca_resnet18", Preprocessing(224, 256)),
        ("resnet18", Preprocessing(224, 256)),
        ("resnet20", Preprocessing(32, 32)),
        ("torchvision/resnet18", Preprocessing(224, 256)),
    ],
)
def test_files_without_metadata(name: str, expected: Preprocessing) -> None:
    found, said = taken(name)
    assert found == expected
    assert len(said) == 1
    assert "do not say how images are prepared" in said[0]


def test_flags_override_and_are_logged() -> None:
    found, said = taken("resnet18", eval_size=288)
    assert found == Preprocessing(288, 329)
    assert said[1] == "flags change how images are prepared: size 288, not 224; resize 329, not 256"
    assert taken("resnet18", eval_size=224, crop_share=0.875)[1][1:] == [], "no change, no word"
    with pytest.raises(UserError, match="crop-share 0"):
        taken("resnet18", crop_share=0)


def test_grey_models_get_one_mean() -> None:
    found = input_preprocessing(nn.Conv2d(1, 4, 3), None, {})
    assert found.mean == (sum(MEAN) / 3,)
    with pytest.raises(UserError, match="5 channels"):
        input_preprocessing(nn.Conv2d(5, 4, 3), None, {})
