"""Compares the outputs of an exported file with the model's, up to rounding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ecanet.errors import UserError

# Relative to the largest logit: float32 sums depend on their order.
_LOGITS = 1e-3
# For an object to count as the same: largest differences of its box, in pixels, and of its score.
_PIXELS, _SCORE = 0.5, 1e-3
# Least share of objects that must match: rounding can decide which of two boxes suppresses the other.
_SHARE = 0.98

_DISAGREES = "the exported model does not agree with PyTorch ({}): nothing written"

Outputs = Sequence[tuple[Tensor, ...]]


def compare_logits(expected: Outputs, actual: Outputs) -> str:
    """Compare logits; return a line that says how close they are.

    Raises:
        UserError: they are not close.
    """
    differences = [float((a - b).abs().max()) for (a,), (b,) in zip(expected, actual, strict=True)]
    largest = max(float(a.abs().max()) for (a,) in expected)
    line = f"largest difference of the logits {max(differences):.1e}, largest logit {largest:.3g}"
    if not max(differences) <= _LOGITS * max(largest, 1e-6):
        raise UserError(_DISAGREES.format(line))
    return f"agrees with PyTorch: {line}"


def compare_objects(expected: Outputs, actual: Outputs) -> str:
    """Compare detections in any order; return a line that says how close they are.

    Two objects match if they have the same label, boxes within half a pixel and scores within 0.001.

    Raises:
        UserError: more than one object in fifty has no match, in either direction.
    """
    total, matched = 0, 0
    box = score = mask = 0.0
    for ours, theirs in zip(expected, actual, strict=True):
        total += max(len(ours[0]), len(theirs[0]))
        for n, other in _pairs(ours, theirs):
            matched += 1
            box = max(box, float((ours[0][n] - theirs[0][other]).abs().max()))
            score = max(score, float((ours[2][n] - theirs[2][other]).abs()))
            if len(ours) > 3:
                mask = max(mask, float((ours[3][n] - theirs[3][other]).abs().max()))
    line = f"{matched} of {total} objects match, boxes within {box:.1e} pixels, scores within {score:.1e}"
    if any(len(ours) > 3 for ours in expected):
        line += f", masks within {mask:.1e}"
    if matched < _SHARE * total:
        raise UserError(_DISAGREES.format(line))
    if not total:
        return (
            "no objects in the images, so the check is weak: give images with objects by --images"
        )
    return f"agrees with PyTorch: {line}"


def _pairs(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> list[tuple[int, int]]:
    """Return the indices of matching objects, each object in at most one pair."""
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
            overlap[:, best] = -1.0  # matched
            pairs.append((n, best))
    return pairs
