"""LibreYOLO's own training keeps inserted modules, or refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ecanet import insert_attention
from ecanet.errors import UserError
from ecanet.models import attention_modules

pytest.importorskip("libreyolo", reason="needs LibreYOLO")

from ecanet.integrations.libreyolo.networks import Origin


def train(wrapper: Any, squares: Path, folder: Path) -> None:
    how = {"epochs": 1, "batch": 4, "imgsz": 64, "workers": 0, "device": "cpu"}
    wrapper.train(str(squares), project=str(folder), name="own", **how)


@pytest.mark.parametrize(("name", "classes"), [("yolo9-t", 80), ("yolox-n", 2)])
def test_training_keeps_and_trains_the_modules(
    name: str, classes: int, squares: Path, tmp_path: Path
) -> None:
    wrapper = Origin(name).plain(classes)  # YOLOv9 takes another head for the classes of the data
    insert_attention(wrapper.model, "se")
    before = {key: value.clone() for key, value in wrapper.model.state_dict().items()}
    train(wrapper, squares, tmp_path)
    assert len(attention_modules(wrapper.model)) == 8
    saved = torch.load(tmp_path / "own" / "weights" / "last.pt", weights_only=True)["train_model"]
    weights = [key for key in before if ".attention." in key and key.endswith("weight")]
    assert len(weights) == 16
    assert all(not torch.equal(saved[key], before[key]) for key in weights)


def test_a_network_built_anew_is_refused(squares: Path, tmp_path: Path) -> None:
    wrapper = Origin("yolox-n").plain(80)
    insert_attention(wrapper.model, "eca")
    with pytest.raises(UserError, match="nb_classes"):
        train(wrapper, squares, tmp_path)
    assert len(attention_modules(wrapper.model)) == 8


def test_weights_of_modules_are_not_dropped(tmp_path: Path) -> None:
    wrapper = Origin("yolox-n").plain(2)
    insert_attention(wrapper.model, "eca")
    file = tmp_path / "weights.pt"
    torch.save({"model": wrapper.model.state_dict()}, file)
    with pytest.raises(RuntimeError, match="insert the modules first"):
        Origin("yolox-n").plain(2)._load_weights(str(file))
