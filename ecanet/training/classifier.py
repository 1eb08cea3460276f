"""The Lightning module of an image classifier."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from ecanet.config import RunSettings
from ecanet.training.device import full_float32
from ecanet.training.optim import lr_factor
from ecanet.training.optimizers import build_optimizer


class Classifier(pl.LightningModule):
    """Trains ``model`` on batches of (images (N, C, H, W), labels (N,)) with cross-entropy.

    Logs ``{train,val,test}_{loss,accuracy}`` an epoch: losses in nats, accuracies in 0..1.
    """

    def __init__(
        self, model: nn.Module, settings: RunSettings, num_classes: int, seed: int
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.seed = seed
        self.train_criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        self.criterion = nn.CrossEntropyLoss()
        self.metrics = nn.ModuleDict(
            {
                f"{split}_split": nn.ModuleDict(
                    {
                        "loss": MeanMetric(),
                        "accuracy": MulticlassAccuracy(
                            num_classes, average="micro", validate_args=False
                        ),
                    }
                )
                for split in ("train", "val", "test")
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of normalised images (N, C, H, W)."""
        return self.model(images)

    def on_train_epoch_start(self) -> None:
        # Dropout and the like draw from the global stream. Tied to the epoch, a resumed run draws
        # what the uninterrupted one drew.
        torch.manual_seed(self.seed * 1_000_003 + self.current_epoch + (self.global_rank << 48))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = self.train_criterion(logits.float(), labels)
        self._count("train", logits, labels, loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        with full_float32(self.device):
            logits = self(images)
            self._count(split, logits, labels, self.criterion(logits, labels))

    def _count(self, split: str, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        metrics: Any = self.metrics[f"{split}_split"]
        metrics["loss"].update(loss.detach(), len(labels))
        metrics["accuracy"].update(logits.detach(), labels)
        for name, metric in metrics.items():
            self.log(f"{split}_{name}", metric, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        epochs = self.settings.epochs
        optimizer = build_optimizer(self.model, self.settings.optimizer)
        steps = self.trainer.estimated_stepping_batches / epochs

        def factor(step: int) -> float:
            return lr_factor(self.settings.schedule, step / steps, epochs)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
