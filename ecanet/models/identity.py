"""Starts attention modules as the identity: a network with them then computes what it does without them.

A gate with weights can start as a constant factor f (ECA: 1/2), and something has to multiply by 1/f:

* a norm or convolution whose output goes into the attention module and nowhere else: its weight and bias are
  divided by f, and the network is no larger than before;
* the attention module itself, wherever something stands between the two (a layer scale, an activation) or
  several layers are summed: it multiplies by the buffer ``identity_scale``, which is saved with its weights.

Which of the two is possible is found by running a small image, and then verified by the network's output.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from ecanet.attention import PooledGate
from ecanet.errors import UserError
from ecanet.models.holders import (
    Attended,
    Derived,
    add_mixin,
    attention_modules,
    holders,
    origin,
)
from ecanet.models.hooks import run_in_evaluation
from ecanet.models.probe import small_image
from ecanet.models.residual import ResidualEnd

SCALE = "identity_scale"
"""Name of the buffer by which an attention module multiplies."""

WITHOUT_IDENTITY = "give --identity false (identity=False in Python)"


class _Scaled(Derived):
    """Multiplies what the class returns by a constant."""

    identity_scale: Tensor
    own_forward: Callable[..., Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.own_forward(x) * self.identity_scale


class _ScaledGate(Derived):
    """Multiplies the factors of a :class:`PooledGate` by a constant, which is cheaper than the image."""

    identity_scale: Tensor
    own_factors: Callable[..., Tensor]

    def factors(self, mean: Tensor, variance: Tensor | None = None) -> Tensor:
        return self.own_factors(mean, variance) * self.identity_scale

    def by_kernel(self, x: Tensor) -> Tensor | None:
        gated = super().by_kernel(x)  # type: ignore[misc]
        return None if gated is None else gated * self.identity_scale


def start_as_identity(model: nn.Module, names: Collection[str] | None = None) -> nn.Module:
    """Make a network's attention modules compute the identity, and leave its output without them as it is.

    In evaluation mode, the network then computes what it does without the modules. The weights of other
    layers may be divided by a constant, and attention modules may get a buffer ``identity_scale``.

    Args:
        model: any CNN with attention modules.
        names: of some of :func:`ecanet.models.attention_modules`; by default all.

    Returns:
        ``model`` itself.

    Raises:
        UserError: an attention module cannot start as the identity. The model is then unchanged.
    """
    modules = {
        name: module
        for name, module in attention_modules(model).items()
        if names is None or name in names
    }
    if not modules:
        return model
    image = small_image(model, WITHOUT_IDENTITY)
    inputs, producers = arrivals(model, modules, image)
    factors = {
        name: identity_factor(copy.deepcopy(module), *inputs[name])
        for name, module in modules.items()
    }
    for name, module in modules.items():
        identity_factor(module, *inputs[name])

    factors = {name: factor for name, factor in factors.items() if factor != 1.0}
    divided = {
        n: producers[n] for n in factors if n in producers and not hasattr(modules[n], SCALE)
    }
    for name, factor in factors.items():
        if name not in divided:
            _scale(modules[name], 1 / factor)
    slots = holders(model)
    uncertain = [name for name in divided if not isinstance(slots[name], ResidualEnd)]
    noise = torch.Generator().manual_seed(0)
    image = torch.randn(image.shape, generator=noise, device="cpu").to(image)
    plain = _outputs_without(model, modules, image) if uncertain else []
    before = {name: copy.deepcopy(divided[name].state_dict()) for name in uncertain}
    for name, layer in divided.items():
        _divide(layer, factors[name])
    if uncertain and not agree(outputs_of(model, image), plain):
        # A layer's output is used elsewhere too, or its weight is computed from others.
        for name in uncertain:
            divided[name].load_state_dict(before[name])
            _scale(modules[name], 1 / factors[name])
    return model


def identity_factor(module: Any, channels: int, dims: int = 2) -> float:
    """Initialize an attention module as close to the identity as it can; return its constant factor.

    Args:
        module: by its method ``init_identity``.
        channels: of its input.
        dims: axes of space of its input.

    Raises:
        UserError: it has no such method, or does not multiply by a constant afterwards.
    """
    name = origin(module).__name__
    if not callable(getattr(module, "init_identity", None)):
        raise UserError(f"attention module {name} has no init_identity: {WITHOUT_IDENTITY}")
    like = next(module.parameters(), torch.empty(0))
    with torch.random.fork_rng(devices=[]):
        factor = float(module.init_identity())
        x = torch.randn(2, channels, *[8] * dims, device=like.device, dtype=like.dtype)
    scale = factor * getattr(module, SCALE, 1.0)
    if not x.is_meta:
        y = run_in_evaluation(module, x)
        rtol = 1e-3 if x.dtype.itemsize > 2 else 0.02
        if not torch.allclose(y, scale * x, rtol=rtol, atol=1e-5):
            raise UserError(
                f"attention module {name} scales by a function of its input for any weights, so it cannot "
                f"start as the identity: {WITHOUT_IDENTITY}"
            )
    return factor


# ---- in files


def scales_in_common(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the scales of attention modules for which a model and a file are to have one both.

    One that only the file has is returned as it is; for one that only the model has, while the file has the
    module's other weights, 1 is returned, as the file's module does not scale.

    Args:
        model: with attention modules.
        tensors: of the file, under the model's names.
    """
    scales = {}
    for name, module in attention_modules(model).items():
        key = f"{name}.{SCALE}"
        if key in tensors:
            scales[key] = tensors[key]
        elif hasattr(module, SCALE) and in_file(name, module, tensors):
            scales[key] = torch.ones(())
    return scales


