"""Published weights: the folder loads everywhere, the card is what the Hub reads, and the push gets there."""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from helpers.commands import Refuse, Run
from helpers.detectors import outputs, small_detector
from helpers.hub import Hub, connect
from helpers.networks import randomize_norms
from helpers.photographs import draw_photographs
from helpers.runs import settings_of
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

import ecanet
from ecanet.cli.options import SettingsParser
from ecanet.cli.train import TrainCommand
from ecanet.config import ClassificationSettings
from ecanet.detection.weights import load_detector, save_detector
from ecanet.experiments.publish import publish
from ecanet.models import create_model
from ecanet.models.weights.load import build_from_weights
from ecanet.models.weights.save import save_weights
from ecanet.training.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run."""
    folder = tmp_path_factory.mktemp("trained")
    train(replace(settings_of("memory", folder), epochs=1), folder / "run")
    return folder / "run"


def save_classifier(file: Path, model: str, attention: str) -> None:
    network = create_model(model, attention=attention, num_classes=3)
    randomize_norms(network)
    state = network.state_dict()
    save_weights(
        file, state, model=model, attention=attention, num_classes=3, classes=["a", "b", "c"]
    )


def test_a_run_with_its_record(run: Run, trained: Path, workdir: Path) -> None:
    code, out, err = run("publish", trained, "--to", "shelf/net", "--license", "apache-2.0")
    assert (code, out) == (0, "shelf/net\n"), err
    folder = Path("shelf/net")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "metrics.csv", "model.safetensors", "recipe.yaml"
    ]  # fmt: skip
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data == metadata_load(folder / "README.md")
    assert data["license"] == "apache-2.0"
    assert data["pipeline_tag"] == "image-classification"
    assert data["library_name"] == "ecanet"
    text = (folder / "README.md").read_text()
    assert "# resnet20 with attention eca\n" in text
    assert "one run with seed 0" in text
    assert "there was no test split" in text
    assert str(trained.parent) not in text + (folder / "recipe.yaml").read_text(), "a path of ours"
    # The command in the card is one that the program takes.
    parser = SettingsParser("", "", TrainCommand, ClassificationSettings, positional="data")
    (command,) = [line for line in text.splitlines() if line.startswith("ecanet train ")]
    parsed = parser.parse(
        command.removeprefix("ecanet train ")
        .replace("recipe.yaml", str(folder / "recipe.yaml"))
        .split()
    )
    assert (parsed.model, parsed.attention, parsed.epochs) == ("resnet20", "eca", 1)
    x = torch.randn(2, 3, 16, 16)
    own, theirs = (
        build_from_weights(str(p)).eval() for p in (trained / "best.safetensors", folder)
    )
    assert torch.equal(own(x), theirs(x))
    # As the README of the run's data says, on images.
    code, out, err = run(
        "evaluate", trained.parent / "images", "--weights", folder, "--split", "val"
    )
    assert code == 0, err
    assert "top-1" in out
    # The right one of two or three classes is always among the first five.
    assert "top-5" not in out
    assert "top5" not in card.content.lower()
    assert "Test accuracy" in card.text or "Validation accuracy" in card.text


def test_timm_loads_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "in.safetensors"
    save_classifier(file, "eca_resnet18", "eca")
    publish(str(file), str(tmp_path / "net"), license="mit")
    card = ModelCard.load(tmp_path / "net/README.md")
    assert card.data.library_name == "timm"
    assert "how good they are is unknown" in card.text
    x = torch.randn(2, 3, 64, 64)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    assert torch.equal(build_from_weights(str(file)).eval()(x), theirs(x))


def test_a_detector(tmp_path: Path) -> None:
    detector = small_detector("retinanet").eval()
    save_detector(tmp_path / "in.safetensors", detector)
    publish(str(tmp_path / "in.safetensors"), str(tmp_path / "net"), license="mit")
    card = ModelCard.load(tmp_path / "net/README.md")
    assert card.data.pipeline_tag == "object-detection"
    assert "ecanet detect predict" in card.text
    again, expected = outputs(load_detector(tmp_path / "net")[0].eval()), outputs(detector)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_a_plugin_is_named(tmp_path: Path, own_registry: None) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import torch\nimport ecanet\n\n\n@ecanet.register_attention('mine')\n"
        "class Mine(torch.nn.Module):\n    def __init__(self, channels):\n"
        "        super().__init__()\n        self.scale = torch.nn.Parameter(torch.ones(channels, 1, 1))\n\n"
        "    def forward(self, x):\n        return x * self.scale\n"
    )
    from ecanet.plugins import load_plugins

    load_plugins([str(plugin)])
    save_classifier(tmp_path / "in.safetensors", "resnet20", "mine")
    publish(
        str(tmp_path / "in.safetensors"), str(tmp_path / "net"), license="mit", plugin=[str(plugin)]
    )
    text = (tmp_path / "net/README.md").read_text()
    assert "comes from a plugin that is not part of this folder: mine.py" in text


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(tmp_path / "repositories")
    server.token = "hf_secret"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connect(monkeypatch, server.url, tmp_path / "cache")
    yield server
    server.shutdown()
    server.server_close()


def test_a_push_to_the_hub_and_back(
    run: Run, refuse: Refuse, hub: Hub, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_classifier(Path("in.safetensors"), "resnet20", "se")
    push = ("publish", "in.safetensors", "--to", "hf-hub:someone/net", "--license", "mit")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    refuse("the Hub does not let you write to someone/net: log in", *push)
    code, out, err = run(*push, "--dry-run")
    assert (code, out) == (0, ""), err
    assert "model.safetensors" in err
    assert not (hub.root / "someone").exists()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, out, err = run(*push)
    assert code == 0, err
    assert out == f"{hub.url}/someone/net\n"
    assert "hf-hub:someone/net" in (hub.root / "someone/net/README.md").read_text()
    x = torch.randn(1, 3, 32, 32)
    own, theirs = (build_from_weights(n).eval() for n in ("in.safetensors", "hf-hub:someone/net"))
    assert torch.equal(own(x), theirs(x))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("in.safetensors --to net", "required: --license"),
        ("in.safetensors --to net --license MIT", "--license MIT: give it as the Hub names it"),
        ("in.safetensors --to net --license MIT", "Did you mean mit"),
        ("in.safetensors --to net --license apache", "Did you mean apache-2.0"),
        (
            "in.safetensors --to net --license banana",
            "a license that the Hub has no name for is other",
        ),
        ("in.safetensors --to full --license mit", "full is not empty"),
        (
            "in.safetensors --to net --license mit --private",
            "--private is for --to hf-hub:OWNER/NAME",
        ),
        ("in.safetensors --to hf-hub:net --license mit", "is named hf-hub:OWNER/NAME"),
        ("in.safetensors --to hf-hub:a/b --license mit", "the Hub cannot be reached"),
        (
            "nowhere.safetensors --to net --license mit",
            "there is no study, run folder or weight file nowhere.safetensors",
        ),
    ],
)
def test_bad_input_is_one_line(refuse: Refuse, workdir: Path, arguments: str, says: str) -> None:
    save_classifier(Path("in.safetensors"), "resnet20", "none")
    Path("full").mkdir()
    Path("full/file").touch()
    refuse(says, "publish", *arguments.split())
    assert sorted(path.name for path in workdir.iterdir()) == ["full", "in.safetensors"]


@pytest.mark.slow
def test_a_study_with_its_report(run: Run, workdir: Path) -> None:
    code, _, err = run(
        "compare", "--recipe", "smoke/digits", "--epochs", 1, "--seeds", 2, "--attention", "none,eca",
        "--out", "study",
    )  # fmt: skip
    assert code == 0, err
    code, out, err = run("publish", "study", "--to", "net", "--license", "mit")
    assert (code, out) == (0, "net\n"), err
    card = ModelCard.load("net/README.md")
    for part in (
        "the best of 2 runs of", "| eca | 2 |", "Both were selected by validation accuracy",
        "95 % interval of the mean", "ecanet compare --recipe report/recipe.yaml",
    ):  # fmt: skip
        assert part in card.text
    names = [result.metric_name for result in card.data.eval_results]
    assert any("top5" in name for name in names), "of ten classes"
    assert "Test accuracy, mean of 2 seeds" in names
    assert Path("net/report/index.html").is_file()
    assert not list(Path("net").rglob(".*")), "nothing temporary is left"


@pytest.mark.slow
def test_a_published_report_names_no_folder_of_ours(workdir: Path) -> None:
    photos = draw_photographs(workdir / "photos")
    ecanet.compare(
        "study", data=str(photos), model="resnet20", image_size=32, epochs=1, seeds=1, jobs=1
    )
    publish("study", "net", license="mit")
    texts = [
        path for path in Path("net").rglob("*.*") if path.suffix in (".html", ".json", ".yaml")
    ]
    assert len(texts) == 4
    written = "".join(path.read_text() for path in texts)
    assert str(workdir) not in written
    assert f'"host": "{platform.node()}"' not in written
    assert "compare --recipe STUDY/report/recipe.yaml" in written
