"""Names of data sets, and other names of settings and metrics: the 2020 scripts', W&B's examples', timm's.

A sweep file and the command line of a W&B agent may use them; recipes keep to the settings' own.
"""

from __future__ import annotations

SOURCES = ("cifar10", "cifar100", "digits")
"""Data sets that have a name of their own."""
TORCHVISION, HUGGING_FACE = "torchvision/", "hf:"
"""What the names of other data sets begin with; all else are folders and tables."""

SETTINGS = {
    "att": "attention",
    "attn": "attention",
    "attention_module": "attention",
    "arch": "model",
    "network": "model",
    "dataset": "data",
    "bs": "batch_size",
    "batch": "batch_size",
    "n_epochs": "epochs",
    "num_epochs": "epochs",
    "opt": "optimizer.name",
    "lr": "optimizer.lr",
    "learning_rate": "optimizer.lr",
    "momentum": "optimizer.momentum",
    "nesterov": "optimizer.nesterov",
    "wd": "optimizer.weight_decay",
    "weight_decay": "optimizer.weight_decay",
    "scheduler": "schedule.name",
    "sched": "schedule.name",
    "lr_schedule": "schedule.name",
    "warmup_epochs": "schedule.warmup_epochs",
    "milestones": "schedule.milestones",
    "flip": "augmentation.flip",
    "crop_padding": "augmentation.crop_padding",
    "cutout": "augmentation.cutout",
    "smoothing": "label_smoothing",
}
"""Another name of a setting: its own, dotted."""

FLAGS = {
    **{f"--{name}": setting for name, setting in SETTINGS.items()},
    "-m": "model",
    "-a": "model",
    "-b": "batch_size",
    "-j": "workers",
    "--ksize": "kernel_sizes",
}
"""Flags of the 2020 scripts, of W&B's agents, of torchvision's and timm's, where they mean the same."""

METRICS = {
    "val_loss": ["loss", "val_loss", "validation_loss", "valid_loss", "eval_loss"],
    "val_accuracy": [
        *("acc", "accuracy", "val_acc", "val_accuracy", "validation_acc", "validation_accuracy"),
        *("valid_acc", "eval_acc", "eval_accuracy", "top1", "val_top1", "acc1", "val_acc1"),
    ],
    "val_balanced_accuracy": [
        "balanced_accuracy",
        "val_balanced_accuracy",
        "bal_acc",
        "val_bal_acc",
    ],
    "val_macro_f1": ["macro_f1", "val_macro_f1", "f1_macro", "f1", "val_f1"],
    "val_auroc": ["auroc", "val_auroc", "auc", "val_auc", "roc_auc", "val_roc_auc"],
    "val_calibration_error": ["calibration_error", "val_calibration_error", "ece", "val_ece"],
    "box_AP": ["box_ap", "ap", "map", "val_map", "bbox_map", "val_box_ap", "coco_bbox_map"],
}
"""A metric of the validation split: what sweeps call it. No sweep selects on the test split."""


def attention_spec(text: str | None) -> str:
    """Return an attention spec with its name in lower case, as the registry has it; None is ``none``."""
    name, colon, arguments = str(text or "none").partition(":")
    return name.lower() + colon + arguments
