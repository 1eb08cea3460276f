"""Parity with timm's classes, weights copied. Docstrings describe where timm deviates from the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ecanet.attention import create_attention

timm = pytest.importorskip("timm.layers")


def assert_same(ours: nn.Module, theirs: nn.Module, channels: int) -> None:
    """Compare outputs and input gradients, in training (batch statistics) and evaluation.

    In float64: in float32 a gradient that cancels out can differ by more than any tight bound.
    """
    for training in (True, False):
        x = torch.randn(2, channels, 9, 6, dtype=torch.float64, requires_grad=True)
        direction = torch.randn_like(x)
        results = []
        for module in (ours, theirs):
            output = module.double().train(training)(x)
            results.append((output, torch.autograd.grad((output * direction).sum(), x)[0]))
        torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)


def randomized(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def convolutional(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Linear weights as those of 1x1 convolutions, which timm uses."""
    return {
        key: value[:, :, None, None] if key.startswith("fc") and value.ndim == 2 else value
        for key, value in state.items()
    }


@pytest.mark.parametrize("channels", [16, 64, 128, 256])
@pytest.mark.parametrize(("name", "peer"), [("eca", "EcaModule"), ("eca_circular", "CecaModule")])
def test_eca(name: str, peer: str, channels: int) -> None:
    """Equal from 8 channels on; below, the paper's formula gives k=1, while timm uses 3."""
    ours = randomized(create_attention(name, channels))
    theirs = getattr(timm, peer)(channels)
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours, theirs, channels)


def test_eca_below_eight_channels_is_not_timms() -> None:
    assert create_attention("eca", 4).conv.kernel_size == (1,)
    assert timm.EcaModule(4).conv.kernel_size == (3,)


@pytest.mark.parametrize("bias", [True, False])
def test_se(bias: bool) -> None:
    """timm rounds the hidden width to multiples of 8; with the same width, the results are equal."""
    ours = randomized(create_attention("se", 64, bias=bias))
    theirs = timm.SqueezeExcite(64, rd_channels=4, bias=bias)
    theirs.load_state_dict(convolutional(ours.state_dict()))
    assert_same(ours, theirs, 64)


def test_cbam() -> None:
    """timm's MLP has no biases by default, and its spatial gate takes mean and maximum in this order."""
    ours = randomized(create_attention("cbam", 64))
    theirs = pytest.importorskip("timm.layers.cbam").CbamModule(64, mlp_bias=True)
    state = convolutional(ours.state_dict())
    theirs.channel.load_state_dict({k: v for k, v in state.items() if k.startswith("fc")})
    theirs.spatial.conv.conv.weight.data.copy_(state["conv.weight"].flip(1))
    theirs.spatial.conv.bn.load_state_dict(ours.bn.state_dict())
    theirs.spatial.conv.bn.momentum = ours.bn.momentum  # 0.01 as the authors', timm's is 0.1
    assert_same(ours, theirs, 64)


def test_global_context() -> None:
    """timm multiplies by default; with addition, its layer norm has another eps, and one bias is unused."""
    ours = randomized(create_attention("gc", 64))
    theirs = timm.GlobalContext(64, fuse_add=True, fuse_scale=False, rd_ratio=1 / 16)
    theirs.mlp_add.norm.eps = ours.norm.eps
    theirs.conv_attn.weight.data.copy_(ours.mask.weight)  # its bias stays: the softmax cancels it
    names = {"fc1": ours.fc1, "norm": ours.norm, "fc2": ours.fc2}
    state = {f"{n}.{key}": v for n, m in names.items() for key, v in m.state_dict().items()}
    theirs.mlp_add.load_state_dict(convolutional(state))
    assert_same(ours, theirs, 64)


@pytest.mark.parametrize("extent", [0, 2, 4, 8])
def test_gather_excite(extent: int) -> None:
    """Only the variant without parameters: timm 1.0.31 cannot build the others (a TypeError)."""
    ours = create_attention("ge", 16, variant="minus", extent=extent)
    assert_same(ours, timm.GatherExcite(16, extent=extent, use_mlp=False), 16)


def test_coordinate_attention() -> None:
    """timm's hidden width is 2/3 of C/16 in multiples of 8, and it has no biases by default."""
    coord = pytest.importorskip("timm.layers.coord_attn")
    ours = randomized(create_attention("coord", 64))
    theirs = coord.CoordAttn(64, rd_channels=8, bias=True)
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours, theirs, 64)


def test_efficient_local_attention() -> None:
    """timm has a convolution and a one-group norm for each axis and a SiLU before the sigmoid.

    With the paper's norm, no SiLU and the same weights for both axes, the results are equal.
    """
    coord = pytest.importorskip("timm.layers.coord_attn")
    ours = randomized(create_attention("ela", 64))
    theirs = coord.EfficientLocalAttn(
        64, act_layer=nn.Identity, norm_layer=lambda channels, **_: nn.GroupNorm(16, channels)
    )
    theirs.conv_h.weight.data.copy_(ours.conv.weight[:, :, :, None])
    theirs.conv_w.weight.data.copy_(ours.conv.weight[:, :, None, :])
    for norm in (theirs.norm_h, theirs.norm_w):
        norm.load_state_dict(ours.norm.state_dict())
    assert_same(ours, theirs, 64)
