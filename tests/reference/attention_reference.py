"""Every attention module again, from the papers' equations, slowly and by other means.

Convolutions are sums over shifted copies or explicit matrices, norms and softmax are spelled out, gates
are loops over groups and windows. Tensors only so that autograd gives the gradients. Each function
takes the input (N, C, H, W), the module's state (name → tensor), whether batch norm is training, and
the module's own arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]
Reference = Callable[..., Tensor]
REFERENCES: dict[str, Reference] = {}


def reference(name: str) -> Callable[[Reference], Reference]:
    def add(function: Reference) -> Reference:
        REFERENCES[name] = function
        return function

    return add


# The pieces


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def softmax(z: Tensor) -> Tensor:
    """Over the last axis."""
    powers = torch.exp(z - z.max().detach())
    return powers / powers.sum(-1, keepdim=True)


def relu(z: Tensor) -> Tensor:
    return z * (z > 0)


def mean_image(x: Tensor) -> Tensor:
    return torch.einsum("nchw->nc", x) / (x.shape[2] * x.shape[3])


def largest(x: Tensor, dim: int) -> Tensor:
    return x.sort(dim).values.select(dim, -1)


def gated(x: Tensor, gate: Tensor) -> Tensor:
    return torch.einsum("nchw,nc->nchw", x, gate)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """Zero padding of half a kernel; one group."""
    k = weight.shape[-1]
    n, c, h, w = x.shape
    p = k // 2
    padded = x.new_zeros(n, c, h + 2 * p, w + 2 * p)
    padded[:, :, p : p + h, p : p + w] = x
    out: Any = 0
    for i in range(k):
        for j in range(k):
            shifted = padded[:, :, i : i + h : stride, j : j + w : stride]
            out = out + torch.einsum("nchw,oc->nohw", shifted, weight[:, :, i, j])
    return out if bias is None else out + bias[None, :, None, None]


def depthwise(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Zero padding of half a kernel; a kernel a channel."""
    channels = [conv2d(x[:, c : c + 1], weight[c : c + 1], None, stride) for c in range(x.shape[1])]
    return torch.cat(channels, 1)


def batch_norm(x: Tensor, state: State, prefix: str, training: bool) -> Tensor:
    """Over all axes but the second."""
    others = [d for d in range(x.ndim) if d != 1]
    shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
    if training:
        mean = x.mean(others)
        variance = ((x - mean.view(shape)) ** 2).mean(others)
    else:
        mean, variance = state[f"{prefix}.running_mean"], state[f"{prefix}.running_var"]
    normal = (x - mean.view(shape)) / (variance.view(shape) + 1e-5) ** 0.5
    return normal * state[f"{prefix}.weight"].view(shape) + state[f"{prefix}.bias"].view(shape)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    shape = (1, -1) + (1,) * (x.ndim - 2)
    parts = []
    for part in x.chunk(groups, 1):
        axes = list(range(1, x.ndim))
        centred = part - part.mean(axes, keepdim=True)
        parts.append(centred / ((centred**2).mean(axes, keepdim=True) + 1e-5) ** 0.5)
    return torch.cat(parts, 1) * weight.view(shape) + bias.view(shape)


