"""`evaluate` with nothing but data and weights gives training's metrics to the image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.news import news
from helpers.runs import draw_colors
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits, load_sample_images

from ecanet.config import Augmentation, ClassificationSettings, EvaluateSettings, Optimizer
from ecanet.data.preprocessing import Preprocessing
from ecanet.data.read import read_data
from ecanet.errors import UserError
from ecanet.models import create_model
from ecanet.models.weights.convert import convert_weights
from ecanet.models.weights.files import read_checkpoint
from ecanet.models.weights.save import save_weights
from ecanet.predictions import PREDICTIONS, read_predictions
from ecanet.record import read_record
from ecanet.training.classification import resolve
from ecanet.training.evaluate import evaluate_classifier
from ecanet.training.train import train, train_in_study

Trained = tuple[Path, Path, Any]
CLASSES = ("apple", "berry", "cherry")
MEMORY = ClassificationSettings(
    model="resnet20",
    epochs=2,
    batch_size=16,
    device="cpu",
    threads=1,
    compile="off",
    augmentation=Augmentation(flip=False, crop_padding=2),
    optimizer=Optimizer(lr=0.05),
)


def evaluate(
    data: Path | str, weights: Path, said: list[str] | None = None, **flags: Any
) -> dict[str, float]:
    """Evaluate on the CPU; ``said`` gets what is logged, but for the rule for 16-bit pixels."""
    settings = EvaluateSettings(weights=str(weights), workers=0, device="cpu", **flags)
    with news() as lines:
        found = evaluate_classifier(Path(data), settings)
    if said is not None:
        said += [line for line in lines if " looked at have " not in line]
    return found


def check_alike(data: Path | str, out: Path, record: Any) -> None:
    """Hold `evaluate` of a run in memory against its record, image by image and in its loss."""
    said: list[str] = []
    weights = out / "best.safetensors"
    # A run of a study keeps the tested weights alone.
    weights = weights if weights.exists() else out / "last.safetensors"
    found = evaluate(data, weights, said, batch_size=7)
    assert said == [], "nothing is assumed"
    count = found["images"]
    assert round(found["accuracy"] * count) == round(record.final["test_accuracy"] * count)
    assert found["loss"] == pytest.approx(record.final["test_loss"], rel=1e-4)


def digits(root: Path, count: int | None = None) -> Path:
    """Write scikit-learn's digits as grey images in folders, a fifth of them for test."""
    data = load_digits()
    for i, (image, label) in enumerate(zip(data.images[:count], data.target, strict=False)):
        split = "test" if i % 5 == 0 else "train"
        path = root / split / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(path)
    return root


