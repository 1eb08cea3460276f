"""Training from weights that were trained before: of ours, timm's and torchvision's networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.networks import randomize_norms
from helpers.runs import IN_MEMORY, STREAMED, draw_colors, outcome
from lightning_fabric import Fabric
from safetensors.torch import load_file
from timm.models import resnet18
from timm.optim import param_groups_layer_decay
from torch import Tensor

import ecanet
from ecanet.config import ClassificationSettings, EvaluateSettings, Optimizer, StudySettings
from ecanet.data import Split
from ecanet.data.preprocessing import Preprocessing
from ecanet.data.read import read_data
from ecanet.errors import UserError
from ecanet.models import attention_modules, create_model
from ecanet.models.inputs import weights_preprocessing
from ecanet.models.weights.save import save_weights
from ecanet.training.classification import ClassificationTask, build_model, read, resolve
from ecanet.training.evaluate import evaluate_classifier
from ecanet.training.optim import build_optimizer
from ecanet.training.task import Hooks
from ecanet.training.train import train
from ecanet.training.transfer import classifier, lr_scales

NETWORKS = ["resnet18", "mnasnet_small", "torchvision/mobilenet_v2"]
THEIRS = Preprocessing(16, 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.fixture(scope="module", params=NETWORKS)
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights, as if trained on seven other classes."""
    name = request.param
    kwargs: dict[str, Any] = {"stem": "cifar"} if name == "resnet18" else {}
    torch.manual_seed(1)
    model = create_model(name, num_classes=7, **kwargs)
    randomize_norms(model)
    path = tmp_path_factory.mktemp("weights") / "seven.safetensors"
    save_weights(
        path, model.state_dict(), model=name, attention="none", num_classes=7, model_args=kwargs,
        preprocessing=THEIRS, classes=list("abcdefg"),
    )  # fmt: skip
    return path


@pytest.fixture(params=["memory", "stream"])
def settings(
    request: pytest.FixtureRequest, weights: Path, tmp_path: Path
) -> ClassificationSettings:
    """Of runs from these weights, on images of three classes and 16 pixels."""
    base = {"memory": IN_MEMORY, "stream": STREAMED}[request.param]
    return replace(
        base, data=str(draw_colors(tmp_path / "images")), weights=str(weights), model=None,
        epochs=1, save_every=100, drop_rate=0.0, ema_decay=None,
    )  # fmt: skip


def task_of(settings: ClassificationSettings) -> ClassificationTask:
    data = read(settings)
    return ClassificationTask(resolve(settings, data), data, Fabric(devices=1, accelerator="cpu"))


def logits(task: ClassificationTask) -> Tensor:
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return task.model.eval()(images)


def seeded(settings: ClassificationSettings, **changes: Any) -> ClassificationTask:
    torch.manual_seed(settings.seed)
    return task_of(replace(settings, **changes))


@pytest.mark.slow
def test_every_module_starts_with_what_the_plain_network_computes(
    settings: ClassificationSettings,
) -> None:
    """The same fresh classifier, too; without the identity, the logits are others."""
    plain = logits(seeded(settings, attention="none"))
    for module in ("eca", "se", "cbam"):
        task = seeded(settings, attention=module)
        assert attention_modules(task.model)
        torch.testing.assert_close(logits(task), plain, rtol=1e-5, atol=1e-6)
    other = logits(seeded(settings, attention="eca", identity=False))
    assert not torch.allclose(other, plain, rtol=1e-2)


@pytest.mark.slow
def test_trained_weights_evaluate_as_measured_and_a_stopped_run_resumes_bit_for_bit(
    settings: ClassificationSettings, tmp_path: Path
) -> None:
    settings = replace(
        settings, attention="eca", epochs=2, freeze=1,
        optimizer=Optimizer(layer_decay=0.8, new_lr_scale=5.0),
    )  # fmt: skip
    whole = train(settings, tmp_path / "whole")
    measured = evaluate_classifier(
        Path(settings.data),
        EvaluateSettings(weights=str(tmp_path / "whole/last.safetensors"), device="cpu", workers=0),
    )
    assert measured["accuracy"] == whole.final["val_accuracy"]
    assert measured["loss"] == pytest.approx(whole.final["val_loss"], rel=1e-5)

    steps = iter(range(100))

    def stop() -> None:
        if next(steps) == 7:  # in the second epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "stopped", hooks=Hooks(on_step=stop))
    train(settings, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["backbone", 1])