def average_to(x: Tensor, size: int) -> Tensor:
    """Adaptive average pooling: cell i covers floor(iH/size) up to ceil((i+1)H/size)."""
    h, w = x.shape[2:]

    def spans(length: int) -> list[slice]:
        ends = [(i * length // size, math.ceil((i + 1) * length / size)) for i in range(size)]
        return [slice(a, b) for a, b in ends]

    rows = [torch.stack([x[:, :, r, c].mean((2, 3)) for c in spans(w)], -1) for r in spans(h)]
    return torch.stack(rows, 2)


def stretch(x: Tensor, height: int, width: int) -> Tensor:
    """Nearest neighbour, by whole division."""
    h, w = x.shape[2:]
    rows = [i * h // height for i in range(height)]
    columns = [j * w // width for j in range(width)]
    return x[:, :, rows][:, :, :, columns]


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


@reference("none")
def none(x: Tensor, state: State, training: bool) -> Tensor:
    return x


@reference("eca")
def eca(x: Tensor, state: State, training: bool, **arguments: Any) -> Tensor:
    return gated(x, sigmoid(mean_image(x) @ band(state["conv.weight"], x.shape[1], False).T))


@reference("eca_circular")
def eca_circular(x: Tensor, state: State, training: bool, **arguments: Any) -> Tensor:
    return gated(x, sigmoid(mean_image(x) @ band(state["conv.weight"], x.shape[1], True).T))


@reference("eca_ns")
def eca_ns(x: Tensor, state: State, training: bool, **arguments: Any) -> Tensor:
    weight, mean = state["weight"], mean_image(x)
    c, k = weight.shape
    gates = []
    for i in range(c):
        seen = [(i + t - k // 2, t) for t in range(k) if 0 <= i + t - k // 2 < c]
        gates.append(sum(mean[:, j] * weight[i, t] for j, t in seen))
    return gated(x, sigmoid(torch.stack(gates, 1)))


def _bottleneck(z: Tensor, state: State) -> Tensor:
    hidden = relu(z @ state["fc1.weight"].T + state.get("fc1.bias", 0))
    return hidden @ state["fc2.weight"].T + state.get("fc2.bias", 0)


@reference("se")
def se(x: Tensor, state: State, training: bool, **arguments: Any) -> Tensor:
    return gated(x, sigmoid(_bottleneck(mean_image(x), state)))


@reference("se_var1")
def se_var1(x: Tensor, state: State, training: bool) -> Tensor:
    return gated(x, sigmoid(mean_image(x)))


@reference("se_var2")
def se_var2(x: Tensor, state: State, training: bool) -> Tensor:
    return gated(x, sigmoid(mean_image(x) @ torch.diag(state["weight"])))


@reference("se_var3")
def se_var3(x: Tensor, state: State, training: bool) -> Tensor:
    return gated(x, sigmoid(torch.einsum("oc,nc->no", state["fc.weight"], mean_image(x))))


def _block_diagonal(x: Tensor, state: State, groups: int) -> Tensor:
    width = x.shape[1] // groups
    blocks = [state["conv.weight"][g * width : (g + 1) * width, :, 0] for g in range(groups)]
    return gated(x, sigmoid(mean_image(x) @ torch.block_diag(*blocks).T))


@reference("se_gc1")
def se_gc1(x: Tensor, state: State, training: bool) -> Tensor:
    return _block_diagonal(x, state, 16)


@reference("se_gc2")
def se_gc2(x: Tensor, state: State, training: bool) -> Tensor:
    return _block_diagonal(x, state, x.shape[1] // 16)


@reference("se_gc3")
def se_gc3(x: Tensor, state: State, training: bool) -> Tensor:
    return _block_diagonal(x, state, x.shape[1] // 8)


@reference("cbam")
def cbam(x: Tensor, state: State, training: bool, **arguments: Any) -> Tensor:
    peak = largest(x.flatten(2), 2)
    x = gated(x, sigmoid(_bottleneck(mean_image(x), state) + _bottleneck(peak, state)))
    pooled = torch.stack([largest(x, 1), x.mean(1)], 1)
    spatial = batch_norm(conv2d(pooled, state["conv.weight"], None), state, "bn", training)
    return x * sigmoid(spatial)


@reference("triplet")
def triplet(x: Tensor, state: State, training: bool, **arguments: Any) -> Tensor:
    def branch(turned: Tensor, name: str) -> Tensor:
        """Gate a tensor by its second axis' maximum and mean, as the paper's Fig. 3 does."""
        pooled = torch.stack([largest(turned, 1), turned.mean(1)], 1)
        z = conv2d(pooled, state[f"{name}.conv.weight"], None)
        return turned * sigmoid(batch_norm(z, state, f"{name}.bn", training))

    one = branch(x.transpose(1, 2), "cw").transpose(1, 2)
    two = branch(x.transpose(1, 3), "hc").transpose(1, 3)
    return (one + two + branch(x, "hw")) / 3


@reference("coord")
def coord(x: Tensor, state: State, training: bool, **arguments: Any) -> Tensor:
    h = x.shape[2]
    rows, columns = x.sum(3) / x.shape[3], x.sum(2) / h
    strip = torch.cat([rows, columns], 2)
    z = torch.einsum("ncl,oc->nol", strip, state["conv1.weight"][:, :, 0, 0])
    z = batch_norm(z + state["conv1.bias"][:, None], state, "bn1", training)
    z = z * torch.clamp(z + 3, 0, 6) / 6

    def gate(part: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"][:, :, 0, 0]
        return sigmoid(torch.einsum("ncl,oc->nol", part, weight) + state[f"{name}.bias"][:, None])

    return torch.einsum(
        "nchw,nch,ncw->nchw", x, gate(z[:, :, :h], "conv_h"), gate(z[:, :, h:], "conv_w")
    )


@reference("gc")
def gc(x: Tensor, state: State, training: bool, **arguments: Any) -> Tensor:
    scores = torch.einsum("nchw,c->nhw", x, state["mask.weight"].flatten())
    context = torch.einsum("nchw,nhw->nc", x, softmax(scores.flatten(1)).view_as(scores))
    z = context @ state["fc1.weight"].T + state["fc1.bias"]
    centred = z - z.mean(1, keepdim=True)
    z = centred / ((centred**2).mean(1, keepdim=True) + 1e-5) ** 0.5
    z = relu(z * state["norm.weight"] + state["norm.bias"])
    return x + (z @ state["fc2.weight"].T + state["fc2.bias"])[:, :, None, None]


@reference("ge")
def ge(
    x: Tensor,
    state: State,
    training: bool,
    variant: str = "plus",
    extent: int = 8,
    size: int | None = None,
    **arguments: Any,
) -> Tensor:
    h, w = x.shape[2:]
    if variant == "minus":
        if extent == 0:
            context = mean_image(x)[:, :, None, None]
        else:
            reach = extent - 1
            rows = [slice(max(0, i - reach), i + reach + 1) for i in range(0, h, extent)]
            columns = [slice(max(0, j - reach), j + reach + 1) for j in range(0, w, extent)]
            cells = [[x[:, :, r, c].mean((2, 3)) for c in columns] for r in rows]
            context = torch.stack([torch.stack(row, -1) for row in cells], 2)
    elif extent == 0:
        assert size is not None
        z = torch.einsum("nchw,chw->nc", average_to(x, size), state["gather.0.weight"][:, 0])
        context = batch_norm(z[:, :, None, None], state, "gather.1", training)
    else:
        context = x
        for step in range(int(math.log2(extent))):
            context = relu(context) if step else context
            context = depthwise(context, state[f"gather.{3 * step}.weight"], stride=2)
            context = batch_norm(context, state, f"gather.{3 * step + 1}", training)
    if variant == "plus":
        down = conv2d(relu(context), state["excite.1.weight"], state["excite.1.bias"])
        context = conv2d(relu(down), state["excite.3.weight"], state["excite.3.bias"])
    return x * sigmoid(stretch(context, h, w))


@reference("srm")
def srm(x: Tensor, state: State, training: bool) -> Tensor:
    mean = mean_image(x)
    variance = mean_image((x - mean[:, :, None, None]) ** 2)
    z = mean * state["cfc"][:, 0] + (variance + 1e-5) ** 0.5 * state["cfc"][:, 1]
    return gated(x, sigmoid(batch_norm(z, state, "bn", training)))


@reference("gct")
def gct(x: Tensor, state: State, training: bool) -> Tensor:
    s = state["alpha"] * (torch.einsum("nchw,nchw->nc", x, x) + 1e-5) ** 0.5
    normal = s / ((s * s).sum(1, keepdim=True) / x.shape[1] + 1e-5) ** 0.5
    z = state["gamma"] * normal + state["beta"]
    return gated(x, 1 + (torch.exp(2 * z) - 1) / (torch.exp(2 * z) + 1))


@reference("simam")
def simam(x: Tensor, state: State, training: bool, e_lambda: float = 1e-4) -> Tensor:
    others = x.shape[2] * x.shape[3] - 1
    d = (x - mean_image(x)[:, :, None, None]) ** 2
    variance = d.sum((2, 3), keepdim=True) / others
    inverse_energy = (d + 2 * variance + 2 * e_lambda) / (4 * (variance + e_lambda))
    return x * sigmoid(inverse_energy)


@reference("fca")
def fca(
    x: Tensor,
    state: State,
    training: bool,
    frequencies: int = 16,
    size: int = 7,
    **arguments: Any,
) -> Tensor:
    # The authors' "top" order, written as theirs is: all rows, then all columns.
    u = [
        0,
        0,
        6,
        0,
        0,
        1,
        1,
        4,
        5,
        1,
        3,
        0,
        0,
        0,
        3,
        2,
        4,
        6,
        3,
        5,
        5,
        2,
        6,
        5,
        5,
        3,
        3,
        4,
        2,
        2,
        6,
        1,
    ]
    v = [
        0,
        1,
        0,
        5,
        2,
        0,
        2,
        0,
        0,
        6,
        0,
        4,
        6,
        3,
        5,
        2,
        6,
        3,
        3,
        3,
        5,
        1,
        1,
        2,
        4,
        2,
        1,
        1,
        3,
        0,
        5,
        3,
    ]
    small = average_to(x, size)
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
    return gated(x, sigmoid(_bottleneck(torch.stack(spectrum, 1), state)))


@reference("ema")
def ema(x: Tensor, state: State, training: bool, groups: int = 8) -> Tensor:
    out = []
    for part in x.chunk(groups, 1):
        c, h, w = part.shape[1:]
        weight, bias = state["conv1x1.weight"][:, :, 0, 0], state["conv1x1.bias"][:, None]
        gate_h = sigmoid(torch.einsum("nch,oc->noh", part.mean(3), weight) + bias)
        gate_w = sigmoid(torch.einsum("ncw,oc->now", part.mean(2), weight) + bias)
        one = torch.einsum("nchw,nch,ncw->nchw", part, gate_h, gate_w)
        one = group_norm(one, c, state["norm.weight"], state["norm.bias"])
        two = conv2d(part, state["conv3x3.weight"], state["conv3x3.bias"])
        first = torch.bmm(softmax(mean_image(one))[:, None], two.flatten(2))
        second = torch.bmm(softmax(mean_image(two))[:, None], one.flatten(2))
        out.append(part * sigmoid((first + second).view(-1, 1, h, w)))
    return torch.cat(out, 1)


@reference("ela")
def ela(
    x: Tensor,
    state: State,
    training: bool,
    conv_width: int = 1,
    norm_groups: int = 8,
    **arguments: Any,
) -> Tensor:
    weight = state["conv.weight"]

    def gate(strip: Tensor) -> Tensor:
        k, length = weight.shape[2], strip.shape[2]
        padded = torch.cat([torch.zeros_like(strip[:, :, :1])] * (k // 2) + [strip], 2)
        padded = torch.cat([padded] + [torch.zeros_like(strip[:, :, :1])] * (k // 2), 2)
        rows = []
        for o in range(x.shape[1]):
            first = o // conv_width * conv_width
            seen = padded[:, first : first + conv_width]
            rows.append(
                sum(
                    torch.einsum("ncl,c->nl", seen[:, :, t : t + length], weight[o, :, t])
                    for t in range(k)
                )
            )
        z = group_norm(torch.stack(rows, 1), norm_groups, state["norm.weight"], state["norm.bias"])
        return sigmoid(z)

    return torch.einsum("nchw,nch,ncw->nchw", x, gate(x.mean(3)), gate(x.mean(2)))
