"""The files and arguments of the fuzz run: how good ones are made, and how they are broken."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import pickle
import random
import re
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

# ---- Changes


# What stands at the edge of a type, means something to a library, or steers a terminal.
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 255, 1 << 31, 10**9, 10**18, 10**30, 0.5, -0.0, 1e-300, 1e308,
    math.nan, math.inf, -math.inf, "", " ", "0", "-1", "1e9", "nan", "true", "x", "x" * 5000,
    "../../outside", "/tmp/fuzzed-outside", "http://127.0.0.1:9/x", "file:///etc/passwd",
    "antigravity.fly", "os.system", "\x1b[2Jcleared", "a\nb", "\u202egnp.exe", "a\x00b", "{}", "[1]",
    [], {}, [[]], [1, 2, 3], [None], {"a": 1}, {"class_path": "antigravity.fly"}, ["x"] * 50,
]  # fmt: skip
ODD_KEYS = [
    "pretrained", "pretrained_cfg", "url", "file", "cache_dir", "checkpoint_path", "stem", "plugin",
    "num_classes", "in_chans", "kwargs", "__class__", "recipe", "data", "out", "storage", "width", "",
]  # fmt: skip


def changed_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return ``content`` after one to four accidents."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        at = rng.randrange(len(data))
        length = min(len(data) - at, 1 << rng.randrange(12))
        early = rng.randrange(min(len(data), 64))  # headers stand at the front
        odd = rng.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, b"\xff\xff\xff\x7f"])
        begin, end, new = rng.choice(
            [
                (at, at + 1, bytes([data[at] ^ 1 << rng.randrange(8)])),
                (at, at + 8, rng.randbytes(min(8, len(data) - at))),
                (at, len(data), b""),
                (at, at + length, b""),
                (at, at, data[at : at + length] * rng.choice([1, 1, 20])),
                (at, at + length, bytes(length)),
                (at, at + 4, odd[: len(data) - at]),
                (at, at, rng.randbytes(length)),
                (early, early + 1, bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF])])),
            ]
        )
        data[begin:end] = new
    return bytes(data)


def changed_tree(rng: random.Random, tree: Any) -> Any:
    """Return JSON's ``tree`` with one to three of its values, keys or shapes changed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.randint(1, 3)):
        top = {"tree": tree}
        holder: Any = top
        key: Any = "tree"
        while isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.9:
            holder = holder[key]
            keys = holder if isinstance(holder, dict) else range(len(holder))
            key = rng.choice(list(keys))
        value = holder[key]
        change = rng.randrange(8)
        if change <= 2:
            holder[key] = rng.choice(ODD_VALUES)
        elif change == 3 and holder is not top:
            del holder[key]
        elif change == 4 and isinstance(holder, dict) and holder is not top:
            holder[rng.choice(ODD_KEYS)] = rng.choice([value, *ODD_VALUES])
        elif change == 5 and isinstance(holder, list):
            holder[key:key] = [value] * rng.choice([1, 2, 100])
        elif change == 6 and isinstance(value, (int, float)):
            holder[key] = rng.choice([str(value), -value, float(value), value * 1000, [value]])
        elif change == 7:
            for _ in range(rng.choice([1, 3, 60, 250])):  # thrice is what json writes
                value = rng.choice([[value], {"a": value}])
            holder[key] = value
        tree = top["tree"]
    return tree


def changed_text(rng: random.Random, text: str) -> str:
    """Return ``text`` with lines lost, doubled or moved, or with deep brackets in it."""
    lines = text.splitlines(keepends=True) or [""]
    at = rng.randrange(len(lines))
    change = rng.randrange(5)
    if change == 0:
        del lines[at]
    elif change == 1:
        lines.insert(at, lines[at] * rng.choice([1, 2, 1000]))
    elif change == 2:
        lines.insert(at, rng.choice(["[", "{a: ", "- ", "&a [*a, "]) * rng.choice([1, 40, 100_000]))
    elif change == 3:
        lines[at] = re.sub(r"[\d.]+", lambda _: str(rng.choice(ODD_VALUES)), lines[at])
    else:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    return "".join(lines)


# ---- Kinds of files


