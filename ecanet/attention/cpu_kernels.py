"""Compiles, loads and calls the C++ kernels of the operators, see :mod:`ecanet.attention.operators`.

The first process on a machine compiles them, in seconds, into the user's cache. They use torch's own OpenMP
threads: the library is linked without OpenMP, whose functions are then found in the process, where torch has
loaded them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor

from .operators import vector

_log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("cpu_kernels.cpp")
_FLAGS = ["-std=c++14", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math"]
# As torch selects its own kernels. Not march=native: a cache may be shared by machines of several kinds.
_INSTRUCTIONS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
    "AVX2": ["-mavx2", "-mfma"],
}  # fmt: skip


# Arguments of the kernels: a pointer, an int64, an int, a float.
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}
_SHAPE, _NORM = "nnnii", "ppppf"
_SIGNATURES = {
    "batch_statistics": "ppnnnppffppppp",
    "normalized_means": f"pnn{_NORM}p",
    "gradient_of_gate": f"ppnn{_NORM}p",
    "gradient_of_norm": f"pppppppnnn{_NORM}ppppp",
    "gate_of_eca": "pnnpnip",
    "gradient_of_eca": "pppnnpnpp",
} | {
    f"{name}_{dtype}": signature
    for dtype in ("float32", "bfloat16")
    for name, signature in {
        "image_moments": f"p{_SHAPE}pp",
        "gate_add": f"ppp{_SHAPE}{_NORM}ip",
        "gate_add_backward": f"ppp{_SHAPE}pppp",
        "gradient": f"pp{_SHAPE}ppppp",
        "norm_eca": f"ppnp{_SHAPE}ppffppipp",
        "norm_eca_backward": f"ppppn{_SHAPE}ppfpppppp",
        "eca_add": f"ppnp{_SHAPE}{_NORM}ippp",
    }.items()
}


def available() -> bool:
    """Whether the kernels can be compiled and loaded here. If not, the reason is logged once."""
    return _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = _loaded()
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = None, [_TYPES[letter] for letter in signature]
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().split("\n")[0]
        _log.warning("attention runs without its kernels for CPUs, which is slower: %s", reason)
        return None
    return library


def _loaded() -> ctypes.CDLL:
    """Load the library, compiling it if this version is not in the cache yet.

    Raises:
        OSError: there is no compiler, or the library cannot be loaded.
        ValueError: ``CXX`` is no command.
        CalledProcessError: the compiler refuses.
        TimeoutExpired: it takes minutes.
    """
    flags = [*_FLAGS, *_INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), [])]
    named = shlex.split(os.environ.get("CXX", ""))
    compiler = named or list(filter(shutil.which, ("c++", "g++", "clang++")))[:1]
    system = [platform.system(), platform.machine(), *platform.libc_ver()]
    known = [_SOURCE.read_text(), *system, *compiler, *flags]
    key = hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
    cache = platformdirs.user_cache_path("ecanet", appauthor=False)
    path = cache / f"cpu_kernels-{key}.so"
    with contextlib.suppress(OSError):  # it is not there, or damaged
        return ctypes.CDLL(str(path))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        kept = os.access(cache, os.W_OK)
    except OSError:
        kept = False  # without a home, the library is for this process alone
    with tempfile.TemporaryDirectory(dir=cache if kept else None) as made:
        compiled = _compiled(Path(made), compiler, flags)
        library = ctypes.CDLL(str(compiled))
        if kept:
            compiled.replace(path)  # at once, as other processes may be doing the same
        return library


def _compiled(folder: Path, compiler: list[str], flags: list[str]) -> Path:
    if not compiler:
        raise OSError("there is no C++ compiler (c++, g++ or clang++)")
    openmp, link = ["-fopenmp"], ["-shared"]
    if platform.system() == "Darwin":
        openmp, link = ["-Xpreprocessor", "-fopenmp"], ["-shared", "-undefined", "dynamic_lookup"]
    objects, library = folder / "kernels.o", folder / "kernels.so"
    _run([*compiler, *flags, *openmp, "-c", str(_SOURCE), "-o", str(objects)])
    _run([*compiler, *link, str(objects), "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


# ---- calls


def _call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Call a kernel with numbers and with the addresses of tensors, which are null for None."""
    getattr(_library(), name)(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])


