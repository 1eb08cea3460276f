"""Faster R-CNN, Mask R-CNN and RetinaNet with a feature pyramid, on our backbones and timm's.

torchvision's detectors with backbones of ours. Weights are named as in torchvision:
``backbone.body.layerL...``, ``backbone.fpn...``, ``rpn``, ``roi_heads``, ``head``.

Ren et al., Faster R-CNN, arXiv 1506.01497; He et al., Mask R-CNN, arXiv 1703.06870; Lin et al., Focal
Loss for Dense Object Detection, arXiv 1708.02002; Lin et al., Feature Pyramid Networks,
arXiv 1612.03144.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torchvision.models.detection as torchvision_detection
from lightning_utilities import apply_to_collection
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import (
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)
from torchvision.ops.poolers import MultiScaleRoIAlign

from ecanet.config import DetectorKind, DetectorNorm
from ecanet.errors import UserError, did_you_mean
from ecanet.models import create_model

# Three sizes in three shapes at each place, as in RetinaNet's paper.
RETINANET_ANCHORS = 9
# Pixels of the image to a value of the feature maps that the pyramid takes, of stages 1 to 4.
_STRIDES = (4, 8, 16, 32)


def create_detector(
    kind: DetectorKind,
    backbone: str,
    num_classes: int,
    *,
    attention: str | None = None,
    kernel_sizes: Sequence[int] | str | None = None,
    replace_attention: bool = False,
    pretrained: bool = False,
    norm: DetectorNorm | None = None,
    frozen_stages: int | None = None,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    width: int = 256,
    anchor_size: int = 32,
    proposals: int | None = None,
    box_samples: int | None = None,
    p6_from: Literal["c5", "p5"] | None = None,
    class_names: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
) -> Any:
    """Build a detector: images, and in training their targets, to losses or detections.

    In training mode ``detector(images, targets)`` returns a dict of losses, in evaluation mode
    ``detector(images)`` a list of dicts, an image each. Images are float tensors (3, H, W) of 0..1, of
    any size. A target has ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,) from 1 to
    ``num_classes`` (0 is the background) and for Mask R-CNN ``masks`` uint8 (N, H, W). Detections have
    ``boxes``, ``labels``, ``scores`` (N,), and for Mask R-CNN ``masks`` (N, 1, H, W) of 0..1.

    The same seed gives the same values to all weights but the attention modules' own.

    Args:
        kind: faster_rcnn, mask_rcnn or retinanet.
        backbone: a ResNet-18 to 152 or MobileNetV2 of :func:`ecanet.create_model`, or a model of timm's
            with feature maps of strides 4, 8, 16 and 32.
        num_classes: classes of objects, the background not counted.
        attention, kernel_sizes, replace_attention: as in :func:`ecanet.create_model`.
        pretrained: begin with the backbone's ImageNet weights of timm.
        norm: ``frozen``: batch norms of the backbone keep the statistics they came with, as
            MMDetection trains; ``batch``: they take those of the batches, and the pyramid and the mask
            head have batch norms too; ``group``: group norms in all these places, for small batches
            (Wu and He, arXiv 1803.08494). By default frozen with ``pretrained``, else batch.
        frozen_stages: stages of the backbone, from the image on, that are not trained: 1 is the stem
            and all up to the map of stride 4. By default 1 with ``pretrained``, else 0.
        min_size: the short side in pixels that images are brought to; of several, one is drawn for
            each training image, and the last is taken in evaluation.
        max_size: the long side's limit; longer images become smaller than ``min_size``.
        width: channels of the pyramid and the heads; the box head's layers have four times as many.
        anchor_size: side in pixels of the smallest anchors; each further level doubles it.
        proposals: boxes an image that the heads get from the proposal network, twice as many in
            training; by default 1000. Not in RetinaNet.
        box_samples: of these, boxes an image that the heads are trained on; by default 512. Not in
            RetinaNet.
        p6_from: where RetinaNet's level above the pyramid begins: c5, the backbone's last map, as in its
            paper and MMDetection (the default), or p5, the pyramid's, as in torchvision's first version.
        class_names: of the labels 1, 2, ...; kept as ``detector.class_names``.
        category_ids: the numbers that the data has for them; kept as ``detector.category_ids``.

    Returns:
        torchvision's FasterRCNN, MaskRCNN or RetinaNet. ``detector.arguments`` holds what built it.

    Raises:
        UserError: a name is unknown, the backbone lacks a feature map, or arguments contradict each
            other.
    """
    if kind not in get_args(DetectorKind):
        raise UserError(f"unknown detector {kind!r}.{did_you_mean(kind, get_args(DetectorKind))}")
    if num_classes < 1:
        raise UserError("a detector needs at least one class")
    arguments: dict[str, Any] = {
        "backbone": backbone,
        "num_classes": num_classes,
        "attention": attention,
        "kernel_sizes": kernel_sizes,
        **({"replace_attention": True} if replace_attention else {}),
        "norm": norm or ("frozen" if pretrained else "batch"),
        "frozen_stages": (1 if pretrained else 0) if frozen_stages is None else frozen_stages,
        "min_size": min_size,
        "max_size": max_size,
        "width": width,
        "anchor_size": anchor_size,
        "proposals": proposals,
        "box_samples": box_samples,
        "p6_from": p6_from,
    }
    _check(kind, pretrained, arguments)
    body = _build_body(backbone, attention, kernel_sizes, replace_attention, pretrained)
    pyramid = Pyramid(
        body,
        strides=_STRIDES[1:] if kind == "retinanet" else _STRIDES,
        width=width,
        norm=arguments["norm"],
        frozen_stages=arguments["frozen_stages"],
        more_levels=kind == "retinanet",
        p6_from=p6_from,
    )
    size = {"min_size": min_size, "max_size": max_size}
    if kind == "retinanet":
        detector = _retinanet(pyramid, num_classes, anchor_size, size)
    else:
        detector = _rcnn(kind, pyramid, num_classes, arguments, size)
    names = class_names or [str(label) for label in range(1, num_classes + 1)]
    ids = category_ids or range(1, num_classes + 1)
    if len(names) != num_classes or len(ids) != num_classes:
        raise UserError(f"{num_classes} classes need as many class_names and category_ids")
    detector.arguments = {"kind": kind, **arguments}
    detector.class_names, detector.category_ids = list(names), list(ids)
    return detector


class Pyramid(nn.Module):
    """A backbone and a feature pyramid on it: images (N, 3, H, W) to maps (N, width, H/s, W/s).

    Args:
        body: what timm's ``features_only`` returns.
        strides: of the backbone's maps that the pyramid takes.
        width: channels of all its maps.
        norm, frozen_stages: as in :func:`create_detector`.
        more_levels: two more convolutions for levels of twice and four times the last stride, as in
            RetinaNet; else one more level of twice the stride, by pooling.
        p6_from: as in :func:`create_detector`.

    Raises:
        UserError: the backbone has no map of one of the strides.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        strides: Sequence[int],
        width: int,
        norm: DetectorNorm,
        frozen_stages: int,
        more_levels: bool,
        p6_from: Literal["c5", "p5"] | None = None,
    ) -> None:
        super().__init__()
        info: Any = body.feature_info
        of_stride = {stride: index for index, stride in enumerate(info.reduction())}
        lacking = [str(stride) for stride in _STRIDES if stride not in of_stride]
        if lacking:
            raise UserError(
                f"this backbone has no feature map of stride {', '.join(lacking)}: take a CNN with maps "
                "of strides 4, 8, 16 and 32"
            )
        self.levels = [of_stride[stride] for stride in strides]
        self.frozen_norm = norm == "frozen"
        channels = [info.channels()[level] for level in self.levels]
        if norm == "group":
            _use_group_norm(body)
        if frozen_stages:
            _freeze(body, info.module_name()[of_stride[_STRIDES[frozen_stages - 1]]])
        self.body = body
        self.fpn = FeaturePyramidNetwork(
            channels,
            width,
            _two_levels(p6_from, channels[-1], width) if more_levels else LastLevelMaxPool(),
            _NORM_LAYERS[norm],
        )
        self.out_channels = width

    def train(self, mode: bool = True) -> Pyramid:
        """Batch norms that are frozen, or in frozen stages, stay in evaluation mode."""
        super().train(mode)
        for module in self.body.modules():
            is_fixed = self.frozen_norm or not all(
                p.requires_grad for p in module.parameters(recurse=False)
            )
            if isinstance(module, _BatchNorm) and is_fixed:
                module.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body(x)
        return self.fpn(OrderedDict((str(i), maps[lvl]) for i, lvl in enumerate(self.levels)))


