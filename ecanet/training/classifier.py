"""A trained classifier, ready to compute: its model, how its images are prepared, and its classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from ecanet.config import ClassifierInference, given
from ecanet.data.augment import normalize
from ecanet.data.decode import as_window
from ecanet.data.preprocessing import Preprocessing, class_names
from ecanet.errors import UserError
from ecanet.models import create_model
from ecanet.models.hooks import run_in_evaluation
from ecanet.models.inputs import input_preprocessing
from ecanet.models.weights.files import read_checkpoint
from ecanet.models.weights.load import build_from_weights
from ecanet.plugins import load_plugins
from ecanet.training.device import full_float32, resolve_precision

log = logging.getLogger(__name__)

# Metadata that `ecanet detect train` writes; the names of a detector's parts in all layouts.
_DETECTOR = "detector"
_DETECTOR_PARTS = ("rpn", "roi_heads", "roi_head", "rpn_head", "bbox_head")


@dataclass
class Classifier:
    """A model with its weights, on its device, in evaluation mode."""

    model: nn.Module
    preprocessing: Preprocessing
    metadata: Mapping[str, str]
    """Of the weight file; empty without one."""
    outputs: int
    """Number of classes."""

    def logits(self, fabric: Fabric, images: Tensor, settings: ClassifierInference) -> Tensor:
        """Return logits, float32 (N, C), of uint8 images (N, channels, S, S) on Fabric's device."""
        mean, std = self.preprocessing.statistics(fabric.device)
        in_float32 = resolve_precision(settings.precision, fabric.device) == "float32"
        with (
            torch.inference_mode(),
            full_float32(fabric.device) if in_float32 else fabric.autocast(),
        ):
            found: Tensor = self.model(normalize(images, mean, std, settings.channels_last))
            return found.float()

    def names(self) -> list[str]:
        """Return a name for each class: the weights', ImageNet's for as many classes, or numbers."""
        names = class_names(self.metadata, self.outputs)
        if names:
            return [name or str(number) for number, name in enumerate(names)]
        subset = infer_imagenet_subset({"num_classes": self.outputs})
        if subset:
            log.info(
                "the weights do not name their %d classes: assuming those of %s",
                self.outputs, subset.replace("imagenet", "ImageNet"),
            )  # fmt: skip
            return list(ImageNetInfo(subset).label_descriptions())
        log.info("the weights do not name their classes: numbering them from 0")
        return [str(number) for number in range(self.outputs)]


def read_classifier(settings: ClassifierInference) -> tuple[nn.Module, dict[str, str]]:
    """Return the model that settings name with its weights, on the CPU, and the weight file's metadata.

    Raises:
        UserError: the settings name no weights or two, they cannot be read, or belong to no classifier.
    """
    if bool(settings.weights) == settings.pretrained:
        raise UserError("which weights? Give --weights FILE, or --pretrained with --model NAME")
    if settings.pretrained and not settings.model:
        raise UserError("--pretrained needs --model NAME")
    load_plugins(settings.plugin)
    choice = given(settings, "model", "attention", "kernel_sizes")
    metadata: dict[str, str] = {}
    if settings.weights:
        file = read_checkpoint(settings.weights)
        _check_no_detector(settings.weights, file.tensors, file.metadata)
        model, metadata = build_from_weights(file, **choice), file.metadata
        if getattr(model, "num_classes", None) == 0:
            raise UserError(
                f"{settings.weights} is a backbone, without a classifier: give the weights of a classifier"
            )
    else:
        model = create_model(choice.pop("model"), pretrained=True, **choice)
    return model, metadata


def place_classifier(
    fabric: Fabric, model: nn.Module, metadata: Mapping[str, str], settings: ClassifierInference
) -> Classifier:
    """Settle how images are prepared for a model, and move it to Fabric's device.

    Raises:
        UserError: the metadata or the settings do not fit the model.
    """
    preprocessing = input_preprocessing(
        model,
        settings.model or metadata.get("model"),
        metadata,
        pretrained=settings.pretrained,
        eval_size=settings.eval_size,
        crop_share=settings.crop_share,
        interpolation=settings.interpolation,
        mean=settings.mean,
        std=settings.std,
        window=as_window(settings.window),
    )
    size = preprocessing.size
    outputs = run_in_evaluation(model, torch.zeros(1, preprocessing.channels, size, size)).shape[1]
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return Classifier(fabric.to_device(model).eval(), preprocessing, metadata, outputs)


def _check_no_detector(
    weights: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    parts = {name.removeprefix("module.").partition(".")[0] for name in tensors}
    if _DETECTOR in metadata or parts & set(_DETECTOR_PARTS):
        raise UserError(
            f"{weights} holds a detector: `ecanet detect predict` and `ecanet detect evaluate` are for it"
        )
