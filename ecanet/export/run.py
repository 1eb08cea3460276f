"""Export of classifiers and detectors; the file is kept only after a check on real images."""

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

from ecanet.config import ExportSettings, given
from ecanet.data.decode import Window, read_image
from ecanet.data.preprocessing import Preprocessing, class_names, describe
from ecanet.detection.weights import load_detector
from ecanet.errors import UserError, at_least, one_line
from ecanet.export import detectors
from ecanet.export.verify import compare_logits, compare_objects
from ecanet.files import temporary_folder
from ecanet.inputs import names_file
from ecanet.models import check_attention, create_model
from ecanet.models.inputs import input_preprocessing
from ecanet.models.weights.files import Checkpoint, read_checkpoint
from ecanet.models.weights.load import build_from_weights
from ecanet.plugins import load_plugins

log = logging.getLogger(__name__)

ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
METADATA = "ecanet.json"
"""Name of the JSON inside a .pt2 file that describes the model; ONNX files have the same as metadata."""
_OPSET = 17
_DYNAMIC = torch.export.Dim.DYNAMIC

Run = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass
class _Source:
    """What is exported, and the inputs for the check."""

    module: nn.Module
    inputs: list[Tensor]
    metadata: dict[str, Any]
    input_name: str
    output_names: list[str]
    dynamic: list[dict[int, str]]
    """Choices of the input's dynamic dimensions, by index and name: as many as possible first, then fewer."""


def export_model(settings: ExportSettings, out: Path) -> str:
    """Write a model to ``out`` in another format, after checking its outputs on real images.

    A classifier maps ``images`` (N, C, H, W), normalized according to ``preprocessing`` in its metadata, to
    ``logits``; a detector maps one ``image`` (3, H, W) of 0..1 to ``boxes`` (N, 4) in pixels, ``labels``,
    ``scores`` and ``masks`` (N, 1, H, W), after non-maximum suppression. N, H and W are dynamic wherever
    the model allows it.

    Returns:
        One line that describes how closely the file agrees with the model.

    Raises:
        UserError: the model or a library is missing, the model cannot be exported, or the outputs do not
            agree; an existing file is intact.
    """
    if settings.format == "onnx":
        _onnx_libraries()
    if settings.model is None:
        raise UserError("no model given: name a weight file or a model")
    if out.is_dir() or out.resolve() == Path(settings.model).resolve():
        raise UserError(f"--out {out}: choose another file")
    load_plugins(settings.plugin)
    source = _open(settings)
    with temporary_folder(out.parent) as folder, _quiet():
        partial = folder / out.name
        with torch.no_grad():
            source.module(source.inputs[0])  # torchvision's poolers are set up by their first image
            dynamic, inputs, outputs = _write_and_run(source, partial, settings.format)
            expected = [_as_tuple(source.module(one)) for one in inputs]
            compare = compare_objects if source.input_name == "image" else compare_logits
            line = compare(expected, outputs)
        os.replace(partial, out)
    if len(dynamic) < len(source.dynamic[0]):
        fixed = [name for name in source.dynamic[0].values() if name not in dynamic.values()]
        log.info(f"the {' and '.join(fixed)} of the input cannot be dynamic with this model")
    return line


def _open(settings: ExportSettings) -> _Source:
    """Build the model to export."""
    assert settings.model is not None
    is_file = names_file(settings.model)
    file = read_checkpoint(settings.model) if is_file else None
    if file is not None and _holds_detector(file):
        return _open_detector(settings, file)
    for name in given(settings, "min_size", "max_size", "threshold"):
        raise UserError(
            f"--{name.replace('_', '-')} changes nothing for a classifier: leave it out"
        )
    at_least(8, image_size=settings.image_size)
    chosen = given(settings, "attention", "kernel_sizes")
    if file is not None and settings.pretrained:
        raise UserError("--pretrained is for a model's name: leave it out with a weight file")
    if file is not None:
        model, metadata = build_from_weights(file, **chosen), file.metadata
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
        metadata.get("model"),
        metadata,
        pretrained=settings.pretrained,
        eval_size=settings.image_size,
        # Random weights have no preprocessing that could be assumed wrongly.
        quiet=file is None and not settings.pretrained,
    )
    check_attention(model, preprocessing.size, preprocessing.channels)
    model = model.eval()
    images = _load_images(settings.images, preprocessing.window)
    inputs = _classifier_inputs(images, preprocessing)
    with torch.no_grad():
        outputs = model(inputs[0]).shape[1]
    kept = {name: metadata[name] for name in ("model", "attention") if name in metadata}
    return _Source(
        model,
        inputs,
        kept | describe(preprocessing, class_names(metadata, outputs)),
        "images",
        ["logits"],
        [{0: "batch", 2: "height", 3: "width"}, {0: "batch"}, {}],
    )


