"""Export of classifiers and detectors, checked on real pictures before the file gets its name."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecanet.config import ExportSettings
from ecanet.data.decode import decode_image, read_file
from ecanet.data.preprocessing import Preprocessing, class_names, describe
from ecanet.detection.weights import load_detector
from ecanet.errors import UserError, at_least
from ecanet.export import detectors
from ecanet.export.verify import logits_agree, objects_agree
from ecanet.files import temporary_folder
from ecanet.models import check_attention, create_model
from ecanet.models.inputs import input_preprocessing
from ecanet.models.weights.files import read_checkpoint
from ecanet.models.weights.load import build_from_weights
from ecanet.plugins import load_plugins

ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
METADATA = "ecanet.json"
"""Name of the JSON inside a .pt2 file that says what is in it; in ONNX files the metadata hold the same."""
_OPSET = 17
_DYNAMIC = torch.export.Dim.DYNAMIC

Run = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass
class _Source:
    """What is exported, and the inputs it is checked on."""

    module: nn.Module
    inputs: list[Tensor]
    metadata: dict[str, Any]
    input_name: str
    output_names: list[str]
    free: list[dict[int, str]]
    """Names of the input's dimensions that are left free: as many as possible first, then fewer."""


def export_model(
    settings: ExportSettings, out: Path, say: Callable[[str], None] = lambda line: None
) -> str:
    """Write a model to ``out`` in another format, once it agrees with the model on real pictures.

    A classifier takes ``images`` (N, C, H, W), normalised as ``preprocessing`` in its metadata says, to
    ``logits``; a detector one ``image`` (3, H, W) of 0..1 to ``boxes`` (N, 4) in pixels, ``labels``,
    ``scores`` and ``masks`` (N, 1, H, W), non-maximum suppression included. N, H and W are free wherever
    the model allows it.

    Returns:
        In a line, on what the file agrees and how closely.

    Raises:
        UserError: the model or a library is missing, the model cannot be exported, or the file does not
            agree; a file that was there is intact.
    """
    if settings.format == "onnx":
        _onnx_libraries()
    if settings.model is None:
        raise UserError("which model? Give a weight file or a model's name")
    if out.is_dir() or out.resolve() == Path(settings.model).resolve():
        raise UserError(f"--out {out}: choose another file")
    load_plugins(settings.plugin)
    pictures = _pictures(settings.images)
    source = _open(settings, pictures, say)
    with temporary_folder(out.parent) as folder, _quiet():
        partial = folder / out.name
        with torch.no_grad():
            source.module(source.inputs[0])  # torchvision's poolers look at an image once
            free, inputs, found = _write_and_run(source, partial, settings.format)
            expected = [_as_tuple(source.module(one)) for one in inputs]
            agree = objects_agree if source.input_name == "image" else logits_agree
            line = agree(expected, found)
        os.replace(partial, out)
    if len(free) < len(source.free[0]):
        fixed = [name for name in source.free[0].values() if name not in free.values()]
        say(f"the {' and '.join(fixed)} of the input cannot be left free with this model")
    return line


def _open(settings: ExportSettings, pictures: list[Tensor], say: Callable[[str], None]) -> _Source:
    """Build what is to be exported."""
    assert settings.model is not None
    is_file = Path(settings.model).exists()
    if is_file and _holds_detector(settings.model):
        return _open_detector(settings, pictures)
    for name in ("min_size", "max_size", "threshold"):
        if getattr(settings, name) is not None:
            raise UserError(f"--{name} changes nothing for a classifier: leave it out")
    at_least(8, image_size=settings.image_size)
    chosen = {
        name: value
        for name in ("attention", "kernel_sizes")
        if (value := getattr(settings, name)) is not None
    }
    if is_file and settings.pretrained:
        raise UserError("--pretrained is for a model's name: leave it out with a weight file")
    if is_file:
        model = build_from_weights(settings.model, **chosen)
        metadata = read_checkpoint(settings.model).metadata
    else:
        model = create_model(
            settings.model,
            num_classes=settings.num_classes,
            pretrained=settings.pretrained,
            **chosen,
        )
        metadata = {"model": settings.model}
    preprocessing = input_preprocessing(
        model,
        metadata.get("model") or (None if is_file else settings.model),
        metadata,
        pretrained=settings.pretrained,
        eval_size=settings.image_size,
        say=say
        if is_file or settings.pretrained
        else lambda line: None,  # fresh weights say nothing
    )
    check_attention(model, preprocessing.size, preprocessing.channels)
    model = model.eval()
    inputs = _classifier_inputs(pictures, preprocessing)
    with torch.no_grad():
        outputs = model(inputs[0]).shape[1]
    said = {name: metadata[name] for name in ("model", "attention") if name in metadata}
    return _Source(
        model,
        inputs,
        said | describe(preprocessing, class_names(metadata, outputs)),
        "images",
        ["logits"],
        [{0: "batch", 2: "height", 3: "width"}, {0: "batch"}, {}],
    )


def _open_detector(settings: ExportSettings, pictures: list[Tensor]) -> _Source:
    for name in ("attention", "kernel_sizes", "image_size"):
        if getattr(settings, name) is not None:
            raise UserError(f"--{name} changes nothing for a detector's weights: leave it out")
    assert settings.model is not None
    sizes = {"min_size": settings.min_size, "max_size": settings.max_size}
    detector, file = load_detector(
        settings.model, **{name: size for name, size in sizes.items() if size is not None}
    )
    if not file.report.complete:
        raise UserError(
            f"{settings.model} does not fill its detector: {'; '.join(file.report.problems()[:3])}"
        )
    scorer = getattr(detector, "roi_heads", detector)
    if settings.threshold is not None:
        if not 0 <= settings.threshold <= 1:
            raise UserError(f"--threshold {settings.threshold}: give a number from 0 to 1")
        scorer.score_thresh = settings.threshold
    has_masks = "roi_heads.mask_predictor.conv5_mask.weight" in detector.state_dict()
    return _Source(
        detectors.OneImage(detector).eval(),
        [picture.float() / 255 for picture in pictures],
        {
            "model": detector.arguments["kind"],
            "backbone": detector.arguments["backbone"],
            "classes": json.dumps(detector.class_names),
            "category_ids": json.dumps(detector.category_ids),
        },
        "image",
        list(detectors.OUTPUTS[: 4 if has_masks else 3]),
        [{1: "height", 2: "width"}, {}],
    )


