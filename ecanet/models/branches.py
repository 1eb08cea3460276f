"""Finds the ends of residual branches in any network, by the additions of one forward pass.

A residual block adds a branch to a shortcut. Where two feature maps are added, both are followed back to the
latest tensor that they come from. It is a residual block if only one of the two passed an activation on the
way: that one is the branch, and the module that returned it ends the branch. The other one is the shortcut,
which may have passed convolutions, norms and pooling.

Other sums are told apart by the same rule. Linear branches side by side, as re-parameterization merges them
into one convolution (RepVGG, MobileOne), have no activation. Feature pyramids and U-Nets add what was
upsampled, which no residual branch is. Parallel branches (HRNet, NASNet) both have activations.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

# What a shortcut may consist of. The names are those of operators, without underscores around them. For
# signals and volumes there are the same, with 1d or 3d in their names.
_PLAIN = {
    "add", "sub", "mul", "div", "neg", "mean", "sum", "cat", "stack",
    "convolution", "linear", "addmm", "mm", "bmm", "matmul",
    "native_batch_norm", "native_batch_norm_legit", "native_batch_norm_legit_no_training",
    "batch_norm_with_update", "cudnn_batch_norm", "miopen_batch_norm",
    "native_layer_norm", "native_group_norm", "fused_rms_norm",
    "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d_with_indices",
    "constant_pad_nd", "reflection_pad2d", "replication_pad2d",
    "clone", "detach", "alias", "to_copy", "copy", "lift_fresh",
    "view", "unsafe_view", "reshape", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand",
}  # fmt: skip
# Linear as well, but what is added to some of a tensor's channels is not added to its shortcut.
_SELECTIONS = {
    "slice", "split", "split_with_sizes", "select", "unbind", "chunk", "index", "index_select",
}  # fmt: skip
_SCALINGS = {"mul", "div", "clone", "detach", "alias", "to_copy"}
_PRODUCTS = {"mul", "div", "addmm", "mm", "bmm", "matmul", "linear"}


@dataclass(eq=False, slots=True)
class _Value:
    """A tensor of the forward pass, as an operator left it."""

    number: int
    operator: str
    parents: list[_Value]
    shape: tuple[int, ...]
    version: int
    makers: list[nn.Module] = field(default_factory=list)
    """The modules that returned it, from the inside."""
    uses: int = 0

    @property
    def activates(self) -> bool:
        if self.operator in _PRODUCTS and len(self.parents) > 1:  # as by the factors of a gate
            return True
        return self.operator not in _PLAIN | _SELECTIONS | {"upsample"}

    @property
    def is_plain(self) -> bool:
        return self.operator in _PLAIN and not self.activates


@dataclass(eq=False, slots=True)
class _Path:
    """What lies between an operand and a value it was computed from."""

    altered: bool = False
    """Some way has an operator that no shortcut has."""
    direct: bool = False
    """Some way has no upsampling."""
    active: bool = False
    """Some way without upsampling has an activation."""

    def extend(self, other: _Path, value: _Value) -> None:
        """Add the ways of ``other``, which ends at ``value``, continued beyond its operator."""
        self.altered |= other.altered or not value.is_plain
        if value.operator != "upsample":
            self.direct |= other.direct
            self.active |= other.active or (other.direct and value.activates)


class BranchRecorder(TorchDispatchMode):
    """Records a forward pass inside ``with``; :meth:`ends` then returns where residual branches end."""

    def __init__(self, image: Tensor, transparent: Collection[nn.Module] = ()) -> None:
        """Follow ``image``, and regard the modules of ``transparent`` as if they returned their input."""
        super().__init__()
        self.calls: Counter[nn.Module] = Counter()
        self._transparent = set(transparent)
        self._values = WeakTensorKeyDictionary()
        self._stack: list[tuple[nn.Module, int, Any]] = []
        self._additions: list[tuple[_Value, tuple[nn.Module, ...]]] = []
        self._count = 0
        self._axes = image.ndim
        self._keep(image, "image", [])

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Record the forward passes of a model inside ``with``."""
        with ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
                stack.callback(module.register_forward_hook(self._leave).remove)
            with self:
                yield

    def ends(self) -> list[tuple[list[nn.Module], tuple[int, ...], tuple[nn.Module, ...]]]:
        """Return the modules that end a residual branch, each called once in the forward pass.

        Returns:
            For each branch the modules that end with it, from the outside, the shape of what they return, and
            the modules that were running at the addition.
        """
        found = []
        for value, running in self._additions:
            while not value.makers and value.operator in _SCALINGS and len(value.parents) == 1:
                if value.uses > 1:
                    break
                (value,) = value.parents
            makers = [module for module in reversed(value.makers) if self.calls[module] == 1]
            if makers and value.uses == 1:
                found.append((makers, value.shape, running))
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        parents = [value for tensor in given if (value := self._value(tensor)) is not None]
        output = func(*args, **(kwargs or {}))
        if not parents:
            return output
        for parent in parents:
            parent.uses += 1
        operator = getattr(func, "_overloadpacket", func).__name__.strip("_")
        operator = re.sub("[13]d", "2d", operator)
        is_transposed = operator == "convolution" and args[6]
        if is_transposed or operator.startswith(("upsample", "pixel_shuffle")):
            operator = "upsample"
        if operator == "add" and len(parents) == 2 and len(parents[0].shape) == self._axes:
            branch = _branch(*parents)
            if branch is not None:
                self._additions.append((branch, tuple(module for module, *_ in self._stack)))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                # The version of a tensor changed in place increases only afterwards.
                in_place = any(tensor is one for one in given)
                self._keep(tensor, operator, parents, tensor._version + in_place)
        return output

    def _keep(
        self, tensor: Tensor, operator: str, parents: list[_Value], version: int | None = None
    ) -> _Value:
        version = tensor._version if version is None else version
        value = _Value(self._count, operator, parents, tuple(tensor.shape), version)
        self._count += 1
        self._values[tensor] = value
        return value

    def _value(self, tensor: Any) -> _Value | None:
        value = self._values.get(tensor) if isinstance(tensor, Tensor) else None
        if value is not None and value.version != tensor._version:  # changed through a view of it
            return self._keep(tensor, "change", [value])
        return value

    def _enter(self, module: nn.Module, args: Any) -> None:
        value = self._value(args[0]) if module in self._transparent and args else None
        self._stack.append((module, self._count, value and (value, value.uses)))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        _, count, entered = self._stack.pop()
        self.calls[module] += 1
        if entered is not None:
            value, value.uses = entered
            self._values[output] = value
            return
        value = self._value(output)
        if value is not None and value.number >= count:  # rather than what was passed to it
            value.makers.append(module)


def _branch(one: _Value, other: _Value) -> _Value | None:
    """Return which of two summands is a residual branch, the other one being its shortcut."""
    if one is other or one.shape != other.shape:
        return None
    paths = {one: {one: _Path(direct=True)}, other: {other: _Path(direct=True)}}
    queue = sorted([(-one.number, one), (-other.number, other)])
    while queue:
        _, value = heapq.heappop(queue)
        here = {end: reached[value] for end, reached in paths.items() if value in reached}
        if len(here) == 2:  # the latest value that both were computed from
            for shortcut, branch in ((one, other), (other, one)):
                is_image = shortcut is value and not value.parents
                if not here[shortcut].altered and here[branch].active and not is_image:
                    return branch
            return None
        for end, path in here.items():
            for parent in value.parents:
                if all(parent not in reached for reached in paths.values()):
                    heapq.heappush(queue, (-parent.number, parent))
                paths[end].setdefault(parent, _Path()).extend(path, value)
    return None
