"""The operators of the fused passes, each with a C++ kernel for CPUs and Triton kernels for GPUs.

The kernels read and write (N, C, H, W) in its memory order, channels last or not, and sum in float32. All
vectors, (C,) and (N, C), are in float32. The operators have no derivatives of their own:
:mod:`ecanet.attention.fused` and :mod:`ecanet.attention.eca` call them in ``torch.autograd.Function``, which
costs a fraction of what derivatives registered with torch.library do.

Notation: ``y`` is ``x`` after the batch norm, ``y = (x - center) * rsqrt(spread + eps) * weight + bias``; the
end of a branch is ``relu(y * gate + shortcut)``. ``gate`` is (N, C), or None for a network without attention.
"""

from __future__ import annotations

import functools
import logging
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

_NORM = "Tensor weight, Tensor bias, Tensor center, Tensor spread, float eps"

SCHEMAS = {
    # Each image's channel means and biased variances, (N, C).
    "image_moments": "(Tensor x) -> (Tensor mean, Tensor variance)",
    # The same, with the mean and biased variance of the batch, (C,), and each image's means of y, (N, C).
    # Running statistics are updated as by nn.BatchNorm2d if there are any.
    "batch_moments": "(Tensor x, Tensor weight, Tensor bias, float eps, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, float momentum) -> "
    "(Tensor mean, Tensor variance, Tensor center, Tensor spread, Tensor pooled)",
    # Each image's means of y from those of x.
    "normalized_means": f"(Tensor mean, {_NORM}) -> Tensor",
    # out = relu(y * gate + shortcut); out may be x.
    "gate_add": f"(Tensor x, Tensor? gate, Tensor? shortcut, {_NORM}, bool relu, Tensor(a!) out) -> ()",
    # passed: the gradient before the ReLU, which is also the shortcut's; empty without a ReLU, where it is
    # grad_out. of_shift and of_scale: sums over each image of passed and of passed * (x - center). grad_gate:
    # (N, C); empty without a gate. out: that of gate_add, or None without a ReLU.
    "gate_add_backward": f"(Tensor grad_out, Tensor? out, Tensor x, Tensor? gate, {_NORM}) -> "
    "(Tensor passed, Tensor of_shift, Tensor of_scale, Tensor grad_gate)",
    # The gradients of x, weight and bias. grad_pooled and grad_variance: of the means and biased variances of
    # y over each image, as far as there are any.
    "norm_backward": "(Tensor passed, Tensor x, Tensor? gate, Tensor of_shift, Tensor of_scale, "
    "Tensor? grad_pooled, Tensor? grad_variance, Tensor mean, Tensor variance, Tensor weight, "
    "Tensor center, Tensor spread, float eps) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    # sigmoid of the convolution along the channels of (N, C) with kernel, k values in any shape.
    "eca_gate": "(Tensor pooled, Tensor kernel) -> Tensor",
    "eca_gate_backward": "(Tensor grad_gate, Tensor gate, Tensor pooled, Tensor kernel) -> "
    "(Tensor grad_pooled, Tensor grad_kernel)",
    # The whole end of a branch in training, with ECA or, for kernel None, without a gate. saved is for
    # backward only, and differs between devices.
    "norm_eca": "(Tensor x, Tensor weight, Tensor bias, float eps, Tensor? kernel, Tensor? shortcut, "
    "Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, bool relu) -> "
    "(Tensor out, Tensor[] saved)",
    # passed is the shortcut's gradient; empty without a ReLU. grad_kernel: k values, none without a kernel.
    "norm_eca_backward": "(Tensor grad_out, Tensor? out, Tensor x, Tensor weight, Tensor bias, float eps, "
    "Tensor? kernel, Tensor[] saved) -> "
    "(Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_kernel, Tensor passed)",
    # The end of a branch with ECA, in evaluation: on a CPU image by image, each read from memory once.
    "eca_add": f"(Tensor x, Tensor kernel, Tensor? shortcut, {_NORM}, bool relu, Tensor(a!) out) -> ()",
    # ECA by itself: x * eca_gate(means of x); with the means and the gate, for backward.
    "eca": "(Tensor x, Tensor kernel) -> (Tensor out, Tensor mean, Tensor gate)",
    "eca_backward": "(Tensor grad_out, Tensor x, Tensor kernel, Tensor mean, Tensor gate) -> "
    "(Tensor grad_x, Tensor grad_kernel)",
}

_library = torch.library.Library("ecanet", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)

OPERATORS = SimpleNamespace(**{name: getattr(torch.ops.ecanet, name).default for name in SCHEMAS})


# ---- shapes, for fake tensors


