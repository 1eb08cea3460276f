"""digits, CIFAR as torchvision downloads it (from a server of our own), and names."""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from ecanet.activity import Activity, activities, watching
from ecanet.config import ClassificationSettings, EvaluateSettings
from ecanet.data import SOURCES, load_data, sources
from ecanet.data.listing import list_evaluated
from ecanet.data.read import read_data
from ecanet.errors import UserError

# digits


def test_digits_are_scikit_learns() -> None:
    data = load_data("digits")
    assert (data.name, data.image_size, data.channels) == ("digits", 8, 1)
    assert data.classes == list("0123456789")
    assert (len(data.train), len(data.val), len(data.test)) == (1295, 143, 359)
    wanted: dict[bytes, set[int]] = {}
    digits = load_digits()
    for image, label in zip(digits.images, digits.target, strict=True):
        scaled = np.round(image * 255 / 16).astype(np.uint8)
        wanted.setdefault(scaled.tobytes(), set()).add(int(label))
    for split in (data.train, data.val, data.test):
        assert split.images.shape[1:] == (1, 8, 8)
        assert torch.bincount(split.labels, minlength=10).min() >= 13
        for image, label in zip(split.images, split.labels, strict=True):
            assert int(label) in wanted[image.numpy().tobytes()]
    assert int(data.train.images.max()) == 255


def test_digits_test_split_does_not_depend_on_validation() -> None:
    few, many = load_data("digits", validation=0.05), load_data("digits", validation=0.4)
    assert torch.equal(few.test.images, many.test.images)
    assert len(few.val) < len(many.val)
    assert few.fingerprint != many.fingerprint
    again = load_data("digits", validation=0.05)
    assert few.fingerprint == again.fingerprint
    assert torch.equal(few.val.images, again.val.images)


def test_digits_in_another_size() -> None:
    data = load_data("digits", image_size=16)
    assert data.image_size == 16
    assert data.train.images.shape[1:] == (1, 16, 16)
    assert data.fingerprint != load_data("digits").fingerprint


# CIFAR


