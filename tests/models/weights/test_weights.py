"""Weights of every layout: the model that they imply, loading them, and weights that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from helpers.networks import equal
from torch import Tensor, nn

import ecanet
from ecanet.errors import UserError
from ecanet.models import create_model
from ecanet.models.classifier import classifier_names
from ecanet.models.weights.convert import convert_weights
from ecanet.models.weights.files import Checkpoint
from ecanet.models.weights.identify import read_weights
from ecanet.models.weights.load import build_from_weights, load_weights, read_stem
from ecanet.models.weights.save import save_weights

KERNELS = "3577"


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def official_names(model: nn.Module) -> dict[str, Tensor]:
    """Return an ECA-ResNet's weights with the names of the authors' DataParallel, independently of ours."""
    return {
        "module." + name.replace(".attention.conv.", ".eca.conv."): tensor
        for name, tensor in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def eca18() -> nn.Module:
    torch.manual_seed(0)
    return create_model("eca_resnet18", kernel_sizes=KERNELS, num_classes=7)


@pytest.fixture(scope="module")
def official18(eca18: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file in the format of the authors' program, with a wrong arch, as happens there."""
    content = {
        "epoch": 100,
        "arch": "se_resnet50",
        "state_dict": official_names(eca18),
        "best_prec1": torch.tensor(70.92),
        "optimizer": torch.optim.SGD(eca18.parameters(), lr=0.1, momentum=0.9).state_dict(),
    }
    return saved(tmp_path_factory.mktemp("official") / "eca_resnet18_k3577.pth.tar", content)


def test_the_model_of_official_checkpoints_is_inferred(official18: Path, eca18: nn.Module) -> None:
    weights = read_weights(official18)
    assert (weights.model, weights.kernel_sizes) == ("eca_resnet18", (3, 5, 7, 7))
    assert (weights.num_classes, weights.in_chans) == (7, 3)
    assert (weights.layout, weights.metadata["epoch"]) == ("official", "100")
    assert weights.report.complete
    assert equal(weights.state_dict, eca18.state_dict())
    model = build_from_weights(official18)
    assert equal(model.state_dict(), eca18.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(images), eca18.eval()(images))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("eca_resnet18", {"stem": "cifar", "num_classes": 10, "in_chans": 1}),
        ("eca_resnet34", {"kernel_sizes": "3357"}),
        ("eca_resnet50", {"kernel_sizes": "3557"}),
        ("eca_resnet101", {"kernel_sizes": "3357"}),
        ("eca_resnet152", {"kernel_sizes": "3357", "num_classes": 0}),
        ("eca_mobilenet_v2", {}),
        ("resnet50", {}),
        ("mobilenet_v2", {"num_classes": 10}),
        ("resnet20", {"attention": "eca", "num_classes": 10}),
        ("resnet56", {"num_classes": 10, "in_chans": 1}),
        ("eca_resnet50", {"attention": "eca:kernel_size=11"}),
        ("eca_resnet50", {"stem_type": "deep", "stem_width": 32, "avg_down": True}),
        ("resnet18", {"attention": "se"}),
        ("resnet34", {"attention": "cbam"}),
        ("resnet20", {"attention": "eca_ns", "num_classes": 10}),
        ("resnet20", {"attention": "se_gc2", "num_classes": 10}),
        ("mobilenet_v2", {"attention": "coord"}),
    ],
)
def test_every_model_is_identified(name: str, arguments: dict) -> None:
    with torch.device("meta"):
        state = create_model(name, **arguments).state_dict()
    weights = read_weights(Checkpoint(state, {}, Path("x")))
    assert weights.model == name
    if "attention" in arguments:
        assert weights.attention == arguments["attention"].split(":")[0]
    assert weights.num_classes == arguments.get("num_classes", 1000)
    assert weights.in_chans == arguments.get("in_chans", 3)
    assert weights.report.complete, str(weights.report)
    if name == "eca_resnet50" and "attention" in arguments:
        assert weights.kernel_sizes == (11,) * 4
        assert "kernels 11,11,11,11" in str(weights)


