"""Faster R-CNN, Mask R-CNN and RetinaNet with a feature pyramid, on our backbones and timm's.

These are torchvision's detectors. Weights have torchvision's names:
``backbone.body.layerL...``, ``backbone.fpn...``, ``rpn``, ``roi_heads``, ``head``.

Ren et al., Faster R-CNN, arXiv 1506.01497; He et al., Mask R-CNN, arXiv 1703.06870; Lin et al., Focal
Loss for Dense Object Detection, arXiv 1708.02002; Lin et al., Feature Pyramid Networks,
arXiv 1612.03144.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
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

# Three sizes in three aspect ratios at each location, as in RetinaNet's paper.
RETINANET_ANCHORS = 9
# Strides in pixels of the backbone's feature maps, stages 1 to 4, that the pyramid takes.
_STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class DetectorSpec:
    """What a detector is built from; a weight file stores it to build the detector again.

    Raises:
        UserError: a value is unknown or out of range, or contradicts another.
    """

    kind: DetectorKind
    """faster_rcnn, mask_rcnn or retinanet."""
    backbone: str
    """A ResNet-18 to 152 or MobileNetV2 of :func:`ecanet.create_model`, or a timm model with feature maps
    of strides 4, 8, 16 and 32."""
    num_classes: int
    """Classes of objects, not counting the background."""
    attention: str | None = None
    """As in :func:`ecanet.create_model`, like the next two."""
    kernel_sizes: Sequence[int] | str | None = None
    replace_attention: bool = False
    norm: DetectorNorm | None = None
    """``frozen``: the backbone's batch norms keep the statistics they came with, as MMDetection trains.
    ``batch``: they use those of the batches, and the pyramid and the mask head have batch norms too.
    ``group``: group norms in all these places, for small batches (Wu and He, arXiv 1803.08494). By default
    frozen for pretrained backbones, else batch."""
    frozen_stages: int | None = None
    """Stages of the backbone, counted from the image, that are not trained: 1 is the stem and everything
    up to the map of stride 4. By default 1 for pretrained backbones, else 0."""
    min_size: int | Sequence[int] = 800
    """Short side in pixels that images are resized to; of several, one is drawn for each training image,
    and the last is used in evaluation."""
    max_size: int = 1333
    """Limit of the long side in pixels; longer images end up smaller than ``min_size``."""
    width: int = 256
    """Channels of the pyramid and the heads; the box head's layers have four times as many."""
    anchor_size: int = 32
    """Side in pixels of the smallest anchors; it doubles with each level."""
    proposals: int | None = None
    """Boxes per image that the heads get from the proposal network, twice as many in training; by default
    1000. Not for RetinaNet."""
    box_samples: int | None = None
    """Boxes per image, among the proposals, that the heads are trained on; by default 512. Not for
    RetinaNet."""
    p6_from: Literal["c5", "p5"] | None = None
    """Input of RetinaNet's level above the pyramid: c5, the backbone's last map, as in its paper and
    MMDetection (the default), or p5, the pyramid's, as in torchvision's first version."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(DetectorKind):
            raise UserError(
                f"unknown detector {self.kind!r}.{did_you_mean(self.kind, get_args(DetectorKind))}"
            )
        if self.num_classes < 1:
            raise UserError("a detector needs at least one class")
        if self.kind == "retinanet":
            for name in ("proposals", "box_samples"):
                if getattr(self, name) is not None:
                    raise UserError(f"{name} changes nothing in RetinaNet: leave it out")
        elif self.p6_from is not None:
            raise UserError("p6_from is for RetinaNet: leave it out")
        if not 0 <= (self.frozen_stages or 0) <= len(_STRIDES):
            raise UserError(f"frozen_stages {self.frozen_stages}: give a number from 0 to 4")
        for name in ("width", "anchor_size", "max_size", "proposals", "box_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} {value}: give a whole number from 1")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of :func:`create_detector`, ready for JSON.

        ``replace_attention`` only where it is set: earlier versions, which refuse names that they do not
        have, can read the file of any other detector.
        """
        arguments = asdict(self)
        if not self.replace_attention:
            del arguments["replace_attention"]
        return arguments


