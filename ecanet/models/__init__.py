"""CNNs with attention modules. Importing this package registers our models with timm."""

from ecanet.models.built_in import built_in_attention, replace_attention
from ecanet.models.cifar_resnet import CifarResNet
from ecanet.models.factory import create_model, list_models
from ecanet.models.holders import attention_modules, check_attention, checked_attention
from ecanet.models.identity import start_as_identity
from ecanet.models.insert import insert_attention
from ecanet.models.mobilenetv2 import MobileNetV2
from ecanet.models.resnet import ResNet

__all__ = [
    "CifarResNet",
    "MobileNetV2",
    "ResNet",
    "attention_modules",
    "built_in_attention",
    "check_attention",
    "checked_attention",
    "create_model",
    "insert_attention",
    "list_models",
    "replace_attention",
    "start_as_identity",
]