def test_official_mobilenet_names(tmp_path: Path) -> None:
    """The order of weights is the same in both; the ECA layer is the last of a block's Sequential."""
    model = create_model("eca_mobilenet_v2")
    theirs = iter(torchvision.models.mobilenet_v2().state_dict())
    state: dict[str, Tensor] = {}
    number = 0
    for name, tensor in model.state_dict().items():
        if ".attention." not in name:
            state["module." + next(theirs)] = tensor
            continue
        number += 1
        last = 3 if number == 1 else 4
        state[f"module.features.{number}.conv.{last}.conv.weight"] = tensor
    weights = read_weights(saved(tmp_path / "eca_mobilenetv2_k13.pth.tar", {"state_dict": state}))
    assert (weights.model, weights.kernel_sizes) == ("eca_mobilenet_v2", (1, 1, 1, 3, 3, 3, 3))
    assert weights.layout == "official"
    assert equal(weights.state_dict, model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout", "expected"),
    [
        ("torchvision/resnet18", "torchvision", ("resnet18", None)),
        ("torchvision/mobilenet_v2", "torchvision", ("mobilenet_v2", None)),
        ("ecaresnet50d", "timm", ("eca_resnet50", (5, 5, 5, 7))),  # deep stem
        ("ecaresnet50t", "timm", ("eca_resnet50", (5, 5, 5, 7))),  # tiered stem
        ("seresnet50", "timm", ("resnet50", None)),
    ],
)
def test_files_of_other_libraries_compute_the_same(
    tmp_path: Path, name: str, layout: str, expected: tuple[str, tuple[int, ...] | None]
) -> None:
    torch.manual_seed(0)
    reference = create_model(name, num_classes=5).eval()
    path = saved(tmp_path / "x.pth", {"state_dict": reference.state_dict(), "arch": name})
    model = build_from_weights(path).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(images), reference(images))
    weights = read_weights(path)
    assert (weights.layout, (weights.model, weights.kernel_sizes)) == (layout, expected)


def test_a_detectors_backbone_is_found(tmp_path: Path, eca18: nn.Module) -> None:
    names = official_names(eca18).items()
    state = {n.replace("module.", "backbone."): t for n, t in names if ".fc." not in n}
    heads = {
        "neck.lateral_convs.0.conv.weight": torch.zeros(1),
        "bbox_head.fc_cls.bias": torch.zeros(1),
    }
    path = saved(tmp_path / "mask_rcnn.pth", {"meta": {"epoch": 12}, "state_dict": state | heads})
    weights = read_weights(path)
    assert (weights.model, weights.num_classes) == ("eca_resnet18", 0)
    assert weights.layout == "mmdetection"
    assert weights.report.unrelated == list(heads)
    assert weights.report.complete
    backbone = create_model("eca_resnet18", kernel_sizes=KERNELS, num_classes=0)
    report = load_weights(backbone, path)
    assert "2 unrelated to the model, ignored: neck.lateral" in str(report)
    assert torch.equal(backbone.layer4[1].conv2.weight, eca18.layer4[1].conv2.weight)
    with pytest.raises(UserError, match=r"fc\.weight is not in the file; fc\.bias"):
        load_weights(create_model("eca_resnet18", kernel_sizes=KERNELS), path)


def test_mmpretrains_classifier_is_found(tmp_path: Path) -> None:
    model = create_model("resnet18", num_classes=7)
    state = {
        f"head.{name}" if name.startswith("fc.") else f"backbone.{name}": tensor
        for name, tensor in model.state_dict().items()
    }
    path = saved(tmp_path / "resnet18.pth", {"meta": {"epoch": 100}, "state_dict": state})
    weights = read_weights(path)
    assert (weights.model, weights.num_classes, weights.layout) == ("resnet18", 7, "mmpretrain")
    assert weights.report.complete
    assert weights.report.unrelated == []
    assert equal(build_from_weights(path).state_dict(), model.state_dict())
    assert load_weights(create_model("resnet18", num_classes=7), path).complete


