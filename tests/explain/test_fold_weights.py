"""Files whose gates were folded: what they compute, and that every reader understands them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers.gates import register_channel_scale, save_gated
from helpers.runs import draw_colors
from safetensors.torch import load_file, save_file
from torch import nn

from ecanet.config import EvaluateSettings, FoldSettings
from ecanet.errors import UserError
from ecanet.explain.fold import fold_weights
from ecanet.models import attention_modules, create_model
from ecanet.models.weights.convert import convert_weights
from ecanet.models.weights.files import read_checkpoint
from ecanet.models.weights.identify import read_weights
from ecanet.models.weights.load import build_from_weights, load_weights
from ecanet.training.evaluate import evaluate_classifier

pytestmark = pytest.mark.usefixtures("own_registry")


@pytest.fixture
def images(tmp_path: Path) -> str:
    return str(draw_colors(tmp_path / "images") / "val")


def settings(images: str, threshold: float, **others: object) -> FoldSettings:
    return FoldSettings(images=images, threshold=threshold, device="cpu", workers=0, **others)


def outputs(file: Path) -> torch.Tensor:
    model: nn.Module = build_from_weights(file).eval()
    with torch.no_grad():
        found: torch.Tensor = model(
            torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        )
    return found


def test_a_constant_gate_is_folded_within_a_millionth(tmp_path: Path, images: str) -> None:
    register_channel_scale()
    file, out = save_gated(tmp_path / "w.safetensors", "channel_scale"), tmp_path / "f.safetensors"
    found = fold_weights(str(file), out, settings(images, 0.0))
    assert [layer.outcome for layer in found.layers] == ["folded"] * 9
    assert found.changed == 0
    assert found.before == found.after
    assert found.interval is not None
    assert found.interval[0] < 0 < found.interval[1]
    before, after = outputs(file), outputs(out)
    assert (after - before).abs().max() < 1e-6 * before.abs().max()
    assert read_weights(out).attention == "none"
    assert load_file(out).keys() == create_model("resnet20", num_classes=3).state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "model"), [("se", "resnet20"), ("eca", "eca_resnet18"), ("cbam", "resnet26")]
)
def test_above_1_everything_is_folded(
    tmp_path: Path, images: str, attention: str, model: str
) -> None:
    file, out = save_gated(tmp_path / "w.safetensors", attention, model), tmp_path / "f.safetensors"
    chosen = dataclasses.replace(settings(images, 1.0))
    chosen.threshold = 1.5  # beyond what the command takes
    found = fold_weights(str(file), out, chosen)
    assert {layer.outcome for layer in found.layers} == {"folded"}
    weights = read_weights(out)
    assert (weights.model, weights.attention) == (model.removeprefix("eca_"), "none")
    assert weights.folded == []
    plain = create_model(weights.model, **weights.arguments())
    plain.load_state_dict(load_file(out), strict=True)
    measured = evaluate_classifier(
        images, EvaluateSettings(weights=str(out), device="cpu", workers=0, split=".")
    )
    assert measured["accuracy"] == found.after


def partly(tmp_path: Path, images: str, attention: str = "eca") -> tuple[Path, Path, list[str]]:
    """Fold the half of the layers with the lowest index; return the files and the folded layers' names."""
    file, out = save_gated(tmp_path / "w.safetensors", attention), tmp_path / "f.safetensors"
    all_of_them = fold_weights(str(file), out, settings(images, 1.0)).layers
    middle = sorted(max(layer.index, layer.unexplained) for layer in all_of_them)[4]
    found = fold_weights(str(file), out, settings(images, middle))
    folded = [layer.name for layer in found.layers if layer.outcome == "folded"]
    assert len(folded) == 5
    return file, out, folded


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eca", "se", "simam"])
def test_a_part_of_the_layers_is_folded(tmp_path: Path, images: str, attention: str) -> None:
    file, out, folded = partly(tmp_path, images, attention)
    weights = read_weights(out)
    assert (weights.attention, weights.folded) == (attention, folded)
    assert weights.kernel_sizes == read_weights(file).kernel_sizes
    model = build_from_weights(out)
    assert list(attention_modules(model)) == [
        name for name in attention_modules(build_from_weights(file)) if name not in folded
    ]
    assert not any(name.startswith(tuple(folded)) for name in load_file(out))
    convert_weights(out, tmp_path / "again.safetensors")
    assert torch.equal(outputs(tmp_path / "again.safetensors"), outputs(out))
    with pytest.raises(UserError, match="--threshold"):
        fold_weights(str(out), tmp_path / "none.safetensors", settings(images, 0.0))
    assert not (tmp_path / "none.safetensors").exists()
    again = fold_weights(str(out), tmp_path / "all.safetensors", settings(images, 1.0))
    assert len(again.layers) == 4
    assert again.weights.attention == "none"