def _two_levels(p6_from: str | None, channels: int, width: int) -> LastLevelP6P7:
    levels = LastLevelP6P7(width if p6_from == "p5" else channels, width)
    if p6_from is not None:
        levels.use_P5 = p6_from == "p5"  # torchvision goes by the channels, which may be as many
    return levels


class _Float32Outputs(nn.Module):
    """A head whose outputs are float32 under autocast too: bfloat16 places a box on 4 pixels exactly."""

    def forward(self, *args: Any) -> Any:
        return apply_to_collection(super().forward(*args), Tensor, Tensor.float)


class _RPNHead(_Float32Outputs, RPNHead):
    pass


class _BoxPredictor(_Float32Outputs, FastRCNNPredictor):
    pass


class _MaskPredictor(_Float32Outputs, MaskRCNNPredictor):
    pass


class _RetinaNetHead(_Float32Outputs, RetinaNetHead):
    pass


class RetinaNet(torchvision_detection.RetinaNet):
    """torchvision's, with labels from 1 and without outputs for the background, which has no use here."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if targets is not None:
            targets = [{**target, "labels": target["labels"] - 1} for target in targets]
        outputs = super().forward(images, targets)
        if self.training:
            return outputs
        return [{**output, "labels": output["labels"] + 1} for output in outputs]


def _check(kind: str, pretrained: bool, arguments: dict[str, Any]) -> None:
    if kind == "retinanet":
        for name in ("proposals", "box_samples"):
            if arguments[name] is not None:
                raise UserError(f"{name} changes nothing in RetinaNet: leave it out")
    elif arguments["p6_from"] is not None:
        raise UserError("p6_from is for RetinaNet: leave it out")
    if pretrained and arguments["norm"] == "group":
        raise UserError(
            "norm group is for training from scratch: pretrained weights are those of batch norms"
        )
    if not 0 <= arguments["frozen_stages"] <= len(_STRIDES):
        raise UserError(f"frozen_stages {arguments['frozen_stages']}: give a number from 0 to 4")
    for name in ("width", "anchor_size", "max_size", "proposals", "box_samples"):
        if arguments[name] is not None and arguments[name] < 1:
            raise UserError(f"{name} {arguments[name]}: give a whole number from 1")


def _build_body(
    backbone: str,
    attention: str | None,
    kernel_sizes: Sequence[int] | str | None,
    replace_attention: bool,
    pretrained: bool,
) -> nn.Module:
    if backbone.startswith("torchvision/"):
        raise UserError(
            f"detectors take backbones of ours and timm's: {backbone.removeprefix('torchvision/')} "
            "is likely among timm's"
        )
    try:
        return create_model(
            backbone,
            attention=attention,
            kernel_sizes=kernel_sizes,
            replace_attention=replace_attention,
            pretrained=pretrained,
            features_only=True,
        )
    except (RuntimeError, AssertionError) as error:  # timm, of models without feature maps
        raise UserError(f"{backbone} gives no feature maps: {error}") from error
    except UserError as error:
        if "features_only" in str(error):
            raise UserError(
                f"{backbone} gives no feature maps: take a ResNet-18 to 152, MobileNetV2 or a CNN of "
                "timm's"
            ) from None
        raise


def _rcnn(
    kind: str, pyramid: Pyramid, num_classes: int, arguments: dict[str, Any], size: dict[str, Any]
) -> Any:
    width, labels = arguments["width"], num_classes + 1
    options: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(
            tuple((arguments["anchor_size"] * 2**level,) for level in range(5)),
            ((0.5, 1.0, 2.0),) * 5,
        ),
        **size,
    }
    if arguments["proposals"]:
        for when, factor in (("train", 2), ("test", 1)):
            options[f"rpn_pre_nms_top_n_{when}"] = factor * arguments["proposals"]
            options[f"rpn_post_nms_top_n_{when}"] = factor * arguments["proposals"]
    if arguments["box_samples"]:
        options["box_batch_size_per_image"] = arguments["box_samples"]
    options["rpn_head"] = _RPNHead(width, num_anchors=3)
    options["box_head"] = TwoMLPHead(width * 7 * 7, 4 * width)
    options["box_predictor"] = _BoxPredictor(4 * width, labels)
    if kind == "faster_rcnn":
        return FasterRCNN(pyramid, **options)
    return MaskRCNN(
        pyramid,
        mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(width, [width] * 4, 1, _NORM_LAYERS[arguments["norm"]]),
        mask_predictor=_MaskPredictor(width, width, labels),
        **options,
    )


def _retinanet(
    pyramid: Pyramid, num_classes: int, anchor_size: int, size: dict[str, Any]
) -> RetinaNet:
    # Three anchors an octave, as in the paper, Sec. 4.
    sides = tuple(
        tuple(int(anchor_size * 2 ** (level + third / 3)) for third in range(3))
        for level in range(5)
    )
    anchors = AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * 5)
    head = _RetinaNetHead(pyramid.out_channels, anchors.num_anchors_per_location()[0], num_classes)
    return RetinaNet(
        pyramid, num_classes, anchor_generator=anchors, head=head, detections_per_img=100, **size
    )


def _freeze(body: nn.Module, last_module: str) -> None:
    """Stop the training of all weights from the image to those of ``last_module``."""

    def flat(name: str) -> str:
        # timm's wrappers put "model." in front, or join names by underscores.
        return name.removeprefix("model.").replace(".", "_")

    names = [name for name, _ in body.named_parameters()]
    last = max(i for i, n in enumerate(names) if flat(n).startswith(f"{flat(last_module)}_"))
    for name, parameter in body.named_parameters():
        if names.index(name) <= last:
            parameter.requires_grad_(False)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)


# Of the pyramid and the mask head. Without one where the backbone's are frozen: as published.
_NORM_LAYERS: dict[str, Callable[[int], nn.Module] | None] = {
    "frozen": None,
    "batch": nn.BatchNorm2d,
    "group": _group_norm,
}


def _use_group_norm(body: nn.Module) -> None:
    """Put group norms in the places of batch norms, with their scales, some of which begin at zero."""
    for parent in list(body.modules()):
        for name, old in list(parent.named_children()):
            if isinstance(old, _BatchNorm):
                new: nn.Module = _group_norm(old.num_features)
                new.weight, new.bias = old.weight, old.bias
                activation = getattr(old, "act", None)  # timm's batch norms can hold one
                if activation is not None:
                    new = nn.Sequential(OrderedDict(norm=new, act=activation))
                setattr(parent, name, new)