@pytest.mark.parametrize(
    "prefix", ["model.", "model._orig_mod.", "_orig_mod.", "module.model.", "net.", "encoder."]
)
def test_prefixes_of_wrappers_are_removed(tmp_path: Path, eca18: nn.Module, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in eca18.state_dict().items()}
    path = saved(tmp_path / "x.ckpt", {"state_dict": {**state, "criterion.weight": torch.ones(7)}})
    weights = read_weights(path)
    assert weights.report.unrelated == ["criterion.weight"]
    assert equal(build_from_weights(path).state_dict(), eca18.state_dict())


def test_averaged_weights_come_first(tmp_path: Path, eca18: nn.Module) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(eca18).state_dict()
    other = create_model("eca_resnet18", kernel_sizes=KERNELS, num_classes=7).state_dict()
    path = saved(tmp_path / "x.pth", {"model": other, "model_ema": averaged, "epoch": 1})
    assert read_weights(path).report.unrelated == []
    assert equal(build_from_weights(path).state_dict(), eca18.state_dict())


def test_overrides_build_another_model(official18: Path, eca18: nn.Module) -> None:
    torch.manual_seed(1)
    model = build_from_weights(official18, num_classes=3, drop_rate=0.5)
    assert model.fc.out_features == 3
    assert model.drop_rate == 0.5
    assert torch.equal(model.layer4[1].conv2.weight, eca18.layer4[1].conv2.weight)
    features = build_from_weights(official18, num_classes=0)(torch.randn(1, 3, 64, 64))
    assert features.shape == (1, 512)
    with pytest.raises(UserError, match=r"conv1\.weight is 64x3x7x7 in the file, 64x1x7x7"):
        build_from_weights(official18, in_chans=1)


# ---- load_weights


def test_loading_is_lazy_and_public(official18: Path, eca18: nn.Module) -> None:
    model = create_model("eca_resnet18", kernel_sizes=KERNELS, num_classes=7)
    report = ecanet.load_weights(model, official18)
    assert equal(model.state_dict(), eca18.state_dict())
    assert report.complete
    assert len(report.matched) == len(eca18.state_dict())
    assert str(report) == f"{len(report.matched)} weights matched"


def test_the_error_for_other_kernels_names_the_right_ones(official18: Path) -> None:
    model = create_model("eca_resnet18", num_classes=7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r'the file\'s kernels are kernel_sizes="3577"') as caught:
        load_weights(model, official18)
    assert "\n" not in str(caught.value)
    assert equal(model.state_dict(), before), "the model is as it was"


def test_the_kernels_are_named_whatever_else_differs(official18: Path) -> None:
    for arguments in ({"num_classes": 9}, {"num_classes": 9, "in_chans": 1}):
        model = create_model("eca_resnet18", **arguments)
        with pytest.raises(UserError, match=r'file\'s kernels are kernel_sizes="3577"'):
            load_weights(model, official18)


def test_color_weights_are_summed_for_grey_images(official18: Path, eca18: nn.Module) -> None:
    model = create_model("eca_resnet18", kernel_sizes=KERNELS, num_classes=7, in_chans=1)
    with pytest.raises(UserError, match="64x3x7x7 in the file, 64x1x7x7"):
        load_weights(model, official18)
    report = load_weights(model, official18, new_classes=True)
    assert "summed over the channels of color images: conv1.weight (64x3x7x7" in str(report)
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        found, expected = model.eval()(grey), eca18.eval()(grey.expand(1, 3, 64, 64))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_eca_weights_do_not_fit_a_plain_model(official18: Path) -> None:
    with pytest.raises(UserError, match=r"eca\.conv\.weight is not in the model") as caught:
        load_weights(create_model("resnet18", num_classes=7), official18)
    assert str(caught.value).count("is not in the model") == 5
    assert "and 3 more" in str(caught.value)