def test_what_is_frozen_stays_and_new_parts_are_trained(
    settings: ClassificationSettings, tmp_path: Path, how: Any
) -> None:
    settings = replace(settings, attention="se", freeze=how)
    before = seeded(settings)
    trained = {name for name, p in before.model.named_parameters() if p.requires_grad}
    news = {name for name in before.model.state_dict() if ".attention." in name}
    last = {id(p) for p in classifier(before.model)}
    head = {name for name, p in before.model.named_parameters() if id(p) in last}
    assert head
    assert news & trained
    assert head <= trained
    if how == "backbone":
        assert all(name in head or ".attention." in name for name in trained)
    else:
        stem = next(iter(before.model.state_dict()))
        assert stem not in trained
        assert any(name not in head and ".attention." not in name for name in trained)
    started = {name: value.clone() for name, value in before.model.state_dict().items()}
    train(settings, tmp_path / "run")
    ended = load_file(tmp_path / "run/last.safetensors")
    norms = {name.rpartition(".")[0] for name in trained}
    for name, value in started.items():
        layer, _, leaf = name.rpartition(".")
        fixed = (
            name not in trained
            if "." in name and leaf in ("weight", "bias")
            else layer not in norms
        )
        if fixed:
            assert torch.equal(ended[name], value), name
    assert any(not torch.equal(ended[name], started[name]) for name in head)
    assert any(not torch.equal(ended[name], started[name]) for name in news)


