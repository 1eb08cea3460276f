"""Named places in networks of Ultralytics, and what an insertion there keeps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.yolo_data import VERSIONS, open_yolo
from torch.utils._pytree import tree_leaves

from ecanet import insert_attention
from ecanet.errors import UserError
from ecanet.models import attention_modules

pytest.importorskip("ultralytics", reason="needs Ultralytics")

# By hand, from the YAML of each version: blocks of the backbone, blocks of the neck, what the head reads.
LAYERS = {
    "yolov5n.yaml": ([2, 4, 6, 8], [13, 17, 20, 23], [17, 20, 23]),
    "yolov8n.yaml": ([2, 4, 6, 8], [12, 15, 18, 21], [15, 18, 21]),
    "yolo11n.yaml": ([2, 4, 6, 8, 10], [13, 16, 19, 22], [16, 19, 22]),
    "yolo12n.yaml": ([2, 4, 6, 8], [11, 14, 17, 20], [14, 17, 20]),
    "yolo26n.yaml": ([2, 4, 6, 8, 10], [13, 16, 19, 22], [16, 19, 22]),
    "yolo11n-seg.yaml": ([2, 4, 6, 8, 10], [13, 16, 19, 22], [16, 19, 22]),
    "yolo26n-seg.yaml": ([2, 4, 6, 8, 10], [13, 16, 19, 22], [16, 19, 22]),
    "yolo11n-cls.yaml": ([2, 4, 6, 8, 9], [], [9]),
    "rtdetr-l.yaml": ([1, 3, 5, 6, 7, 9], [16, 21, 24, 27], [21, 24, 27]),
}


def outputs(network: Any, image: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return [t for t in tree_leaves(network(image)) if isinstance(t, torch.Tensor)]


def plain(name: str) -> Any:
    torch.manual_seed(0)
    return open_yolo(name).model.eval()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * n.startswith("rtdetr")) for n in VERSIONS],
)
def test_places_weights_and_output(name: str) -> None:
    """Of every version the places are found, no weight changes, and the output is the plain network's."""
    network = plain(name)
    backbone, neck, read = LAYERS[name]
    image = torch.rand(1, 3, 256, 192, generator=torch.Generator().manual_seed(1))
    if name.startswith("rtdetr"):
        image = torch.rand(1, 3, 256, 256)
    before, weights = outputs(network, image), network.state_dict()
    places = {"blocks": backbone + neck, "backbone": backbone, "neck": neck, "before-detect": read}
    for where, layers in places.items():
        if not layers:
            with pytest.raises(UserError, match=f"no layers for where='{where}': give blocks"):
                insert_attention(copy.deepcopy(network), "eca", where=where)
            continue
        inserted = insert_attention(copy.deepcopy(network), "eca", where=where, identity=True)
        assert list(attention_modules(inserted)) == [f"model.{i}.attention" for i in layers]
    inserted = insert_attention(network, "cbam", identity=True)
    assert list(attention_modules(inserted)) == [
        f"model.{i}.attention" for i in sorted(backbone + neck)
    ]
    after = inserted.state_dict()
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    for one, other in zip(before, outputs(inserted, image), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_network_still_is_one_of_ultralytics() -> None:
    """A layer keeps what the network reads of it, its weights load by name, and a plain file fits."""
    network, other = plain("yolo11n.yaml"), plain("yolo11n.yaml")
    before = [(layer.i, layer.f, layer.type, layer.np) for layer in network.model]
    insert_attention(network, "se", identity=True)
    assert [(layer.i, layer.f, layer.type, layer.np) for layer in network.model] == before
    for weight in other.parameters():
        torch.nn.init.normal_(weight)
    network.load(other, verbose=False)
    now = network.state_dict()
    assert all(torch.equal(now[key], value) for key, value in other.state_dict().items())
    layers, parameters, _, _ = network.info()
    assert parameters == sum(p.numel() for p in network.parameters())
    assert layers > other.info()[0]


@pytest.mark.parametrize("where", ["model.0", "model.2.cv1", "model.9"])
def test_fuse_keeps_modules_after_any_layer(where: str) -> None:
    network = insert_attention(plain("yolo11n.yaml"), "se", where=where)
    image = torch.rand(1, 3, 128, 96)
    before = outputs(network, image)[0]
    fused = copy.deepcopy(network).fuse(verbose=False)
    assert attention_modules(fused).keys() == attention_modules(network).keys()
    torch.testing.assert_close(outputs(fused, image)[0], before, rtol=1e-4, atol=1e-4)


def test_fuse_is_refused_where_it_would_lose_modules() -> None:
    network = insert_attention(plain("yolo11n.yaml"), "se", where="model.0.bn")
    with pytest.raises(UserError, match=r"fuse\(\) of DetectionModel loses an attention module"):
        network.fuse()
    assert not network.is_fused()


def test_what_cannot_be_inserted_into_is_refused() -> None:
    yolo = open_yolo("yolo11n.yaml")
    with pytest.raises(UserError, match=r"YOLO wraps a network: give that, as in insert_attent"):
        insert_attention(yolo, "eca")
    with pytest.raises(UserError, match="named places: blocks, backbone, neck, before-detect"):
        insert_attention(yolo.model, "eca", where="necks")
    with pytest.raises(UserError, match=r"no layers for where='blocks': give before-detect \(2\)"):
        insert_attention(open_yolo("yolov3-tiny.yaml").model, "eca")
    assert not attention_modules(yolo.model)
