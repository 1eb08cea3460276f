"""The end of our blocks: the same results fused and not, and reasons not to fuse."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from helpers.networks import randomize_norms
from torch import Tensor, nn

from ecanet.attention import ECA, PooledGate
from ecanet.attention.operators import usable_kernels
from ecanet.errors import UserError
from ecanet.models import create_model, insert_attention, residual
from ecanet.models.counts import count_macs
from ecanet.models.residual import ResidualEnd, set_fused
from ecanet.models.resnet import BasicBlock, Bottleneck, ResNet

BLOCKS: dict[str, Any] = {"basic": BasicBlock, "bottleneck": Bottleneck}
MODELS = [
    ("basic", {"attention": "eca"}),
    ("basic", {"attention": "se", "drop_path_rate": 0.5}),
    ("bottleneck", {"attention": "srm", "output_stride": 8}),
    ("bottleneck", {"attention": "eca"}),
    ("resnet20", {"attention": "eca_ns"}),
    ("eca_mobilenet_v2", {"drop_path_rate": 0.5}),
]


def build(name: str, **kwargs: Any) -> nn.Module:
    """Return a model in float64 whose batch norms are not identities."""
    torch.manual_seed(0)
    if name in BLOCKS:
        model: nn.Module = ResNet(BLOCKS[name], (1, 1, 1, 1), num_classes=4, **kwargs).double()
    else:
        model = create_model(name, num_classes=4, **kwargs).double()
    randomize_norms(model)
    return model


def both(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    fused, unfused = model, copy.deepcopy(model)
    set_fused(fused, True)
    set_fused(unfused, False)
    return fused, unfused


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)  # for stochastic depth
    logits = model(x)
    logits.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits, **gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize(("name", "kwargs"), MODELS)
def test_fused_steps(name: str, kwargs: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ecanet")
    fused, unfused = both(build(name, **kwargs).train())
    x = torch.randn(2, 3, 40, 32, dtype=torch.float64)
    found, expected = step(fused, x), step(unfused, x)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        scale = expected[key].abs().max().clamp(min=1e-3)
        torch.testing.assert_close(value / scale, expected[key] / scale, atol=1e-6, rtol=0)
    assert "fused is False" in caplog.text or not caplog.text


@pytest.mark.parametrize(("name", "kwargs"), MODELS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_evaluation(name: str, kwargs: dict[str, Any], layout: torch.memory_format) -> None:
    fused, unfused = both(build(name, **kwargs).eval().to(memory_format=layout))  # type: ignore[call-overload]
    x = torch.randn(2, 3, 45, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), unfused(x))


def test_auto_fuses_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("basic", attention="eca").eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model(x)  # not fused, as gradients are enabled
    monkeypatch.setattr(PooledGate, "forward", None)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


class Half(PooledGate):
    """A gate defined outside of ecanet."""

    def gate(self, mean: Tensor) -> Tensor:
        return torch.full_like(mean, 0.5)


def test_a_gate_defined_outside_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = block().eval()
    made.attention = Half()  # type: ignore[assignment]
    fused, unfused = both(made)
    x = torch.randn(2, 16, 6, 5)
    with torch.no_grad():
        expected = unfused(x)
        monkeypatch.setattr(Half, "__call__", None)
        torch.testing.assert_close(fused(x), expected)


def test_the_switch() -> None:
    for value in ("auto", True, False):
        for name in ("resnet18", "resnet20", "mobilenet_v2"):
            model = create_model(name, attention="eca", fused=value)
            slots = [m for m in model.modules() if isinstance(m, ResidualEnd)]
            assert slots
            assert {slot.fused for slot in slots} == {value}
    plain, fused = (create_model("resnet20", attention="eca", fused=v) for v in (False, True))
    assert plain.state_dict().keys() == fused.state_dict().keys()
    with pytest.raises(UserError, match="auto, True or False, not 'yes'"):
        create_model("resnet20", attention="eca", fused="yes")


# ---- what is not fused, and why


def why_not_fused(block: nn.Module, x: Tensor, caplog: pytest.LogCaptureFixture) -> str:
    """Run a block and return the logged reason; the result must be that of the unfused layers."""
    caplog.clear()
    residual._log_once.cache_clear()
    caplog.set_level(logging.DEBUG, "ecanet")
    unfused = copy.deepcopy(block)
    unfused.fused = False  # type: ignore[assignment]
    torch.testing.assert_close(block(x), unfused(x))
    return caplog.messages[0]


def block(attention: str = "eca", **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    made = BasicBlock(16, 16, **kwargs)
    insert_attention(made, attention)
    made.fused = True
    return made


class WithMore(ECA):
    """A subclass whose forward is more than its gate."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_reasons_not_to_fuse(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(block: nn.Module) -> str:
        return why_not_fused(block, torch.randn(2, 16, 6, 5), caplog)

    assert reason(block("cbam")) == "BasicBlock is not fused: CBAM is not a pooled gate"
    more = block()
    more.attention = WithMore(16)  # type: ignore[assignment]
    assert "WithMore is not a pooled gate" in reason(more)
    assert "gradients are needed through a batch norm in evaluation" in reason(block().eval())
    group = block(norm_layer=lambda c, **kwargs: nn.GroupNorm(4, c))
    assert "not Conv2d and GroupNorm" in reason(group)
    hooked = block()
    hooked.attention.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    assert "the attention module has hooks" in reason(hooked)
    automatic = block()
    automatic.fused = "auto"  # type: ignore[assignment]
    with monkeypatch.context() as patch:
        patch.setattr(residual, "usable_kernels", lambda x: None)
        assert "without kernels, training is not faster" in reason(automatic)
    without = block().eval()
    without.bn2.track_running_stats = False  # type: ignore[union-attr,assignment]
    without.bn2.running_mean = without.bn2.running_var = None  # type: ignore[union-attr,assignment]
    assert "no running statistics" in reason(without)


