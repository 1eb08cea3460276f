"""Named places in networks of LibreYOLO, and what an insertion there keeps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from ecanet import insert_attention
from ecanet.errors import UserError
from ecanet.models import attention_modules

pytest.importorskip("libreyolo", reason="needs LibreYOLO")

from ecanet.integrations.libreyolo.networks import FAMILIES, Origin

# By hand, from each family's source: the blocks of the backbone, those of the neck, how many the head reads.
BLOCKS = {
    "yolo9-t": (
        [f"backbone.elan{i}" for i in (1, 2, 3, 4)],
        ["neck.elan_up1", "neck.elan_up2", "neck.elan_down1", "neck.elan_down2"],
        3,
    ),
    "yolox-n": (
        [f"backbone.backbone.{name}" for name in ("dark2.1", "dark3.1", "dark4.1", "dark5.2")],
        [f"backbone.C3_{name}" for name in ("p4", "p3", "n3", "n4")],
        3,
    ),
    "rtmdet-t": (
        [f"backbone.stage{name}.final_conv" for name in ("1.1", "2.1", "3.1", "4.2")],
        [
            f"neck.{name}_blocks.{i}.final_conv"
            for name in ("top_down", "bottom_up")
            for i in (0, 1)
        ],
        3,
    ),
    "ppyoloe-s": (
        [f"backbone.stages.{i}" for i in range(4)],
        [f"neck.{name}" for name in ("fpn_stages.0.0", "fpn_stages.1.0", "fpn_stages.2.0")]
        + ["neck.pan_stages.0.0", "neck.pan_stages.1.0"],
        3,
    ),
    "picodet-s": (
        [f"backbone.blocks.{i}" for i in range(13)],
        [f"neck.{name}_blocks.{i}" for name in ("top_down", "bottom_up") for i in (0, 1)],
        3,
    ),
    "rtdetr-r18": (
        [f"backbone.res_layers.{i}" for i in range(4)],
        [f"encoder.{name}_blocks.{i}" for name in ("fpn", "pan") for i in (0, 1)],
        3,
    ),
    "dfine-n": (
        [f"backbone.stages.{name}" for name in ("0.blocks.0", "1.blocks.0")]
        + [f"backbone.stages.{name}" for name in ("2.blocks.0", "2.blocks.1", "3.blocks.0")],
        ["encoder.fpn_blocks.0", "encoder.pan_blocks.0"],
        2,
    ),
}

# RT-DETR's smallest takes long.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name == "rtdetr-r18" else name for name in BLOCKS
]


def plain(name: str) -> Any:
    return Origin(name).plain(3).model.eval()


def outputs(network: Any, image: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return [t for t in tree_leaves(network(image)) if isinstance(t, torch.Tensor)]


def test_the_table_has_every_family() -> None:
    assert {name.rpartition("-")[0] for name in BLOCKS} == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_modules_come_at_every_place_and_change_nothing_else(name: str) -> None:
    network, (backbone, neck, read) = plain(name), BLOCKS[name]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    at = {
        "blocks": backbone + neck,
        "backbone": backbone,
        "neck": neck,
        "before-detect": neck[-read:],
    }
    for where, blocks in at.items():
        changed = insert_attention(copy.deepcopy(network), "eca", where)
        assert list(attention_modules(changed)) == [f"{block}.attention" for block in blocks]
    after = insert_attention(network, "eca").state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_starts_as_the_identity(name: str) -> None:
    network = plain(name)
    image = torch.rand(1, 3, 640, 640, generator=torch.Generator().manual_seed(0))
    before = outputs(network, image)
    after = outputs(insert_attention(network, "se", identity=True), image)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(old, new, rtol=1e-5, atol=1e-5)


def test_fusing_yolo9_keeps_the_modules() -> None:
    network = insert_attention(plain("yolo9-t"), "eca")
    image = torch.rand(1, 3, 128, 128)
    before = outputs(network, image)
    fused = network.fuse()
    assert len(attention_modules(fused)) == 8
    for old, new in zip(before, outputs(fused, image), strict=True):
        torch.testing.assert_close(old, new, rtol=1e-4, atol=1e-4)


def test_what_wraps_a_network_is_refused() -> None:
    with pytest.raises(UserError, match="wraps a network"):
        insert_attention(Origin("yolox-n").plain(3), "eca")
