"""How images are prepared, as torchvision and timm do it, and as it is read from files of anyone's."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from ecanet.data.decode import Pixels, decode_image
from ecanet.data.preprocessing import MEAN, STD, Preprocessing, class_names, describe
from ecanet.errors import UserError


def image(height: int = 90, width: int = 120, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(40, 40), (40, 61), (75, 40), (16, 16), (20, 333), (33, 17)])
@pytest.mark.parametrize(("size", "share"), [(16, 1.0), (16, 0.875), (33, 0.8), (40, 0.95)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_it_is_torchvisions_resize_and_center_crop(
    shape: tuple[int, int], size: int, share: float, interpolation: str
) -> None:
    input_ = image(*shape)
    wanted = v2.Compose(
        [
            v2.Resize(int(size / share), v2.InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop(size),
        ]
    )(input_)
    found = Preprocessing.of_crop(size, share, interpolation=interpolation)(input_)
    assert found.dtype == torch.uint8
    assert (found.int() - wanted.int()).abs().max() <= 1


def test_evaluation_is_that_of_torchvision_on_pil_images(real_data: Path) -> None:
    """Resize(256) and CenterCrop(224), as all published figures are measured."""
    theirs = v1.Compose([v1.Resize(256), v1.CenterCrop(224), v1.PILToTensor()])
    ours = Preprocessing.of_crop(224, 0.875)
    files = sorted((real_data / "imagenet-sample/val").rglob("*.JPEG"))[:20]
    for file in files:
        expected = theirs(Image.open(file).convert("RGB")).float()
        got = ours(decode_image(file.read_bytes())).float()
        assert got.shape == (3, 224, 224)
        assert (got - expected).abs().mean() < 0.6, file


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_it_is_timms(mode: str) -> None:
    config = {
        "input_size": (3, 48, 48), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4),
        "crop_pct": 0.9, "crop_mode": mode, "interpolation": "bicubic",
    }  # fmt: skip
    input_ = image()
    picture = Image.fromarray(input_.permute(1, 2, 0).numpy())
    wanted = create_transform(**config, is_training=False)(picture)
    preprocessing = Preprocessing.from_timm(config)
    assert preprocessing is not None
    (found,) = preprocessing.batch([input_])
    assert (found - wanted).abs().max() < 2.5 / 255 / 0.2
    assert (found - wanted).abs().mean() < 0.1 / 255 / 0.2


def test_grey_and_color() -> None:
    grey = image(channels=1)
    one, three = Preprocessing(90, 90, (0.5,), (0.2,)), Preprocessing(90, 90)
    assert torch.equal(three(grey), three(grey.repeat(3, 1, 1)))
    assert torch.equal(one(grey.repeat(3, 1, 1)), one(grey)), "grey stays what it is"
    color = image(90, 90)
    luma = Image.fromarray(color.permute(1, 2, 0).numpy()).convert("L")
    assert torch.equal(one(color)[0], torch.tensor(list(luma.getdata())).view(90, 90))
    assert one.batch([grey, color]).shape == (2, 1, 90, 90)
    assert three.for_channels(1).mean == (sum(MEAN) / 3,)
    assert one.for_channels(3).std == (0.2, 0.2, 0.2)
    with pytest.raises(UserError, match="4 channels"):
        one.for_channels(4)


def test_normalized_by_mean_and_deviation() -> None:
    preprocessing = Preprocessing(20, 20, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    input_ = image(20, 20)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    (found,) = preprocessing.batch([input_])
    torch.testing.assert_close(found, (input_ / 255 - mean) / std)


def test_it_comes_back_from_files_as_it_went() -> None:
    for size in range(1, 257):
        for resize in range(size, 2 * size + 40, 7):
            one = Preprocessing(size, resize)
            assert Preprocessing.of_crop(size, one.crop_share) == one
            assert int(size / one.crop_share) == resize, "what timm computes"
    odd = Preprocessing(33, 47, (0.123456789012345,), (1 / 255,), "bicubic", squash=True)
    assert Preprocessing.from_metadata(describe(odd, ["a"])) == odd
    windowed = replace(odd, window=(-1000, 400.5))
    assert Preprocessing.from_metadata(describe(windowed, None)) == windowed
    assert windowed.with_crop(20, 0.5).window == windowed.for_channels(3).window == (-1000, 400.5)
    assert windowed.with_crop(20, 0.5).pixels == Pixels(1, (-1000, 400.5))
    assert "window" not in describe(odd, None)["preprocessing"], "as in files of earlier versions"
    assert Preprocessing.from_timm(json.loads(json.dumps(odd.to_timm()))) == odd
    assert Preprocessing.from_metadata({}) is None
    assert class_names(describe(None, ["a", "b"]), 2) == ["a", "b"]
    assert class_names({}, 2) is class_names({"classes": "80"}, 2) is None
    assert class_names({"label_names": '{"0": "a", "2": "c"}'}, 3) == ["a", "", "c"]


GOOD = asdict(Preprocessing(224, 256))
HOSTILE: list[Any] = [
    "a string", None, [], {}, {"size": 224}, GOOD | {"further": 1},
    *(GOOD | {"size": value} for value in (0, -1, 10**9, 10**400, 224.0, "224", None, True, [224])),
    *(GOOD | {"resize": value} for value in (223, 10**9, "256", float("inf"))),
    *(
        GOOD | {name: [0.5, 0.5, value]}
        for name in ("mean", "std")
        for value in (float("nan"), float("inf"), "0.5", None, True, 1e300, 10**400, [0.5])
    ),
    *(GOOD | {"std": [0.2, 0.2, value]} for value in (0, 0.0, -1.0, 1e-320)),
    *(GOOD | {"mean": value} for value in ([], [0.1] * 2, [0.1] * 10**5, "0.1", 0.1, {"a": 1}, [0.1])),
    *(GOOD | {"interpolation": value} for value in ("lanczos", "", None, 3, ["bilinear"])),
    *(GOOD | {"window": value} for value in ([], [1], [0, 1, 2], [1, 0], [1, 1], "0,1", 3, [0, None])),
    *(GOOD | {"window": [0, value]} for value in (float("nan"), float("inf"), 10**400, True, "1")),
    *(GOOD | {"squash": value} for value in (1, "false", None)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_what_cannot_be_is_one_line(number: int) -> None:
    with pytest.raises(UserError) as caught:
        Preprocessing.from_metadata({"preprocessing": json.dumps(HOSTILE[number])})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["", "{", "nan", "[" * 100_000, "9" * 10_000, '"\\u001b[2J'])
def test_what_is_no_json_is_one_line(text: str) -> None:
    for key in ("preprocessing", "pretrained_cfg"):
        with pytest.raises(UserError) as caught:
            Preprocessing.from_metadata({key: text}) or pytest.fail("taken")
        assert len(str(caught.value)) < 200
        assert str(caught.value).isprintable()
    assert class_names({"classes": text}, 2) is None, "another program's word"


@pytest.mark.parametrize(
    "config",
    [
        {"input_size": 224}, {"input_size": [3, 224]}, {"input_size": [3, 224, 288]},
        {"input_size": ["3", 224, 224]}, {"input_size": [3, "224", "224"]},
        {"input_size": [3, 10**9, 10**9]}, {"input_size": [3, 10**400, 10**400]},
        {"input_size": [3, 224, 224], "crop_pct": "0.9"},
        {"input_size": [3, 224, 224], "crop_pct": float("nan")},
        {"input_size": [3, 224, 224], "crop_pct": 1e-320}, {"input_size": [3, 224, 224], "crop_pct": 2},
        {"input_size": [3, 224, 224], "crop_mode": "border"},
        {"input_size": [3, 224, 224], "crop_mode": ["center"]},
        {"input_size": [3, 224, 224], "interpolation": "random"},
        {"input_size": [3, 224, 224], "mean": [float("nan")] * 3},
        {"input_size": [3, 224, 224], "std": [0, 0, 0]}, {"input_size": [5, 224, 224]},
    ],
)  # fmt: skip
def test_a_hub_folder_that_says_what_cannot_be(config: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        Preprocessing.from_metadata({"pretrained_cfg": json.dumps(config)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [["a"], ["a", 1], [], ["a", "b", "c"], [["a"], ["b"]]])
def test_names_that_are_none(names: Any) -> None:
    with pytest.raises(UserError):
        class_names({"classes": json.dumps(names)}, 2)


def test_every_pretrained_cnn_of_timm_is_understood_or_refused() -> None:
    understood = 0
    names = timm.list_models(pretrained=True)
    for name in names:
        config = timm.get_pretrained_cfg(name)
        try:
            found = Preprocessing.from_timm(config.to_dict())
        except UserError:
            continue
        assert found is not None
        assert found.mean == tuple(config.mean)
        understood += 1
    assert understood > 0.98 * len(names)
    plain = Preprocessing.from_timm({"input_size": (3, 224, 224)})
    assert plain == Preprocessing(224, 256, MEAN, STD)
