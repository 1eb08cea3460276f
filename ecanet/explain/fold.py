"""Makes constants of gates that hardly depend on the image, which then cost nothing.

That gates become nearly constant in training is the "stripe observation" of ASR (arXiv 2304.06345), which
trains its modules to be folded. Here it is measured, layer by layer, on networks that were trained as usual.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from ecanet.config import FoldSettings
from ecanet.errors import UserError
from ecanet.explain.gates import Layer
from ecanet.explain.images import sample_images
from ecanet.explain.network import Answers, gates_of, look_at, open_network
from ecanet.files import temporary_folder
from ecanet.models.fold import fold_constants
from ecanet.models.holders import attention_modules
from ecanet.models.weights.convert import Conversion, write_ecanet
from ecanet.models.weights.files import weight_file
from ecanet.models.weights.identify import Weights, read_weights
from ecanet.statistics.design import Interval
from ecanet.statistics.paired import paired_interval


@dataclass(frozen=True)
class FoldedLayer:
    """An attention module, and what became of it."""

    name: str
    channels: int
    index: float
    unexplained: float
    outcome: str
    """``folded``, or why it was kept."""


@dataclass(frozen=True)
class Folding:
    """What was folded, and what that changes."""

    weights: Weights
    """Of the file that was written."""
    layers: list[FoldedLayer]
    source: str
    """The images, in words."""
    images: int
    changed: float
    """Share of the images whose predicted class has changed."""
    before: float | None
    """Accuracy; None where the true classes are not known."""
    after: float | None
    interval: Interval | None
    """Of the change of accuracy, at 95 %, over images like these."""


def fold_weights(file: str, out: Path, settings: FoldSettings) -> Folding:
    """Fold the gates of a network whose index is at most the threshold, and write its weights.

    A module becomes the mean of its factors over the images, channel by channel, if its index and the share
    of its output that such factors do not give (:class:`ecanet.explain.gates.Layer`) are both at most the
    threshold, and a norm or convolution before it can take them. What is measured afterwards is the new file,
    as it is read again.

    Args:
        file: of weights.
        out: the new file.
        settings: of the images and the threshold.

    Raises:
        UserError: the weights, or images for them, cannot be read, or nothing can be folded; an existing
            ``out`` is intact.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: ecanet's files end in .safetensors")
    if out.is_dir() or out.resolve() == weight_file(file).resolve():
        raise UserError(f"--out {out}: choose another file")
    network = open_network(file, settings)
    model = network.classifier.model
    if not attention_modules(model):
        raise UserError(f"{file} has no attention module: there is nothing to fold")
    sample = sample_images(settings, file, network.classifier)
    before = look_at(network, sample)
    found = gates_of(before, sample).layers
    outcomes = {name: _why_kept(layer, settings.threshold) for name, layer in found.items()}
    chosen = {
        n: layer.moments()[1].nan_to_num(1.0) for n, layer in found.items() if not outcomes[n]
    }
    for name in fold_constants(model, chosen):
        outcomes[name] = "kept: its input does not come from a single norm or convolution"
    layers = [
        FoldedLayer(n, one.channels, one.index, one.unexplained, outcomes[n] or "folded")
        for n, one in found.items()
    ]
    if all(outcomes.values()):
        if chosen:
            raise UserError(
                f"nothing can be folded: {layers[0].name} and the others follow no norm"
            )
        least = min(layers, key=lambda one: max(one.index, one.unexplained))
        raise UserError(
            f"nothing is folded at --threshold {settings.threshold:g}: the layer nearest to it is "
            f"{least.name}, with {max(least.index, least.unexplained):.2g}. Give a larger --threshold to "
            "fold it all the same"
        )
    weights = _described(read_weights(file), {n for n, why in outcomes.items() if not why})
    weights.state_dict = model.state_dict()
    with temporary_folder(out.parent) as folder:
        written = folder / out.name
        write_ecanet(Conversion(weights, written), weight_file(file))
        after = look_at(open_network(str(written), settings), sample)
        os.replace(written, out)
    return Folding(weights, layers, sample.source, len(after.predicted), *_compared(before, after))


def _why_kept(layer: Layer, threshold: float) -> str:
    if layer.index > threshold:
        return "kept: it depends on the image"
    if layer.unexplained > threshold:
        left = f"{100 * layer.unexplained:.1f} %"
        return f"kept: {left} of its output is not explained by one factor per channel"
    return ""


def _described(weights: Weights, folded: set[str]) -> Weights:
    """Return the weights, without tensors, of the network that is left: the plain one if all were folded."""
    every = [
        *weights.folded,
        *(name for name in attention_modules(weights.create()) if name in folded),
    ]
    new = dataclasses.replace(weights, folded=every)
    if attention_modules(new.create()):
        return new
    return dataclasses.replace(
        weights,
        model=weights.model.removeprefix("eca_"),
        attention="none",
        kernel_sizes=None,
        folded=[],
    )


def _compared(
    before: Answers, after: Answers
) -> tuple[float, float | None, float | None, Interval | None]:
    changed = float((before.predicted != after.predicted).double().mean())
    if before.right is None or after.right is None:
        return changed, None, None, None
    gained = int((after.right & ~before.right).sum())
    lost = int((before.right & ~after.right).sum())
    interval = paired_interval(gained, lost, len(before.right))
    return changed, before.accuracy, after.accuracy, interval
