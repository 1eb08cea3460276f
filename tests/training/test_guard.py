"""Steps that are not finite are undone on the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ecanet.training.guard import FiniteGuard


class Means(nn.Module):
    """Keeps means in buffers that are views of others."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("strided", torch.zeros(4, 2)[:, 0])
        self.register_buffer("expanded", torch.zeros(1).expand(4))

    def forward(self, x: Tensor) -> Tensor:
        self.strided += x.detach().mean((0, 2, 3))
        self.expanded[:1] += x.detach().mean()
        return x


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_bad_step_is_undone(value: float, momentum: float) -> None:
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    model = nn.Sequential(conv, Means(), norm, nn.Flatten(), nn.Linear(4 * 36, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    guard = FiniteGuard(model, optimizer)
    good, bad = torch.randn(2, 3, 8, 8), torch.full((2, 3, 8, 8), value)
    for images in (bad, good, bad, good, bad):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        guard.before_step()
        loss = model(images).square().mean()
        loss.backward()
        finite = guard.finite(loss)
        assert bool(finite) is (images is good)
        guard.update_if(finite, optimizer.step)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]) is (images is bad), name
        optimizer.zero_grad()


def test_a_loss_that_overflows_with_finite_gradients_is_bad() -> None:
    model = nn.Linear(2, 2)
    guard = FiniteGuard(model, torch.optim.SGD(model.parameters()))
    model(torch.ones(1, 2)).sum().backward()
    assert guard.finite(torch.tensor(1.0))
    assert not guard.finite(torch.tensor(float("inf")))


def test_a_parameter_whose_first_gradient_is_bad_keeps_no_state() -> None:
    """Its optimizer state is made in that step, after that of all others."""
    early, late = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.ModuleList([early, late])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    guard = FiniteGuard(model, optimizer)
    for layers, value in [((early,), 1.0), ((early, late), float("nan")), ((early, late), 1.0)]:
        guard.before_step()
        loss = sum((layer(torch.full((1, 2), value)).sum() for layer in layers), torch.zeros(()))
        loss.backward()
        guard.update_if(guard.finite(loss), optimizer.step)
        optimizer.zero_grad()
        assert all(p.isfinite().all() for p in model.parameters())
