import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from ecanet.config import Augmentation, ClassificationSettings
from ecanet.data import augment
from ecanet.data.preprocessing import Preprocessing
from ecanet.data.transforms import mixup_or_cutmix, train_transform
from ecanet.errors import UserError


def prepared(size: int) -> Preprocessing:
    return Preprocessing.of_crop(size, 1.0)


def crops(**values: object) -> Augmentation:
    return Augmentation(**{"scale": [0.08, 1.0], **values})  # type: ignore[arg-type]


def image(height: int = 90, width: int = 120) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment"])
def test_training_images_follow_the_generator(policy: str) -> None:
    transform = train_transform(crops(policy=policy), prepared(32), 32)
    picture = image()
    torch.manual_seed(5)
    first = transform(picture)
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.uint8
    torch.manual_seed(5)
    assert torch.equal(first, transform(picture))
    assert not torch.equal(first, transform(picture))


def test_the_crop_is_torchvisions() -> None:
    ours = train_transform(crops(flip=False), prepared(24), 24)
    theirs = v2.RandomResizedCrop(24, scale=(0.08, 1.0), antialias=True)
    for seed in range(30):
        picture = image(70 + seed, 50)
        torch.manual_seed(seed)
        got = ours(picture)
        torch.manual_seed(seed)
        assert torch.equal(got, theirs(picture))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment"])
def test_training_images_have_the_channels_of_evaluated_ones(channels: int, policy: str) -> None:
    grey, color = image()[:1], image()
    prepare = prepared(24).for_channels(channels)
    for settings in (crops(policy=policy, cutout=4), Augmentation(crop_padding=2, policy=policy)):  # type: ignore[arg-type]
        transform = train_transform(settings, prepare, 24)
        assert transform(color).shape == transform(grey).shape == (channels, 24, 24)


def test_a_crop_of_everything_is_the_image() -> None:
    transform = train_transform(crops(scale=[1.0, 1.0], flip=False), prepared(64), 64)
    square = image(64, 64)
    # Of area 1 only the square fits, the other shapes fall back to it.
    assert torch.equal(transform(square), square)


def test_mixing_keeps_the_targets_whole() -> None:
    assert mixup_or_cutmix(Augmentation(), 10) is None
    mix = mixup_or_cutmix(Augmentation(mixup=0.2, cutmix=1.0), 10)
    assert mix is not None
    images, targets = mix(torch.randn(8, 3, 16, 16), torch.arange(8))
    assert images.shape == (8, 3, 16, 16)
    assert targets.shape == (8, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": [0.0, 1.0]}, "scale"),
        ({"scale": [0.5]}, "scale"),
        ({"scale": [0.5, 1.0], "crop_padding": 4}, "scale and --augmentation.crop_padding"),
        ({"policy": "randaugment", "magnitude": 40}, "magnitude"),
        ({"mixup": -1.0}, "mixup"),
    ],
)
def test_settings_out_of_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassificationSettings(augmentation=Augmentation(**values))  # type: ignore[arg-type]


def test_images_of_a_list_are_padded_and_cropped_as_whole_batches_are() -> None:
    """The same shifts, mirror images and squares, whichever way they are drawn."""
    one = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8).expand(3, 8, 8)
    augmentation = Augmentation(flip=True, crop_padding=2)
    transform = train_transform(augmentation, prepared(8), 8)
    possible = {
        augment.crop(
            augment.flip(one[None], torch.tensor([flipped])),
            2, torch.tensor([top]), torch.tensor([left]),
        ).numpy().tobytes()
        for flipped in (False, True) for top in range(5) for left in range(5)
    }  # fmt: skip
    torch.manual_seed(0)
    drawn = {transform(one).contiguous().numpy().tobytes() for _ in range(400)}
    assert drawn == possible