def add_scales(model: nn.Module, names: Iterable[str]) -> None:
    """Give the attention modules of a model the scales with these names, with the value 1 until loaded."""
    for name in names:
        module, _, last = name.rpartition(".")
        if last == SCALE and module in attention_modules(model):
            _scale(model.get_submodule(module), 1.0)


def in_file(name: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file has any of the weights of the attention module ``name``."""
    return any(f"{name}.{key}" in tensors for key in module.state_dict())


# ----


def _scale(module: nn.Module, scale: float) -> None:
    """Multiply by ``scale``, instead of what the module multiplied by before."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    is_gate = isinstance(module, PooledGate) and type(module).forward is PooledGate.forward
    add_mixin(module, _ScaledGate if is_gate else _Scaled)
    module.register_buffer(SCALE, torch.tensor(scale, device=like.device, dtype=like.dtype))


def _divide(layer: Any, factor: float) -> None:
    with torch.no_grad():
        layer.weight.div_(factor)
        if layer.bias is not None:
            layer.bias.div_(factor)


def _outputs_without(
    model: nn.Module, modules: Mapping[str, nn.Module], image: Tensor
) -> list[Tensor]:
    """Return :func:`_outputs` without some of the attention modules."""
    slots = holders(model)
    try:
        for name in modules:
            slots[name].attention = nn.Identity()
        return outputs_of(model, image)
    finally:
        for name, module in modules.items():
            slots[name].attention = module


def outputs_of(model: nn.Module, image: Tensor) -> list[Tensor]:
    leaves = tree_leaves(run_in_evaluation(model, image))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def agree(outputs: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether tensors are the same up to rounding; without values, on the meta device, they are."""
    if [tensor.shape for tensor in outputs] != [tensor.shape for tensor in others]:
        return False  # a detector's, whose number of objects depends on the image
    return all(
        one.is_meta
        or one.numel() == 0
        or (one - other).abs().max() <= 100 * torch.finfo(other.dtype).eps * other.abs().max()
        for one, other in zip(outputs, others, strict=True)
    )


def arrivals(
    model: nn.Module, modules: Mapping[str, nn.Module], image: Tensor
) -> tuple[dict[str, tuple[int, int]], dict[str, nn.Module]]:
    """Run an image; return what arrives by the modules' names, and the layer that each alone follows.

    What arrives is channels and axes of space.
    """
    # By the tensor's id: the tensor, its version, which in-place changes increase, and its layer.
    outputs: dict[int, tuple[Tensor, int, nn.Module]] = {}
    calls: Counter[nn.Module] = Counter()
    inputs: dict[str, tuple[int, int]] = {}
    feeds: defaultdict[nn.Module, list[str]] = defaultdict(list)

    def note_output(layer: nn.Module, args: Any, output: Any) -> None:
        calls[layer] += 1
        if not isinstance(layer, Attended):  # otherwise this is the output of its attention module
            outputs[id(output)] = (output, output._version, layer)

    def note_arrival(name: str, module: nn.Module, args: Any) -> None:
        inputs[name] = args[0].shape[1], args[0].ndim - 2
        tensor, version, layer = outputs.get(id(args[0]), (None, None, None))
        if tensor is args[0] and version == tensor._version and layer is not None:
            feeds[layer].append(name)

    slots = holders(model)
    with ExitStack() as stack:
        for layer in filter(scales_with_weight, model.modules()):
            stack.callback(layer.register_forward_hook(note_output).remove)
        for name, module in modules.items():
            hook = partial(note_arrival, name)
            stack.callback(module.register_forward_pre_hook(hook).remove)
            if isinstance(slots[name], Attended) and scales_with_weight(slots[name]):
                feeds[slots[name]].append(name)
        run_in_evaluation(model, image)
    only = {n[0]: layer for layer, n in feeds.items() if len(n) == calls[layer] == 1}
    return inputs, only


def scales_with_weight(module: Any) -> bool:
    """Whether dividing weight and bias divides the output. It does not if the weight is standardized, or
    an activation follows inside the module."""
    if origin(module) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and not isinstance(
        module, (_BatchNorm, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm2d)
    ):
        return False
    return module.weight is not None and isinstance(
        getattr(module, "act", None), nn.Identity | None
    )