def test_a_whole_stage_can_be_folded(tmp_path: Path, images: str) -> None:
    """ECA's kernel size of the stage is then in no tensor."""
    file = save_gated(tmp_path / "w.safetensors", "eca:kernel_size=5")
    metadata = read_checkpoint(file).metadata
    stage = [f"layer2.{i}.attention" for i in range(3)]
    tensors = {
        n: t
        for n, t in load_file(file).items()
        if not n.startswith("layer2.") or ".attention." not in n
    }
    out = tmp_path / "f.safetensors"
    save_file(tensors, out, {**metadata, "folded": json.dumps(stage), "kernel_sizes": "5,5,5"})
    assert len(attention_modules(build_from_weights(out))) == 6


def test_fine_tuning_from_it_starts_where_it_is(tmp_path: Path, images: str) -> None:
    _, out, folded = partly(tmp_path, images)
    model = create_model("resnet20", attention="eca", num_classes=3)
    load_weights(model, out, new_classes=True)
    assert set(folded) < set(attention_modules(model))
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(x), build_from_weights(out).eval()(x), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("folded", "says"),
    [
        ('["layer9.0.attention"]', "no place for attention 'layer9.0.attention'"),
        ('"layer1.0.attention"', "list"),
        ("[1]", "text"),
        ("{", "not JSON"),
    ],
)
def test_what_a_file_says_of_it_is_checked(tmp_path: Path, folded: str, says: str) -> None:
    file = save_gated(tmp_path / "w.safetensors", "eca")
    metadata = read_checkpoint(file).metadata
    save_file(load_file(file), file, {**metadata, "folded": folded})
    with pytest.raises(UserError, match=says):
        build_from_weights(file)


def test_a_gate_of_pixels_is_kept(tmp_path: Path, images: str) -> None:
    file = save_gated(tmp_path / "w.safetensors", "cbam")
    found = fold_weights(str(file), tmp_path / "f.safetensors", settings(images, 1.0))
    most = max(layer.unexplained for layer in found.layers)
    assert most > 0.001
    below = max(max(layer.index for layer in found.layers), most / 2)
    if below < most:
        found = fold_weights(str(file), tmp_path / "f.safetensors", settings(images, below))
        assert any(
            "not explained by one factor per channel" in layer.outcome for layer in found.layers
        )


def test_images_without_classes_have_no_accuracy(tmp_path: Path, images: str) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted(Path(images).rglob("*.jpg"))):
        file.rename(flat / f"{i}.jpg")
    file = save_gated(tmp_path / "w.safetensors", "se")
    found = fold_weights(str(file), tmp_path / "f.safetensors", settings(str(flat), 1.0, limit=10))
    assert (found.images, found.before, found.after, found.interval) == (10, None, None, None)
    assert found.source == f"10 of the 21 images of {flat}"


def test_few_images_are_named_and_one_is_refused(
    tmp_path: Path, images: str, caplog: pytest.LogCaptureFixture
) -> None:
    file, out = save_gated(tmp_path / "w.safetensors", "se"), tmp_path / "f.safetensors"
    with pytest.raises(UserError, match="one image cannot show whether gates depend on it"):
        fold_weights(str(file), out, settings(images, 1.0, limit=1))
    assert not out.exists()
    fold_weights(str(file), out, settings(images, 1.0))
    assert "21 images are few to judge by" in caplog.text