def test_one_value_per_channel_is_refused_as_by_batch_norm() -> None:
    made = block()
    made.bn1 = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        made(torch.randn(1, 16, 1, 1))


def test_synchronized_batch_norm_is_not_fused() -> None:
    made = nn.SyncBatchNorm.convert_sync_batchnorm(block())
    reason = made._why_not_fused(torch.randn(2, 16, 6, 5), made.conv2, made.bn2)
    assert "SyncBatchNorm" in reason


def test_a_hook_on_the_relu_sees_its_input() -> None:
    made, seen = block(), []
    made.act2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].min()))  # type: ignore[union-attr]
    made(torch.randn(2, 16, 6, 5))
    assert seen[0] < 0


def both_in_training(change: Any = None) -> tuple[nn.Module, nn.Module]:
    """Return a block fused in kernels, and the same block one by one, after ``change`` of each."""
    made = block()
    made.fused = "auto"  # type: ignore[assignment]
    usual = copy.deepcopy(made)
    usual.fused = False  # type: ignore[assignment]
    for one in (made, usual):
        if change is not None:
            change(one)
    return made, usual


def test_second_derivatives_and_batched_gradients_are_refused() -> None:
    if usable_kernels(torch.ones(1)) is None:
        pytest.skip("there are no kernels here")
    x = torch.randn(2, 16, 6, 5, requires_grad=True)
    y = block()(x)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(block()(x), x, torch.randn(3, *y.shape), is_grads_batched=True)


def without_tracking(made: Any) -> None:
    made.bn2.track_running_stats = False


def without_count(made: Any) -> None:
    made.bn2.num_batches_tracked = None


def with_strided_statistics(made: Any) -> None:
    for name in ("running_mean", "running_var"):
        strided = torch.stack([getattr(made.bn2, name), torch.full((16,), 9.0)], 1)[:, 0]
        setattr(made.bn2, name, strided)


@pytest.mark.parametrize("change", [without_tracking, without_count, with_strided_statistics])
def test_running_statistics_are_kept_as_by_batch_norm(change: Any) -> None:
    made, usual = both_in_training(change)
    x = torch.randn(2, 16, 6, 5)
    torch.testing.assert_close(made(x), usual(x))
    assert dict(made.named_buffers()).keys() == dict(usual.named_buffers()).keys()
    for name, found in made.named_buffers():
        torch.testing.assert_close(found, usual.get_buffer(name))


