"""Decoding against PIL, resizing against torchvision."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from ecanet.data import decode
from ecanet.data.decode import (
    Pixels,
    as_channels,
    decode_files,
    decode_image,
    deep_range,
    fit_square,
    read_image,
)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 20, width: int = 30) -> Image.Image:
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_pil(content: bytes) -> torch.Tensor:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.fixture(params=["torchcodec", "PIL"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with torchcodec and as on a machine where it does not import."""
    if request.param == "PIL":
        monkeypatch.setattr(decode, "decode_jpeg", None)
    elif decode.decode_jpeg is None:
        pytest.skip("torchcodec does not import here")
    return request.param


HOLDS = {
    "JPEG": ["RGB", "L", "CMYK"],
    "PNG": ["RGB", "L", "RGBA", "P", "LA", "1"],
    "BMP": ["RGB", "L", "RGBA", "P", "1"],
    "GIF": ["RGB", "L", "RGBA", "P", "1"],
    "WEBP": ["RGB", "RGBA"],
    "TIFF": ["RGB", "L", "RGBA", "P", "CMYK", "LA", "1"],
    "PPM": ["RGB", "L", "1"],
}


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind, modes in HOLDS.items() for mode in modes]
)
def test_every_kind_and_mode_becomes_rgb(decoder: str, kind: str, mode: str) -> None:
    content = encoded(noise().convert(mode), kind)
    decoded = decode_image(content)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (3, 20, 30)
    assert torch.equal(decoded, by_pil(content))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(decoder: str, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(noise(), kind, exif=exif)
    assert torch.equal(decode_image(content), by_pil(content))
    assert decode_image(content).shape == ((3, 20, 30) if orientation < 5 else (3, 30, 20))


def tiff(bits: int, photometric: int, pixels: bytes, width: int, sample_format: int = 1) -> bytes:
    """Return a grey TIFF of one row, of kinds that PIL reads and does not write."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 1}
    tags[339] = sample_format
    tags |= {273: 14 + 12 * (len(tags) + 2), 279: len(pixels)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())]
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(entries) + bytes(4) + pixels


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16)), "PNG"), [0, 0, 1, 255]),
        (tiff(16, 1, np.array([0, 255, 256, 65535], "<u2").tobytes(), 4), [0, 0, 1, 255]),
        (tiff(16, 0, np.array([0, 255, 256, 65535], "<u2").tobytes(), 4), [255, 255, 254, 0]),
        (tiff(12, 1, bytes.fromhex("000fff80000f"), 4), [0, 255, 128, 0]),
        (tiff(32, 1, np.array([0, 0.25, 0.5, 1], "<f4").tobytes(), 4, 3), [0, 64, 128, 255]),
        (tiff(32, 0, np.array([0, 0.25, 0.5, 1], "<f4").tobytes(), 4, 3), [255, 191, 127, 0]),
        (encoded(Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16)), "PPM"), [0, 0, 1, 255]),
        (b"P5\n4 1\n4095\n" + np.array([0, 2048, 4, 4095], ">u2").tobytes(), [0, 128, 0, 255]),
    ],
)  # fmt: skip
def test_deep_pixels_become_eight_bits_by_one_rule(content: bytes, expected: list[int]) -> None:
    decoded = decode_image(content)
    assert decoded[0, 0].tolist() == expected
    assert torch.equal(decoded[0], decoded[2])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(32, 1, np.array([0, 65535], "<f4").tobytes(), 2, 3), "floats from 0 to 65535"),
        (tiff(32, 1, np.array([-0.5, 1], "<f4").tobytes(), 2, 3), "floats from -0.5 to 1 "),
        (tiff(32, 1, np.array([0, np.nan], "<f4").tobytes(), 2, 3), "floats from nan"),
        (tiff(32, 1, np.array([0, 255], "<i4").tobytes(), 2, 2), "signed or of 32 bits"),
        (tiff(32, 1, np.array([0, 255], "<u4").tobytes(), 2, 1), "signed or of 32 bits"),
        (tiff(16, 1, np.array([0, 255], "<i2").tobytes(), 2, 2), "signed or of 32 bits"),
    ],
)
def test_pixels_of_no_known_scale_are_refused(content: bytes, reason: str) -> None:
    """They used to come out black, or white, without a word."""
    with pytest.raises(ValueError, match=reason):
        decode_image(content)


def stored(values: list[float], kind: str, photometric: int = 1) -> bytes:
    """Return a TIFF of one row of deep pixels: u2, i2, u4, i4 or f4."""
    pixels = np.array(values, kind)
    sample_format = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    return tiff(8 * pixels.itemsize, photometric, pixels.tobytes(), len(values), sample_format)


def png(values: list[int], kind: type) -> bytes:
    return encoded(Image.fromarray(np.array([values], kind)), "PNG")


@pytest.mark.parametrize(
    ("content", "window", "expected"),
    [
        (stored([0, 100, 600, 1100], "<u2"), (100, 1100), [0, 0, 128, 255]),
        (stored([-1000, 0, 400, 3000], "<i2"), (-1000, 400), [0, 182, 255, 255]),
        (stored([0, 51, 255, 9999], "<i4"), (0, 255), [0, 51, 255, 255]),
        (stored([0, 51, 255, 2**32 - 1], "<u4"), (0, 255), [0, 51, 255, 255]),
        (stored([0, 32896, 65535, np.inf], "<f4"), (0, 65535), [0, 128, 255, 255]),
        (stored([0, 0.25, 0.5, 1], "<f4"), (0, 0.5), [0, 128, 255, 255]),
        (stored([0, 100, 600, 1100], "<u2", photometric=0), (100, 1100), [255, 255, 127, 0]),
        (png([0, 100, 600, 1100], np.uint16), (100, 1100), [0, 0, 128, 255]),
        (png([0, 100, 200, 255], np.uint8), (100, 110), [0, 100, 200, 255]),
    ],
)
def test_a_window_gives_the_values_of_black_and_white(
    tmp_path: Path, content: bytes, window: tuple[float, float], expected: list[int]
) -> None:
    decoded = decode_image(content, window)
    assert decoded[0, 0].tolist() == expected
    assert torch.equal(decoded[0], decoded[2])
    path = tmp_path / "image"
    path.write_bytes(content)
    assert torch.equal(read_image(str(path), window), decoded)
    ((images), failed) = decode_files([path], 1, Pixels(1, window))
    assert not failed
    assert torch.equal(images[0], fit_square(as_channels(decoded, 1), 1)), "as everywhere else"


def test_pixels_that_are_no_numbers_are_in_no_window() -> None:
    content = stored([0, np.nan], "<f4")
    with pytest.raises(ValueError, match="some of its pixels are NaN"):
        decode_image(content, (0, 1))


@pytest.mark.parametrize("highest", [255, 65535])
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_a_usual_scale_come_with_their_window(highest: int, kind: type) -> None:
    values = np.array([[0, highest]], kind)
    with pytest.raises(ValueError, match=f"--window 0,{highest}$"):
        decode_image(encoded(Image.fromarray(values), "TIFF"))


def test_the_range_of_deep_pixels() -> None:
    found = deep_range(stored([-1000, 3000], "<i2"))
    assert found == ("16-bit", -1000, 3000)
    assert deep_range(stored([0.25, 7], "<f4")) == ("floating-point", 0.25, 7)
    for kind in ("JPEG", "PNG", "GIF", "TIFF"):
        assert deep_range(encoded(noise(), kind)) is None
    with pytest.raises(ValueError, match="not an image"):
        deep_range(b"none")


def test_ultralytics_has_no_part_in_reading() -> None:
    """It puts a function in the place of PIL's, which installs a package when a file is no image."""
    patches = pytest.importorskip("ultralytics.utils.patches")
    assert Image.open is patches.image_open
    with pytest.raises(ValueError, match="not an image"):
        deep_range(b"none")


def test_grey_and_color_become_each_other() -> None:
    color = torch.from_numpy(np.array(noise())).permute(2, 0, 1)
    luma = torch.from_numpy(np.array(noise().convert("L")))[None]
    assert torch.equal(as_channels(color, 1), luma), "PIL's"
    assert torch.equal(as_channels(torch.stack([color, color]), 1)[1], luma)
    assert torch.equal(as_channels(luma, 3), luma.repeat(3, 1, 1))
    assert torch.equal(as_channels(as_channels(luma, 3), 1), luma)
    assert as_channels(color, 3) is color


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"not an image at all", "not an image"),
        (encoded(noise(), "JPEG")[:-100], "truncated"),
        (encoded(noise(), "PNG")[:-200], "truncated"),
        (b"\xff\xd8\xff" + b"\0" * 100, "."),
    ],
)
def test_what_cannot_be_read_is_a_value_error(decoder: str, content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        decode_image(content)
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)


