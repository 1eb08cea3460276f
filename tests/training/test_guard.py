import pytest
import torch
from torch import nn

from ecanet.training.guard import FiniteGuard


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_step_is_told_and_leaves_batch_norm_alone(value: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    guard = FiniteGuard(model)
    for images, good in [(torch.randn(2, 3, 8, 8), True), (torch.full((2, 3, 8, 8), value), False)]:
        before = {name: b.clone() for name, b in model.named_buffers()}
        guard.before_step()
        loss = model(images).square().mean()
        loss.backward()
        assert bool(guard.finite(loss)) is good
        if not good:
            assert any(not b.isfinite().all() for b in model.buffers())
            guard.undo_step()
            for name, buffer in model.named_buffers():
                assert torch.equal(buffer, before[name]), name
        model.zero_grad()


def test_a_loss_that_overflows_with_finite_gradients_is_bad() -> None:
    model = nn.Linear(2, 2)
    guard = FiniteGuard(model)
    model(torch.ones(1, 2)).sum().backward()
    assert guard.finite(torch.tensor(1.0))
    assert not guard.finite(torch.tensor(float("inf")))