def test_weights_of_any_layout() -> None:
    made, usual = both_in_training()
    weights = {
        name: torch.stack([p.detach(), torch.randn_like(p)], -1)[..., 0].requires_grad_()
        for name, p in made.named_parameters()
    }
    weights["bn2.weight"] = torch.tensor(0.7).expand(16).requires_grad_()
    x = torch.randn(2, 16, 6, 5)
    found = torch.func.functional_call(made, weights, (x,))
    expected = torch.func.functional_call(usual, weights, (x,))
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), list(weights.values())),
        torch.autograd.grad(expected.square().sum(), list(weights.values())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_shapes_that_do_not_match(training: bool) -> None:
    made, usual = both_in_training()
    made.train(training), usual.train(training)
    z = torch.randn(2, 16, 6, 5)
    with torch.set_grad_enabled(training):
        for shape in ((2, 16, 1, 1), (2, 16, 6, 5)):
            shortcut = torch.randn(shape)
            found = made.fused_end(z, made.conv2, shortcut, made.act2)  # type: ignore[operator]
            branch = usual.attention(usual.bn2(usual.conv2(z)))  # type: ignore[operator]
            expected = usual.act2(branch + shortcut)  # type: ignore[operator]
            torch.testing.assert_close(found, expected)
        with pytest.raises(RuntimeError):
            made.fused_end(z, made.conv2, torch.randn(2, 16, 5, 5), made.act2)  # type: ignore[operator]
        made.bn2 = nn.BatchNorm2d(8).train(training)  # type: ignore[assignment]
        with pytest.raises(RuntimeError):
            made(z)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spec", ["eca", "se", "none"])
def test_an_empty_batch(spec: str, training: bool) -> None:
    made = block(spec).train(training)
    made.fused = "auto"  # type: ignore[assignment]
    with torch.set_grad_enabled(training):
        y = made(torch.empty(0, 16, 6, 5, requires_grad=training))
    assert y.shape == (0, 16, 6, 5)
    if training:
        y.sum().backward()


# ---- counting, export and compilation


def test_multiply_adds_are_those_of_the_model_as_defined() -> None:
    fused, unfused = both(create_model("resnet18", attention="eca").eval())
    assert count_macs(fused, 64) == count_macs(unfused, 64)
    assert {m.fused for m in fused.modules() if isinstance(m, ResidualEnd)} == {True}


def test_exports_with_any_batch_size() -> None:
    model = build("resnet20", attention="eca", fused=True).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        exported = torch.export.export(model, (x[:2],), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spec", ["eca", "se", "srm"])
def test_compiles_as_one_graph(spec: str, training: bool) -> None:
    """The nine norms at the ends of branches are fused in it; the other ten, and those of SRM, are left."""
    torch._dynamo.reset()
    model = build("resnet20", attention=spec, fused=True).train(training)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    norms: list[int] = []  # of each captured graph

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        norms.append(sum("batch_norm" in str(node.target) for node in graph.graph.nodes))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(copy.deepcopy(model), backend=backend, fullgraph=True)
    if training:
        found, expected = step(compiled, x), step(model, x)  # type: ignore[arg-type]
        for key, value in expected.items():
            name = f"_orig_mod.{key}".replace("_orig_mod.logits", "logits")
            torch.testing.assert_close(found[name], value)
    else:
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))
    assert norms == [19 if spec == "srm" else 10]


# ---- long runs


def train(model: nn.Module, steps: int) -> list[float]:
    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 8, 8), torch.randint(4, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for i in range(steps):
        pick = slice(8 * (i % 4), 8 * (i % 4) + 8)
        dtype = next(model.parameters()).dtype
        loss = nn.functional.cross_entropy(model(images[pick].to(dtype)), labels[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_200_steps_follow_the_unfused_run() -> None:
    """In float64, in which rounding errors stay small for 200 steps."""
    fused, unfused = both(build("resnet20", attention="eca"))
    found, expected = train(fused, 200), train(unfused, 200)
    assert expected[-1] < 0.1 * expected[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_runs_are_reproducible() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            train(build("resnet20", attention="eca", fused=True).float(), 3) for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert first == second