def test_partial_loads_and_reports_the_rest(official18: Path, eca18: nn.Module) -> None:
    model = create_model("resnet18", num_classes=10, attention="se")
    fresh = model.fc.weight.clone()
    report = load_weights(model, official18, partial=True)
    assert torch.equal(model.fc.weight, fresh)
    assert torch.equal(model.layer4[1].conv2.weight, eca18.layer4[1].conv2.weight)
    assert report.mismatched == {"fc.weight": ((7, 512), (10, 512)), "fc.bias": ((7,), (10,))}
    assert len(report.surplus) == 8
    assert len(report.missing) == 4 * 8
    text = str(report)
    assert "2 of another shape: fc.weight (7x512 in the file, 10x512 in the model)" in text
    assert "32 missing from the file: layer1.0.attention.fc1.weight" in text
    assert "8 surplus in the file: layer1.0.eca.conv.weight" in text


def test_old_files_without_batch_counts_are_complete(tmp_path: Path, eca18: nn.Module) -> None:
    state = {n: t for n, t in official_names(eca18).items() if "num_batches" not in n}
    path = saved(tmp_path / "x.pth", state)
    model = create_model("eca_resnet18", kernel_sizes=KERNELS, num_classes=7)
    assert load_weights(model, path).complete
    build_from_weights(path)


def test_any_model_takes_weights_under_its_own_names(tmp_path: Path) -> None:
    reference = torchvision.models.squeezenet1_1(num_classes=3)
    state = {f"module.{name}": tensor for name, tensor in reference.state_dict().items()}
    path = saved(tmp_path / "x.pth", {"state_dict": state})
    model = torchvision.models.squeezenet1_1(num_classes=3)
    assert load_weights(model, path).complete
    assert equal(model.state_dict(), reference.state_dict())
    line = r"nothing in .* fits ResNet: the file has module\.features"
    with pytest.raises(UserError, match=line):
        load_weights(create_model("resnet18"), path, partial=True)


def test_compiled_models_take_weights(official18: Path, eca18: nn.Module) -> None:
    model = create_model("eca_resnet18", kernel_sizes=KERNELS, num_classes=7)
    wrapped = nn.Module()  # torch.compile takes seconds to import
    wrapped._orig_mod = model
    load_weights(wrapped, official18)
    assert equal(model.state_dict(), eca18.state_dict())


def test_other_classes_get_a_new_classifier_on_request(official18: Path, eca18: nn.Module) -> None:
    model = create_model("eca_resnet18", kernel_sizes=KERNELS, num_classes=3)
    fresh = model.fc.weight.clone()
    report = load_weights(model, official18, new_classes=True)
    assert torch.equal(model.fc.weight, fresh)
    assert torch.equal(model.layer4[1].conv2.weight, eca18.layer4[1].conv2.weight)
    text = "a new classifier: fc.weight (7x512 in the file, 3x512 in the model)"
    assert text in str(report)
    again = create_model("eca_resnet18", kernel_sizes=KERNELS, num_classes=7)
    assert not load_weights(again, official18, new_classes=True).fresh
    assert equal(again.state_dict(), eca18.state_dict())


@pytest.mark.parametrize("name", ["convnext_atto", "torchvision/squeezenet1_1", "resnet20"])
def test_the_classifier_of_any_network_is_made_anew(tmp_path: Path, name: str) -> None:
    reference = create_model(name, num_classes=7)
    path = saved(tmp_path / "x.pth", reference.state_dict())
    model = create_model(name, num_classes=3)
    (classifier,) = classifier_names(model)
    fresh = model.get_submodule(classifier).weight.clone()
    report = load_weights(model, path, new_classes=True)
    assert list(report.fresh) == [f"{classifier}.weight", f"{classifier}.bias"]
    assert torch.equal(model.get_submodule(classifier).weight, fresh)
    theirs = reference.state_dict()
    assert report.complete
    assert all(torch.equal(model.state_dict()[n], theirs[n]) for n in report.matched)


