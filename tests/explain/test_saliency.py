"""Maps of where a network looks, and their scores."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers.gates import gated
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from ecanet.errors import UserError
from ecanet.explain.saliency import BLUR, STEPS, class_maps, last_maps, score_maps


def test_the_layer_is_the_end_of_the_last_stage() -> None:
    for name, end in (("resnet20", "layer3"), ("resnet18", "layer4"), ("mobilenet_v2", "bn2")):
        model = gated("eca", name)
        assert last_maps(model, torch.randn(2, 3, 64, 64)) is model.get_submodule(end), name


def test_maps_of_one_pixel_say_nothing() -> None:
    with pytest.raises(UserError, match="more than one pixel"):
        last_maps(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), torch.randn(1, 3, 8, 8))


def test_a_map_is_the_class_activation_map_where_a_linear_layer_follows() -> None:
    """Zhou et al. (arXiv 1512.04150): the weights of the class over the channels of the last maps."""
    pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam")
    model, x, classes = gated("eca"), torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 1])
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    found = class_maps(model, x, classes)
    assert found.shape == (4, 32, 32)
    assert found.min() >= 0
    assert found.max() <= 1
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    kept: list[Tensor] = []
    hook = model.layer3.register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        model(x)
    hook.remove()
    with torch.no_grad():
        expected = torch.einsum("nc,nchw->nhw", model.fc.weight[classes], kept[0]).relu()
        large = nn.functional.interpolate(expected[:, None], (32, 32), mode="bilinear")[:, 0]
    assert expected.any()
    for ours, theirs in zip(found, large, strict=True):
        theirs = theirs - theirs.min()
        torch.testing.assert_close(ours, theirs / theirs.max().clamp_min(1e-9), atol=1e-3, rtol=0)


class Sees(nn.Module):
    """Its class 1 is the more probable, the more of the left half of the image is as it was."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image

    def forward(self, x: Tensor) -> Tensor:
        half = self.image.shape[-1] // 2
        there = ((x - self.image).abs().amax(1)[..., :half] < 1e-6).double().mean((1, 2))
        return torch.stack([torch.zeros_like(there), 4 * there - 2], 1)


def test_scores_follow_the_pixels_that_matter() -> None:
    x = torch.rand(1, 3, 16, 16) + 0.5
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1
    model, classes = Sees(x), torch.tensor([1])
    good, bad = score_maps(model, x, classes, left), score_maps(model, x, classes, 1 - left)
    assert good.insertion > bad.insertion
    assert good.deletion < bad.deletion

    # By hand: the left half comes first, so its share grows to 1 in the first half of the steps.
    steps = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
    inserted = (4 * (2 * steps).clamp(max=1) - 2).sigmoid()
    deleted = (4 * (1 - 2 * steps).clamp(min=0) - 2).sigmoid()
    for found, curve in ((good.insertion, inserted), (good.deletion, deleted)):
        area = ((curve[1:] + curve[:-1]) / 2).mean()
        assert float(found) == pytest.approx(float(area), abs=1e-9)


def test_insertion_begins_with_a_blurred_image_and_deletion_ends_with_the_mean() -> None:
    seen: list[Tensor] = []

    class Keeps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return torch.zeros(len(x), 2)

    x = torch.randn(2, 3, 32, 32)
    score_maps(Keeps(), x, torch.tensor([0, 1]), torch.rand(2, 32, 32))
    assert len(seen) == 2 * (STEPS + 1)
    torch.testing.assert_close(seen[0], gaussian_blur(x, [25, 25], [32 * BLUR] * 2))
    assert torch.equal(seen[-2], x)
    assert torch.equal(seen[1], x)
    assert not seen[-1].any()


def test_without_the_library_the_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(UserError, match=r"pip install 'ecanet\[explain\]'"):
        class_maps(gated("eca"), torch.randn(1, 3, 16, 16), torch.tensor([0]))