def vector(x: Tensor) -> Tensor:
    """Return an uninitialized float32 tensor of (N, C) for ``x``, (N, C, ...)."""
    return torch.empty(x.shape[:2], device=x.device, dtype=torch.float32)


def _channels(x: Tensor) -> Tensor:
    return torch.empty(x.shape[1], device=x.device, dtype=torch.float32)


def _kernel_like(kernel: Tensor) -> Tensor:
    return torch.empty(kernel.numel(), device=kernel.device, dtype=torch.float32)


_FAKES: dict[str, Any] = {
    "image_moments": lambda x: (vector(x), vector(x)),
    "batch_moments": lambda x, *others: (
        vector(x),
        vector(x),
        _channels(x),
        _channels(x),
        vector(x),
    ),
    "normalized_means": lambda mean, *others: vector(mean),
    "gate_add": lambda *arguments: None,
    "gate_add_backward": lambda grad_out, out, x, gate, *others: (
        x.new_empty(0) if out is None else torch.empty_like(x),
        vector(x),
        vector(x),
        x.new_empty(0, dtype=torch.float32) if gate is None else vector(x),
    ),
    "norm_backward": lambda passed, x, *others: (torch.empty_like(x), _channels(x), _channels(x)),
    "eca_gate": lambda pooled, kernel: vector(pooled),
    "eca_gate_backward": lambda grad_gate, gate, pooled, kernel: (
        vector(pooled),
        _kernel_like(kernel),
    ),
    "norm_eca": lambda x, weight, *others: (torch.empty_like(x), [weight.new_empty(0)]),
    "norm_eca_backward": lambda grad_out, out, x, weight, bias, eps, kernel, saved: (
        torch.empty_like(x),
        _channels(x),
        _channels(x),
        weight.new_empty(0) if kernel is None else _kernel_like(kernel),
        x.new_empty(0) if out is None else torch.empty_like(x),
    ),
    "eca_add": lambda *arguments: None,
    "eca": lambda x, kernel: (torch.empty_like(x), vector(x), vector(x)),
    "eca_backward": lambda grad_out, x, kernel, *others: (
        torch.empty_like(x),
        _kernel_like(kernel),
    ),
}
for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"ecanet::{_name}", _fake, lib=_library)


# ---- which tensors the kernels process


def usable_kernels(x: Tensor) -> Any:
    """Return the operators if there are kernels that can process ``x``, else None.

    There are none in compiled code, as the compiler generates kernels with the same passes and fuses the
    surrounding operations into them; none for tracing, whose result must run without ecanet; none under the
    transforms of torch.func, for which the operators have no rules; and none for tensors without values or
    with a sign that is yet to be applied.
    """
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
    ):
        return None
    if x.is_cuda:
        kernels = x.dtype in (torch.float32, torch.bfloat16, torch.float16) and _gpu_kernels()
    else:
        kernels = x.is_cpu and x.dtype in (torch.float32, torch.bfloat16) and _cpu_kernels()
    if not kernels or not x.numel() or x.is_neg():
        return None
    # Modes and other kinds of tensors need calls by way of torch's dispatcher, which take microseconds more.
    direct = type(x) is Tensor and not torch._C._len_torch_dispatch_stack()
    return kernels if direct else OPERATORS


@functools.cache
def _gpu_kernels() -> ModuleType | None:
    """Register and return the Triton kernels; None where Triton is missing or cannot launch a kernel."""
    try:
        from . import gpu_kernels

        # Triton compiles its launcher when a kernel is first launched.
        gpu_kernels.image_moments(torch.zeros(1, 1, 1, 1, device="cuda"))
    except Exception as error:  # from a missing module to a missing C compiler
        reason = str(error).strip().split("\n")[-1]
        _log.warning("attention is not fused on the GPU, as Triton launches no kernel: %s", reason)
        return None
    return _registered(gpu_kernels, "CUDA")


@functools.cache
def _cpu_kernels() -> ModuleType | None:
    """Compile, register and return the C++ kernels; None where there is no compiler."""
    from . import cpu_kernels

    return _registered(cpu_kernels, "CPU") if cpu_kernels.available() else None


_lock, _devices = threading.Lock(), set[str]()


def _registered(kernels: ModuleType, device: str) -> ModuleType:
    with _lock:  # several threads may be the first
        for name in SCHEMAS if device not in _devices else ():
            _library.impl(name, getattr(kernels, name), device)
        _devices.add(device)
    return kernels


def has_values(x: Tensor) -> bool:
    """Whether a gradient has values in memory, unlike a batch of gradients at once."""
    try:
        x.data_ptr()
    except RuntimeError:
        return False
    return True


def in_memory_format(x: Tensor) -> Tensor:
    """Return ``x`` dense, contiguous or channels last, as the kernels require."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()
