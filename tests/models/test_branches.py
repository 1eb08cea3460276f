"""The ends of residual branches, found by the additions of a forward pass."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ecanet.errors import UserError
from ecanet.models import attention_modules, insert_attention


def conv(inputs: int = 8, outputs: int = 8) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Block(nn.Module):
    """The usual block, with layers for the variants below."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = (
            conv(),
            nn.BatchNorm2d(8),
            conv(),
            nn.BatchNorm2d(8),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.act = nn.ReLU()
        self.drop = nn.Dropout2d(0.5)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.up = nn.Upsample(scale_factor=2)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Identity(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        y += self.shortcut(x)
        return y


class Preactivated(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(x))
        return self.conv2(F.relu(self.conv1(x))) + self.shortcut(x)


class Dropped(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.branch(x))


class Scaled(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(0.3 * self.scale * self.branch(x), x)


class Pooled(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.branch(x), 2) + self.shortcut(F.max_pool2d(x, 2))


class Linear(Block):
    """RepVGG's sum, which becomes one convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)) + self.shortcut(x) + x)


class Parallel(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(F.relu(x)) + self.conv2(self.act(x))


class Pyramid(Block):
    """A deep map, upsampled and added to a shallow one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.conv1(F.max_pool2d(x, 2)))) + self.shortcut(x)


class Split(Block):
    """Res2Net's sum of one group's output and the next group."""

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.tile(1, 2, 1, 1).split(8, 1)
        return self.bn2(F.relu(self.conv1(one))) + two


class UsedTwice(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return x + y + y.mean()


class ChangedInPart(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        y[:, :4] += x[:, :4]
        return y + x


class Shared(Block):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.branch(x)
        return x


class ByFunction(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + F.conv2d(F.relu(self.conv1(x)), self.conv2.weight, padding=1)


class ToTheImage(nn.Module):
    """A network that predicts the change of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3), nn.ReLU(), conv(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class OwnAttention(nn.Module):
    """A branch whose layers have names that an inserted module has, too."""

    def __init__(self) -> None:
        super().__init__()
        layers = [("conv", conv()), ("act", nn.ReLU()), ("attention", nn.Conv2d(8, 8, 1))]
        self.body = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Looped(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


class OfLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Looped(conv(), nn.ReLU(), conv())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def network(block: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Identity() if block is ToTheImage else conv(3), block()).eval()


@pytest.mark.parametrize(
    ("block", "place"),
    [
        (Identity, "1.bn2"),
        (InPlace, "1.bn2"),
        (Preactivated, "1.conv2"),
        (Dropped, "1.bn2"),
        (Scaled, "1.bn2"),
        (OwnAttention, "1.body.attention"),
        (OfLoop, "1.body.2"),
    ],
)
def test_the_last_module_of_the_branch_is_found(block: type[nn.Module], place: str) -> None:
    model = network(block)
    names = list(model.state_dict())
    image = torch.randn(1, 3, 16, 16)
    expected = model(image)
    insert_attention(model, "se", identity=True)
    assert list(attention_modules(model)) == [f"{place}.attention"]
    assert [name for name in model.state_dict() if name in names] == names
    torch.testing.assert_close(model(image), expected)
    # What is inserted does not move the place of what replaces it.
    insert_attention(model, "none")
    insert_attention(model, "gc")
    insert_attention(model, "eca")
    assert list(attention_modules(model)) == [f"{place}.attention"]


@pytest.mark.parametrize(
    "block",
    [
        Pooled, Linear, Parallel, Pyramid, Split, UsedTwice, ChangedInPart, Shared, ByFunction, ToTheImage,
    ],
)  # fmt: skip
def test_other_sums_are_left_alone(block: type[nn.Module]) -> None:
    model = network(block)
    names = list(model.state_dict())
    with pytest.raises(UserError, match=r"no residual block .*where="):
        insert_attention(model, "eca")
    assert list(model.state_dict()) == names
    assert not any(module._forward_hooks for module in model.modules())


def test_modules_that_run_their_own_children_are_refused() -> None:
    model = network(OfLoop)
    names = list(model.state_dict())
    with pytest.raises(UserError, match="cannot follow a Looped, which runs its own children"):
        insert_attention(model, "eca", where="1.body")
    with pytest.raises(UserError, match="has an attribute named attention"):
        insert_attention(network(OwnAttention), "eca", where="1.body")
    assert list(model.state_dict()) == names


class Children(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def test_a_module_that_would_run_twice_is_refused() -> None:
    model = nn.Sequential(Children())
    names = list(model.state_dict())
    with pytest.raises(UserError, match=r"0\.attention runs 2 times in one forward pass"):
        insert_attention(model, "eca", where="0")
    assert list(model.state_dict()) == names
    assert type(model[0]) is Children
