"""The layers that have an output per class."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ecanet.models import create_model
from ecanet.models.classifier import classifier_names


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("resnet20", "fc"),
        ("eca_mobilenet_v2", "classifier"),
        ("convnext_atto", "head.fc"),
        ("repvgg_a0", "head.fc"),
        ("xception41", "head.fc"),
        ("nasnetalarge", "last_linear"),
        ("dpn48b", "classifier"),
        ("torchvision/squeezenet1_1", "classifier.1"),
        ("torchvision/vgg11", "classifier.6"),
        ("torchvision/inception_v3", "AuxLogits.fc,fc"),
        ("torchvision/vit_b_32", "heads.head"),
    ],
)
def test_of_other_libraries(name: str, classifier: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=3)
    assert ",".join(classifier_names(model)) == classifier
    for layer in classifier_names(model):
        assert len(model.get_submodule(layer).weight) == 3
    if "/" not in name:
        with torch.device("meta"):
            assert classifier_names(create_model(name, num_classes=0)) == classifier_names(model)


def test_of_a_network_without_layers() -> None:
    assert classifier_names(nn.Flatten()) == ()
