"""MobileNetV2 with an attention module on each block's output.

timm's MobileNetV2 with our blocks. The attention module follows the projection's batch norm and precedes
the addition, also in blocks without a shortcut.

Sandler et al., MobileNetV2, arXiv 1801.04381; Wang et al., ECA-Net, arXiv 1910.03151.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import EfficientNet, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_blocks import DepthwiseSeparableConv
from timm.models._efficientnet_blocks import InvertedResidual as TimmInvertedResidual
from timm.models._efficientnet_builder import decode_arch_def
from torch import Tensor, nn

from ecanet.models.insert import insert_attention
from ecanet.models.residual import Fused, ResidualEnd, set_fused
from ecanet.models.resnet import imagenet_cfg, keep_attention, with_eca

# Table 2 of the paper in timm's notation: repeats, kernel, stride, expansion; and the channels.
_BLOCKS = [
    "ds_r1_k3_s1",
    "ir_r2_k3_s2_e6",
    "ir_r3_k3_s2_e6",
    "ir_r4_k3_s2_e6",
    "ir_r3_k3_s1_e6",
    "ir_r3_k3_s2_e6",
    "ir_r1_k3_s1_e6",
]
CHANNELS = (16, 24, 32, 64, 96, 160, 320)

# The released ECA-MobileNetV2 ("k13"): kernel size 1 below 64 channels, 3 from 64 channels on.
ECA_KERNEL_SIZES = (1, 1, 1, 3, 3, 3, 3)


class FirstBlock(DepthwiseSeparableConv, ResidualEnd):
    """A depthwise and a 1x1 convolution, an attention module; the block without an expansion."""

    def last_norm(self) -> nn.Module:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.aa(self.bn1(self.conv_dw(x)))  # type: ignore[misc]
        if not torch.jit.is_scripting():
            end = self.fused_end(x, self.conv_pw, shortcut if self.has_skip else None)
            if end is not None:
                return end
        x = self.attention(self.bn2(self.conv_pw(x)))
        return self.add_shortcut(x, shortcut) if self.has_skip else x


class InvertedResidual(TimmInvertedResidual, ResidualEnd):
    """Expansion, depthwise convolution, projection, an attention module, the shortcut."""

    def last_norm(self) -> nn.Module:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.bn1(self.conv_pw(x))
        x = self.aa(self.bn2(self.conv_dw(x)))  # type: ignore[misc]
        if not torch.jit.is_scripting():
            end = self.fused_end(x, self.conv_pwl, shortcut if self.has_skip else None)
            if end is not None:
                return end
        x = self.attention(self.bn3(self.conv_pwl(x)))
        return self.add_shortcut(x, shortcut) if self.has_skip else x


class MobileNetV2(EfficientNet):
    """timm's MobileNetV2 with attention modules in its blocks.

    Args:
        block_args: timm's description of the blocks.
        attention: as in :func:`ecanet.create_attention`.
        kernel_sizes: a kernel size for each of the seven stages.
        fused: see :attr:`ecanet.models.residual.ResidualEnd.fused`.
        kwargs: timm's: num_classes, in_chans, drop_rate, drop_path_rate ...

    Raises:
        UserError: the attention module cannot be built.
    """

    def __init__(
        self,
        block_args: Any,
        *,
        attention: str = "none",
        kernel_sizes: Sequence[int] | str | None = None,
        fused: Fused = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(block_args, **kwargs)
        # timm's builder supports only its own block classes, so they are converted to ours.
        block: Any
        for stage in self.blocks.children():
            for block in stage.children():
                is_first = isinstance(block, DepthwiseSeparableConv)
                block.__class__ = FirstBlock if is_first else InvertedResidual
                block.attention = nn.Identity()
        insert_attention(self, attention, kernel_sizes=kernel_sizes)
        set_fused(self, fused)


def build_mobilenetv2(
    name: str, pretrained: bool = False, channels: Sequence[int] = CHANNELS, **kwargs: Any
) -> nn.Module:
    """Build ``mobilenet_v2`` or ``eca_mobilenet_v2`` through timm.

    The default ``drop_rate`` before the classifier is 0.2, for ``eca_mobilenet_v2`` 0.25. The plain
    name has timm's weights of mobilenetv2_100 if ``pretrained``. ``channels`` are those of the seven
    stages; the stem and the last layer keep theirs.

    Raises:
        UserError: an argument is unknown or contradicts another.
    """
    if name == "eca_mobilenet_v2":
        kwargs = with_eca(name, kwargs)
        if kwargs["attention"] == "eca" and kwargs.get("kernel_sizes") is None:
            kwargs["kernel_sizes"] = ECA_KERNEL_SIZES
        variant, drop_rate = name, 0.25
    else:
        variant, drop_rate = "mobilenetv2_100", 0.2
    blocks = [[f"{block}_c{count}"] for block, count in zip(_BLOCKS, channels, strict=True)]
    return build_model_with_cfg(
        MobileNetV2,
        variant,
        pretrained,
        pretrained_filter_fn=keep_attention,
        feature_cfg={"feature_cls": "getter"},
        block_args=decode_arch_def(blocks),
        round_chs_fn=int,  # not to multiples of eight
        **{"act_layer": "relu6", "drop_rate": drop_rate, **kwargs},
    )


default_cfgs = generate_default_cfgs({"eca_mobilenet_v2": imagenet_cfg("conv_stem", "classifier")})


@register_model
def eca_mobilenet_v2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ECA-MobileNetV2 with the released model's kernel sizes: 1 below 64 channels, 3 from 64 on."""
    return build_mobilenetv2("eca_mobilenet_v2", pretrained, **kwargs)