def mixed(root: Path, splits: tuple[str, ...] = ("train", "test"), count: int = 8) -> Path:
    """Write pieces of photographs in several sizes and kinds: grey, palette, alpha, EXIF, 16 bits, JPEG."""
    random = np.random.default_rng(0)
    photographs = load_sample_images().images
    for split in splits:
        for label, name in enumerate(CLASSES):
            for i in range(count):
                height, width = random.integers(60, 130, 2)
                top, left = random.integers(0, 200, 2)
                pixels = photographs[i % 2][top : top + height, left : left + width].copy()
                pixels[..., label] = pixels[..., label] // 2 + 120
                path = root / split / name / f"{i}"
                picture = Image.fromarray(pixels)
                path.parent.mkdir(parents=True, exist_ok=True)
                exif = Image.Exif()
                exif[0x0112] = 6
                deep = np.asarray(picture.convert("L")).astype(np.uint16) * 257
                kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
                    (picture.convert("L"), ".png", {}),
                    (picture.quantize(32), ".png", {}),
                    (picture.convert("RGBA"), ".png", {}),
                    (picture, ".jpg", {"exif": exif}),
                    (Image.fromarray(deep), ".png", {}),
                    (picture, ".png", {}),
                    (picture, ".jpg", {}),
                ]
                kind, ending, options = kinds[min(i, 6)]
                kind.save(path.with_suffix(ending), **options)
    return root


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return mixed photographs, and a run in memory on them with its record."""
    folder = tmp_path_factory.mktemp("photographs")
    data, out = mixed(folder / "data"), folder / "run"
    settings = replace(MEMORY, data=str(data), model="resnet18", image_size=72, batch_size=8)
    return data, out, train(replace(settings, attention="eca"), out)


def test_mixed_photographs(photographs: Trained) -> None:
    check_alike(*photographs)


@pytest.mark.slow
def test_digits_as_folders(tmp_path: Path) -> None:
    """Once 90 % in training and 8 % in evaluation: 8 pixels made 256, and another mean."""
    data = digits(tmp_path / "digits")
    settings = replace(MEMORY, data=str(data), epochs=6, batch_size=64)
    record = train(settings, tmp_path / "run")
    assert record.final["test_accuracy"] > 0.8
    check_alike(data, tmp_path / "run", record)


def test_digits_by_name_and_grey_files_for_grey_weights(tmp_path: Path) -> None:
    settings = replace(MEMORY, data="digits", epochs=1, batch_size=256)
    record = train(settings, tmp_path / "run")
    check_alike("digits", tmp_path / "run", record)
    data = digits(tmp_path / "digits", 100)
    found = evaluate(data, tmp_path / "run/best.safetensors", split="test")
    assert found["images"] == 20
    with pytest.raises(UserError, match="digits has no split val: give --split train or test"):
        evaluate("digits", tmp_path / "run/best.safetensors", split="val")


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_deep_images_of_one_channel(tmp_path: Path, storage: Any) -> None:
    """Floats of negative values, as of a CT: the weights keep the window and the number of channels."""
    data, chance = tmp_path / "data", np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 6)):
        for label, name in enumerate(CLASSES):
            (data / split / name).mkdir(parents=True)
            for i in range(count):
                values = chance.normal(-600 + 400 * label, 300, (12, 12)).astype(np.float32)
                Image.fromarray(values).save(data / split / name / f"{i}.tif")
    settings = replace(MEMORY, data=str(data), storage=storage, workers=0, epochs=1)
    with pytest.raises(UserError, match=r"it has floats from -.* --window LOW,HIGH"):
        train(settings, tmp_path / "refused")
    settings = replace(settings, in_chans=1, window=[-1000, 400])
    record = train(settings, tmp_path / "run")
    check_alike(data, tmp_path / "run", record)
    weights = tmp_path / "run/best.safetensors"
    said: list[str] = []
    other = evaluate(data, weights, said, window=[-1000, 4000])
    assert other["loss"] != pytest.approx(record.final["test_loss"], rel=1e-3)
    assert any("window (-1000.0, 4000.0), not (-1000.0, 400.0)" in line for line in said)
    with news() as lines:
        evaluate(data, weights, eval_size=16)
    assert "-1000 becomes black and 400 white" in lines[-1], "another size keeps the window"
    settings = replace(settings, window=None, weights=str(weights))
    assert train(settings, tmp_path / "further").settings["window"] == [-1000, 400], "the weights'"
    with pytest.raises(UserError, match="--window: the pixels of digits have 8 bits"):
        evaluate("digits", weights, window=[0, 1])


@pytest.mark.slow
def test_cifar_folders(real_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "cifar10"
    for split, count in (("train", 20), ("test", 15)):
        for folder in sorted((real_data / "cifar10" / split).iterdir()):
            target = data / split / folder.name
            target.mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                shutil.copy(file, target)
    record = train(replace(MEMORY, data=str(data), attention="se"), tmp_path / "run")
    check_alike(data, tmp_path / "run", record)


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_weights_of_a_run_are_those_of_its_record(tmp_path: Path, select: Any) -> None:
    data = digits(tmp_path / "digits", 300)
    settings = replace(MEMORY, data=str(data), epochs=3, select=select, batch_size=32)
    record = train(settings, tmp_path / "run")
    check_alike(data, tmp_path / "run", record)
    best, last = (load_file(tmp_path / f"run/{name}.safetensors") for name in ("best", "last"))
    same = all(torch.equal(best[name], last[name]) for name in best)
    assert same == (record.final["epoch"] == 2)


@pytest.mark.slow
def test_evaluation_in_training_is_in_float32(tmp_path: Path) -> None:
    """bf16 is for the steps: the figure does not hang on the batch, nor on the machine's precision."""
    data = digits(tmp_path / "digits", 300)
    settings = replace(MEMORY, data=str(data), precision="bf16")
    record = train(settings, tmp_path / "run")
    check_alike(data, tmp_path / "run", record)
    found = evaluate(data, tmp_path / "run/best.safetensors", precision="bf16")
    assert found["loss"] != pytest.approx(record.final["test_loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", [{"compile": "on"}, {"devices": 2}])
def test_compiled_and_on_several_devices(tmp_path: Path, how: dict[str, Any]) -> None:
    # After other tests' compilations sizes would be taken for dynamic, at which torch 2.14 fails.
    torch.compiler.reset()
    data = digits(tmp_path / "digits", 301)
    settings = replace(MEMORY, data=str(data), epochs=1, attention="eca", **how)
    settings = resolve(settings, read_data(settings))
    record = train_in_study(settings, tmp_path / "run")
    check_alike(data, tmp_path / "run", record)


def test_streamed_training(tmp_path: Path) -> None:
    """The running mean of the weights, another size and crop, best and last: each as its row says."""
    data = mixed(tmp_path / "data", ("train", "val"))
    settings = ClassificationSettings(
        storage="stream", model="resnet20", epochs=2, batch_size=8, image_size=40, eval_size=44,
        crop_share=0.8, ema_decay=0.7, precision="bf16", workers=0, device="cpu", threads=1,
        optimizer=Optimizer(lr=0.05), augmentation=Augmentation(scale=[0.5, 1.0]),
    )  # fmt: skip
    record = train(replace(settings, data=str(data)), tmp_path / "run")
    best = max(reversed(record.epochs), key=lambda row: row["val_accuracy"])
    for name, row in (("last", record.final), ("best", best)):
        said: list[str] = []
        found = evaluate(data, tmp_path / f"run/{name}.safetensors", said, batch_size=5)
        assert said == []
        assert found["accuracy"] == row["val_accuracy"], name
        assert found["loss"] == pytest.approx(row["val_loss"], rel=1e-5)
    assert read_record(tmp_path / "run/record.json") == record


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    """In training and after it, in memory and streamed: none stands in for another."""
    data = mixed(tmp_path / "data", ("train", "test"))
    (data / "test/berry/7.jpg").write_bytes(b"nothing")
    settings = replace(MEMORY, data=str(data), image_size=32, batch_size=8, corrupt="skip")
    memory = train(settings, tmp_path / "memory")
    best = tmp_path / "memory/best.safetensors"
    with pytest.raises(UserError, match=r"7.jpg cannot be decoded.*--corrupt"):
        evaluate(data, best)
    said: list[str] = []
    found = evaluate(data, best, said, corrupt="skip", batch_size=1)
    assert said == ["skipped an image that cannot be decoded: test/berry/7.jpg"]
    assert found["images"] == 23
    assert round(23 * found["accuracy"]) == round(23 * memory.final["test_accuracy"])
    assert found["loss"] == pytest.approx(memory.final["test_loss"], rel=1e-4)
    (data / "test").rename(data / "val")
    streamed = replace(settings, storage="stream", image_size=16, seed=3)
    record = train(streamed, tmp_path / "streamed")
    found = evaluate(data, tmp_path / "streamed/last.safetensors", corrupt="skip")
    assert found["accuracy"] == record.final["val_accuracy"]
    for file in (data / "val").rglob("*.*"):
        file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of the images"):
        evaluate(data, best, corrupt="skip")


# ---- there and back


LAYOUTS = [
    ("torchvision", "x.pth"), ("timm", "x.safetensors"), ("official", "x.pth.tar"), ("hub", "hub"),
    pytest.param("ecanet", "x.safetensors", marks=pytest.mark.slow),
    pytest.param("torchvision", "x.safetensors", marks=pytest.mark.slow),
    pytest.param("timm", "x.pth", marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "name"), LAYOUTS)
def test_all_layouts_and_back(photographs: Trained, tmp_path: Path, layout: str, name: str) -> None:
    data, out, record = photographs
    there, back = tmp_path / name, tmp_path / "back.safetensors"
    convert_weights(out / "best.safetensors", there, layout)
    convert_weights(there, back)
    for file in (there, back):
        said: list[str] = []
        found = evaluate(data, file, said)
        assert said == []
        assert found["accuracy"] == pytest.approx(record.final["test_accuracy"], abs=1e-6)
        assert found["loss"] == pytest.approx(record.final["test_loss"], rel=1e-4)
    kept = {"preprocessing", "classes"}
    first, last = (read_checkpoint(f).metadata for f in (out / "best.safetensors", back))
    assert {k: first[k] for k in kept} == {k: last[k] for k in kept}


def test_a_backbone_keeps_its_preprocessing(photographs: Trained, tmp_path: Path) -> None:
    convert_weights(photographs[1] / "best.safetensors", tmp_path / "x.pth", "mmdetection")
    convert_weights(tmp_path / "x.pth", tmp_path / "back.safetensors")
    said = Preprocessing.from_metadata(read_checkpoint(tmp_path / "back.safetensors").metadata)
    assert said is not None
    assert (said.size, said.resize) == (72, 72)
    assert said.mean != Preprocessing(72, 72).mean


def test_timm_loads_what_says_more(photographs: Trained, tmp_path: Path) -> None:
    """timm a Hub folder with the size, mean and names."""
    import timm

    source = photographs[1] / "best.safetensors"
    convert_weights(source, tmp_path / "hub", "hub")
    model = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    told = timm.data.resolve_model_data_config(model, use_test_size=True)
    ours = Preprocessing.from_metadata(read_checkpoint(source).metadata)
    assert ours is not None
    assert told["input_size"] == (3, 72, 72)
    assert (tuple(told["mean"]), tuple(told["std"])) == (ours.mean, ours.std)
    assert (told["crop_pct"], told["interpolation"]) == (1.0, "bilinear")
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert config["label_names"] == list(CLASSES)


# ---- classes


def test_classes_are_matched_by_name(photographs: Trained, tmp_path: Path) -> None:
    data, out, _ = photographs
    weights = out / "best.safetensors"
    whole = evaluate(data, weights)
    part = tmp_path / "part"
    hits = 0.0
    for name in CLASSES:
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(data / "test" / name, part / "test" / name)
        said: list[str] = []
        found = evaluate(part, weights, said)
        rest = ", ".join(other for other in CLASSES if other != name)
        (line,) = said
        assert line.startswith("2 of the 3 classes of the weights have no image here")
        assert line.endswith(f": {rest}")
        hits += found["accuracy"] * found["images"]
    assert round(hits) == round(whole["accuracy"] * whole["images"]), "a subset is scored right"
    renamed = tmp_path / "renamed"
    shutil.copytree(data, renamed)
    (renamed / "test/apple").rename(renamed / "test/zapple")
    with pytest.raises(UserError, match=r"do not have: zapple; they have apple, berry, cherry"):
        evaluate(renamed, weights)


def test_weights_in_another_order(photographs: Trained, tmp_path: Path) -> None:
    """Their outputs and names turned round: the same images are right."""
    data, out, _ = photographs
    file = out / "best.safetensors"
    tensors, metadata = load_file(file), read_checkpoint(file).metadata
    for name in ("fc.weight", "fc.bias"):
        tensors[name] = tensors[name].flip(0).contiguous()
    turned = tmp_path / "turned.safetensors"
    save_file(tensors, turned, metadata | {"classes": json.dumps(CLASSES[::-1])})
    assert evaluate(data, turned)["accuracy"] == evaluate(data, file)["accuracy"]


# ---- what weights say, and do not say


@pytest.mark.parametrize("name", ["evaluate", "convert", "export"])
@pytest.mark.parametrize(
    "change", [{"size": 10**9}, {"std": [0, 0, 0]}, {"mean": [float("nan")] * 3}, "a string"]
)
def test_forged_preprocessing(photographs: Trained, tmp_path: Path, name: str, change: Any) -> None:
    from ecanet.config import ExportSettings
    from ecanet.export import export_model

    data, out, _ = photographs
    uses: dict[str, Callable[[Path, Path], Any]] = {
        "evaluate": lambda file, target: evaluate(data, file),
        "convert": lambda file, target: convert_weights(file, target, "torchvision"),
        "export": lambda file, target: export_model(ExportSettings(str(file), "torch"), target),
    }
    metadata = read_checkpoint(out / "best.safetensors").metadata
    said = json.loads(metadata["preprocessing"])
    said = said | change if isinstance(change, dict) else change
    file, target = tmp_path / "x.safetensors", tmp_path / "out.pt2"
    metadata = metadata | {"preprocessing": json.dumps(said)}
    save_file(load_file(out / "best.safetensors"), file, metadata)
    with pytest.raises(UserError, match="preprocessing") as caught:
        uses[name](file, target)
    assert "\n" not in str(caught.value)
    assert not target.exists()


def test_weights_that_say_nothing(photographs: Trained, tmp_path: Path) -> None:
    """As ImageNet's were prepared, and by the order of the folders: two lines say so."""
    data, out, _ = photographs
    file = tmp_path / "foreign.pth"
    torch.save(load_file(out / "best.safetensors"), file)
    said: list[str] = []
    found = evaluate(data, file, said, eval_size=64, crop_share=0.8)
    assert len(said) == 3, said
    assert "do not say how images are prepared" in said[0]
    assert "0.485 0.456 0.406" in said[0]
    assert said[1] == "flags change how images are prepared: size 64, not 224; resize 80, not 256"
    assert "do not name their classes" in said[2]
    again = tmp_path / "ours.safetensors"
    save_weights(
        again, load_file(out / "best.safetensors"), model="resnet18", attention="eca",
        num_classes=3, preprocessing=Preprocessing(64, 80), classes=CLASSES,
    )  # fmt: skip
    assert evaluate(data, again)["loss"] == found["loss"]


def test_flags_in_place_of_what_weights_say(photographs: Trained) -> None:
    data, out, record = photographs
    said: list[str] = []
    other = {"interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.25] * 3}
    found = evaluate(data, out / "best.safetensors", said, **other)
    (line,) = said
    assert "interpolation bicubic, not bilinear" in line
    assert found["loss"] != pytest.approx(record.final["test_loss"])
    for flags in ({"eval_size": 0}, {"crop_share": 1.5}, {"std": [0.0] * 3}, {"mean": [0.5] * 4}):
        with pytest.raises(UserError):
            evaluate(data, out / "best.safetensors", **flags)  # type: ignore[arg-type]


def test_channels_that_contradict_the_first_layer(tmp_path: Path) -> None:
    model = create_model("resnet20", num_classes=2, in_chans=1)
    save_weights(
        tmp_path / "x.safetensors", model.state_dict(), model="resnet20", attention="none",
        num_classes=2, in_chans=1, preprocessing=Preprocessing(8, 8), classes=["0", "1"],
    )  # fmt: skip
    data = digits(tmp_path / "digits", 20)
    with pytest.raises(UserError, match="of 3 channels, but the first layer takes 1"):
        evaluate(data, tmp_path / "x.safetensors", split="test")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_exports_say_how_to_prepare_images(photographs: Trained, tmp_path: Path, form: Any) -> None:
    """What it says and gives, by hand, is training's accuracy."""
    from ecanet.config import ExportSettings
    from ecanet.data.listing import list_evaluated
    from ecanet.export import export_model

    data, out, record = photographs
    file = tmp_path / "model.out"
    export_model(ExportSettings(str(out / "best.safetensors"), form), file)
    if form == "torch":
        kept = {"ecanet.json": ""}
        run: Any = torch.export.load(file, extra_files=kept).module()
        said = json.loads(kept["ecanet.json"])
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(str(file))
        said = session.get_modelmeta().custom_metadata_map

        def run(images: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    from ecanet.data.decode import decode_image

    preprocessing = Preprocessing.from_metadata(said)
    assert preprocessing is not None
    assert json.loads(said["classes"]) == list(CLASSES)
    _, images = list_evaluated(str(data), EvaluateSettings())
    batch = preprocessing.batch([decode_image(images.read(i)) for i in range(len(images))])
    hits = (run(batch).argmax(1) == torch.tensor(images.labels)).sum().item()
    assert hits == round(record.final["test_accuracy"] * len(images))


@pytest.mark.slow
def test_weights_are_evaluated_on_what_their_training_held_out(tmp_path: Path) -> None:
    """By the same fraction and groups, without their being given again; others can be given."""
    pool = draw_colors(tmp_path) / "train"
    settings = replace(MEMORY, data=str(pool), test=0.4, group_by=r"(\d+)\.jpg", epochs=1)
    result = train(settings, tmp_path / "run")
    lines: list[str] = []
    found = evaluate(pool, tmp_path / "run/last.safetensors", lines)
    assert found["accuracy"] == result.final["test_accuracy"]
    assert found["images"] == len(read_data(settings).test or ())
    kept = read_predictions(tmp_path / "run" / PREDICTIONS)
    assert kept.groups == [name.removesuffix(".jpg").rpartition("/")[2] for name in kept.images]
    assert any("0.4 of all for the test" in line for line in lines)
    assert evaluate(pool, tmp_path / "run/last.safetensors", test=0.2)["images"] < found["images"]
    # Other images, in whose names there are no groups, and which are in no table.
    other = tmp_path / "other"
    for folder in sorted(pool.iterdir()):
        (other / folder.name).mkdir(parents=True)
        shutil.copy(folder / "0.jpg", other / folder.name / "x.jpg")
    file = tmp_path / "columns.safetensors"
    tensors = read_checkpoint(tmp_path / "run/last.safetensors").tensors
    save_weights(
        file, tensors, model="resnet20", attention="none", num_classes=3,
        preprocessing=Preprocessing(8, 8), classes=["class0", "class1", "class2"],
        metadata={"division": json.dumps({"group_by": "(\\d+)[.]jpg", "columns": ["label=kind"]})},
    )  # fmt: skip
    assert evaluate(other, file, split="all")["images"] == 3
    for text in ("5", "{", '{"test": "x"}', '{"columns": 3}'):
        save_weights(
            tmp_path / "odd.safetensors", tensors, model="resnet20", attention="none", num_classes=3,
            metadata={"division": text},
        )  # fmt: skip
        with pytest.raises(UserError, match=r"odd\.safetensors describes no division of images"):
            evaluate(pool, tmp_path / "odd.safetensors")