@dataclass
class Kind:
    """One kind of file: ``seeds`` makes good ones once, ``write`` a broken one and its command."""

    corpus: Path
    name: ClassVar[str]

    def __post_init__(self) -> None:
        self.corpus.mkdir(parents=True, exist_ok=True)
        self.seeds()

    def seeds(self) -> None:
        """Fill the corpus."""
        raise NotImplementedError

    def write(self, rng: random.Random, place: Path) -> list[str]:
        """Write a broken file into ``place`` and return the arguments of the command that reads it."""
        raise NotImplementedError

    def pick(self, rng: random.Random, pattern: str = "*") -> Path:
        return rng.choice(sorted(self.corpus.glob(pattern)))


def _save_model(path: Path, model: str = "resnet20", **options: Any) -> Path:
    """Write the weights of a small model with ECA and two classes."""
    import torch

    from ecanet.models import create_model
    from ecanet.models.weights.save import save_weights

    torch.manual_seed(0)
    state = create_model(model, num_classes=2, attention="eca").state_dict()
    save_weights(path, state, model=model, attention="eca", num_classes=2, **options)
    return path


def _save_detector(path: Path, kind: str) -> Path:
    """Write the weights of a small detector of two classes."""
    from ecanet.detection.detectors import create_detector
    from ecanet.detection.weights import save_detector

    detector = create_detector(
        kind, "mobilenet_v2", 2, width=8, min_size=[32], max_size=64, norm="batch",
        class_names=["red", "blue"], category_ids=[1, 2],
    )  # fmt: skip
    save_detector(path, detector)
    return path


_CLASSES = {"classes": json.dumps(["cat", "dog"])}


def _image_folder(place: Path, split: str = "val") -> None:
    """Write two classes of two pictures each."""
    from PIL import Image

    for number, name in enumerate(("cat", "dog")):
        (place / split / name).mkdir(parents=True)
        for index in range(2):
            image = Image.new("RGB", (24, 20), (90 * number, 90 * index, 128))
            image.save(place / split / name / f"{index}.png")


def _evaluate(weights: str, *more: str) -> list[str]:
    size = ["--eval_size", "32", "--workers", "0", "--batch_size", "4", "--device", "cpu"]
    return ["evaluate", "data", "--weights", weights, *size, *more]


def _convert(rng: random.Random, file: str) -> list[str]:
    out, *more = rng.choice(
        [["out.safetensors"], ["out.safetensors", "--partial"], ["out.pth.tar", "--to", "official"]]
    )
    return ["convert", file, out, *more]


class Safetensors(Kind):
    """Weights in safetensors: bytes, and the header of names, shapes and offsets."""

    name = "safetensors"

    def seeds(self) -> None:
        _save_model(self.corpus / "own.safetensors", metadata=_CLASSES)

    def write(self, rng: random.Random, place: Path) -> list[str]:
        content = self.pick(rng).read_bytes()
        if rng.random() < 0.4:
            content = changed_bytes(rng, content)
        elif rng.random() < 0.5:
            (length,) = struct.unpack("<Q", content[:8])
            header, rest = content[8 : 8 + length], content[8 + length :]
            content = content[:8] + changed_bytes(rng, header) + rest
        else:
            content = with_header(content, lambda header: changed_tree(rng, header))
        (place / "broken.safetensors").write_bytes(content)
        return _convert(rng, "broken.safetensors")


