"""ResNet-18 to 152 with an attention module at the end of each residual branch.

timm's ResNet with our blocks, so that all of timm's tools work: ``features_only``,
``reset_classifier``, ``output_stride``, stochastic depth, gradient checkpointing. Weights are named
as in torchvision and timm; those of attention modules are ``layerL.B.attention.*``.

He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385 (the stride is in the 3x3
convolution of a bottleneck, as in torchvision); Wang et al., ECA-Net, arXiv 1910.03151.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models import resnet as timm_resnet
from torch import Tensor, nn

from ecanet.errors import UserError
from ecanet.models.insert import insert_attention, parse_spec
from ecanet.models.residual import Fused, ResidualEnd, set_fused


class _Block(ResidualEnd):
    """Shared by our blocks, which take timm's arguments but ``attn_layer``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        block: Any = self
        if block.se is not None:
            raise UserError('attn_layer is for timm\'s models: use attention="se" for ours')
        self.attention = nn.Identity()


class BasicBlock(_Block, timm_resnet.BasicBlock):
    """Two 3x3 convolutions, an attention module, the shortcut: (N, C, H, W) to (N, C', H', W')."""

    def last_norm(self) -> nn.Module:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))  # type: ignore[misc]
        if not torch.jit.is_scripting():
            end = self.fused_end(x, self.conv2, shortcut, self.act2)
            if end is not None:
                return end
        x = self.attention(self.bn2(self.conv2(x)))
        return self.act2(self.add_shortcut(x, shortcut))


class Bottleneck(_Block, timm_resnet.Bottleneck):
    """1x1, 3x3 and 1x1 convolutions, an attention module, the shortcut."""

    def last_norm(self) -> nn.Module:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(x)))))  # type: ignore[misc]
        if not torch.jit.is_scripting():
            end = self.fused_end(x, self.conv3, shortcut, self.act3)
            if end is not None:
                return end
        x = self.attention(self.bn3(self.conv3(x)))
        return self.act3(self.add_shortcut(x, shortcut))


class ResNet(timm_resnet.ResNet):
    """timm's ResNet with attention modules in its blocks.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: number of blocks in each of the four stages.
        stem: ``"imagenet"``: a 7x7 convolution of stride 2 and a max pooling; ``"cifar"``: a 3x3
            convolution of stride 1, for images of about 32 pixels.
        attention: as in :func:`ecanet.create_attention`.
        kernel_sizes: a kernel size for each stage, see :func:`ecanet.insert_attention`.
        fused: see :attr:`ecanet.models.residual.ResidualEnd.fused`.
        kwargs: timm's arguments: num_classes, in_chans, global_pool, output_stride, drop_rate ...

    Raises:
        UserError: an argument is unknown or contradicts another.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, ...],
        *,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        attention: str = "none",
        kernel_sizes: Sequence[int] | str | None = None,
        fused: Fused = "auto",
        **kwargs: Any,
    ) -> None:
        if stem not in ("imagenet", "cifar"):
            raise UserError(f"unknown stem {stem!r}: use imagenet or cifar")
        super().__init__(block, layers, **kwargs)  # type: ignore[arg-type]
        if stem == "cifar":
            if kwargs.get("stem_type") or kwargs.get("replace_stem_pool"):
                raise UserError("stem_type and replace_stem_pool have no effect with stem=cifar")
            self._use_cifar_stem()
        insert_attention(self, attention, kernel_sizes=kernel_sizes)
        set_fused(self, fused)

    def _use_cifar_stem(self) -> None:
        old: Any = self.conv1
        like = {"device": old.weight.device, "dtype": old.weight.dtype}
        conv = nn.Conv2d(self.in_chans, old.out_channels, 3, padding=1, bias=False, **like)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.conv1, self.maxpool = conv, nn.Identity()  # type: ignore[assignment]
        info: Any
        for info in self.feature_info:
            info["reduction"] = max(1, info["reduction"] // 4)


ARCHITECTURES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


def build_resnet(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build ``resnet50`` or ``eca_resnet50`` (and the other depths) through timm.

    If ``pretrained``, a plain name has timm's default weights of that name; attention modules
    keep their initial weights.

    Raises:
        UserError: an argument is unknown or contradicts another.
    """
    if name.startswith("eca_"):
        kwargs = with_eca(name, kwargs)
    block, layers = ARCHITECTURES[name.removeprefix("eca_")]
    return build_model_with_cfg(
        ResNet,
        name,
        pretrained,
        pretrained_filter_fn=keep_attention,
        block=block,
        layers=layers,
        **kwargs,
    )


def with_eca(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return ``kwargs`` with the attention module implied by a name that begins with ``eca_``.

    Raises:
        UserError: ``kwargs`` has another attention module.
    """
    attention = kwargs.get("attention") or "eca"
    if parse_spec(attention)[0] != "eca":
        raise UserError(
            f"{name} has eca by its name, which attention={attention} contradicts: "
            f"use {name.removeprefix('eca_')}"
        )
    return {**kwargs, "attention": attention}


def keep_attention(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Add the model's attention weights to pretrained weights, which have none."""
    own = {k: v for k, v in model.state_dict().items() if ".attention." in k}
    return {**own, **state_dict}


def imagenet_cfg(first_conv: str, classifier: str) -> dict[str, Any]:
    """Return timm's description of a model, given the names of its first and last layer."""
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": classifier,
    }


default_cfgs = generate_default_cfgs(
    {f"eca_{name}": imagenet_cfg("conv1", "fc") for name in ARCHITECTURES}
)


def _registered(name: str) -> Callable[..., nn.Module]:
    """Register ``eca_resnet50``, by default with the adaptive kernels of the blocks' output channels."""

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_resnet(name, pretrained, **kwargs)

    build.__name__ = build.__qualname__ = name
    return register_model(build)


eca_resnet18, eca_resnet34, eca_resnet50, eca_resnet101, eca_resnet152 = (
    _registered(f"eca_{name}") for name in ARCHITECTURES
)