def test_images_are_prepared_as_the_weights_need_them(
    settings: ClassificationSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ecanet")
    data = read(settings)
    assert data.mean == THEIRS.mean
    assert data.std == THEIRS.std
    assert any("as for the weights, as their file says" in line for line in caplog.messages)
    resolved = resolve(settings, data)
    assert resolve(resolved, read(resolved)) == resolved, "what is resolved stays"
    assert resolved.identity is True
    assert resolved.storage == settings.storage
    assert resolve(replace(settings, optimizer=Optimizer()), data).optimizer.lr == pytest.approx(
        0.1 * 0.1 * 8 / 128
    )


def test_layer_decay_is_timms_but_for_the_attention_modules() -> None:
    model = resnet18(num_classes=3)
    reference = param_groups_layer_decay(model, layer_decay=0.7)
    expected = {id(p): group["lr_scale"] for group in reference for p in group["params"]}
    ours = create_model("resnet18", num_classes=3, attention="se")
    names = {id(p): name for name, p in model.named_parameters()}
    of_name = {names[key]: scale for key, scale in expected.items()}
    scales = lr_scales(ours, 0.7, 3.0)
    for name, parameter in ours.named_parameters():
        new = ".attention." in name or name.startswith("fc.")
        assert scales[parameter] == pytest.approx(3.0 if new else of_name[name]), name


@pytest.mark.parametrize("name", ["sgd", "adamw", "adam", "lamb"])
def test_each_optimizer_takes_the_rates_of_its_groups(name: Any) -> None:
    model = create_model("resnet20", attention="eca")
    chosen = Optimizer(name=name, lr=0.5, layer_decay=0.5, new_lr_scale=2.0, weight_decay=0.1)
    optimizer = build_optimizer(model, chosen, torch.device("cpu"))
    rates = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    assert rates[id(model.fc.weight)]["lr"] == 1.0
    assert rates[id(model.fc.weight)]["weight_decay"] == 0.1
    assert rates[id(model.fc.bias)]["weight_decay"] == 0.0
    assert rates[id(model.conv1.weight)]["lr"] == pytest.approx(0.5 * 0.5**10)


@pytest.mark.parametrize("model", ["efficientnet_b0", "torchvision/mobilenet_v2"])
def test_the_logits_of_a_new_classifier_begin_near_zero(tmp_path: Path, model: str) -> None:
    """As built by timm, EfficientNets of few classes begin with logits of several units."""
    save_weights(
        tmp_path / "w.safetensors", create_model(model, num_classes=7).state_dict(), model=model,
        attention="none", num_classes=7,
    )  # fmt: skip
    settings = replace(
        STREAMED, data=str(draw_colors(tmp_path / "images")), model=None,
        drop_rate=0.0, weights=str(tmp_path / "w.safetensors"),
    )  # fmt: skip
    weight, bias = classifier(task_of(settings).model)[-2:]
    assert weight.shape[0] == bias.shape[0] == 3
    assert weight.detach().std() == pytest.approx(0.01, rel=0.1)
    assert not bias.any()


def test_a_classifier_of_as_many_other_classes_is_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ecanet")
    images = draw_colors(tmp_path / "images")
    model = create_model("resnet20", num_classes=3)
    for names, fresh in ((["class0", "class1", "class2"], False), (["a", "b", "c"], True)):
        file = tmp_path / "three.safetensors"
        save_weights(
            file,
            model.state_dict(),
            model="resnet20",
            attention="none",
            num_classes=3,
            classes=names,
        )
        caplog.clear()
        settings = replace(IN_MEMORY, data=str(images), weights=str(file))
        data = read(settings)
        built = build_model(resolve(settings, data), data)
        assert torch.equal(built.fc.weight, model.fc.weight) is not fresh
        assert any("a new classifier" in line for line in caplog.messages) is fresh


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": "backbone"}, "--freeze backbone: fresh weights must be trained"),
        ({"freeze": 9, "weights": "W"}, "--freeze 9: CifarResNet has 3 stages"),
        ({"pretrained": True, "weights": "W"}, "give only one"),
        ({"freeze": 0, "weights": "W"}, "--freeze 0: give a whole number from 1"),
        ({"identity": True, "replace_attention": True}, "leave one out"),
    ],
)
def test_contradictions(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = tmp_path / "weights.safetensors"
    model = create_model("resnet20", num_classes=3)
    save_weights(file, model.state_dict(), model="resnet20", attention="none", num_classes=3)
    if "weights" in changes:
        changes = {**changes, "weights": str(file)}
    with pytest.raises(UserError, match=message):
        task_of(replace(IN_MEMORY, data=str(draw_colors(tmp_path / "images")), **changes))


@pytest.mark.slow
def test_a_comparison_starts_all_its_modules_from_the_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ecanet")
    file = tmp_path / "weights.safetensors"
    model = create_model("resnet20", num_classes=7)
    save_weights(
        file,
        model.state_dict(),
        model="resnet20",
        attention="none",
        num_classes=7,
        preprocessing=THEIRS,
    )
    settings = replace(
        IN_MEMORY, data=str(draw_colors(tmp_path / "images")), weights=str(file), model=None,
        attention=None, epochs=1, freeze="backbone",
    )  # fmt: skip
    study = StudySettings(attention=["none", "eca"], seeds=1)
    summary = ecanet.compare(tmp_path / "study", settings, study, jobs=1)
    assert len(summary.records) == 2
    assert summary.settings["identity"] is True
    assert summary.settings["model"] == "resnet20"
    assert sum("195 of 269,267 parameters are trained" in line for line in caplog.messages) == 2, (
        "once more with the report"
    )


def test_images_of_bicubic_weights_are_resized_so_and_streamed(tmp_path: Path) -> None:
    images = draw_colors(tmp_path / "images")
    settings = replace(IN_MEMORY, data=str(images), storage="auto", image_size=16)
    theirs = replace(THEIRS, interpolation="bicubic")
    data = read_data(settings, weights=theirs)
    assert not isinstance(data.train, Split)
    assert data.preprocessing == theirs
    with pytest.raises(UserError, match=r"resized otherwise.*--storage stream"):
        read_data(replace(settings, storage="memory"), weights=theirs)
    bigger = read_data(replace(settings, data="digits"), weights=theirs)
    assert bigger.mean == (pytest.approx(0.5),)
    plain = read_data(replace(settings, data="digits"))
    assert not torch.equal(bigger.train.images, plain.train.images)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "share", "interpolation"),
    [
        ("resnet18", 0.95, "bicubic"),  # timm's a1_in1k
        ("mobilenet_v2", 0.875, "bicubic"),
        ("torchvision/resnet50", 224 / 232, "bilinear"),
    ],
)
def test_how_images_are_prepared_for_pretrained_weights(
    name: str, share: float, interpolation: str
) -> None:
    found = weights_preprocessing(name, {}, pretrained=True)
    assert found is not None
    assert (found[0].size, found[0].interpolation) == (224, interpolation)
    assert found[0].crop_share == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("name", ["eca_resnet18", "eca_mobilenet_v2"])
def test_the_eca_of_a_networks_name_starts_as_the_identity_and_keeps_its_kernels(
    tmp_path: Path, name: str
) -> None:
    torch.manual_seed(0)
    plain = create_model(name.removeprefix("eca_"), num_classes=3)
    randomize_norms(plain)
    save_weights(
        tmp_path / "w.safetensors", plain.state_dict(), model=name.removeprefix("eca_"),
        attention="none", num_classes=3,
    )  # fmt: skip
    settings = replace(
        IN_MEMORY, data=str(draw_colors(tmp_path / "images")), model=name, attention=None,
        weights=str(tmp_path / "w.safetensors"),
    )  # fmt: skip
    task = task_of(settings)
    shapes = {n: v.shape for n, v in create_model(name, num_classes=3).state_dict().items()}
    assert {n: v.shape for n, v in task.model.state_dict().items()} == shapes
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = plain.eval()(images), task.model.eval()(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