@pytest.mark.parametrize("shape", [(40, 40), (40, 61), (75, 40), (16, 16), (20, 23), (33, 17)])
@pytest.mark.parametrize("size", [16, 17, 40])
def test_fit_square_is_torchvisions_resize_and_crop(shape: tuple[int, int], size: int) -> None:
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    wanted = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])(image)
    difference = fit_square(image, size).int() - wanted.int()
    assert difference.abs().max() <= 1
    batch = fit_square(torch.stack([image, image]), size)
    assert batch.shape == (2, 3, size, size)
    assert torch.equal(batch[1], fit_square(image, size))


def test_decode_files_keeps_the_order_and_names_failures(tmp_path: Path, decoder: str) -> None:
    paths = []
    for i in range(20):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (8, 8), (i, 2 * i, 3 * i)).save(paths[-1])
    paths[7].write_bytes(b"")
    images, failed = decode_files(paths, 8)
    assert failed == {7: "the file is empty"}
    wanted = [[i, 2 * i, 3 * i] if i != 7 else [0] * 3 for i in range(20)]
    assert images[:, :, 3, 3].tolist() == wanted


def test_native_gives_up_on_another_size(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, side in zip(paths, (8, 8, 9), strict=True):
        noise(side, side).save(path)
    assert decode_files(paths, 8, native=True) is None
    assert decode_files(paths[:2], 8, native=True) is not None


def test_large_files_are_decoded_by_threads(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        image = noise(100, 120)
        image.putpixel((60, 50), (i, i, i))
        image.save(path)
        assert path.stat().st_size > decode.SMALL_FILE
    images, failed = decode_files(paths, 100)
    assert not failed
    assert images[:, 0, 50, 50].tolist() == list(range(12))


def test_progress_is_shown_or_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.png"
    noise(8, 8).save(path)
    decode_files([path], 8)
    assert capsys.readouterr().err == ""


def test_real_images_are_pils(real_data: Path, decoder: str) -> None:
    """Bit for bit, over CIFAR-10's small JPEGs and ImageNet's large ones, some grey or CMYK."""
    small = sorted((real_data / "cifar10" / "train").glob("*/*.jpg"))[::500]
    large = sorted((real_data / "imagenet-sample").glob("*/*/*.JPEG"))[::5]
    assert len(small) == 100
    assert len(large) >= 20
    for path in small + large:
        content = path.read_bytes()
        assert torch.equal(decode_image(content), by_pil(content)), path.name
