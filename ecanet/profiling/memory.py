"""Memory that a forward pass keeps for the backward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ecanet.models.hooks import forward_hooks


@contextmanager
def saved_tensors() -> Iterator[list[Tensor]]:
    """Yield a list to which the tensors saved by autograd inside ``with`` are appended, in order."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        # Detached: a graph that holds its own outputs is a cycle that nothing frees.
        saved.append(tensor.detach())
        return saved[-1]

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Return the bytes of each storage of the tensors, so that views of one storage count once.

    A key is valid as long as the tensors live.
    """
    unique = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage.nbytes() for storage in unique}


def activation_bytes(
    model: nn.Module,
    image_size: int,
    in_chans: int = 3,
    parts: Mapping[str, nn.Module] | None = None,
) -> tuple[int, dict[str, int]]:
    """Return the bytes that a forward pass keeps for the backward pass, per image of a batch.

    This is the memory that one more image adds to the tensors that autograd saves in training mode,
    in the model's own dtype; each storage counts once, however many layers save it. Weights and
    everything else that does not grow with the batch cancel out, as do temporary values. The result is
    exact and the same on every device: a copy of the model runs on the meta device, without values.

    Args:
        model: stays unchanged.
        image_size: side of the images, in pixels.
        in_chans: channels of the images.
        parts: modules of the model by name, whose shares are returned.

    Returns:
        The bytes of the whole model, and those of each part: the memory that is saved in its
        forward pass and was not saved before.
    """
    parts = parts or {}
    names = {module: name for name, module in model.named_modules()}
    model = copy.deepcopy(model).to("meta").train()
    inside = {name: model.get_submodule(names[part]) for name, part in parts.items()}
    # At least two images: a batch norm of pooled images refuses a single one.
    two, three = (_kept(model, count, image_size, in_chans, inside) for count in (2, 3))
    return three[0] - two[0], {name: three[1][name] - two[1][name] for name in parts}


def _kept(
    model: nn.Module, images: int, image_size: int, in_chans: int, parts: dict[str, nn.Module]
) -> tuple[int, dict[str, int]]:
    like = next(model.parameters())
    batch = torch.empty(images, in_chans, image_size, image_size, device="meta", dtype=like.dtype)
    spans = dict.fromkeys(parts, (0, 0))

    def note(name: str, ended: bool) -> None:
        spans[name] = (spans[name][0] if ended else len(saved), len(saved))

    with saved_tensors() as saved, forward_hooks(parts, note):
        model(batch)
    before = {name: storages(saved[:first]) for name, (first, _) in spans.items()}
    within = {name: storages(saved[first:last]) for name, (first, last) in spans.items()}
    by_part = {
        name: sum(size for key, size in within[name].items() if key not in before[name])
        for name in parts
    }
    return sum(storages(saved).values()), by_part