@pytest.mark.parametrize(("name", "head"), [("resnet18", "fc"), ("convnext_atto", "head.fc")])
def test_a_backbone_gets_a_classifier(tmp_path: Path, name: str, head: str) -> None:
    backbone = create_model(name, num_classes=0).state_dict()
    path = saved(tmp_path / "x.pth", backbone)
    report = load_weights(create_model(name, num_classes=3), path, new_classes=True)
    assert list(report.fresh) == [f"{head}.weight", f"{head}.bias"]
    assert f"a new classifier: {head}.weight (nothing in the file, 3x" in str(report)
    with pytest.raises(UserError, match=r"fc\.weight is not in the file"):
        load_weights(create_model(name, num_classes=3), path)


def test_other_classes_change_nothing_beside_the_classifier(tmp_path: Path) -> None:
    """ConvNeXt's head has a norm too, whose weights are the file's."""
    reference = timm.create_model("convnext_atto", num_classes=4)
    nn.init.uniform_(reference.head.norm.weight)
    path = saved(tmp_path / "x.pth", reference.state_dict())
    for classes in (3, 0):
        model = build_from_weights(path, "convnext_atto", num_classes=classes)
        assert torch.equal(model.head.norm.weight, reference.head.norm.weight)
    assert load_weights(create_model("convnext_atto", num_classes=0), path).unrelated == [
        "head.fc.weight",
        "head.fc.bias",
    ]


def test_the_classes_of_a_named_model_are_counted(tmp_path: Path) -> None:
    state = create_model("torchvision/squeezenet1_1", num_classes=6).state_dict()
    path = saved(tmp_path / "x.pth", state)
    assert read_weights(path, "torchvision/squeezenet1_1").num_classes == 6
    assert build_from_weights(path, "torchvision/squeezenet1_1").num_classes == 6


def test_the_stem_of_a_file_is_read(tmp_path: Path, official18: Path) -> None:
    assert read_stem(official18, "eca_resnet18") == {}
    small = create_model("resnet18", stem="cifar", num_classes=2).state_dict()
    path = saved(tmp_path / "x.pth", small)
    assert read_stem(path, "resnet18") == read_stem(path, "eca_resnet50") == {"stem": "cifar"}
    assert read_stem(path, "mobilenet_v2") == {}


# ---- weights that are refused or ambiguous


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(
    tmp_path: Path, eca18: nn.Module, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    state = {name: tensor.clone() for name, tensor in eca18.state_dict().items()}
    for name in ("layer1.0.conv1.weight", "bn1.running_var"):
        state[name].flatten()[3] = value
    path = saved(tmp_path / "x.pth", state)
    line = r"x\.pth: 2 of 130 weights hold NaN or infinity: bn1\.running_var, layer1\.0\.conv1\.weight\. "
    with pytest.raises(UserError, match=line) as caught:
        build_from_weights(path)
    assert "\n" not in str(caught.value)
    model = create_model("eca_resnet18", kernel_sizes=KERNELS, num_classes=7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=line):
        load_weights(model, path, new_classes=True)
    assert equal(model.state_dict(), before)
    convert_weights(path, tmp_path / "out.safetensors")
    assert "2 of 130 weights hold NaN or infinity: bn1.running_var" in caplog.text
    assert read_weights(tmp_path / "out.safetensors").report.complete
    state["fc.weight"][0] = value
    other = create_model("eca_resnet18", kernel_sizes=KERNELS, num_classes=3)
    with pytest.raises(UserError, match="2 of 128"):  # the classifier is not used
        load_weights(other, saved(path, state), new_classes=True)


def test_kernels_that_differ_within_a_stage_are_refused(tmp_path: Path, eca18: nn.Module) -> None:
    state = dict(eca18.state_dict())
    state["layer3.1.attention.conv.weight"] = torch.zeros(1, 1, 5)
    with pytest.raises(UserError, match=r"the ECA kernels of stage 3 differ \(5, 7\)"):
        read_weights(saved(tmp_path / "x.pth", state))


def test_an_unknown_model_needs_its_name(tmp_path: Path) -> None:
    reference = timm.create_model("convnext_atto", num_classes=4)
    path = saved(tmp_path / "x.pth", reference.state_dict())
    with pytest.raises(UserError, match=r"match none of ecanet's models: give .* with -m"):
        read_weights(path)
    weights = read_weights(path, "convnext_atto")
    assert (weights.num_classes, weights.report.complete) == (4, True)
    assert not read_weights(path, "convnext_femto").report.complete
    with pytest.raises(UserError, match="unknown model"):
        read_weights(path, "convnext_otto")


def test_the_model_that_our_own_file_names_is_built(tmp_path: Path) -> None:
    """Its weights fit ResNet-18, but it computes something else."""
    torch.manual_seed(0)
    reference = create_model("resnetblur18", num_classes=4, attention="eca").eval()
    path = tmp_path / "x.safetensors"
    save_weights(path, reference.state_dict(), model="resnetblur18", attention="eca", num_classes=4)
    model = build_from_weights(path).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(images), reference(images))


