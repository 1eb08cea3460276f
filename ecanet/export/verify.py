"""Whether a file gives what the model gives: to what rounding leaves, and told in a line."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ecanet.errors import UserError

# Of the largest logit: float32 sums in another order.
_LOGITS = 1e-3
_PIXELS, _SCORE = 0.5, 1e-3
# Of objects: two boxes that suppress each other within rounding may change places.
_SHARE = 0.98

Outputs = Sequence[tuple[Tensor, ...]]


def logits_agree(expected: Outputs, found: Outputs) -> str:
    """Hold logits against each other; return a line that says how close they are.

    Raises:
        UserError: they are not close.
    """
    differences = [float((a - b).abs().max()) for (a,), (b,) in zip(expected, found, strict=True)]
    largest = max(float(a.abs().max()) for (a,) in expected)
    line = f"largest difference of the logits {max(differences):.1e}, of up to {largest:.3g}"
    if not max(differences) <= _LOGITS * max(largest, 1e-6):
        raise UserError(f"the exported model does not agree with PyTorch ({line}): nothing written")
    return f"agrees with PyTorch: {line}"


def objects_agree(expected: Outputs, found: Outputs) -> str:
    """Hold detections against each other, whatever their order; return a line.

    An object is found again if there is one with its label within half a pixel and 0.001 of score.

    Raises:
        UserError: more than one in fifty is not found again, in either direction.
    """
    total, again = 0, 0
    box = score = mask = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        total += max(len(ours[0]), len(theirs[0]))
        for n, other in _pairs(ours, theirs):
            again += 1
            box = max(box, float((ours[0][n] - theirs[0][other]).abs().max()))
            score = max(score, float((ours[2][n] - theirs[2][other]).abs()))
            if len(ours) > 3:
                mask = max(mask, float((ours[3][n] - theirs[3][other]).abs().max()))
    line = f"{again} of {total} objects, largest difference {box:.1e} pixels, {score:.1e} of score"
    if any(len(ours) > 3 for ours in expected):
        line += f", {mask:.1e} of mask"
    if again < _SHARE * total:
        raise UserError(f"the exported model does not agree with PyTorch ({line}): nothing written")
    if not total:
        return "no object in the pictures, which says little: give pictures with some, --images"
    return f"agrees with PyTorch: {line}"


def _pairs(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> list[tuple[int, int]]:
    """Return which object of the one side is which of the other; those without a partner are left out."""
    if not len(ours[0]) or not len(theirs[0]):
        return []
    near = (ours[0][:, None] - theirs[0][None]).abs().amax(2) <= _PIXELS
    alike = (ours[2][:, None] - theirs[2][None]).abs() <= _SCORE
    same = ours[1][:, None] == theirs[1][None]
    overlap = torch.where(near & alike & same, box_iou(ours[0], theirs[0]), -1.0)
    pairs = []
    for n in range(len(ours[0])):
        best = int(overlap[n].argmax())
        if overlap[n, best] >= 0:
            overlap[:, best] = -1.0  # each has one partner
            pairs.append((n, best))
    return pairs
