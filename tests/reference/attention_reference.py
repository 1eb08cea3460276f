"""Every attention module again, from the papers' equations, slowly and by other means.

Gates are explicit matrices and loops over channels, groups and windows; torch's functions are the rest.
Each function takes the input, (N, C, H, W), the module's state (name → tensor), whether batch norm is
training, and the module's own arguments. The input may have other axes after C, where that means something.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
Reference = Callable[..., Tensor]
REFERENCES: dict[str, Reference] = {}


def reference(function: Reference) -> Reference:
    """Register the reference of the module that has the function's name."""
    REFERENCES[function.__name__] = function
    return function


# The pieces


def means(x: Tensor) -> Tensor:
    """(N, C, ...) → (N, C)."""
    return torch.einsum("nc...->nc", x) / x[0, 0].numel()


def wide(values: Tensor, x: Tensor) -> Tensor:
    """(N, C) → (N, C, 1, ...), with as many axes as x."""
    return values[(..., *[None] * (x.ndim - 2))]


def gated(x: Tensor, gate: Tensor) -> Tensor:
    return x * wide(gate, x)


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: int) -> Tensor:
    """Zero padding of half a kernel."""
    convolve: Any = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
    padded: Tensor = convolve(x, weight, bias, padding=weight.shape[-1] // 2, **options)
    return padded


def batch_norm(x: Tensor, state: State, prefix: str, training: bool) -> Tensor:
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (state[f"{prefix}.{name}"] for name in names)
    if training:
        return F.batch_norm(x, None, None, weight, bias, training=True)
    return F.batch_norm(x, mean, variance, weight, bias)


def band(kernel: Tensor, channels: int, wrap: bool) -> Tensor:
    """The C x C matrix of a 1-D convolution along the channels."""
    k = kernel.numel()
    rows = []
    for i in range(channels):
        row: list[Any] = [kernel.new_zeros(())] * channels
        for tap in range(k):
            j = i + tap - k // 2
            if wrap:
                j %= channels
            if 0 <= j < channels:
                row[j] = row[j] + kernel.flatten()[tap]
        rows.append(torch.stack(row))
    return torch.stack(rows)


# The modules


@reference
def none(x: Tensor, state: State, training: bool) -> Tensor:
    return x


@reference
def eca(x: Tensor, state: State, training: bool, **_: Any) -> Tensor:
    return gated(x, torch.sigmoid(means(x) @ band(state["conv.weight"], x.shape[1], False).T))


@reference
def eca_circular(x: Tensor, state: State, training: bool, **_: Any) -> Tensor:
    return gated(x, torch.sigmoid(means(x) @ band(state["conv.weight"], x.shape[1], True).T))


@reference
def eca_ns(x: Tensor, state: State, training: bool, **_: Any) -> Tensor:
    weight, mean = state["weight"], means(x)
    c, k = weight.shape
    gates = []
    for i in range(c):
        seen = [(i + t - k // 2, t) for t in range(k) if 0 <= i + t - k // 2 < c]
        gates.append(sum(mean[:, j] * weight[i, t] for j, t in seen))
    return gated(x, torch.sigmoid(torch.stack(gates, 1)))


def _bottleneck(z: Tensor, state: State) -> Tensor:
    hidden = torch.relu(z @ state["fc1.weight"].T + state.get("fc1.bias", 0))
    return hidden @ state["fc2.weight"].T + state.get("fc2.bias", 0)


@reference
def se(x: Tensor, state: State, training: bool, **_: Any) -> Tensor:
    return gated(x, torch.sigmoid(_bottleneck(means(x), state)))


@reference
def se_var1(x: Tensor, state: State, training: bool) -> Tensor:
    return gated(x, torch.sigmoid(means(x)))


@reference
def se_var2(x: Tensor, state: State, training: bool) -> Tensor:
    return gated(x, torch.sigmoid(means(x) @ torch.diag(state["weight"])))


@reference
def se_var3(x: Tensor, state: State, training: bool) -> Tensor:
    return gated(x, torch.sigmoid(torch.einsum("oc,nc->no", state["fc.weight"], means(x))))


def _block_diagonal(x: Tensor, state: State, groups: int) -> Tensor:
    width = x.shape[1] // groups
    blocks = [state["conv.weight"][g * width : (g + 1) * width, :, 0] for g in range(groups)]
    return gated(x, torch.sigmoid(means(x) @ torch.block_diag(*blocks).T))


@reference
def se_gc1(x: Tensor, state: State, training: bool) -> Tensor:
    return _block_diagonal(x, state, 16)


@reference
def se_gc2(x: Tensor, state: State, training: bool) -> Tensor:
    return _block_diagonal(x, state, x.shape[1] // 16)


@reference
def se_gc3(x: Tensor, state: State, training: bool) -> Tensor:
    return _block_diagonal(x, state, x.shape[1] // 8)


@reference
def cbam(x: Tensor, state: State, training: bool, **_: Any) -> Tensor:
    peak = x.flatten(2).amax(2)
    x = gated(x, torch.sigmoid(_bottleneck(means(x), state) + _bottleneck(peak, state)))
    pooled = torch.stack([x.amax(1), x.mean(1)], 1)
    spatial = batch_norm(conv(pooled, state["conv.weight"]), state, "bn", training)
    return x * torch.sigmoid(spatial)


@reference
def triplet(x: Tensor, state: State, training: bool, **_: Any) -> Tensor:
    def branch(turned: Tensor, name: str) -> Tensor:
        """Gate a tensor by its second axis' maximum and mean, as the paper's Fig. 3 does."""
        pooled = torch.stack([turned.amax(1), turned.mean(1)], 1)
        z = conv(pooled, state[f"{name}.conv.weight"])
        return turned * torch.sigmoid(batch_norm(z, state, f"{name}.bn", training))

    one = branch(x.transpose(1, 2), "cw").transpose(1, 2)
    two = branch(x.transpose(1, 3), "hc").transpose(1, 3)
    return (one + two + branch(x, "hw")) / 3


@reference
def coord(x: Tensor, state: State, training: bool, **_: Any) -> Tensor:
    h = x.shape[2]
    rows, columns = x.sum(3) / x.shape[3], x.sum(2) / h
    strip = torch.cat([rows, columns], 2)
    z = torch.einsum("ncl,oc->nol", strip, state["conv1.weight"][:, :, 0, 0])
    z = batch_norm(z + state["conv1.bias"][:, None], state, "bn1", training)
    z = z * torch.clamp(z + 3, 0, 6) / 6

    def gate(part: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"][:, :, 0, 0]
        z = torch.einsum("ncl,oc->nol", part, weight)
        return torch.sigmoid(z + state[f"{name}.bias"][:, None])

    gate_h, gate_w = gate(z[:, :, :h], "conv_h"), gate(z[:, :, h:], "conv_w")
    return torch.einsum("nchw,nch,ncw->nchw", x, gate_h, gate_w)


@reference
def gc(x: Tensor, state: State, training: bool, **_: Any) -> Tensor:
    pixels = torch.movedim(x.flatten(2), 1, 2)
    scores = pixels @ state["mask.weight"].flatten()
    context = (pixels * torch.exp(scores - torch.logsumexp(scores, 1, True))[:, :, None]).sum(1)
    z = context @ state["fc1.weight"].T + state["fc1.bias"]
    z = torch.relu(F.layer_norm(z, z.shape[1:], state["norm.weight"], state["norm.bias"]))
    return x + wide(z @ state["fc2.weight"].T + state["fc2.bias"], x)


@reference
def ge(
    x: Tensor,
    state: State,
    training: bool,
    variant: str = "plus",
    extent: int = 8,
    size: int | None = None,
    **_: Any,
) -> Tensor:
    sides = x.shape[2:]
    if variant == "minus":
        if extent == 0:
            return gated(x, torch.sigmoid(means(x)))
        reach = extent - 1
        windows = [
            [slice(max(0, i - reach), i + reach + 1) for i in range(0, side, extent)]
            for side in sides
        ]
        cells = [means(x[(..., *window)]) for window in itertools.product(*windows)]
        context = torch.stack(cells, 2).unflatten(2, [len(along) for along in windows])
    elif extent == 0:
        assert size is not None
        pool: Any = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}
        products = pool[x.ndim](x, size) * state["gather.0.weight"][:, 0]
        z = wide(products.flatten(2).sum(2), x)
        context = batch_norm(z, state, "gather.1", training)
    else:
        context = x
        for step in range(int(math.log2(extent))):
            context = torch.relu(context) if step else context
            weight = state[f"gather.{3 * step}.weight"]
            context = conv(context, weight, stride=2, groups=x.shape[1])
            context = batch_norm(context, state, f"gather.{3 * step + 1}", training)
    if variant == "plus":
        down = conv(torch.relu(context), state["excite.1.weight"], state["excite.1.bias"])
        context = conv(torch.relu(down), state["excite.3.weight"], state["excite.3.bias"])
    return x * torch.sigmoid(F.interpolate(context, sides))


@reference
def srm(x: Tensor, state: State, training: bool) -> Tensor:
    mean = means(x)
    variance = means((x - wide(mean, x)) ** 2)
    z = mean * state["cfc"][:, 0] + (variance + 1e-5) ** 0.5 * state["cfc"][:, 1]
    return gated(x, torch.sigmoid(batch_norm(z, state, "bn", training)))


@reference
def gct(x: Tensor, state: State, training: bool) -> Tensor:
    s = state["alpha"] * (torch.einsum("nc...,nc...->nc", x, x) + 1e-5) ** 0.5
    normal = s / ((s * s).sum(1, keepdim=True) / x.shape[1] + 1e-5) ** 0.5
    z = state["gamma"] * normal + state["beta"]
    return gated(x, 1 + (torch.exp(2 * z) - 1) / (torch.exp(2 * z) + 1))


@reference
def simam(x: Tensor, state: State, training: bool, e_lambda: float = 1e-4) -> Tensor:
    pixels = x[0, 0].numel()
    d = (x - wide(means(x), x)) ** 2
    variance = wide(means(d) * pixels / (pixels - 1), x)
    inverse_energy = (d + 2 * variance + 2 * e_lambda) / (4 * (variance + e_lambda))
    return x * torch.sigmoid(inverse_energy)


@reference
def fca(
    x: Tensor, state: State, training: bool, frequencies: int = 16, size: int = 7, **_: Any
) -> Tensor:
    # The authors' "top" order, written as theirs is: all rows, then all columns.
    u = [int(row) for row in "00600114513000324635526553342261"]
    v = [int(column) for column in "01052020060463526333511242113053"]
    small = F.adaptive_avg_pool2d(x, size)
    places = torch.arange(size, dtype=x.dtype)

    def wave(frequency: int) -> Tensor:
        f = frequency * (size // 7)
        length = math.sqrt(size) if f == 0 else math.sqrt(size / 2)
        return torch.cos(math.pi / size * (places + 0.5) * f) / length

    width = x.shape[1] // frequencies
    spectrum = [
        torch.einsum("nhw,h,w->n", small[:, c], wave(u[c // width]), wave(v[c // width]))
        for c in range(x.shape[1])
    ]
    return gated(x, torch.sigmoid(_bottleneck(torch.stack(spectrum, 1), state)))


@reference
def ema(x: Tensor, state: State, training: bool, groups: int = 8) -> Tensor:
    out = []
    for part in x.chunk(groups, 1):
        c, h, w = part.shape[1:]
        weight, bias = state["conv1x1.weight"][:, :, 0, 0], state["conv1x1.bias"][:, None]
        gate_h = torch.sigmoid(torch.einsum("nch,oc->noh", part.mean(3), weight) + bias)
        gate_w = torch.sigmoid(torch.einsum("ncw,oc->now", part.mean(2), weight) + bias)
        one = torch.einsum("nchw,nch,ncw->nchw", part, gate_h, gate_w)
        one = F.group_norm(one, c, state["norm.weight"], state["norm.bias"])
        two = conv(part, state["conv3x3.weight"], state["conv3x3.bias"])
        first = torch.bmm(one.mean((2, 3)).softmax(-1)[:, None], two.flatten(2))
        second = torch.bmm(two.mean((2, 3)).softmax(-1)[:, None], one.flatten(2))
        out.append(part * torch.sigmoid((first + second).view(-1, 1, h, w)))
    return torch.cat(out, 1)


@reference
def ela(
    x: Tensor, state: State, training: bool, conv_width: int = 1, norm_groups: int = 8, **_: Any
) -> Tensor:
    weight = state["conv.weight"]

    def gate(strip: Tensor) -> Tensor:
        groups = x.shape[1] // conv_width
        z = F.conv1d(strip, weight, padding=weight.shape[2] // 2, groups=groups)
        z = F.group_norm(z, norm_groups, state["norm.weight"], state["norm.bias"])
        return torch.sigmoid(z)

    return torch.einsum("nchw,nch,ncw->nchw", x, gate(x.mean(3)), gate(x.mean(2)))
