"""Parameters and multiply-adds against hand counts and the figures measured on the official code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from ecanet.attention import ECA
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


def test_by_hand_and_the_model_is_unchanged() -> None:
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


@pytest.mark.parametrize(
    ("build", "size", "macs"),
    [
        # scaled_dot_product_attention, fused on a CPU
        (lambda: create_model("mobilevit_xxs"), 256, 407_364_096),
        # nn.MultiheadAttention, which has a fast path
        (lambda: torchvision.models.vit_b_32(image_size=32), 32, None),
    ],
)
def test_fused_attention_counts_as_its_products(
    build: Callable[[], nn.Module], size: int, macs: int | None
) -> None:
    model = build()
    fast = torch.backends.mha.get_fastpath_enabled()
    on_cpu = count_macs(model, size)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert on_cpu == count_macs(model.to("meta"), size)
    assert macs is None or on_cpu == macs


def test_a_gates_own_kernel_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("resnet20", attention="eca:kernel_size=3")
    expected = count_macs(model, 32)

    def kernel(self: ECA, x: torch.Tensor) -> torch.Tensor:
        return x  # as on a GPU: one operation, which the counter does not know

    monkeypatch.setattr(ECA, "by_kernel", kernel)
    assert count_macs(model, 32) == expected
    assert expected - count_macs(create_model("resnet20"), 32) == 3 * 3 * (16 + 32 + 64)
    assert not any("by_kernel" in vars(module) for module in model.modules())


def test_a_transformer_layer_by_hand() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x[:, 0])

    t, c, hidden = 8, 8, 16  # tokens of an image of 8 by 8: its rows
    by_hand = t * c * 4 * c + 2 * t * t * c + 2 * t * c * hidden
    assert count_macs(Layer(), 8, 1) == by_hand


def test_shared_weights_count_once() -> None:
    layer = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(layer, nn.ReLU(), layer)) == 12


@pytest.mark.parametrize(
    ("name", "today", "of_2019"),
    [
        # What thop 0.1.1 and 0.0.22 say of torchvision's models (the latter in float32: + 0 to 24).
        ("resnet18", 1_824_033_792, 1_826_702_336),
        ("resnet50", 4_133_742_592, 4_142_713_856),
        # 0.0.22 does not see that this one's last pooling is one: 62,720 inputs, 1,280 outputs.
        ("mobilenet_v2", 327_486_720 + 64_000, 334_871_520 + 64_000),
    ],
)
def test_thop(name: str, today: int, of_2019: int) -> None:
    with torch.device("meta"):
        model = create_model(f"torchvision/{name}")
    assert count_macs(model, 224, convention="thop") == today
    assert count_macs(model, 224, convention="thop-2019") == pytest.approx(of_2019, abs=24)


def test_thop_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(8, affine=False),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.ReLU6(),  # the last ReLU of one module: the other is forgotten
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    conv, large, middle, small = 27 * 8 * 64, 8 * 64, 8 * 16, 8 * 4
    norms = {"thop": 4 * large + 2 * middle, "thop-2019": 4 * large + 4 * middle}
    assert count_macs(model, 8) == conv + 40
    today = conv + norms["thop"] + small + (small + 8) + 40
    assert count_macs(model, 8, convention="thop") == today
    assert count_macs(model, 8, convention="thop-2019") == (
        conv + norms["thop-2019"] + 2 * middle + 5 * small + (small + 8) + 8 + 5 * (2 * 8 - 1)
    )