def create_detector(
    kind: DetectorKind,
    backbone: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    class_names: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
    **options: Any,
) -> Any:
    """Build a detector, which maps images, and in training their targets, to losses or detections.

    In training mode ``detector(images, targets)`` returns a dict of losses, in evaluation mode
    ``detector(images)`` a list of dicts, one per image. Images are float tensors (3, H, W) in 0..1, of
    any size. A target has ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,) from 1 to
    ``num_classes`` (0 is the background) and for Mask R-CNN ``masks`` uint8 (N, H, W). Detections have
    ``boxes``, ``labels``, ``scores`` (N,), and for Mask R-CNN ``masks`` (N, 1, H, W) in 0..1.

    The same seed gives the same values to all weights except the attention modules' own.

    Args:
        kind, backbone, num_classes: as in :class:`DetectorSpec`.
        pretrained: start from timm's ImageNet weights of the backbone.
        class_names: of the labels 1, 2, ...; kept as ``detector.class_names``.
        category_ids: the data's ids of these classes; kept as ``detector.category_ids``.
        options: the other fields of :class:`DetectorSpec`, by name: ``attention``, ``min_size`` ...

    Returns:
        torchvision's FasterRCNN, MaskRCNN or RetinaNet. ``detector.arguments`` holds what built it.

    Raises:
        UserError: a name is unknown, the backbone lacks a feature map, or arguments contradict each
            other.
    """
    spec = DetectorSpec(kind, backbone, num_classes, **options)
    if pretrained and spec.norm == "group":
        raise UserError(
            "norm group is for training from scratch: pretrained weights are for batch norm"
        )
    spec = replace(
        spec,
        norm=spec.norm or ("frozen" if pretrained else "batch"),
        frozen_stages=int(pretrained) if spec.frozen_stages is None else spec.frozen_stages,
    )
    labels = range(1, num_classes + 1)
    names, ids = list(class_names or map(str, labels)), list(category_ids or labels)
    if len(names) != num_classes or len(ids) != num_classes:
        raise UserError(f"{num_classes} classes need as many class_names and category_ids")
    pyramid = Pyramid(_build_body(spec, pretrained), spec)
    detector: Any = (_retinanet if kind == "retinanet" else _rcnn)(pyramid, spec)
    detector.arguments = spec.arguments()
    detector.class_names, detector.category_ids = names, ids
    return detector


class Pyramid(nn.Module):
    """A backbone with a feature pyramid: images (N, 3, H, W) to maps (N, width, H/s, W/s).

    RetinaNet's takes the maps of strides 8 to 32 and has two further levels of twice and four times the
    last stride, by convolutions; the others take all four maps and pool one further level.

    Args:
        body: what timm's ``features_only`` returns.
        spec: with ``norm`` and ``frozen_stages`` filled in.

    Raises:
        UserError: the backbone has no feature map of one of the strides.
    """

    def __init__(self, body: nn.Module, spec: DetectorSpec) -> None:
        super().__init__()
        info: Any = body.feature_info
        level_of = {stride: level for level, stride in enumerate(info.reduction())}
        missing = [str(stride) for stride in _STRIDES if stride not in level_of]
        if missing:
            raise UserError(
                f"this backbone has no feature map of stride {', '.join(missing)}: use a CNN "
                f"with maps of strides 4, 8, 16 and 32"
            )
        is_retinanet = spec.kind == "retinanet"
        self.levels = [level_of[stride] for stride in _STRIDES[is_retinanet:]]
        self.frozen_norm = spec.norm == "frozen"
        channels = [info.channels()[level] for level in self.levels]
        if spec.norm == "group":
            _use_group_norm(body)
        if spec.frozen_stages:
            _freeze(body, info.module_name()[level_of[_STRIDES[spec.frozen_stages - 1]]])
        above = LastLevelMaxPool()
        if is_retinanet:
            above = LastLevelP6P7(spec.width if spec.p6_from == "p5" else channels[-1], spec.width)
            if spec.p6_from is not None:
                # torchvision decides by the number of channels, which may be the same.
                above.use_P5 = spec.p6_from == "p5"
        self.body = body
        self.fpn = FeaturePyramidNetwork(
            channels,
            spec.width,
            above,
            _NORM_LAYERS[spec.norm or "batch"],
        )
        self.out_channels = spec.width

    def train(self, mode: bool = True) -> Pyramid:
        """Set the mode, except of batch norms that are frozen or in frozen stages."""
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


class _Float32Outputs(nn.Module):
    """A head with float32 outputs even under autocast: bfloat16 places a box to within 4 pixels."""

    def forward(self, *args: Any) -> Any:
        return apply_to_collection(super().forward(*args), Tensor, Tensor.float)


class _RPNHead(_Float32Outputs, RPNHead): ...


class _BoxPredictor(_Float32Outputs, FastRCNNPredictor): ...


class _MaskPredictor(_Float32Outputs, MaskRCNNPredictor): ...


class _RetinaNetHead(_Float32Outputs, RetinaNetHead): ...


