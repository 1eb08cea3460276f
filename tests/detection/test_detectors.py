"""Detectors against torchvision's own, and what norms, stages and backbones promise."""

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ecanet.detection import create_detector
from ecanet.errors import UserError
from ecanet.models import attention_modules
from ecanet.models.built_in import count_built_in

SIZE = {"min_size": 64, "max_size": 96}


def samples() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of other sizes, the second without objects."""
    torch.manual_seed(5)
    images = [torch.rand(3, 64, 90), torch.rand(3, 80, 60)]
    masks = torch.zeros(2, 64, 90, dtype=torch.uint8)
    masks[0, 10:40, 5:35] = 1
    masks[1, 20:60, 40:80] = 1
    some = {
        "boxes": torch.tensor([[5.0, 10, 35, 40], [40, 20, 80, 60]]),
        "labels": torch.tensor([2, 3]),
        "masks": masks,
    }
    none = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 80, 60, dtype=torch.uint8),
    }
    return images, [some, none]


def torchvisions(kind: str) -> nn.Module:
    """The same detector of three classes and 32 channels, put together from torchvision's own parts."""
    stages = (2, 3, 4) if kind == "retinanet" else (1, 2, 3, 4)
    pyramid = BackboneWithFPN(
        torchvision.models.resnet18(),
        {f"layer{stage}": str(i) for i, stage in enumerate(stages)},
        [32 * 2**stage for stage in stages],
        32,
        LastLevelP6P7(512, 32) if kind == "retinanet" else LastLevelMaxPool(),
    )
    if kind == "retinanet":
        return RetinaNet(pyramid, 3, detections_per_img=100, **SIZE)
    options: Any = {
        "box_head": TwoMLPHead(32 * 49, 128),
        "box_predictor": FastRCNNPredictor(128, 4),
        "box_batch_size_per_image": 16,
    }
    for when in ("pre", "post"):
        options |= {f"rpn_{when}_nms_top_n_train": 40, f"rpn_{when}_nms_top_n_test": 20}
    if kind == "faster_rcnn":
        return FasterRCNN(pyramid, **options, **SIZE)
    return MaskRCNN(
        pyramid,
        mask_head=MaskRCNNHeads(32, [32] * 4, 1),
        mask_predictor=MaskRCNNPredictor(32, 32, 4),
        **options,
        **SIZE,
    )


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "retinanet"])
def test_losses_and_detections_are_torchvisions(kind: str) -> None:
    reference = torchvisions(kind)
    few = {} if kind == "retinanet" else {"proposals": 20, "box_samples": 16}
    ours = create_detector(kind, "resnet18", 3, norm="frozen", width=32, **few, **SIZE)  # type: ignore[arg-type]
    reference.load_state_dict(ours.state_dict())  # the same names and shapes
    images, targets = samples()
    # RetinaNet has no output for the background: its own labels begin with 0.
    shift = int(kind == "retinanet")
    theirs = [{**target, "labels": target["labels"] - shift} for target in targets]
    ours.train()
    reference.train()
    for module in reference.backbone.modules():  # type: ignore[union-attr]
        if isinstance(module, _BatchNorm):
            module.eval()
    torch.manual_seed(0)
    expected = reference(images, theirs)
    torch.manual_seed(0)
    torch.testing.assert_close(ours(images, targets), expected)
    with torch.inference_mode():
        expected = reference.eval()(images)
        found = ours.eval()(images)
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other)
        torch.testing.assert_close({**one, "labels": one["labels"] - shift}, dict(other))


@pytest.mark.parametrize(
    ("backbone", "attention"),
    [
        ("mobilenet_v2", "eca"),
        ("eca_resnet18", None),
        ("resnet18", "cbam"),
        ("convnext_atto", "se"),
    ],
)
def test_backbones_with_attention_learn(backbone: str, attention: str | None) -> None:
    torch.manual_seed(0)
    detector = create_detector(
        "mask_rcnn", backbone, 3, attention=attention, width=32, proposals=20, box_samples=16,
        anchor_size=8, **SIZE,
    )  # fmt: skip
    images, targets = samples()
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.train()(images, targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    without = [n for n, p in detector.named_parameters() if p.grad is None]
    assert not without
    assert any(".attention." in name for name, _ in detector.named_parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = detector.eval()(images)
    for image, one in zip(images, found, strict=True):
        assert one["masks"].shape[1:] == (1, *image.shape[1:])
        # Corners in bfloat16 would be whole multiples of a power of two.
        assert one["boxes"].dtype == one["scores"].dtype == torch.float32
        assert not torch.equal(one["boxes"].bfloat16().float(), one["boxes"])
        assert set(one["labels"].tolist()) <= {1, 2, 3}


def test_frozen_norms_and_stages_stay_as_they_were() -> None:
    torch.manual_seed(0)
    detector = create_detector(
        "faster_rcnn", "eca_resnet18", 3, norm="frozen", frozen_stages=2, width=32, **SIZE
    )
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    images, targets = samples()
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], 1e-3)
    sum(detector.train()(images, targets).values()).backward()
    optimizer.step()
    changed = {n for n, t in detector.state_dict().items() if not torch.equal(t, before[n])}
    assert not [name for name in changed if "running" in name]
    assert "backbone.body.layer3.0.bn2.weight" in changed
    frozen = ("conv1", "bn1", "layer1", "layer2")
    assert not [n for n in changed if n.startswith(tuple(f"backbone.body.{f}." for f in frozen))]


