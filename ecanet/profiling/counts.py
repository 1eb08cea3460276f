"""Parameters and multiply-adds, counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ecanet.attention import PooledGate
from ecanet.models.residual import AttentionSlot

Convention = Literal["products", "thop", "thop-2019"]
_Formula = Callable[..., int]
_aten = torch.ops.aten


def count_parameters(model: nn.Module) -> int:
    """Return the number of values in all parameters, each counted once; buffers are not included."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(
    model: nn.Module, image_size: int, in_chans: int = 3, *, convention: Convention = "products"
) -> int:
    """Return the multiply-adds of one image's forward pass.

    ``products`` counts convolutions and matrix products (linear layers and scaled dot-product
    attention included), in any dimension, as torch's own counter sees them. Norms, activations,
    poolings, the products of a gate with its input and additions are not counted: they cost time,
    but few operations. Published "FLOPs" are often this figure, and often twice it, or in units of
    2^30.

    The other two are the conventions of the package thop: as it counts now,
    and as it did when the tables of the ECA-Net paper were made with it. On top of ``products``:

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

    thop 0.0.22 remembered a module's last call only, and the residual blocks of torchvision and of
    the official code use one ReLU several times: of the ReLUs in one module, the last one counts.
    thop sees modules only; here a mean that is written as a function counts as well.

    The image, zeros of (1, in_chans, image_size, image_size), is run on the model's device, in
    evaluation mode; the model is left as it was.
    """
    like = next(model.parameters())
    image = torch.zeros(1, in_chans, image_size, image_size, device=like.device, dtype=like.dtype)
    with MacCounter(model, convention) as counter:
        model(image)
    return counter.total()


class MacCounter:
    """Counts the multiply-adds of what runs inside ``with``, the model in evaluation mode there.

    See :func:`count_macs`. Gradients are off inside; outside, the model is as it was.
    """

    def __init__(self, model: nn.Module, convention: Convention = "products") -> None:
        self._model = model
        self._convention = convention
        self._counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS[convention])
        self._last_relu: dict[str, int] = {}

    def __enter__(self) -> MacCounter:
        with ExitStack() as stack:
            for module in self._model.modules():
                stack.callback(setattr, module, "training", module.training)
                # What is counted is the model as it is defined, not a way to compute it.
                if isinstance(module, PooledGate):
                    stack.callback(module.__dict__.pop, "by_kernel", None)
                    module.by_kernel = _no_kernel  # type: ignore[method-assign]
                if isinstance(module, AttentionSlot):
                    stack.callback(setattr, module, "fused", module.fused)
                    module.fused = False
            if self._convention == "thop-2019":
                for name, module in self._model.named_modules():
                    if isinstance(module, (nn.ReLU, nn.ReLU6)):
                        note = partial(self._note_relu, name.rpartition(".")[0])
                        stack.callback(module.register_forward_hook(note).remove)
            self._model.eval()
            # Kernels that do a whole self-attention are one operation each, of which torch's counter
            # knows only some: the products are counted one by one.
            stack.callback(
                torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
            )
            torch.backends.mha.set_fastpath_enabled(False)
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._counter)
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo.close()

    def total(self) -> int:
        """Return the multiply-adds so far."""
        # torch's counter gives operations: a multiplication and an addition each.
        return self._counter.get_total_flops() // 2 + sum(self._last_relu.values())

    def _note_relu(self, parent: str, module: nn.Module, args: Any, output: Any) -> None:
        self._last_relu[parent] = output.numel()


def _no_kernel(x: Any) -> None:
    """In place of :meth:`PooledGate.by_kernel`: there is no kernel."""


# ---- thop's rules, a formula an operation: from the shapes of its arguments and of its output


def _doubled(formula: _Formula) -> _Formula:
    """Give multiply-adds in the unit of torch's counter."""
    return lambda *args, out_shape, **kwargs: 2 * formula(*args, out=out_shape)


def _norm(x: Any, weight: Any = None, *rest: Any, out: Any) -> int:
    return (2 if weight is None else 4) * math.prod(x)


def _layer_norm(x: Any, shape: Any, weight: Any = None, *rest: Any, out: Any) -> int:
    return _norm(x, weight, out=out)


def _always_with_weights(x: Any, *rest: Any, out: Any) -> int:
    return 4 * math.prod(x)


def _inputs_and_outputs(x: Any, *rest: Any, out: Any) -> int:
    return math.prod(x) + math.prod(out)


def _outputs(x: Any, *rest: Any, out: Any) -> int:
    return math.prod(out)


def _window_and_division(x: Any, kernel_size: Any, *rest: Any, out: Any) -> int:
    return math.prod(out) * (math.prod(kernel_size) + 1)


def _maximum(x: Any, kernel_size: Any, *rest: Any, out: Any) -> int:
    return math.prod(out[0]) * kernel_size[0]  # the other output holds the indices


def _products_and_sums(x: Any, weight: Any, *rest: Any, out: Any) -> int:
    return (2 * x[-1] - 1) * math.prod(out)


def _biased(bias: Any, x: Any, weight: Any, *rest: Any, out: Any) -> int:
    return _products_and_sums(x, weight, out=out)


_BATCH_NORMS = [
    _aten.native_batch_norm,
    _aten._native_batch_norm_legit_no_training,
    _aten.cudnn_batch_norm,
    _aten.miopen_batch_norm,
]
_THOP: dict[Any, _Formula] = {
    **dict.fromkeys(_BATCH_NORMS, _norm),
    _aten.native_layer_norm: _layer_norm,
    _aten.native_group_norm: _norm,
    _aten.mean: _inputs_and_outputs,
    _aten._adaptive_avg_pool2d: _inputs_and_outputs,
    _aten.avg_pool2d: _outputs,
}
_THOP_2019: dict[Any, _Formula] = {
    **_THOP,
    **dict.fromkeys([*_BATCH_NORMS, _aten.native_layer_norm], _always_with_weights),
    _aten.avg_pool2d: _window_and_division,
    _aten.max_pool2d_with_indices: _maximum,
    _aten.mm: _products_and_sums,
    _aten.addmm: _biased,
}
_FORMULAS: dict[Convention, dict[Any, _Formula]] = {
    "products": {},
    "thop": {operation: _doubled(formula) for operation, formula in _THOP.items()},
    "thop-2019": {operation: _doubled(formula) for operation, formula in _THOP_2019.items()},
}