Publish = Callable[[type[datasets.CIFAR10]], np.ndarray]


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Be silent about clients that hang up: the line would stand in another test's output."""

    requests = 0


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests += 1  # type: ignore[attr-defined]
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path / "www")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def publish(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    return functools.partial(_publish, server, tmp_path / "www", monkeypatch)


def _publish(
    server: Server, www: Path, patch: pytest.MonkeyPatch, source: type[datasets.CIFAR10]
) -> np.ndarray:
    """Serve an archive of a few random images in the layout of ``source``; return all images."""
    random = np.random.default_rng(0)
    fine = source is datasets.CIFAR100
    classes = 100 if fine else 10
    label_key = "fine_labels" if fine else "labels"
    everything = []
    archive = io.BytesIO()
    sums: dict[str, str] = {}
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:

        def add(name: str, value: object) -> None:
            content = pickle.dumps(value)
            sums[name] = hashlib.md5(content).hexdigest()
            info = tarfile.TarInfo(f"{source.base_folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        for name, _ in source.train_list + source.test_list:
            images = random.integers(0, 256, (2 * classes, 3072), dtype=np.uint8)
            everything.append(images)
            add(name, {"data": images, label_key: [i % classes for i in range(2 * classes)]})
        names = [f"class{i}" for i in range(classes)]
        add(source.meta["filename"], {source.meta["key"]: names})
    (www / source.filename).write_bytes(archive.getvalue())
    patch.setattr(source, "url", f"http://127.0.0.1:{server.server_port}/{source.filename}")
    patch.setattr(source, "tgz_md5", hashlib.md5(archive.getvalue()).hexdigest())
    for attribute in ("train_list", "test_list"):
        patch.setattr(source, attribute, [[n, sums[n]] for n, _ in getattr(source, attribute)])
    patch.setattr(source, "meta", {**source.meta, "md5": sums[source.meta["filename"]]})
    return np.concatenate(everything).reshape(-1, 3, 32, 32)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_downloaded_once_with_progress(
    name: str,
    classes: int,
    publish: Publish,
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = publish({"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name])
    shown: list[Activity] = []
    with watching(lambda: shown.extend(activities()[-1:])):
        data = load_data(name, download_dir=tmp_path / "here", validation=0.5)
    (download,) = {id(one): one for one in shown if one.what.startswith("downloading ")}.values()
    assert (download.what.lower(), download.done) == (f"downloading {name}", 100)
    requests = server.requests
    assert requests >= 1
    assert data.name == name
    assert len(data.classes) == classes
    assert data.classes[3] == "class3"
    assert (data.image_size, data.channels) == (32, 3)
    assert torch.equal(data.test.images, torch.from_numpy(images[-2 * classes :]))
    assert data.test.labels.tolist() == [i % classes for i in range(2 * classes)]
    assert len(data.train) + len(data.val) == len(images) - 2 * classes
    again = load_data(name, download_dir=tmp_path / "here", validation=0.5)
    assert server.requests == requests
    assert capsys.readouterr().err == ""
    assert again.fingerprint == data.fingerprint
    small = load_data(name, download_dir=tmp_path / "here", validation=0.5, image_size=16)
    assert small.test.images.shape[1:] == (3, 16, 16)


def test_cifar_goes_to_the_default_folder(
    publish: Publish,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish(datasets.CIFAR10)
    monkeypatch.setenv("ECANET_CACHE", str(tmp_path / "cache"))
    load_data("cifar10")
    assert capsys.readouterr().err == ""
    assert (tmp_path / "cache" / "downloads" / "cifar-10-batches-py").is_dir()


def test_an_archive_put_in_place_by_hand_needs_no_network(
    publish: Publish, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor may the folder be written to, once it is unpacked."""
    publish(datasets.CIFAR10)
    (tmp_path / "here").mkdir()
    archive = Path(datasets.CIFAR10.filename)
    (tmp_path / "www" / archive).rename(tmp_path / "here" / archive)
    load_data("cifar10", download_dir=tmp_path / "here")
    assert server.requests == 0
    monkeypatch.setattr("ecanet.data.sources.FileLock", None)
    load_data("cifar10", download_dir=tmp_path / "here")


def complaint(**options: object) -> str:
    with pytest.raises(UserError) as caught:
        load_data("cifar10", **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9/cifar-10-python.tar.gz"  # a port on which nobody listens
    monkeypatch.setattr(datasets.CIFAR10, "url", url)
    message = complaint(download_dir=tmp_path)
    assert message.startswith("cifar10 cannot be loaded: ")
    assert "refused" in message
    assert f"Put cifar-10-python.tar.gz from {url} into {tmp_path}" in message
    assert "or give a folder of images" in message


def test_a_missing_or_damaged_download(publish: Publish, tmp_path: Path) -> None:
    publish(datasets.CIFAR10)
    archive = tmp_path / "www" / datasets.CIFAR10.filename
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-10])
    assert "corrupted" in complaint(download_dir=tmp_path / "here")
    archive.unlink()
    assert "not found" in complaint(download_dir=tmp_path / "here")
    archive.write_bytes(whole)
    load_data("cifar10", download_dir=tmp_path / "here")


def test_a_download_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cifar10 cannot be loaded: " in complaint(download_dir=tmp_path / "file")


# Others of torchvision's


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())


def test_arrays_with_splits(tmp_path: Path) -> None:
    """FashionMNIST: grey, 28 pixels."""
    random = np.random.default_rng(0)
    images = {
        part: random.integers(0, 256, (40, 28, 28), dtype=np.uint8) for part in ("train", "t10k")
    }
    for part, values in images.items():
        raw = tmp_path / "FashionMNIST" / "raw" / part
        write_idx(raw.with_name(f"{part}-images-idx3-ubyte"), values)
        write_idx(raw.with_name(f"{part}-labels-idx1-ubyte"), np.arange(40, dtype=np.uint8) % 10)
    data = load_data("torchvision/fashionmnist", download_dir=tmp_path, validation=0.3)
    assert (data.name, data.image_size, data.channels) == ("fashionmnist", 28, 1)
    assert (data.classes[0], data.classes[9]) == ("T-shirt/top", "Ankle boot")
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 40)
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(images["t10k"]))
    assert data.names("test")[:2] == ["test/0", "test/1"]
    assert data.names("val")[0].startswith("train/")
    color = load_data("torchvision/FashionMNIST", download_dir=tmp_path, in_chans=3, image_size=32)
    assert color.train.images.shape[1:] == (3, 32, 32)
    assert color.fingerprint != data.fingerprint


@pytest.fixture
def textures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """DTD: files in three lists, in the cache. Return the names of all."""
    monkeypatch.setenv("ECANET_CACHE", str(tmp_path))
    root = tmp_path / "downloads" / "dtd" / "dtd"
    names = [f"{kind}/{kind}_{i}.png" for kind in ("dotted", "banded") for i in range(12)]
    for i, name in enumerate(names):
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / "images" / name)
    (root / "labels").mkdir()
    for first, part in enumerate(("train", "val", "test")):
        (root / "labels" / f"{part}1.txt").write_text("\n".join(names[first::3]) + "\n")
    return names


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_files_with_three_splits(textures: list[str], storage: str) -> None:
    data = read_data(ClassificationSettings(data="torchvision/DTD", storage=storage))  # type: ignore[arg-type]
    assert data.classes == ["banded", "dotted"]
    for first, split in enumerate(("train", "val", "test")):
        assert data.names(split) == [f"dtd/dtd/images/{name}" for name in textures[first::3]]
        assert data.image(split, 2)[0, 0, 0] == first + 6
        assert list(data.images_of(split).labels) == [1] * 4 + [0] * 4
    split, images = list_evaluated("torchvision/DTD", EvaluateSettings(split="test"))
    assert (split, images.files) == ("test", data.names("test"))


def test_files_without_splits(tmp_path: Path) -> None:
    """EuroSAT: a folder of classes, out of which splits are held out by name."""
    for kind in ("Forest", "River"):
        folder = tmp_path / "eurosat" / "2750" / kind
        folder.mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{kind}_{i}.jpg")
    data = load_data("torchvision/EuroSAT", download_dir=tmp_path)
    assert data.test_fraction == 0.2
    assert data.classes == ["Forest", "River"]
    assert all(name.startswith("eurosat/2750/") for name in data.names("train"))


def test_every_known_data_set_takes_the_arguments_it_is_given() -> None:
    for name, arguments in sources._KNOWN.items():
        source = getattr(datasets, name)
        takes = inspect.signature(source.__init__).parameters
        for given in arguments.splits().values():
            assert set(given) | {"download"} <= set(takes)
        options = {given.get("split") for given in arguments.splits().values()} - {None}
        assert options <= set(getattr(source, "_SPLITS", options))


@pytest.mark.parametrize("name", ["DTD", "MNIST", "GTSRB", "Flowers102", "STL10"])
def test_torchvision_without_a_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(
        UserError, match=rf"^torchvision/{name} cannot be loaded: .*folder of images"
    ) as caught:
        load_data(f"torchvision/{name}", download_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_unknown_names_of_torchvision() -> None:
    with pytest.raises(
        UserError, match=r"Unknown data 'torchvision/Flower'\. Did you mean Flowers102"
    ):
        load_data("torchvision/Flower")


# Names and numbers


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifra10", r"Unknown data 'cifra10', and no folder of that name\. Did you mean cifar10"),
        ("imagenet", r"Known: cifar10, cifar100, digits\."),
        ("no/such/folder", r"There is no folder no.such.folder: give cifar10, cifar100, digits"),
        ("~/no-such-folder-of-mine", r"There is no folder /"),
        (
            __file__,
            r"test_sources\.py is a file: give a folder with a folder per class, or a table",
        ),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_data(name)


@pytest.mark.parametrize(
    ("name", "fraction"),
    # Of a folder, 0 is for val/ without test/.
    [("digits", 0), *((n, f) for n in ("digits", ".") for f in (1, -0.1, 1.5, float("nan")))],
)
def test_a_validation_fraction_out_of_range(name: str, fraction: float) -> None:
    with pytest.raises(UserError, match="give a number between 0 and 1"):
        load_data(name, validation=fraction)


@pytest.mark.parametrize("size", [0, -3])
def test_an_image_size_out_of_range(size: int) -> None:
    with pytest.raises(UserError, match="The image size is"):
        load_data("digits", image_size=size)


def test_every_source_is_documented() -> None:
    assert all(f"``{name}``" in (load_data.__doc__ or "") for name in SOURCES)
