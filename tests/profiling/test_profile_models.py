"""Profiles of models: costs of attention by stage, and memory saved for backward, by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from ecanet.attention import list_attention
from ecanet.errors import UserError
from ecanet.models import attention_modules, create_model
from ecanet.profiling import ModelSpec, activation_bytes, count_macs, profile_models, tables
from ecanet.profiling.profile import _stages


def test_stages_of_a_resnet() -> None:
    (profile,) = profile_models([ModelSpec("eca_resnet50", kernel_sizes="3557")])
    assert profile.model == "eca_resnet50 3557"
    assert profile.parameters == 25_557_112
    layers = {stage.stage: stage for stage in profile.attention}
    assert list(layers) == ["layer1", "layer2", "layer3", "layer4"]
    for i, (blocks, kernel) in enumerate(((3, 3), (4, 5), (6, 5), (3, 7))):
        stage, channels, side = layers[f"layer{i + 1}"], 256 * 2**i, 56 // 2**i
        assert (stage.modules, stage.parameters) == (blocks, blocks * kernel)
        assert stage.macs == blocks * channels * kernel
        # Float32: the block's output, and for each channel the mean (padded), the gate, nothing else.
        values = channels * (side * side + 2) + kernel - 1
        assert stage.activation_bytes == blocks * 4 * values
    plain = profile_models([ModelSpec("resnet50")])[0]
    assert plain.attention == []
    assert profile.macs - plain.macs == sum(s.macs for s in profile.attention)
    # Without attention the addition takes the branch as it is: nothing of it is kept.
    kept = profile.activation_bytes - plain.activation_bytes
    assert kept == sum(s.activation_bytes for s in profile.attention)


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        (["layer1.0.attention", "layer1.1.attention", "layer2.0.attention"], ["layer1", "layer2"]),
        (["blocks.0.0.attention", "blocks.1.0.attention"], ["blocks.0", "blocks.1"]),
        (["only.attention"], ["only"]),
        ([], []),
    ],
)
def test_a_stage_is_where_names_first_differ(names: list[str], stages: list[str]) -> None:
    assert list(_stages(names)) == stages


def test_saved_for_backward_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),  # keeps the image
        nn.BatchNorm2d(4),  # keeps its input; two numbers a channel do not grow with the batch
        nn.ReLU(inplace=True),  # keeps its output
        nn.Flatten(),
        nn.Linear(4 * 36, 5),  # keeps its input, the same memory
    )
    total, by_part = activation_bytes(model, 8, parts={"relu": model[2], "head": model[4]})
    assert total == 4 * (3 * 64 + 4 * 36 + 4 * 36)
    assert by_part == {"relu": 4 * 4 * 36, "head": 0}
    assert model.training
    assert model[1].num_batches_tracked == 0


def test_saved_for_backward_is_what_autograd_saves() -> None:
    """The meta device against a real pass: bytes by address, three images minus two."""
    torch.manual_seed(0)
    model = create_model("resnet20", attention="cbam", num_classes=10)

    def kept(images: int) -> int:
        held: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            held.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(torch.randn(images, 3, 16, 16))
        del output
        return sum(tensor.untyped_storage().nbytes() for tensor in held.values())

    assert activation_bytes(model, 16)[0] == kept(3) - kept(2)


@pytest.mark.slow
@pytest.mark.parametrize("attention", list_attention())
def test_every_attention_module_can_be_profiled(attention: str) -> None:
    (profile,) = profile_models([ModelSpec("resnet20", attention)], image_size=16, num_classes=10)
    model = create_model("resnet20", attention=attention, num_classes=10)
    assert profile.macs == count_macs(model, 16)
    assert profile.macs_thop > profile.macs
    assert sum(stage.modules for stage in profile.attention) == len(attention_modules(model))


def test_other_libraries_and_unusual_builders() -> None:
    specs = [ModelSpec("torchvision/regnet_y_400mf", "eca"), ModelSpec("resnet10t", "eca")]
    regnet, timm = profile_models(specs, image_size=64)
    assert [stage.stage for stage in timm.attention] == ["layer1", "layer2", "layer3", "layer4"]
    assert regnet.attention[0].stage == "trunk_output.block1"


def test_speeds_and_rows() -> None:
    specs = [ModelSpec("resnet20", "none"), ModelSpec("resnet20", "eca")]
    how = {"train": True, "repeats": 2, "seconds_per_repeat": 0.0}
    profiles = profile_models(specs, image_size=8, num_classes=10, batch_sizes=[1, 3], **how)
    rows = tables.rows(profiles)
    assert [row["model"] for row in rows["models"]] == ["resnet20", "resnet20 + eca"]
    measured = [(row["batch_size"], row["mode"]) for row in rows["speed"]]
    assert measured == list(itertools.product([1, 3], ["inference", "train"])) * 2
    for row in rows["speed"]:
        assert row["ms_per_batch_low"] <= row["ms_per_batch"] <= row["ms_per_batch_high"]
        seconds = row["batch_size"] / row["images_per_second"]
        assert row["ms_per_batch"] == pytest.approx(1000 * seconds)
    text = tables.text(profiles, 8, "a device, float32")
    lines = text.splitlines()
    headers = [line.split("  ")[0] for line in lines if "images/s" in line]
    assert headers == [
        f"{mode}, batch of {n}" for n in (1, 3) for mode in ("inference", "training")
    ]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("specs", "settings", "says"),
    [
        ([ModelSpec("resnet21")], {}, "Did you mean"),
        ([ModelSpec("resnet20"), ModelSpec("resnet20")], {}, "more than once"),
        ([ModelSpec("resnet50", "eca", "33")], {}, "4 stages"),
        ([ModelSpec("torchvision/inception_v3")], {"image_size": 16}, "images of 16 pixels"),
        ([ModelSpec("resnet20")], {"image_size": 8, "batch_sizes": [0]}, "at least 1"),
    ],
)
def test_invalid_arguments_are_refused(specs: list[ModelSpec], settings: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        profile_models(specs, **settings)
