"""Attention modules in networks that Ultralytics itself trains, saves, converts and exports."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.yolo_data import VERSIONS, coco_as_classes, coco_as_yolo, open_yolo
from scipy.optimize import linear_sum_assignment
from torch.utils._pytree import tree_leaves

from ecanet import create_attention, insert_attention
from ecanet.attention import list_attention
from ecanet.errors import UserError
from ecanet.models import attention_modules

pytest.importorskip("ultralytics", reason="needs Ultralytics")

QUICK: dict[str, Any] = {
    "imgsz": 64, "batch": 8, "device": "cpu", "plots": False, "amp": False, "workers": 0, "verbose": False,
}  # fmt: skip


@pytest.fixture
def coco(real_data: Path, tmp_path: Path) -> Path:
    return coco_as_yolo(real_data / "coco128", tmp_path / "coco", train=16, val=0)


def inserted(name: str, module: str = "cbam") -> Any:
    torch.manual_seed(0)
    yolo = open_yolo(name)
    insert_attention(yolo.model, module, identity=True)
    return yolo


def outputs(network: Any, image: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        found = network(image)
    first = found[0] if isinstance(found, (tuple, list)) else found
    return [t for t in tree_leaves(first) if isinstance(t, torch.Tensor)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", VERSIONS)
def test_training_and_all_that_follows(name: str, real_data: Path, tmp_path: Path) -> None:
    """The plain call of train() trains the modules; val, fuse, predict and ONNX have them and agree."""
    if name.endswith("-cls.yaml"):
        data = coco_as_classes(real_data / "coco128", tmp_path / "classes")
    else:
        data = coco_as_yolo(real_data / "coco128", tmp_path / "coco", train=16, val=0)
    yolo = inserted(name)
    before = {n: copy.deepcopy(m.state_dict()) for n, m in attention_modules(yolo.model).items()}
    size = 128 if name.startswith("rtdetr") else 64
    yolo.train(
        data=str(data), epochs=1, project=str(tmp_path), name="run", **QUICK | {"imgsz": size}
    )
    network = yolo.model.eval()
    modules = attention_modules(network)
    assert modules.keys() == before.keys()
    for n, module in modules.items():
        learned = [k for k, _ in module.named_parameters()]
        assert any(not torch.equal(before[n][k], module.state_dict()[k]) for k in learned), n

    again = open_yolo(str(tmp_path / "run" / "weights" / "last.pt"))
    assert attention_modules(again.model).keys() == before.keys()
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    reference = outputs(network, image)
    fused = copy.deepcopy(network).fuse(verbose=False)
    assert attention_modules(fused).keys() == before.keys()
    for one, other in zip(reference, outputs(fused, image), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))

    ran: list[str] = []
    hooked = copy.deepcopy(network)
    next(iter(attention_modules(hooked).values())).register_forward_hook(lambda *_: ran.append(""))
    again.model = hooked
    again.predict(image, imgsz=size, device="cpu", verbose=False)
    assert ran
    ran.clear()
    metrics = again.val(
        data=str(data), **{k: v for k, v in QUICK.items() if k != "amp"} | {"imgsz": size}
    )
    assert ran
    assert metrics.results_dict

    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    file = yolo.export(format="onnx", imgsz=size, device="cpu", simplify=False)
    session = onnxruntime.InferenceSession(file)
    (given,) = session.get_inputs()
    exported = [torch.from_numpy(found) for found in session.run(None, {given.name: image.numpy()})]
    for one, other in zip(outputs(fused, image), exported, strict=False):
        if one.ndim == 3 and (name.startswith("rtdetr") or "26" in name):
            # Detections, in the order of a topk, which orders equal scores as it likes.
            one, other = in_the_order_of(one[0], other[0])
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


def in_the_order_of(rows: torch.Tensor, found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows, (N, K), and those of others that lie closest to each, each of them once."""
    scale = rows.abs().amax(0).clamp_min(1e-6)
    distances = torch.cdist((rows / scale).double(), (found / scale).double())
    own, others = linear_sum_assignment(distances.numpy())
    return rows[own], found[others]


