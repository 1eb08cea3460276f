"""The networks that a study trains: built from a YAML or a file of weights, with attention modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.nn.tasks import (
    DetectionModel,
    RTDETRDetectionModel,
    SegmentationModel,
    guess_model_task,
    torch_safe_load,
    yaml_model_load,
)

from ecanet.config import YoloSettings
from ecanet.errors import UserError, as_user_error
from ecanet.integrations.ultralytics.data import YoloData
from ecanet.models.holders import attention_modules
from ecanet.models.insert import insert_attention

_KINDS: dict[str, tuple[type, type, str]] = {
    "detect": (DetectionModel, DetectionTrainer, "B"),
    "segment": (SegmentationModel, SegmentationTrainer, "M"),
}


class Origin:
    """What a network is built from.

    Raises:
        UserError: there is no such network, or it cannot be compared.
    """

    cfg: dict[str, Any]
    """The content of its YAML."""
    weights: Any
    """A network with the weights to start from; None: fresh ones."""
    task: str
    """detect or segment."""
    kind: type
    """Class of the network."""
    trainer: type
    """Class of Ultralytics that trains it."""
    judged: str
    """Letter of the metrics that it is judged by: B of boxes, M of masks."""

    def __init__(self, model: str) -> None:
        with as_user_error(f"--model {model} cannot be built"):
            self.weights = _load(model) if model.endswith(".pt") else None
            self.cfg = yaml_model_load(model) if self.weights is None else self.weights.yaml
            self.task = guess_model_task(self.cfg if self.weights is None else self.weights)
            head = str(self.cfg["head"][-1][2])
        if self.task not in _KINDS:
            raise UserError(
                f"--model {model} is for the task {self.task}, but only networks that detect or "
                f"segment can be compared"
            )
        self.kind, self.trainer, self.judged = _KINDS[self.task]
        if head.startswith("RTDETR"):
            self.kind, self.trainer = RTDETRDetectionModel, RTDETRTrainer
        if self.weights is not None and attention_modules(self.weights):
            raise UserError(
                f"--model {model} has attention modules already: give the plain network"
            )

    def build(self, settings: YoloSettings, data: YoloData) -> nn.Module:
        """Return the network with its attention modules, outside of a training.

        Raises:
            UserError: its YAML is faulty, or it has no places for the modules.
        """
        with as_user_error(f"--model {settings.model} cannot be built"):
            cfg = dict(self.cfg)
            network = self.kind(cfg, nc=len(data.names), ch=data.channels, verbose=False)
            if self.weights is not None:
                network.load(self.weights, verbose=False)
        return insert(network, settings)


def insert(network: nn.Module, settings: YoloSettings) -> nn.Module:
    """Put the attention modules of a run into its network, in place."""
    if settings.attention in (None, "none"):
        return network
    identity = bool(settings.identity)
    return insert_attention(network, settings.attention, settings.places, identity=identity)


def _load(file: str) -> Any:
    """Return the network in a file of weights, which may run no code."""
    if not Path(file).is_file():
        raise UserError(f"there is no file {file}, and ecanet does not download it")
    content, _ = torch_safe_load(file, safe_only=True)
    return (content.get("ema") or content["model"]).float()