def with_header(content: bytes, change: Callable[[Any], Any]) -> bytes:
    """Return a safetensors file whose header is what ``change`` makes of it."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


class Metadata(Kind):
    """What a weight file says of its model, classes and detector."""

    name = "metadata"

    def seeds(self) -> None:
        own, timms = self.corpus / "own.safetensors", self.corpus / "timm.safetensors"
        _save_model(own, metadata=_CLASSES, model_args={"drop_rate": 0.1})
        _save_model(timms, "test_resnet", metadata=_CLASSES)
        _save_detector(self.corpus / "detector.safetensors", "faster_rcnn")

    def write(self, rng: random.Random, place: Path) -> list[str]:
        detects = rng.random() < 0.1
        name = "detector" if detects else rng.choice(["own", "own", "timm"])
        file = self.corpus / f"{name}.safetensors"

        def change(header: Any) -> Any:
            metadata = header["__metadata__"]
            for _ in range(rng.randint(1, 2)):
                key = rng.choice([*metadata, rng.choice(ODD_KEYS)])
                text = metadata.get(key, "{}")
                try:
                    tree = changed_tree(rng, json.loads(text))
                    # One that every value of ours passes through.
                    plain = isinstance(tree, str) and rng.random() < 0.3
                    text = tree if plain else json.dumps(tree)
                except ValueError:
                    text = str(rng.choice(ODD_VALUES))
                metadata[key] = text
            if "model_args" in metadata and rng.random() < 0.3:
                told = {rng.choice(ODD_KEYS): rng.choice(ODD_VALUES) for _ in range(2)}
                lures = [{"url": "http://127.0.0.1:9/x"}, {"file": "/etc/passwd"}]
                lured = {"pretrained": True, "pretrained_cfg": rng.choice(lures)}
                metadata["model_args"] = json.dumps(rng.choice([told, lured]))
            return header

        (place / "broken.safetensors").write_bytes(with_header(file.read_bytes(), change))
        if detects:
            _image_folder(place)
            picture = "val/cat/0.png"
            return ["detect", "predict", picture, "--weights", "broken.safetensors", "--out", "out"]
        if rng.random() < 0.3:
            _image_folder(place / "data")
            return _evaluate("broken.safetensors")
        return _convert(rng, "broken.safetensors")


class Pickles(Kind):
    """Checkpoints of torch: the zip, the pickle in it, and the containers around the tensors."""

    name = "pickles"

    def seeds(self) -> None:
        import numpy
        import torch
        from safetensors.torch import load_file

        tensors = load_file(_save_model(self.corpus.parent / "pickles.safetensors"))
        few = dict(list(tensors.items())[:3])
        contents: dict[str, Any] = {
            "bare": tensors,
            "official": {"state_dict": tensors, "epoch": 3, "arch": "eca", "best_acc1": 1.5},
            "module": {"module": tensors},
            "ema": {"ema_state_dict": {**tensors, "steps": 3}, "state_dict": tensors},
            "array": {"state_dict": few, "mean": numpy.zeros(3)},
            "path": {"state_dict": few, "path": Path("x")},
        }
        itself: dict[str, Any] = {"state_dict": few}
        itself["self"] = itself
        contents["itself"] = itself
        for name, content in contents.items():
            torch.save(content, self.corpus / f"{name}.pth")
        torch.save(few, self.corpus / "old.pth", _use_new_zipfile_serialization=False)

    def write(self, rng: random.Random, place: Path) -> list[str]:
        file = self.pick(rng)
        content = file.read_bytes()
        if file.stem == "old" or rng.random() < 0.3:
            content = changed_bytes(rng, content)
        else:
            content = self._with_pickle(rng, content)
        (place / "broken.pth").write_bytes(content)
        return _convert(rng, "broken.pth")

    def _with_pickle(self, rng: random.Random, content: bytes) -> bytes:
        """Return the zip with its pickle changed, or made anew to do harm."""
        made = io.BytesIO()
        harm = rng.choice([None] * 6 + [_call("os.system", "touch /tmp/fuzzed-outside")])
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
            for member in old.namelist():
                data = old.read(member)
                if member.endswith("data.pkl"):
                    data = harm or changed_bytes(rng, data)
                elif rng.random() < 0.05:
                    data = changed_bytes(rng, data)
                new.writestr(member, data)
        return made.getvalue()


def _call(function: str, argument: str) -> bytes:
    """Return a pickle that calls a function when it is read."""
    module, name = function.rsplit(".", 1)
    return b"c" + f"{module}\n{name}\n".encode() + pickle.dumps((argument,), 0)[:-1] + b"R."


class Yaml(Kind):
    """Recipes of all commands and sweep files."""

    name = "yaml"

    _COMMANDS: ClassVar[dict[str, list[str]]] = {
        "compare": ["compare", "--recipe", "broken.yaml", "--data", "./none", "--out", "out"],
        "train": ["train", "--recipe", "broken.yaml", "--data", "./none", "--out", "out"],
        "detect": ["detect", "train", "./none", "--recipe", "broken.yaml", "--out", "out"],
        "sweep": ["sweep", "broken.yaml", "--data", "./none", "--out", "out"],
    }

    def seeds(self) -> None:
        import ecanet

        recipes = Path(ecanet.__file__).parent / "recipes"
        for command, name in (
            ("compare", "cifar10/resnet20"), ("train", "imagenet/modern"),
            ("detect", "coco/mask_rcnn"), ("sweep", "sweeps/reproduction2020"),
        ):  # fmt: skip
            text = (recipes / f"{name}.yaml").read_text().replace("\ndata:", "\n# data:")
            (self.corpus / f"{command}.yaml").write_text(text)
        (self.corpus / "sweep-all.yaml").write_text(
            "method: random\nmetric: {name: val_loss, goal: minimize}\nrun_cap: 3\nparameters:\n"
            "  lr: {distribution: log_uniform_values, min: 0.001, max: 0.3}\n"
            "  wd: {distribution: q_uniform, min: 0, max: 0.1, q: 0.01}\n"
            "  attention: {values: [none, se, eca], probabilities: [0.2, 0.3, 0.5]}\n"
            "  batch_size: {min: 16, max: 64}\n"
            "  label_smoothing: {distribution: beta, a: 2, b: 5}\n"
            "  momentum: {distribution: normal, mu: 0.9, sigma: 0.01}\n"
            "  schedule: {parameters: {warmup_epochs: {value: 1}}}\n"
            "early_terminate: {type: hyperband, min_iter: 3, eta: 2}\n"
        )

    def write(self, rng: random.Random, place: Path) -> list[str]:
        import yaml

        file = self.pick(rng)
        text = file.read_text()
        how = rng.random()
        if how < 0.2:
            content = changed_bytes(rng, text.encode())
        elif how < 0.4:
            content = changed_text(rng, text).encode()
        else:
            tree = changed_tree(rng, yaml.safe_load(text))
            try:
                content = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode()
            except RecursionError:  # JSON is YAML too, and nested deeper
                content = json.dumps(tree).encode()
        (place / "broken.yaml").write_bytes(content)
        return self._COMMANDS[file.stem.partition("-")[0]]


class Coco(Kind):
    """Annotations in COCO's format."""

    name = "coco"

    def seeds(self) -> None:
        annotations: list[dict[str, Any]] = []
        for number in range(1, 5):
            for category, (x, y, w, h) in enumerate([(5, 5, 20, 16), (30, 20, 24, 20)], 1):
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": number, "category_id": category,
                        "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [corners],
                    }
                )  # fmt: skip
        counts = [300, 5, 43, 5, 48 * 64 - 353]
        annotations[1] |= {"segmentation": {"size": [48, 64], "counts": counts}, "iscrowd": 1}
        sizes = {"width": 64, "height": 48}
        content = {
            "info": {"year": 2024},
            "images": [{"id": n, "file_name": f"{n}.jpg", **sizes} for n in range(1, 5)],
            "annotations": annotations,
            "categories": [
                {"id": n, "name": name, "supercategory": "box"}
                for n, name in ((1, "red"), (2, "blue"))
            ],
        }
        (self.corpus / "good.json").write_text(json.dumps(content))
        self.weights = _save_detector(self.corpus.parent / "detector.weights", "mask_rcnn")

    def write(self, rng: random.Random, place: Path) -> list[str]:
        from PIL import Image

        text = (self.corpus / "good.json").read_text()
        how = rng.random()
        if how < 0.15:
            content = changed_bytes(rng, text.encode())
        elif how < 0.2:
            content = text.replace("[5, 5, 20, 16]", "[" * rng.choice([30, 100_000])).encode()
        else:
            content = json.dumps(changed_tree(rng, json.loads(text))).encode()
        (place / "data" / "annotations").mkdir(parents=True)
        (place / "data" / "val").mkdir()
        (place / "data" / "annotations" / "instances_val.json").write_bytes(content)
        for number in range(1, 5):
            image = Image.new("RGB", (64, 48), (60 * number, 0, 0))
            image.save(place / "data" / "val" / f"{number}.jpg")
        if rng.random() < 0.04:
            weights = os.path.relpath(self.weights, place)
            size = ["--workers", "0", "--min_size", "32", "--max_size", "64", "--device", "cpu"]
            return ["detect", "evaluate", "data", "--weights", weights, *size]
        return ["call", "read_coco"]


