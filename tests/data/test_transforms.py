import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from ecanet.config import ImageAugmentation
from ecanet.data.transforms import mixing, train_transform
from ecanet.errors import UserError


def image(height: int = 90, width: int = 120) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment"])
def test_training_images_follow_the_generator(policy: str) -> None:
    transform = train_transform(32, ImageAugmentation(policy=policy))  # type: ignore[arg-type]
    picture = image()
    torch.manual_seed(5)
    first = transform(picture)
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.uint8
    torch.manual_seed(5)
    assert torch.equal(first, transform(picture))
    assert not torch.equal(first, transform(picture))


def test_the_crop_is_torchvisions() -> None:
    ours = train_transform(24, ImageAugmentation(flip=False))
    theirs = v2.RandomResizedCrop(24, scale=(0.08, 1.0), antialias=True)
    for seed in range(30):
        picture = image(70 + seed, 50)
        torch.manual_seed(seed)
        got = ours(picture)
        torch.manual_seed(seed)
        assert torch.equal(got, theirs(picture))


def test_a_crop_of_everything_is_the_image() -> None:
    transform = train_transform(64, ImageAugmentation(scale=[1.0, 1.0], flip=False))
    square = image(64, 64)
    # Of area 1 only the square fits, the other shapes fall back to it.
    assert torch.equal(transform(square), square)


def test_mixing_keeps_the_targets_whole() -> None:
    assert mixing(ImageAugmentation(), 10) is None
    mix = mixing(ImageAugmentation(mixup=0.2, cutmix=1.0), 10)
    assert mix is not None
    images, targets = mix(torch.randn(8, 3, 16, 16), torch.arange(8))
    assert images.shape == (8, 3, 16, 16)
    assert targets.shape == (8, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (ImageAugmentation(scale=[0.0, 1.0]), "scale"),
        (ImageAugmentation(scale=[0.5]), "scale"),
        (ImageAugmentation(policy="randaugment", magnitude=40), "magnitude"),
    ],
)
def test_settings_out_of_range(augmentation: ImageAugmentation, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_transform(32, augmentation)


def test_alpha_out_of_range() -> None:
    with pytest.raises(UserError, match="mixup"):
        mixing(ImageAugmentation(mixup=-1.0), 10)