def _dense(x: Tensor) -> tuple[Tensor, torch.memory_format]:
    """Return ``x`` dense, and its memory format: channels last, or contiguous."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x, torch.channels_last
    return x.contiguous(), torch.contiguous_format


def _shape(x: Tensor, layout: torch.memory_format) -> tuple[int, int, int, bool, int]:
    n, channels, h, w = x.shape
    return n, channels, h * w, layout == torch.channels_last, torch.get_num_threads()


def _name(operator: str, x: Tensor) -> str:
    return f"{operator}_{'bfloat16' if x.dtype == torch.bfloat16 else 'float32'}"


def _as(x: Tensor | None, like: Tensor, layout: torch.memory_format) -> Tensor | None:
    return None if x is None else x.to(like.dtype).contiguous(memory_format=layout)


def _flat(*vectors: Tensor | None) -> list[Tensor | None]:
    return [None if v is None else v.contiguous() for v in vectors]


def image_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    x, layout = _dense(x)
    mean, variance = vector(x), vector(x)
    _call(_name("image_moments", x), x, *_shape(x, layout), mean, variance)
    return mean, variance


def batch_moments(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, running_mean: Tensor | None,
    running_var: Tensor | None, momentum: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    mean, variance = image_moments(x)
    n, channels, h, w = x.shape
    center, spread = mean.new_empty(channels), mean.new_empty(channels)
    pooled = torch.empty_like(mean)
    _call(
        "batch_statistics", mean, variance, n, channels, h * w, weight, bias, eps, momentum,
        running_mean, running_var, center, spread, pooled,
    )  # fmt: skip
    return mean, variance, center, spread, pooled


def normalized_means(mean: Tensor, *norm: Any) -> Tensor:
    pooled = torch.empty_like(mean)
    _call("normalized_means", mean.contiguous(), *mean.shape, *norm, pooled)
    return pooled


def gate_add(
    x: Tensor, gate: Tensor | None, shortcut: Tensor | None, weight: Tensor, bias: Tensor,
    center: Tensor, spread: Tensor, eps: float, relu: bool, out: Tensor,
) -> None:  # fmt: skip
    dense, layout = _dense(x)
    _call(
        _name("gate_add", x), dense, *_flat(gate), _as(shortcut, x, layout), *_shape(x, layout),
        weight, bias, center, spread, eps, relu, out,
    )  # fmt: skip


def gate_add_backward(
    grad_out: Tensor, out: Tensor | None, x: Tensor, gate: Tensor | None, weight: Tensor,
    bias: Tensor, center: Tensor, spread: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    x, layout = _dense(x)
    grad_out = grad_out.contiguous(memory_format=layout)
    passed = x.new_empty(0) if out is None else torch.empty_like(x)
    of_shift, of_scale = vector(x), vector(x)
    _call(
        _name("gate_add_backward", x), grad_out, out, x, *_shape(x, layout), center, passed,
        of_shift, of_scale,
    )  # fmt: skip
    grad_gate = of_shift.new_empty(0)
    if gate is not None:
        grad_gate = torch.empty_like(of_shift)
        norm = weight, bias, center, spread, eps
        _call("gradient_of_gate", of_shift, of_scale, *of_shift.shape, *norm, grad_gate)
    return passed, of_shift, of_scale, grad_gate


def norm_backward(
    passed: Tensor, x: Tensor, gate: Tensor | None, of_shift: Tensor, of_scale: Tensor,
    grad_pooled: Tensor | None, grad_variance: Tensor | None, mean: Tensor, variance: Tensor,
    weight: Tensor, center: Tensor, spread: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x, layout = _dense(x)
    passed = passed.contiguous(memory_format=layout)
    n, channels, h, w = x.shape
    a, b, d = mean.new_empty(3, n, channels)
    grad_weight, grad_bias = torch.empty_like(center), torch.empty_like(center)
    gate, grad_pooled, grad_variance = _flat(gate, grad_pooled, grad_variance)
    _call(
        "gradient_of_norm", gate, of_shift, of_scale, grad_pooled, grad_variance, mean, variance, n,
        channels, h * w, weight, None, center, spread, eps, a, b, d, grad_weight, grad_bias,
    )  # fmt: skip
    grad_x = torch.empty_like(x)
    _call(_name("gradient", x), passed, x, *_shape(x, layout), mean, a, b, d, grad_x)
    return grad_x, grad_weight, grad_bias


def eca_gate(pooled: Tensor, kernel: Tensor) -> Tensor:
    gate, threads = torch.empty_like(pooled), torch.get_num_threads()
    _call("gate_of_eca", *_flat(pooled), *pooled.shape, *_kernel(kernel), threads, gate)
    return gate


def eca_gate_backward(
    grad_gate: Tensor, gate: Tensor, pooled: Tensor, kernel: Tensor
) -> tuple[Tensor, Tensor]:
    grad_pooled, grad_kernel = torch.empty_like(gate), gate.new_empty(kernel.numel())
    _call(
        "gradient_of_eca", *_flat(grad_gate, gate, pooled), *gate.shape, *_kernel(kernel),
        grad_pooled, grad_kernel,
    )  # fmt: skip
    return grad_pooled, grad_kernel


def eca_add(
    x: Tensor, kernel: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor,
    center: Tensor, spread: Tensor, eps: float, relu: bool, out: Tensor,
) -> None:  # fmt: skip
    x, layout = _dense(x)
    _call(
        _name("eca_add", x), x, *_kernel(kernel), _as(shortcut, x, layout),
        *_shape(x, layout), weight, bias, center, spread, eps, relu, out, None, None,
    )  # fmt: skip


def eca(x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, layout = _dense(x)
    mean, gate, out = vector(x), vector(x), torch.empty_like(x)
    no_norm = None, None, None, None, 0.0
    _call(
        _name("eca_add", x), x, *_kernel(kernel), None, *_shape(x, layout), *no_norm, False,
        out, mean, gate,
    )  # fmt: skip
    return out, mean, gate


def eca_backward(
    grad_out: Tensor, x: Tensor, kernel: Tensor, mean: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor]:
    x, layout = _dense(x)
    grad_out, shape = grad_out.contiguous(memory_format=layout), _shape(x, layout)
    sums, products, grad_x = vector(x), vector(x), torch.empty_like(x)
    _call(_name("gate_add_backward", x), grad_out, None, x, *shape, None, None, sums, products)
    grad_mean, grad_kernel = eca_gate_backward(products, gate, mean, kernel)
    grad_mean.div_(x.shape[2] * x.shape[3])
    _call(_name("gradient", x), grad_out, x, *shape, None, gate, grad_mean, None, grad_x)
    return grad_x, grad_kernel


def norm_eca(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, kernel: Tensor | None,
    shortcut: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    momentum: float, relu: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    x, layout = _dense(x)
    out, shape = torch.empty_like(x), _shape(x, layout)
    vectors = 2 if kernel is None else 4
    saved = weight.new_empty(vectors * shape[0] * shape[1] + 2 * shape[1])
    _call(
        _name("norm_eca", x), x, *_kernel(kernel), _as(shortcut, x, layout), *shape, weight, bias,
        eps, momentum, running_mean, running_var, relu, out, saved,
    )  # fmt: skip
    return out, [saved]


def norm_eca_backward(
    grad_out: Tensor, out: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor, eps: float,
    kernel: Tensor | None, saved: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    x, layout = _dense(x)
    grad_x, channels = torch.empty_like(x), x.shape[1]
    passed = x.new_empty(0) if out is None else torch.empty_like(x)
    pointer, k = _kernel(kernel)
    of_vectors = [weight.new_empty(size) for size in (channels, channels, k)]
    _call(
        _name("norm_eca_backward", x), grad_out.contiguous(memory_format=layout), out, x, pointer, k,
        *_shape(x, layout), weight, bias, eps, *saved, passed, grad_x, *of_vectors,
    )  # fmt: skip
    grad_weight, grad_bias, grad_kernel = of_vectors
    return grad_x, grad_weight, grad_bias, grad_kernel, passed


def _kernel(kernel: Tensor | None) -> tuple[Tensor | None, int]:
    return (None, 0) if kernel is None else (kernel.contiguous(), kernel.numel())
