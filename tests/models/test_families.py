"""One member of each family of CNNs: the table in docs/models.md, and what an insertion leaves as it is."""

from __future__ import annotations

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.families import build_family
from helpers.networks import equal, randomize_norms
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ecanet.errors import UserError
from ecanet.models import attention_modules, insert_attention
from ecanet.models.factory import model_home
from ecanet.models.probe import small_image

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
TABLES = DOCUMENT.read_text().partition("<!-- families -->")[2].partition("<!-- /families -->")[0]
PLACES = {name: int(count) for name, count in re.findall(r"`([^`]+)` (\d+)", TABLES)}
REFUSED = re.findall(r"^\| `(.+)` \| (.+): (.+) \|$", TABLES, re.MULTILINE)

# Modules of timm without convolutional networks, and byoanet, which has byobnet's blocks.
OTHERS = {
    "beit", "byoanet", "cait", "coat", "convit", "crossvit", "davit", "deepseek_vit", "deit", "eva", "gcvit",
    "gemma4_vit", "hiera", "hieradet_sam2", "mlp_mixer", "mvitv2", "naflexvit", "nest", "pit", "pvt_v2",
    "qwen3_vit", "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit", "tnt",
    "twins",
    "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam",
    "vitamin", "volo", "xcit",
}  # fmt: skip


def test_every_family_of_timm_is_in_the_table() -> None:
    names = [name for name in [*PLACES, *(row[0] for row in REFUSED)] if timm.is_model(name)]
    listed = {model_home(name) for name in names} | {f"timm.models.{other}" for other in OTHERS}
    homes = {model_home(name) for name in timm.list_models()}
    assert {home for home in homes if home.startswith("timm.")} == {
        home for home in listed if home.startswith("timm.")
    }


def compared(model: Any) -> nn.Module:
    """Return the part of a network that is compared: of a detector, whose boxes vary, the backbone."""
    return getattr(model, "backbone", model)  # type: ignore[no-any-return]


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    leaves = tree_leaves(compared(model)(images))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def prepared(name: str) -> tuple[nn.Module, Tensor]:
    """Build a network in float64, in which every branch counts, and two images for it."""
    torch.manual_seed(0)
    model = build_family(name).double()
    images = torch.rand_like(small_image(model, "").expand(2, -1, -1, -1))
    if compared(model) is not model:
        images = F.interpolate(images, (320, 320))  # as by the network itself
    randomize_norms(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if re.search("gamma|layer_scale|ls[12]|skipinit", key):
                parameter.fill_(0.5)
            elif parameter.ndim > 1 and not parameter.any():  # which closes a branch at the start
                nn.init.normal_(parameter, std=0.05)
        model.eval()
        for norm in norms:  # of the image's statistics, or deep networks explode
            norm.train()
            norm.momentum = 1.0
        compared(model)(images)
    for norm in norms:
        if norm.running_var is not None:
            norm.running_var.clamp_(min=1e-3)
    return model.eval(), images


@pytest.mark.slow
# Where a module goes does not depend on the module: each family gets one of three.
@pytest.mark.parametrize(
    ("name", "attention"), zip(PLACES, itertools.cycle(["eca", "se", "cbam"]), strict=False)
)
def test_insertion_keeps_weights_outputs_and_random_state(name: str, attention: str) -> None:
    plain, images = prepared(name)
    before = plain.state_dict()
    with torch.no_grad():
        expected = outputs(plain, images)
    model = copy.deepcopy(plain)
    state = torch.get_rng_state()
    insert_attention(model, attention, identity=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(attention_modules(model)) == PLACES[name]
    with torch.no_grad():
        actual = outputs(model, images)
    for one, other in zip(actual, expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()

    # Weights that identity=True divides are as they were without it.
    model = insert_attention(copy.deepcopy(plain), attention)
    after = model.state_dict()
    assert equal({key: after[key] for key in before}, before)
    assert all("attention." in key for key in after.keys() - before.keys())

    modules = attention_modules(model)
    learnt = [p for module in modules.values() for p in module.parameters()]
    old = [weight.detach().clone() for weight in learnt]
    optimizer = torch.optim.Adam(learnt, eps=1e-30)
    torch.stack([leaf.square().mean() for leaf in outputs(model, images)]).sum().backward()
    optimizer.step()
    moved = {id(new) for new, was in zip(learnt, old, strict=True) if not torch.equal(new, was)}
    still = [k for k, m in modules.items() if moved.isdisjoint(map(id, m.parameters()))]
    assert not still


@pytest.mark.slow
@pytest.mark.parametrize(("name", "why", "where"), REFUSED)
def test_refusals_say_why_and_what_to_do(name: str, why: str, where: str) -> None:
    model = build_family(name)
    names = list(model.state_dict())
    with pytest.raises(UserError, match=r"where=") as caught:
        insert_attention(model, "eca")
    reason = re.search(r"no residual block|runs \d times|need \(N, C, H, W\)", str(caught.value))
    assert reason is not None
    assert list(model.state_dict()) == names
    if where.startswith("`where="):
        insert_attention(model, "eca", where=where.split('"')[1])
        assert attention_modules(model)
