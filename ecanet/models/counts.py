"""Counts parameters and multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ecanet.attention import PooledGate
from ecanet.models.residual import ResidualEnd

Convention = Literal["products", "thop", "thop-2019"]
_Formula = Callable[..., int]
_aten = torch.ops.aten


def count_parameters(model: nn.Module) -> int:
    """Return the number of values of all parameters, each counted once, without buffers."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(
    model: nn.Module, image_size: int, in_chans: int = 3, *, convention: Convention = "products"
) -> int:
    """Return the multiply-adds of one image's forward pass.

    ``products`` counts convolutions and matrix products (including linear layers and scaled dot-product
    attention), in any dimension, as torch's counter does. Norms, activations, poolings, the product of
    a gate with its input and additions are not counted: they cost time, but few operations. Published
    "FLOPs" are often this number, and often twice this number, or in units of 2^30.

    The other two are conventions of the package thop: its current one, and the one with which the
    tables of the ECA-Net paper were made. They add to ``products``:

    ========================  ================================  =======================
    operation                 ``thop`` (0.1.1)                  ``thop-2019`` (0.0.22)
    ========================  ================================  =======================
    norm                      4 per value, 2 without weights    4 per value
    mean, adaptive pooling    inputs + outputs                  inputs + outputs
    average pooling           outputs                           outputs · (k² + 1)
    max pooling               0                                 outputs · k
    ReLU, ReLU6               0                                 1 per value, see below
    linear layer              inputs · outputs                  (2 · inputs - 1) · outputs
    ========================  ================================  =======================

    thop 0.0.22 kept only a module's last call, and the residual blocks of torchvision and of the
    official code use one ReLU several times: of the ReLUs in one module, only the last one counts.
    thop sees modules only; here, means written as functions count as well.

    An image of zeros, (1, in_chans, image_size, image_size), is run on the model's device in
    evaluation mode; the model is unchanged.
    """
    like = next(model.parameters())
    image = torch.zeros(1, in_chans, image_size, image_size, device=like.device, dtype=like.dtype)
    with counted_macs(model, convention) as total:
        model(image)
    return total()


@contextmanager
def counted_macs(
    model: nn.Module, convention: Convention = "products"
) -> Iterator[Callable[[], int]]:
    """Count the multiply-adds of what runs inside ``with``, the model in evaluation mode.

    See :func:`count_macs`. Gradients are disabled inside; afterwards the model is unchanged.

    Yields:
        A function that returns the multiply-adds so far.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS[convention])
    last_relu: dict[str, int] = {}

    def note_relu(parent: str, module: nn.Module, args: Any, output: Any) -> None:
        last_relu[parent] = output.numel()

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
            # Count the model as defined, not its fused computation.
            if isinstance(module, PooledGate):
                stack.callback(module.__dict__.pop, "by_kernel", None)
                module.by_kernel = lambda x: None  # type: ignore[method-assign]
            if isinstance(module, ResidualEnd):
                stack.callback(setattr, module, "fused", module.fused)
                module.fused = False
        if convention == "thop-2019":
            for name, module in model.named_modules():
                if isinstance(module, (nn.ReLU, nn.ReLU6)):
                    note = partial(note_relu, name.rpartition(".")[0])
                    stack.callback(module.register_forward_hook(note).remove)
        model.eval()
        # torch's counter knows only some of the fused attention kernels: disable them, and count the
        # products one by one.
        stack.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.no_grad())
        stack.enter_context(counter)
        # torch's counter counts multiplications and additions separately.
        yield lambda: counter.get_total_flops() // 2 + sum(last_relu.values())


# ---- thop's rules: multiply-adds from the shapes of an operation's arguments and of its output


def _linear_2019(x: Any, weight: Any, *rest: Any, out: Any) -> int:
    return (2 * x[-1] - 1) * math.prod(out)


def _norm(x: Any, weight: Any = None, *rest: Any, out: Any) -> int:
    return (2 if weight is None else 4) * math.prod(x)


_BATCH_NORMS = [
    _aten.native_batch_norm,
    _aten._native_batch_norm_legit_no_training,
    _aten.cudnn_batch_norm,
    _aten.miopen_batch_norm,
]
_THOP: dict[Any, _Formula] = {
    **dict.fromkeys([*_BATCH_NORMS, _aten.native_group_norm], _norm),
    _aten.native_layer_norm: lambda x, shape, *weight, out: _norm(x, *weight, out=out),
    _aten.mean: lambda x, *rest, out: math.prod(x) + math.prod(out),
    _aten._adaptive_avg_pool2d: lambda x, *rest, out: math.prod(x) + math.prod(out),
    _aten.avg_pool2d: lambda *arguments, out: math.prod(out),
}
_THOP_2019: dict[Any, _Formula] = {
    **_THOP,
    **dict.fromkeys(
        [*_BATCH_NORMS, _aten.native_layer_norm], lambda x, *rest, out: 4 * math.prod(x)
    ),
    _aten.avg_pool2d: lambda x, kernel, *rest, out: math.prod(out) * (math.prod(kernel) + 1),
    # The second output holds the indices.
    _aten.max_pool2d_with_indices: lambda x, kernel, *rest, out: math.prod(out[0]) * kernel[0],
    _aten.mm: _linear_2019,
    _aten.addmm: lambda bias, *arguments, out: _linear_2019(*arguments, out=out),
}


def _doubled(formula: _Formula) -> _Formula:
    """Convert multiply-adds to the unit of torch's counter."""
    return lambda *args, out_shape, **kwargs: 2 * formula(*args, out=out_shape)


_FORMULAS: dict[Convention, dict[Any, _Formula]] = {
    "products": {},
    "thop": {operation: _doubled(formula) for operation, formula in _THOP.items()},
    "thop-2019": {operation: _doubled(formula) for operation, formula in _THOP_2019.items()},
}