def _holds_detector(file: str) -> bool:
    names = read_checkpoint(file).tensors
    return any(
        "roi_heads." in n or "rpn" in n or "classification_head" in n or "bbox_head" in n
        for n in names
    )


def _pictures(names: Sequence[str]) -> list[Tensor]:
    """Return the user's pictures, or two photographs of scikit-learn's, one of them upright."""
    if not names:
        from sklearn.datasets import load_sample_images

        wide, flower = (
            torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images
        )
        return [wide, flower.transpose(1, 2).contiguous()]
    pictures = []
    for name in names:
        try:
            pictures.append(decode_image(read_file(Path(name))))
        except ValueError as error:
            raise UserError(f"{name} is no picture that can be read: {error}") from None
    return pictures


def _classifier_inputs(pictures: list[Tensor], preprocessing: Preprocessing) -> list[Tensor]:
    """Return batches of several numbers of images and sizes, so that what is free is tried out."""
    batches = []
    size = preprocessing.size
    for side, count in ((size, 2), (size + 32, 3), (max(8, size // 2), 1)):
        chosen = Preprocessing.of_crop(
            side, 1.0, mean=preprocessing.mean, std=preprocessing.std,
            interpolation=preprocessing.interpolation,
        )  # fmt: skip
        batch = chosen.batch([pictures[n % len(pictures)] for n in range(count)])
        batches.append(batch[..., : side - 16] if count == 3 else batch)  # not square either
    return batches


def _write_and_run(
    source: _Source, path: Path, form: str
) -> tuple[dict[int, str], list[Tensor], list[tuple[Tensor, ...]]]:
    """Export, with fewer free sizes if the file fails on others; return these, the inputs and outputs."""
    choices = source.free
    while True:
        free = _write(dataclasses.replace(source, free=choices), path, form)
        choices = choices[choices.index(free) + 1 :]
        inputs = _inputs(source, free)
        try:
            run = _onnx_run(path) if form == "onnx" else _torch_run(path)
            return free, inputs, [run(one) for one in inputs]
        except Exception as error:  # the runtimes' own kinds are many
            if not choices:
                first = str(error).strip().split("\n")[0][:200]
                raise UserError(f"the exported file does not run ({first})") from None


def _inputs(source: _Source, free: dict[int, str]) -> list[Tensor]:
    """Return the inputs, cut to the first one's sizes where these are not free."""
    first, fixed = source.inputs[0], [d for d in range(source.inputs[0].ndim) if d not in free]
    inputs = []
    for one in source.inputs:
        if all(one.shape[d] >= first.shape[d] for d in fixed):
            for d in fixed:
                one = one.narrow(d, 0, first.shape[d])
            inputs.append(one)
    return inputs


def _write(source: _Source, path: Path, form: str) -> dict[int, str]:
    """Export to ``path``; return which dimensions of the input are free."""
    if form == "onnx" and source.input_name == "image":
        # torchvision's detectors support this exporter, which is several times as fast for them.
        with detectors.exact_sizes():
            torch.onnx.export(
                source.module,
                (source.inputs[0],),
                str(path),
                dynamo=False,
                opset_version=_OPSET,
                input_names=[source.input_name],
                output_names=source.output_names,
                dynamic_axes={
                    source.input_name: source.free[0],
                    **{name: {0: "objects"} for name in source.output_names},
                },
            )
        free = source.free[0]
    else:
        program, free = _exported(source)
        if form == "torch":
            content = {METADATA: json.dumps(source.metadata)}
            torch.export.save(program, path, extra_files=content)
            return free
        torch.onnx.export(
            program,
            (),
            str(path),
            dynamo=True,
            external_data=False,
            input_names=[source.input_name],
            output_names=source.output_names,
        )
    _describe_onnx(path, source.metadata)
    return free


def _exported(source: _Source) -> tuple[torch.export.ExportedProgram, dict[int, str]]:
    """Return the program with as many free dimensions as can be had, and these."""
    reason: Exception | None = None
    for free in source.free:
        try:
            with detectors.one_way_only(source.module):
                program = torch.export.export(
                    source.module,
                    (source.inputs[0],),
                    dynamic_shapes=(dict.fromkeys(free, _DYNAMIC),),
                    strict=False,
                )
            # A program may still hold to a range of sizes, and says so when it runs.
            for one in _inputs(source, free):
                program.module()(one)
        except Exception as error:  # torch's own kinds of "this cannot be followed" are many
            reason = error
            continue
        return program, free
    first = str(reason).strip().split("\n")[0][:200]
    raise UserError(f"torch.export cannot follow this model ({type(reason).__name__}: {first})")


def _describe_onnx(path: Path, metadata: dict[str, Any]) -> None:
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _onnx_run(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what it optimises is no news
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: tuple(
        torch.from_numpy(output) for output in session.run(None, {name: image.numpy()})
    )


def _torch_run(path: Path) -> Run:
    module = torch.export.load(path).module()
    return lambda image: _as_tuple(module(image))


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _onnx_libraries() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"ONNX needs {name}: pip install 'ecanet[export]'")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporters tell their own developers."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
