"""The networks of the table of families in docs/models.md, by the names that it gives them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import timm
import torchvision
from torch import nn


def build_family(name: str) -> nn.Module:
    """Build a network; skip the test if its library is not installed."""
    library, _, inner = name.rpartition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        if library == "torchvision":
            more = {"weights_backbone": None} if hasattr_backbone(inner) else {}
            return torchvision.models.get_model(inner, weights=None, **more)
        if library == "monai":
            return _monai(inner)
        if library.startswith("smp/"):
            smp = pytest.importorskip("segmentation_models_pytorch")
            network = getattr(smp, library.removeprefix("smp/"))
            return network(inner, encoder_weights=None)  # type: ignore[no-any-return]
        return timm.create_model(name)


def hasattr_backbone(name: str) -> bool:
    """Whether a name of torchvision is that of a detector or of a segmentation network."""
    home = torchvision.models.get_model_builder(name).__module__
    return home.startswith(("torchvision.models.detection", "torchvision.models.segmentation"))


def _monai(name: str) -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets")
    small: dict[str, Any] = {"spatial_dims": 2, "in_channels": 3, "out_channels": 2}
    stages: dict[str, Any] = {"channels": (8, 16, 32), "strides": (2, 2)}
    kernels: dict[str, Any] = {
        "kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]
    }  # fmt: skip
    arguments: dict[str, dict[str, Any]] = {
        "UNet": small | stages | {"num_res_units": 2},
        "AttentionUnet": small | stages,
        "AutoEncoder": small | stages | {"num_res_units": 2},
        "SegResNet": small,
        "DynUNet": small | kernels,
        "BasicUNet": small,
        "DenseNet121": small,
        "HighResNet": small,
        "SEResNet50": {"spatial_dims": 2, "in_channels": 3},
        "ResNet": {
            "spatial_dims": 2, "n_input_channels": 3, "block": "basic", "layers": [1, 1, 1, 1],
            "block_inplanes": [8, 16, 32, 64],
        },
        "EfficientNetBN": {
            "model_name": "efficientnet-b0", "spatial_dims": 2, "in_channels": 3, "pretrained": False
        },
        "MedNeXt": small | {"init_filters": 8, "use_residual_connection": True},
    }  # fmt: skip
    plain = {"PlainUNet": ("UNet", small | stages)}
    network, given = plain.get(name, (name, arguments.get(name, {})))
    return getattr(nets, network)(**given)  # type: ignore[no-any-return]
