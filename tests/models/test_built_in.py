"""Built-in attention modules of networks: finding, counting and replacing them."""

from __future__ import annotations

import pytest
import timm
import torch
from helpers.networks import randomize_norms
from torch import Tensor, nn

from ecanet.errors import UserError
from ecanet.models import (
    attention_modules,
    built_in_attention,
    create_model,
    insert_attention,
    replace_attention,
)
from ecanet.models.built_in import count_built_in, in_words

GATES = {
    "regnety_002": {"SE": 13},
    "efficientnet_b0": {"SE": 16},
    "mobilenetv3_small_050": {"SE": 9},
    "seresnet18": {"SE": 8},
    "legacy_seresnet18": {"SE": 8},
    "ecaresnet26t": {"ECA": 8},
    "ghostnet_050": {"SE": 7},
    "ese_vovnet19b_dw": {"ESE": 4},
    "gcresnet33ts": {"global context": 10},
    "hgnet_tiny": {"ESE": 5},
    "eca_nfnet_l0": {"ECA": 12},
    "torchvision/mobilenet_v3_small": {"SE": 9},
    "torchvision/efficientnet_b0": {"SE": 16},
    "torchvision/regnet_y_400mf": {"SE": 16},
}
PLAIN = ["resnet20", "eca_resnet18", "resnet10t", "regnetx_002", "torchvision/resnet18"]


class Ones(nn.Module):
    """A gate that is always open."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def open_gates(model: nn.Module) -> None:
    """Force the factors of all gates to 1."""
    for name in built_in_attention(model):
        for module in model.get_submodule(name).modules():
            for child in ("gate", "scale_activation", "sigmoid"):
                if hasattr(module, child):
                    setattr(module, child, Ones())
            if hasattr(module, "mlp_add"):  # timm's global context adds
                for parameter in module.mlp_add.parameters():
                    nn.init.zeros_(parameter)


@pytest.mark.parametrize(("name", "count"), GATES.items())
def test_removing_gates_equals_opening_them(name: str, count: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=4).eval()
    state = torch.get_rng_state()
    randomize_norms(model)
    for parameter in model.parameters():  # of branches and gates that begin at zero
        if parameter.ndim == 4 and not parameter.any():
            nn.init.normal_(parameter)
    torch.manual_seed(0)
    without = create_model(name, num_classes=4, replace_attention=True).eval()
    assert torch.equal(torch.get_rng_state(), state), "the same random numbers follow"
    without.load_state_dict(model.state_dict(), strict=False)
    assert count_built_in(model) == count
    assert count_built_in(without) == {}
    assert set(without.state_dict()) < set(model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        open_gates(model)
        expected = model(images)
        assert not torch.equal(before, expected)
        torch.testing.assert_close(without(images), expected)


@pytest.mark.parametrize("name", ["regnety_002", "torchvision/mobilenet_v3_small"])
def test_another_module_replaces_each_gate(name: str) -> None:
    model = create_model(name, num_classes=4).eval()
    gates = built_in_attention(model)
    seen: dict[str, tuple[int, ...]] = {}
    for gate in gates:
        model.get_submodule(gate).register_forward_hook(
            lambda module, args, out, gate=gate: seen.update({gate: tuple(out.shape)})
        )
    images = torch.randn(2, 3, 64, 64)
    model(images)
    with torch.device("meta"):
        other = create_model(name, attention="eca_ns", replace_attention=True)
    replace_attention(model, "eca_ns")
    modules = attention_modules(model)
    assert list(modules) == [f"{gate}.attention" for gate in gates]
    assert list(modules) == list(attention_modules(other))
    assert [len(m.weight) for m in modules.values()] == [shape[1] for shape in seen.values()]
    assert model(images).shape == (2, 4)
    insert_attention(model, "none")
    assert attention_modules(model) == {}
    assert built_in_attention(model) == {}


@pytest.mark.parametrize("name", PLAIN)
def test_inserted_modules_are_not_built_in(name: str) -> None:
    model = create_model(name, attention=None if name.startswith("eca") else "cbam")
    assert attention_modules(model)
    assert built_in_attention(model) == {}


def test_our_modules_in_other_networks_are_built_in() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    from ecanet.attention import ECA, NoAttention

    model.append(ECA(8)).append(NoAttention(8))
    assert built_in_attention(model) == {"2": "eca"}


class SELayer(nn.Module):
    """As in public code; with ``act`` it ends the block as well."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x * torch.sigmoid(self.fc(x.mean((2, 3))))[..., None, None])


@pytest.mark.parametrize("act", [nn.ReLU(), nn.SiLU(), nn.Hardswish()])
def test_a_gate_with_the_blocks_activation_is_kept(act: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), SELayer(8, act))
    assert built_in_attention(model) == {"1": "SE"}
    with pytest.raises(UserError, match=r"1 \(SELayer\) does more than scale"):
        replace_attention(model)
    assert isinstance(model[1], SELayer)
    model[1].act = nn.Identity()
    assert isinstance(replace_attention(model)[1], nn.Identity)


@pytest.mark.parametrize(
    ("name", "attention", "message"),
    [
        ("resnet20", "eca", "no attention module other than"),
        ("regnetx_002", "eca", "no built-in attention modules"),
        ("skresnet18", "eca", "does more than scale"),
        ("regnety_002", "eca:kernel_size=4", "must be odd"),
        ("regnety_002", "fca:frequencies=7", "in the place|frequencies"),
    ],
)
def test_what_cannot_be_replaced_is_one_line(name: str, attention: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught, torch.device("meta"):
        create_model(name, attention=attention, replace_attention=True)
    assert "\n" not in str(caught.value)


def test_a_module_that_does_not_fit_leaves_the_model_unchanged() -> None:
    model = timm.create_model("regnety_002", num_classes=4)
    model.s2.b1.se.forward = lambda x: x[:, :4]  # what follows takes another width
    model.s2.b1.conv3.conv = nn.Conv2d(4, 56, 1, bias=False)
    gates = built_in_attention(model)
    line = r"in the place of s1.b1.se: .*RegNet does not take a 128x64 or 224x224 image"
    with pytest.raises(UserError, match=line):
        replace_attention(model)
    assert built_in_attention(model) == gates


def test_in_words() -> None:
    assert in_words({"SE": 16}) == "16 SE modules"
    assert in_words({"SE": 1}) == "1 SE module"
    assert in_words({"SE": 1, "ECA": 2}) == "1 SE and 2 ECA modules"


def test_features_only_for_a_detectors_backbone() -> None:
    model = create_model("regnety_002", attention="eca", replace_attention=True, features_only=True)
    assert len(attention_modules(model)) == 13
    assert len(model(torch.zeros(1, 3, 64, 64))) == 5