@pytest.mark.parametrize("name", sorted(set(list_attention()) - {"none", "eca_ns", "fca"}))
def test_every_module_is_exported_as_ultralytics_exports(name: str, tmp_path: Path) -> None:
    """By TorchScript: with operators that torch's older exporter knows."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    torch.manual_seed(0)
    module, image = create_attention(name, 32).eval(), torch.rand(1, 32, 16, 24)
    torch.onnx.export(module, (image,), tmp_path / "m.onnx", dynamo=False, opset_version=17)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), module(image), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_saved_file_holds_the_modules_in_a_plain_process(tmp_path: Path) -> None:
    """A process that imports Ultralytics alone gets the network with its modules, and the same output."""
    yolo = inserted("yolo11n.yaml")
    yolo.save(tmp_path / "saved.pt")
    image = torch.ones(1, 3, 64, 64)
    torch.save(outputs(copy.deepcopy(yolo.model).half().float().eval(), image), tmp_path / "out.pt")
    code = (
        "import torch; from ultralytics import YOLO; from copy import deepcopy\n"
        "yolo = YOLO('saved.pt'); network = deepcopy(yolo.model).eval()\n"
        "with torch.no_grad(): out = network(torch.ones(1, 3, 64, 64))[0]\n"
        "assert (out - torch.load('out.pt')[0]).abs().max() < 1e-4 * out.abs().max()\n"
        "assert sum('attention' in name for name in network.state_dict()) > 9\n"
        "print(type(yolo).train.__wrapped__.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "train"


@pytest.mark.slow
def test_resume_keeps_the_modules(coco: Path, tmp_path: Path) -> None:
    yolo = inserted("yolo11n.yaml", "eca")
    stop: list[int] = []

    def stop_after_one_epoch(trainer: Any) -> None:
        stop.append(trainer.epoch)
        raise KeyboardInterrupt

    yolo.add_callback("on_model_save", stop_after_one_epoch)
    arguments = {"epochs": 2, "project": str(tmp_path), "name": "run", **QUICK}
    with pytest.raises(KeyboardInterrupt):
        yolo.train(data=str(coco), **arguments)
    assert stop == [0]
    yolo = open_yolo(str(tmp_path / "run" / "weights" / "last.pt"))
    yolo.train(resume=True)
    assert yolo.trainer.start_epoch == 1
    assert len(attention_modules(yolo.trainer.model)) == 9
    assert len(attention_modules(yolo.trainer.ema.ema)) == 9
    assert len(attention_modules(yolo.model)) == 9


@pytest.mark.slow
def test_a_trainer_of_the_users_own_keeps_them(coco: Path, tmp_path: Path) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Own(DetectionTrainer):
        pass

    yolo = inserted("yolo11n.yaml", "eca")
    weight = yolo.model.model[0].conv.weight.clone()
    started: list[Any] = []
    yolo.add_callback(
        "on_train_start", lambda trainer: started.append(copy.deepcopy(trainer.model))
    )
    yolo.train(Own, data=str(coco), epochs=1, project=str(tmp_path), name="run", **QUICK)
    assert isinstance(yolo.trainer, Own)
    assert len(attention_modules(yolo.trainer.model)) == 9
    # It starts from the network that the modules were inserted into.
    assert torch.equal(started[0].model[0].conv.weight, weight)


def test_what_would_lose_the_modules_is_refused(coco: Path, tmp_path: Path) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    yolo = inserted("yolo11n.yaml", "eca")
    with pytest.raises(UserError, match="leave pretrained out"):
        yolo.train(data=str(coco), pretrained=False)
    with pytest.raises(UserError, match=r"tune\(\) trains the network of the file"):
        yolo.tune(data=str(coco))
    with pytest.raises(UserError, match="which would be lost: take that network itself"):
        open_yolo("yolo11n.yaml").model.load(yolo.model)
    yolo.save(tmp_path / "saved.pt")
    trainer = DetectionTrainer(
        overrides={
            "model": str(tmp_path / "saved.pt"), "data": str(coco), "epochs": 1,
            "project": str(tmp_path), **QUICK,
        }
    )  # fmt: skip
    with pytest.raises(UserError, match="which would be lost"):
        trainer.train()


@pytest.mark.slow
def test_other_networks_train_as_before(coco: Path, tmp_path: Path) -> None:
    inserted("yolo11n.yaml", "eca")
    yolo = open_yolo("yolov8n.yaml")
    yolo.train(data=str(coco), epochs=1, project=str(tmp_path), name="run", **QUICK)
    assert type(yolo.trainer).__name__ == "DetectionTrainer"
    assert not attention_modules(yolo.model)