def test_a_prefix_can_be_the_models_own(tmp_path: Path) -> None:
    state = torchvision.models.vit_b_16(num_classes=3, image_size=32).state_dict()
    with torch.device("meta"):
        names = torchvision.models.vit_b_16(num_classes=3).state_dict().keys()
    path = saved(tmp_path / "x.pth", {f"module.{name}": tensor for name, tensor in state.items()})
    weights = read_weights(path, "torchvision/vit_b_16")
    assert weights.state_dict.keys() == names


def test_metadata_must_agree_with_the_weights(tmp_path: Path, eca18: nn.Module) -> None:
    path = tmp_path / "x.safetensors"
    for claim in ({"num_classes": 5}, {"in_chans": 1}):
        said = {"num_classes": 7, "model": "eca_resnet18", "attention": "eca", **claim}
        save_weights(path, eca18.state_dict(), **said)
        (name,) = claim
        with pytest.raises(UserError, match=f"claims {name} {claim[name]}, but its weights have"):
            read_weights(path)


def test_the_name_of_another_model_is_refused(official18: Path) -> None:
    read_weights(official18, "eca_resnet18")
    with pytest.raises(UserError, match="holds weights for eca_resnet18, not for resnet50"):
        read_weights(official18, "resnet50")


def test_unknown_attention_weights_are_refused(tmp_path: Path) -> None:
    state = create_model("resnet20", attention="se:reduction=4").state_dict()
    path = saved(tmp_path / "x.pth", state)
    with pytest.raises(UserError, match="match none of ecanet's attention modules with default"):
        read_weights(path)
    assert read_weights(path, attention="se:reduction=4").report.complete
    model = build_from_weights(path, "resnet20", "se:reduction=4")
    assert equal(model.state_dict(), state)


def test_another_attention_than_requested_is_refused(official18: Path) -> None:
    assert read_weights(official18, attention="eca:kernel_size=3").kernel_sizes == (3, 5, 7, 7)
    with pytest.raises(UserError, match="holds weights with attention eca, not none"):
        read_weights(official18, attention="none")
    with pytest.raises(UserError, match=r"fc1\.weight is not in the file"):
        build_from_weights(official18, attention="se")
    with pytest.raises(UserError, match='kernels are kernel_sizes="3577"'):
        build_from_weights(official18, kernel_sizes="3557")


def test_an_incomplete_file_is_not_built(tmp_path: Path, eca18: nn.Module) -> None:
    state = dict(eca18.state_dict())
    del state["layer2.0.bn1.weight"]
    path = saved(tmp_path / "x.pth", state)
    assert read_weights(path).report.missing == ["layer2.0.bn1.weight"]
    with pytest.raises(UserError, match=r"layer2\.0\.bn1\.weight is not in the file"):
        build_from_weights(path)