def _open_detector(settings: ExportSettings, file: Checkpoint) -> _Source:
    for name in given(settings, "attention", "kernel_sizes", "image_size"):
        raise UserError(
            f"--{name.replace('_', '-')} changes nothing for a detector's weights: leave it out"
        )
    detector, _ = load_detector(file, **given(settings, "min_size", "max_size"))
    if settings.threshold is not None:
        getattr(detector, "roi_heads", detector).score_thresh = settings.threshold
    has_masks = "roi_heads.mask_predictor.conv5_mask.weight" in detector.state_dict()
    return _Source(
        detectors.SingleImage(detector).eval(),
        [image.float() / 255 for image in _load_images(settings.images)],
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


def _holds_detector(file: Checkpoint) -> bool:
    heads = ("roi_heads.", "rpn", "classification_head", "bbox_head")
    return any(head in name for name in file.tensors for head in heads)


def _load_images(names: Sequence[str], window: Window | None = None) -> list[Tensor]:
    """Return the user's images, or two photographs of scikit-learn, one of them in portrait format."""
    if not names:
        from sklearn.datasets import load_sample_images

        wide, flower = (
            torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images
        )
        return [wide, flower.transpose(1, 2).contiguous()]
    return [read_image(name, window) for name in names]


def _classifier_inputs(images: list[Tensor], preprocessing: Preprocessing) -> list[Tensor]:
    """Return batches that differ in number and size of images, to try out the dynamic dimensions."""
    batches = []
    size = preprocessing.size
    for side, count in ((size, 2), (size + 32, 3), (max(8, size // 2), 1)):
        chosen = Preprocessing.of_crop(
            side, 1.0, mean=preprocessing.mean, std=preprocessing.std,
            interpolation=preprocessing.interpolation,
        )  # fmt: skip
        batch = chosen.batch([images[n % len(images)] for n in range(count)])
        batches.append(batch[..., : side - 16] if count == 3 else batch)  # not square either
    return batches


def _write_and_run(
    source: _Source, path: Path, form: str
) -> tuple[dict[int, str], list[Tensor], list[tuple[Tensor, ...]]]:
    """Export, with fewer dynamic dimensions if the file fails on other sizes.

    Returns:
        The dynamic dimensions, the inputs and the file's outputs.
    """
    choices = source.dynamic
    while True:
        dynamic = _write(dataclasses.replace(source, dynamic=choices), path, form)
        choices = choices[choices.index(dynamic) + 1 :]
        inputs = _inputs(source, dynamic)
        try:
            run = _onnx_run(path) if form == "onnx" else _torch_run(path)
            return dynamic, inputs, [run(one) for one in inputs]
        except Exception as error:  # the runtimes raise many types
            if not choices:
                raise UserError(f"the exported file does not run ({one_line(error)})") from None


def _inputs(source: _Source, dynamic: dict[int, str]) -> list[Tensor]:
    """Return the inputs, cropped to the first one's size in dimensions that are not dynamic."""
    sizes = list(enumerate(source.inputs[0].shape))
    crop = tuple(slice(None) if d in dynamic else slice(size) for d, size in sizes)
    fixed = [(d, size) for d, size in sizes if d not in dynamic]
    return [one[crop] for one in source.inputs if all(one.shape[d] >= size for d, size in fixed)]


def _write(source: _Source, path: Path, form: str) -> dict[int, str]:
    """Export to ``path``; return the dynamic dimensions of the input."""
    if form == "onnx" and source.input_name == "image":
        # torchvision's detectors support the tracing exporter, which is several times faster for them.
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
                    source.input_name: source.dynamic[0],
                    **{name: {0: "objects"} for name in source.output_names},
                },
            )
        dynamic = source.dynamic[0]
    else:
        program, dynamic = _exported(source)
        if form == "torch":
            content = {METADATA: json.dumps(source.metadata)}
            torch.export.save(program, path, extra_files=content)
            return dynamic
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
    return dynamic


def _exported(source: _Source) -> tuple[torch.export.ExportedProgram, dict[int, str]]:
    """Return the program with as many dynamic dimensions as possible, and these."""
    reason: Exception | None = None
    for dynamic in source.dynamic:
        try:
            with detectors.export_patches(source.module):
                program = torch.export.export(
                    source.module,
                    (source.inputs[0],),
                    dynamic_shapes=(dict.fromkeys(dynamic, _DYNAMIC),),
                    strict=False,
                )
            # A program may still be limited to a range of sizes, and only fails when it runs.
            for one in _inputs(source, dynamic):
                program.module()(one)
            return program, dynamic
        except Exception as error:  # torch raises many types for what it cannot trace
            reason = error
    raise UserError(
        f"torch.export cannot trace this model ({type(reason).__name__}: {one_line(reason)})"
    )


def _describe_onnx(path: Path, metadata: dict[str, Any]) -> None:
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _onnx_run(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # do not report optimizations
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
    """Suppress the exporters' warnings and progress."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
