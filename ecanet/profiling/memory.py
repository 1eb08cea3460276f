"""What a forward pass keeps in memory for the backward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def saved_tensors() -> Iterator[list[Tensor]]:
    """Give a list that fills with the tensors autograd saves inside ``with``, in their order."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Return the bytes behind tensors by storage, so that views of one memory count once.

    A key stands for its storage as long as the tensors live.
    """
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage.nbytes() for storage in found}


def activation_bytes(
    model: nn.Module,
    image_size: int,
    in_chans: int = 3,
    parts: Mapping[str, nn.Module] | None = None,
) -> tuple[int, dict[str, int]]:
    """Return the bytes that a forward pass keeps for the backward pass, for each image of a batch.

    It is what one image more adds to all tensors that autograd saves in training mode, in the
    model's own dtype: each block of memory counts once, however many layers keep it. Weights and
    whatever else does not grow with the batch cancel out, and so do temporary values. The figure is
    exact and the same on every device: a copy of the model runs on the meta device, without values.

    Args:
        model: is left as it was.
        image_size: side of the images, in pixels.
        in_chans: their channels.
        parts: modules of the model by name, to say how much is kept because of each.

    Returns:
        The bytes of the whole model, and those of each part: of the memory that is kept inside its
        forward pass and by nothing that ran before.
    """
    parts = parts or {}
    names = {module: name for name, module in model.named_modules()}
    model = copy.deepcopy(model).to("meta").train()
    inside = {name: model.get_submodule(names[part]) for name, part in parts.items()}
    # Two images at least: a batch norm of a pooled image refuses a single one.
    two, three = (_kept(model, count, image_size, in_chans, inside) for count in (2, 3))
    return three[0] - two[0], {name: three[1][name] - two[1][name] for name in parts}


def _kept(
    model: nn.Module, images: int, image_size: int, in_chans: int, parts: dict[str, nn.Module]
) -> tuple[int, dict[str, int]]:
    like = next(model.parameters())
    batch = torch.empty(images, in_chans, image_size, image_size, device="meta", dtype=like.dtype)
    spans = dict.fromkeys(parts, (0, 0))
    hooks = []
    with saved_tensors() as saved:
        for name, part in parts.items():

            def start(module: nn.Module, args: object, name: str = name) -> None:
                spans[name] = (len(saved), len(saved))

            def end(module: nn.Module, args: object, out: object, name: str = name) -> None:
                spans[name] = (spans[name][0], len(saved))

            hooks += [part.register_forward_pre_hook(start), part.register_forward_hook(end)]
        try:
            model(batch)
        finally:
            for hook in hooks:
                hook.remove()
    before = {name: storages(saved[:first]) for name, (first, _) in spans.items()}
    within = {name: storages(saved[first:last]) for name, (first, last) in spans.items()}
    by_part = {
        name: sum(size for key, size in within[name].items() if key not in before[name])
        for name in parts
    }
    return sum(storages(saved).values()), by_part