def test_batch_norms_of_frozen_stages_alone_keep_their_statistics() -> None:
    detector = create_detector("faster_rcnn", "resnet18", 3, frozen_stages=1, width=32).train()
    norms = {
        name: module.training
        for name, module in detector.backbone.body.named_modules()
        if isinstance(module, _BatchNorm)
    }
    assert norms["bn1"] is norms["layer1.1.bn2"] is False
    assert norms["layer2.0.bn1"] is norms["layer4.1.bn2"] is True


@pytest.mark.parametrize("backbone", ["eca_resnet18", "mobilenet_v2"])
def test_group_norms_take_the_places_of_batch_norms(backbone: str) -> None:
    torch.manual_seed(0)
    plain = create_detector("mask_rcnn", backbone, 3, width=32, **SIZE)
    torch.manual_seed(0)
    detector = create_detector("mask_rcnn", backbone, 3, norm="group", width=32, **SIZE)
    assert not [m for m in detector.modules() if isinstance(m, _BatchNorm)]
    weights = [p for p in detector.backbone.body.parameters() if p.ndim == 4]
    same = [p for p in plain.backbone.body.parameters() if p.ndim == 4]
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    images, targets = samples()
    assert sum(detector.train()(images[:1], targets[:1]).values()).isfinite()


def test_a_batch_without_objects_leaves_everything_finite() -> None:
    detector = create_detector(
        "mask_rcnn", "resnet18", 3, width=16, proposals=20, box_samples=16, **SIZE
    ).train()
    images, targets = samples()
    sum(detector(images[1:], targets[1:]).values()).backward()
    assert all(buffer.isfinite().all() for buffer in detector.buffers())
    # A process without a gradient would hold up the others.
    assert all(p.grad.isfinite().all() for p in detector.parameters())


def test_attention_changes_no_other_weight() -> None:
    states = []
    for attention in ("none", "eca", "cbam"):
        torch.manual_seed(3)
        detector = create_detector("mask_rcnn", "resnet18", 3, attention=attention, width=32)
        states.append(detector.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor)
        assert torch.equal(states[2][name], tensor)


def test_several_sizes_are_for_training_and_the_last_for_evaluation() -> None:
    detector = create_detector("retinanet", "resnet18", 2, width=32, min_size=(48, 64), max_size=96)
    assert detector.transform.min_size[-1] == 64
    assert detector.arguments["min_size"] == (48, 64)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mask_rcn", "resnet18", 3), "Did you mean mask_rcnn"),
        (("mask_rcnn", "resnet20", 3), "no feature maps"),
        (("mask_rcnn", "vit_tiny_patch16_224", 3), "no feature map of stride 4, 8, 32"),
        (("mask_rcnn", "torchvision/resnet18", 3), "ecanet's and timm's backbones"),
        (("mask_rcnn", "resnet18", 0), "at least one class"),
        (("mask_rcnn", "resnet18", 2, {"class_names": ["cat"]}), "as many class_names"),
        (("mask_rcnn", "resnet18", 2, {"frozen_stages": 5}), "from 0 to 4"),
        (("mask_rcnn", "resnet18", 2, {"norm": "group", "pretrained": True}), "from scratch"),
        (("retinanet", "resnet18", 2, {"proposals": 10}), "changes nothing"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: tuple[Any, ...], says: str) -> None:
    options = arguments[3] if len(arguments) > 3 else {}
    with pytest.raises(UserError, match=says):
        create_detector(*arguments[:3], **options)


def test_a_backbones_own_gates_replaced() -> None:
    kept, replaced = (
        create_detector(
            "retinanet",
            "mobilenetv3_small_050",
            2,
            attention="eca",
            width=16,
            replace_attention=flag,
        )
        for flag in (False, True)
    )
    assert count_built_in(kept.backbone.body) == {"SE": 9}
    assert count_built_in(replaced.backbone.body) == {}
    assert len(attention_modules(replaced.backbone.body)) == 9
    assert replaced.arguments["replace_attention"] is True
    assert "replace_attention" not in kept.arguments, "as files of before say it"
    rebuilt = create_detector(**replaced.arguments)
    assert list(rebuilt.state_dict()) == list(replaced.state_dict())