class RetinaNet(torchvision_detection.RetinaNet):
    """torchvision's, with labels from 1 and without outputs for the background, which it never predicts."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if targets is not None:
            targets = [{**target, "labels": target["labels"] - 1} for target in targets]
        outputs = super().forward(images, targets)
        if self.training:
            return outputs
        return [{**output, "labels": output["labels"] + 1} for output in outputs]


def _build_body(spec: DetectorSpec, pretrained: bool) -> nn.Module:
    if spec.backbone.startswith("torchvision/"):
        raise UserError(
            "detectors take ecanet's and timm's backbones: "
            f"{spec.backbone.removeprefix('torchvision/')} is probably in timm"
        )
    try:
        return create_model(
            spec.backbone,
            attention=spec.attention,
            kernel_sizes=spec.kernel_sizes,
            replace_attention=spec.replace_attention,
            pretrained=pretrained,
            features_only=True,
        )
    except (RuntimeError, AssertionError) as error:  # timm's, for models without feature maps
        raise UserError(f"{spec.backbone} gives no feature maps: {error}") from error
    except UserError as error:
        if "features_only" in str(error):
            raise UserError(
                f"{spec.backbone} gives no feature maps: use a ResNet-18 to 152, MobileNetV2 or "
                f"a CNN from timm"
            ) from None
        raise


def _rcnn(pyramid: Pyramid, spec: DetectorSpec) -> Any:
    options: dict[str, Any] = {
        "min_size": spec.min_size,
        "max_size": spec.max_size,
        "rpn_anchor_generator": AnchorGenerator(
            tuple((spec.anchor_size * 2**level,) for level in range(5)), ((0.5, 1.0, 2.0),) * 5
        ),
        "rpn_head": _RPNHead(spec.width, num_anchors=3),
        "box_head": TwoMLPHead(spec.width * 7 * 7, 4 * spec.width),
        "box_predictor": _BoxPredictor(4 * spec.width, spec.num_classes + 1),
    }
    if spec.proposals:
        for when, factor in (("train", 2), ("test", 1)):
            options[f"rpn_pre_nms_top_n_{when}"] = factor * spec.proposals
            options[f"rpn_post_nms_top_n_{when}"] = factor * spec.proposals
    if spec.box_samples:
        options["box_batch_size_per_image"] = spec.box_samples
    if spec.kind == "faster_rcnn":
        return FasterRCNN(pyramid, **options)
    return MaskRCNN(
        pyramid,
        mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(
            spec.width, [spec.width] * 4, 1, _NORM_LAYERS[spec.norm or "batch"]
        ),
        mask_predictor=_MaskPredictor(spec.width, spec.width, spec.num_classes + 1),
        **options,
    )


def _retinanet(pyramid: Pyramid, spec: DetectorSpec) -> RetinaNet:
    # Three anchors per octave, as in the paper, Sec. 4.
    sides = tuple(
        tuple(int(spec.anchor_size * 2 ** (level + third / 3)) for third in range(3))
        for level in range(5)
    )
    anchors = AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * 5)
    head = _RetinaNetHead(spec.width, anchors.num_anchors_per_location()[0], spec.num_classes)
    return RetinaNet(
        pyramid,
        spec.num_classes,
        anchor_generator=anchors,
        head=head,
        detections_per_img=100,
        min_size=spec.min_size,
        max_size=spec.max_size,
    )


def _freeze(body: nn.Module, last_module: str) -> None:
    """Freeze all weights from the image up to those of ``last_module``."""

    def flat(name: str) -> str:
        # timm's wrappers put "model." in front, or join names by underscores.
        return name.removeprefix("model.").replace(".", "_")

    names, parameters = zip(*body.named_parameters(), strict=True)
    last = max(i for i, n in enumerate(names) if flat(n).startswith(f"{flat(last_module)}_"))
    for parameter in parameters[: last + 1]:
        parameter.requires_grad_(False)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)


# Norms of the pyramid and the mask head: none where the backbone's are frozen, as published.
_NORM_LAYERS: dict[str, Callable[[int], nn.Module] | None] = {
    "frozen": None,
    "batch": nn.BatchNorm2d,
    "group": _group_norm,
}


def _use_group_norm(body: nn.Module) -> None:
    """Replace batch norms by group norms with the same scales, some of which start at zero."""
    for parent in list(body.modules()):
        for name, old in list(parent.named_children()):
            if isinstance(old, _BatchNorm):
                new: nn.Module = _group_norm(old.num_features)
                new.weight, new.bias = old.weight, old.bias
                activation = getattr(old, "act", None)  # timm's batch norms can contain one
                if activation is not None:
                    new = nn.Sequential(OrderedDict(norm=new, act=activation))
                setattr(parent, name, new)
