"""Where a classifier looks: class activation maps, and how well these name the pixels that matter.

Maps are those of HiResCAM (arXiv 2011.08891) by the library grad-cam. They are scored as in RISE (arXiv
1806.07421): pixels are deleted in the order of the map, or inserted, and the probability of the class is
followed; a good map makes it fall early, or rise early.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from ecanet.errors import UserError

STEPS = 16
"""Parts in which pixels are deleted or inserted."""
BLUR = 1 / 8
"""Standard deviation of the blur, as a share of the side, of the image that pixels are inserted into."""


def grad_cam() -> Any:
    """Return the library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pytorch_grad_cam
    except ImportError:
        raise UserError(
            "saliency maps need grad-cam: pip install 'ecanet[explain]', or give --cams 0"
        ) from None
    return pytorch_grad_cam


def last_maps(model: nn.Module, images: Tensor) -> nn.Module:
    """Return the last layer that gives maps of more than one pixel: the end of the last stage, as a rule.

    Raises:
        UserError: there is none.
    """
    found: list[nn.Module] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            found.append(module)

    hooks = [module.register_forward_hook(note) for module in model.modules() if module != model]
    try:
        with torch.inference_mode():
            model(images[:1])
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise UserError(
            f"{type(model).__name__} has no layer with maps of more than one pixel for images of "
            f"{images.shape[-1]} pixels: give --cams 0"
        )
    return found[-1]


def class_maps(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Return how much each pixel speaks for a class: float32 (N, S, S) from 0 to 1, on the CPU.

    Args:
        model: in evaluation mode.
        images: its input, (N, C, S, S).
        classes: a class for each, (N,).
    """
    library = grad_cam()
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(number) for number in classes.tolist()]
    learned = [p for p in model.parameters() if p.requires_grad]
    layer = last_maps(model, images)
    try:
        for parameter in learned:  # whose gradients nobody needs
            parameter.requires_grad_(False)
        cam = library.HiResCAM(model, [layer])
        with torch.enable_grad():
            found = cam(images.clone().requires_grad_(), targets)
        cam.activations_and_grads.release()
    finally:
        for parameter in learned:
            parameter.requires_grad_()
    return torch.from_numpy(found).float()


class Scores(NamedTuple):
    """How well maps name the pixels that matter, float64 (N,) each."""

    insertion: Tensor
    """Mean probability of the class while pixels are inserted into a blurred image; higher is better."""
    deletion: Tensor
    """The same while they are replaced by the mean color; lower is better."""


@torch.inference_mode()
def score_maps(model: nn.Module, images: Tensor, classes: Tensor, maps: Tensor) -> Scores:
    """Insert and delete pixels, those of the highest values first, in :data:`STEPS` equal parts.

    A score is the area under the probability over the share of the pixels, by the trapezoidal rule. Pixels
    are deleted by setting them to the mean color of the training images, and inserted into the image blurred
    by a Gaussian of :data:`BLUR` times its side.

    Args:
        model: in evaluation mode.
        images: its input, normalized, (N, C, S, S).
        classes: a class for each, (N,).
        maps: (N, S, S).
    """
    side = images.shape[-1]
    sigma = BLUR * side
    blurred = gaussian_blur(images, [2 * min(round(3 * sigma), side - 1) + 1] * 2, [sigma, sigma])
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(1).view_as(maps).unsqueeze(1).to(images.device)
    classes = classes.to(images.device)[:, None]

    def probability(x: Tensor) -> Tensor:
        return model(x).double().softmax(1).gather(1, classes)[:, 0]

    inserted, deleted = [], []
    for step in range(STEPS + 1):
        first = ranks < step * side * side / STEPS
        inserted.append(probability(torch.where(first, images, blurred)))
        deleted.append(probability(torch.where(first, 0.0, images)))
    areas = (
        torch.trapezoid(torch.stack(each), dx=1 / STEPS, dim=0) for each in (inserted, deleted)
    )
    return Scores(*(area.cpu() for area in areas))