def read_coco() -> None:
    """Read what training and evaluation read of a COCO folder, without a detector."""
    from ecanet.detection.batches import TrainingImages
    from ecanet.detection.dataset import CocoFolder
    from ecanet.detection.evaluation import CocoEvaluator

    data = CocoFolder(Path("data"), "val", keep_empty=False)
    CocoFolder(Path("data"), "val")
    sizes = {"min_size": [32], "max_size": 64}
    images = TrainingImages(data, masks=data.has_masks, flip=True, seed=0, **sizes)
    for index in range(len(data)):
        images[0, index]
    kinds = ("bbox", "segm") if data.has_masks else ("bbox",)
    evaluator = CocoEvaluator(data.annotations, data.category_ids, kinds)
    found = []
    for index in range(len(data)):
        target = data.target(index, masks=data.has_masks)
        one = {"boxes": target["boxes"], "labels": target["labels"]}
        one["scores"] = target["boxes"].new_ones(len(target["boxes"]))
        if data.has_masks:
            one["masks"] = target["masks"][:, None].float()
        found.append(one)
    evaluator.update([image["id"] for image in data.images], found)
    evaluator.compute()


class Shards(Kind):
    """Tar shards with their labels, and the index of a shard that the cache keeps."""

    name = "shards"

    def seeds(self) -> None:
        from PIL import Image

        self.weights = _save_model(self.corpus.parent / "shards.safetensors")
        with tarfile.open(self.corpus / "good.tar", "w") as tar:
            for index in range(4):
                picture = io.BytesIO()
                Image.new("RGB", (24, 20), (60 * index, 0, 0)).save(picture, "JPEG")
                for ending, content in (("jpg", picture.getvalue()), ("cls", b"%d" % (index % 2))):
                    member = tarfile.TarInfo(f"{index}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    def write(self, rng: random.Random, place: Path) -> list[str]:
        (place / "data" / "val").mkdir(parents=True)
        content = (self.corpus / "good.tar").read_bytes()
        how = rng.random()
        if how < 0.4:
            content = changed_bytes(rng, content)
        elif how < 0.7:
            content = self._with_member(rng, content)
        (place / "data" / "val" / "0.tar").write_bytes(content)
        if how >= 0.7:
            self._break_index(rng, place)
        weights = os.path.relpath(self.weights, place)
        return _evaluate(weights, "--corrupt", rng.choice(["refuse", "skip"]))

    def _with_member(self, rng: random.Random, content: bytes) -> bytes:
        """Return the shard with a header field of one member, or a label, rewritten."""
        made = io.BytesIO()
        with (
            tarfile.open(fileobj=io.BytesIO(content)) as old,
            tarfile.open(fileobj=made, mode="w") as new,
        ):
            members = old.getmembers()
            broken = rng.randrange(len(members))
            for index, member in enumerate(members):
                source = old.extractfile(member)
                assert source is not None
                data = source.read()
                if index == broken:
                    change = rng.randrange(5)
                    if change == 0:
                        names = ["../../x.jpg", "/abs.cls", "\x1b[2J.jpg", "x" * 300]
                        member.name = rng.choice(names)
                    elif change == 1:
                        kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
                        member.type = rng.choice(kinds)
                        member.linkname = "/etc/passwd"
                    elif change == 2:
                        data = str(rng.choice(ODD_VALUES)).encode(errors="replace")
                    elif change == 3:
                        data = changed_bytes(rng, data)
                    else:
                        member.pax_headers = {"size": "9" * 12, "path": "../x.jpg"}
                    member.size = len(data)
                new.addfile(member, io.BytesIO(data))
        return made.getvalue()

    def _break_index(self, rng: random.Random, place: Path) -> None:
        from ecanet.data.shards import list_shards

        list_shards(place / "data", "val")
        for index in Path(os.environ["ECANET_CACHE"]).rglob("*.npz"):
            index.write_bytes(changed_bytes(rng, index.read_bytes()))


class Images(Kind):
    """Pictures of several formats."""

    name = "images"

    def seeds(self) -> None:
        from PIL import Image

        self.weights = _save_model(self.corpus.parent / "images.safetensors")
        colors = Image.new("RGB", (40, 30))
        colors.putdata([(x % 256, x * 3 % 256, x * 7 % 256) for x in range(1200)])
        for ending in ("jpg", "png", "gif", "bmp", "webp", "tif", "ppm"):
            colors.save(self.corpus / f"rgb.{ending}")
        colors.quantize(16).save(self.corpus / "palette.png", transparency=0)
        colors.convert("L").save(self.corpus / "grey.pgm")
        colors.convert("CMYK").save(self.corpus / "cmyk.jpg")
        colors.convert("F").save(self.corpus / "float.tif")
        colors.convert("I;16").save(self.corpus / "deep.png")
        colors.save(self.corpus / "lzw.tif", compression="tiff_lzw")
        colors.save(self.corpus / "two.gif", save_all=True, append_images=[colors.rotate(90)])
        exif = Image.Exif()
        exif[0x0112] = 6
        colors.save(self.corpus / "turned.jpg", exif=exif)

    def write(self, rng: random.Random, place: Path) -> list[str]:
        file = self.pick(rng)
        content = changed_bytes(rng, file.read_bytes())
        # An ending says nothing of what is inside.
        ending = file.suffix if rng.random() < 0.9 else rng.choice([".jpg", ".png", ".tif", ".gif"])
        _image_folder(place / "data")
        (place / "data" / "val" / "cat" / f"broken{ending}").write_bytes(content)
        if rng.random() < 0.5:
            weights = os.path.relpath(self.weights, place)
            return _evaluate(weights, "--corrupt", rng.choice(["refuse", "skip"]))
        _image_folder(place / "data", "train")
        _image_folder(place / "data", "test")
        return ["call", rng.choice(["read_images", "skip_images"])]


def read_images(skip: bool = False) -> None:
    """Read a folder of images into memory, as training on a small one does."""
    from ecanet.data import load_data

    load_data("./data", image_size=16, skip_corrupt=skip)


class Settings(Kind):
    """The ``settings.json`` of a run that is to be resumed."""

    name = "settings"

    def seeds(self) -> None:
        from dataclasses import asdict

        from ecanet.config import ClassificationSettings

        # Of another model than the command's: what is whole is refused, and nothing trains for seconds.
        settings = ClassificationSettings(model="vgg11", attention="none", epochs=1, device="cpu")
        (self.corpus / "good.json").write_text(json.dumps(asdict(settings), indent=2))

    def write(self, rng: random.Random, place: Path) -> list[str]:
        text = (self.corpus / "good.json").read_text()
        how = rng.random()
        if how < 0.3:
            content = changed_bytes(rng, text.encode())
        elif how < 0.6:
            content = changed_text(rng, text).encode()
        else:
            content = json.dumps(changed_tree(rng, json.loads(text))).encode()
        (place / "run").mkdir()
        (place / "run" / "settings.json").write_bytes(content)
        if rng.random() < 0.05:
            return ["train", "digits", "--out", "run", "--epochs", "1", "--model", "resnet20"]
        return ["call", "claim_run"]


def claim_run() -> None:
    """Hold the settings of a run against others, as training does once the data are read."""
    from ecanet.config import ClassificationSettings
    from ecanet.training.run_folder import claim_folder

    with claim_folder(Path("run"), ClassificationSettings(attention="none"), accept=True):
        pass


class Arguments(Kind):
    """Good files, and one or two flags or variables of rubbish."""

    name = "arguments"

    # In place of a path: what is none, what never ends, and names that nobody would give.
    _PATHS: ClassVar[list[str]] = [
        "folder", "text", "text/below", "fifo", "/dev/null", "/dev/null/below", "x" * 5000, "x/" * 2000,
        "~", "\x1b[2J", "caf\udce9", "none", "a b", "[/x]", "'", '"', "%s", "-", "nul", "a,b", "?#%.x",
        "{}", "[", ":", "é" * 100,
    ]  # fmt: skip
    _ADDRESSES: ClassVar[list[str]] = [
        "x", "postgresql://", "postgresql://u@127.0.0.1:99999/d", "postgresql://[::1", "sqlite:///x.db",
        "postgresql://u:secret@h:port/d", "mysql://h/d", "http://h/", "postgresql:///?x=%zz", "://",
    ]  # fmt: skip
    _VARIABLES: ClassVar[list[str]] = [
        "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "MASTER_PORT",
        "SLURM_NTASKS", "SLURM_NNODES", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
        "WANDB_SWEEP_ID", "WANDB_RUN_ID", "CUDA_VISIBLE_DEVICES", "ECANET_MIRROR", "COLUMNS",
        "LANG",
    ]  # fmt: skip

    def seeds(self) -> None:
        from dataclasses import fields

        from ecanet import config
        from ecanet.cli.options import StudyCommand

        self.weights = _save_model(self.corpus.parent / "arguments.safetensors")
        study = [StudyCommand, config.StudySettings]
        small = ["--workers", "0", "--device", "cpu", "--batch_size", "4", "--eval_size", "32"]
        folder = ["./none", "--out", "out"]
        # Each ends early: at data that are missing, or after four pictures.
        settings: list[tuple[list[str], list[Any]]] = [
            (["compare", "--data", *folder], [*study, config.ClassificationSettings]),
            (["sweep", "sweep.yaml", "--data", *folder],
             [config.SweepSettings, config.ClassificationSettings]),
            (["train", *folder], [config.ClassificationSettings]),
            (["train", "other", "--out", "out"], [config.ClassificationSettings]),
            (["evaluate", "data", "--weights", "weights", *small], [config.EvaluateSettings]),
            (["predict", "data", "--weights", "weights", *small], [config.ClassifySettings]),
            (["detect", "train", *folder], [config.DetectionSettings]),
            (["detect", "compare", *folder], [*study, config.DetectionSettings]),
            (["detect", "evaluate", "./none"], [config.EvaluateDetectorSettings]),
            (["detect", "predict", "data/val/cat/0.png"], [config.PredictSettings]),
            (["export", "none.safetensors"], [config.ExportSettings]),
        ]  # fmt: skip
        self.commands: list[tuple[list[str], list[str]]] = []
        for command, classes in settings:
            flags = [f"--{one.name}" for cls in classes for one in fields(cls)]
            for group in ("optimizer", "schedule", "augmentation"):
                if f"--{group}" in flags:
                    made = getattr(classes[-1](), group)
                    flags += [f"--{group}.{one.name}" for one in fields(made)]
            self.commands.append((command, [*flags, "--recipe", "--out", "--data"]))
        steer = ["", "--storage", "--study"]
        self.commands += [
            (["convert", "weights", "out.safetensors"], ["", "--to", "--model", "--partial"]),
            (["report"], steer),
            (["worker"], [*steer, "--jobs", "--data"]),
            *((["study", one], steer) for one in ("show", "status", "cancel", "retry", "list")),
            (["study", "watch", "--once"], [*steer, "--interval"]),
            (["download"], ["", "--out"]),
            (["list"], [""]),
            (["profile", "-m", "resnet20", "--image-size", "32"], [
                "--attention", "--kernel-sizes", "--num-classes", "--plugin", "--device", "--out", "-m",
            ]),
            ([], [""]),
            (["detect"], [""]),
        ]  # fmt: skip

    def write(self, rng: random.Random, place: Path) -> list[str]:
        (place / "folder").mkdir()
        (place / "text").write_text("text")
        os.mkfifo(place / "fifo")
        shutil.copy(self.weights, place / "weights")
        _image_folder(place / "data")
        _image_folder(place / "other", "train")
        (place / "other" / "test" / "bird").mkdir(parents=True)
        sweep = "method: random\nparameters:\n  lr: {min: 0.1, max: 0.2}\n"
        (place / "sweep.yaml").write_text(sweep)
        command, flags = rng.choice(self.commands)
        command = list(command)
        for _ in range(rng.choice([1, 1, 2])):
            flag = rng.choice(flags)
            plain = [str(value) for value in ODD_VALUES if "\0" not in str(value)]
            known = {"--storage": self._ADDRESSES, "--database": self._ADDRESSES}
            values = known.get(flag) or rng.choice([plain, self._PATHS])
            # Where the commands write is the user's to say, and this is the user.
            values = [v for v in values if not v.startswith(("..", "/tmp"))]
            command += [flag] * bool(flag) + [rng.choice(values)]
        variable = rng.choice(self._VARIABLES)
        if rng.random() < 0.3:
            odd = ["", "abc", "-1", "0", "1", "2", "99999999999", "1.5", "x" * 5000, "\x1b[2J"]
            command.insert(0, f"{variable}={rng.choice(odd)}")
        return command


KINDS: list[type[Kind]] = Kind.__subclasses__()
# Commands without ``ecanet`` before them, for what one would take seconds for.
CALLS: dict[str, Callable[[], None]] = {
    "read_coco": read_coco,
    "read_images": read_images,
    "skip_images": functools.partial(read_images, skip=True),
    "claim_run": claim_run,
}
