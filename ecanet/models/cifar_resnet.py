"""ResNet-20 to 110 for small images, with an attention module at the end of each residual branch.

He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385, section 4.2: three stages
of 16, 32 and 64 channels, and parameter-free shortcuts (option A).
"""

# Without annotations from __future__: TorchScript does not know what torch.fx makes of strings.
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.classifier import create_classifier
from timm.models import checkpoint_seq
from torch import Tensor, nn

from ecanet.models.insert import insert_attention
from ecanet.models.residual import Fused, set_fused
from ecanet.models.resnet import BasicBlock


class PaddedShortcut(nn.Module):
    """Option A of section 3.3: every second pixel, and zeros for the additional channels."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers for images of 8 to 64 pixels: (N, in_chans, H, W) to (N, classes).

    With 10 classes and three input channels ResNet-20 has 269,722 parameters. The head is timm's.

    Args:
        depth: 6n + 2.
        num_classes: 0 for the pooled features.
        in_chans: channels of the images.
        global_pool: timm's name of a pooling, ``""`` for none.
        drop_rate: dropout rate before the classifier.
        channels: of each of the three stages.
        attention: as in :func:`ecanet.create_attention`.
        kernel_sizes: a kernel size for each of the three stages.
        fused: see :attr:`ecanet.models.residual.ResidualEnd.fused`.

    Raises:
        UserError: the attention module cannot be built.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        channels: Sequence[int] = (16, 32, 64),
        attention: str = "none",
        kernel_sizes: Sequence[int] | str | None = None,
        fused: Fused = "auto",
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.grad_checkpointing = False
        first, second, third = channels
        self.conv1 = nn.Conv2d(in_chans, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.act1 = nn.ReLU(inplace=True)
        blocks = (depth - 2) // 6
        self.layer1 = _stage(first, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.num_features = third
        self.feature_info = [
            {"num_chs": count, "reduction": 2**n, "module": f"layer{n + 1}"}
            for n, count in enumerate(channels)
        ]
        self._set_classifier(global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        insert_attention(self, attention, kernel_sizes=kernel_sizes)
        set_fused(self, fused)

    def _set_classifier(self, global_pool: str) -> None:
        self.global_pool, self.fc = create_classifier(
            self.num_features, self.num_classes, pool_type=global_pool
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a new classifier, and the pooling if one is given."""
        like = self.conv1.weight
        self.num_classes = num_classes
        self._set_classifier(self.global_pool.pool_type if global_pool is None else global_pool)
        self.fc.to(like.device, like.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of saving their activations."""
        self.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's output, (N, 64, H/4, W/4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, apply dropout and classify; ``pre_logits`` skips the classifier."""
        x = self.global_pool(x)
        if self.drop_rate > 0:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _stage(inputs: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    shortcut = None if stride == 1 else PaddedShortcut(channels - inputs)
    first = BasicBlock(inputs, channels, stride=stride, downsample=shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))
