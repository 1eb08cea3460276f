"""Objects found in each frame of a video or a webcam, by OpenCV."""

from __future__ import annotations

import itertools
import json
import logging
import operator
import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecanet.detection.predict.predictor import Predictor
from ecanet.errors import UserError
from ecanet.files import temporary_folder

log = logging.getLogger(__name__)

ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
# For sources without a frame rate.
_FRAMES_PER_SECOND = 25.0


def is_webcam(name: str) -> bool:
    """Whether a name is ``webcam``, or ``webcam:1`` for the second, ``webcam:2`` ..."""
    return name.partition(":")[0] == "webcam"


def is_video(name: str) -> bool:
    """Whether a name is that of a video file or a webcam."""
    return is_webcam(name) or name.lower().endswith(ENDINGS)


def predict_video(
    predictor: Predictor, source: str, target: Path, max_frames: int | None = None
) -> Path:
    """Draw the detections into each frame; return ``target.mp4``, beside ``target.jsonl``.

    The JSON has a line per frame: its number ``frame`` from 0, its time ``seconds``, and ``detections`` as
    for an image. A webcam is read until Ctrl-C, which keeps the recording, or for ``max_frames``.

    Raises:
        UserError: OpenCV is missing, or the source cannot be read.
    """
    cv2 = _library()
    capture = cv2.VideoCapture(_camera(source) if is_webcam(source) else source)
    reads = itertools.takewhile(operator.itemgetter(0), iter(capture.read, None))
    frames = itertools.islice((frame for _, frame in reads), max_frames)
    first = next(frames, None)
    if first is None:
        fault = "gives no image" if is_webcam(source) else "is not a video that can be read"
        raise UserError(f"{source} {fault}")
    rate = capture.get(cv2.CAP_PROP_FPS)
    rate = rate if 0 < rate < 1000 else _FRAMES_PER_SECOND
    video, lines = (target.with_name(target.name + ending) for ending in (".mp4", ".jsonl"))
    with temporary_folder(target.parent) as folder:
        partial, partial_lines = folder / video.name, folder / lines.name
        writer, count = None, 0
        with (
            open(partial_lines, "w") as file,
            suppress(KeyboardInterrupt) if is_webcam(source) else nullcontext(),
        ):
            for count, frame in enumerate(itertools.chain([first], frames), 1):
                # OpenCV has BGR.
                image = torch.from_numpy(frame[:, :, ::-1].copy()).permute(2, 0, 1)
                found = predictor.find(image)
                drawn = np.asarray(predictor.draw(image, found))[:, :, ::-1]
                if writer is None:
                    size = (drawn.shape[1], drawn.shape[0])
                    writer = cv2.VideoWriter(
                        str(partial), cv2.VideoWriter.fourcc(*"mp4v"), rate, size
                    )
                writer.write(np.ascontiguousarray(drawn))
                line = {
                    "frame": count - 1,
                    "seconds": round((count - 1) / rate, 3),
                    "detections": predictor.describe(found),
                }
                file.write(json.dumps(line) + "\n")
        capture.release()
        if writer is not None:
            writer.release()
        if not partial.is_file():
            raise UserError(f"{source}: OpenCV cannot write {video} on this machine")
        os.replace(partial, video)
        os.replace(partial_lines, lines)
    log.info(f"{source}: {count} frames")
    return video


def _camera(name: str) -> int:
    number = name.partition(":")[2] or "0"
    if not number.isdecimal():
        raise UserError(f"{name}: write webcam, webcam:1, webcam:2 ...")
    return int(number)


def _library() -> Any:
    try:
        import cv2
    except ImportError:
        raise UserError("videos and webcams need OpenCV: pip install 'ecanet[video]'") from None
    # Files that it cannot open are reported by us.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
