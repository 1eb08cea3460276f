"""Objects found in each frame of a video or a webcam, by OpenCV."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecanet.detection.prediction import Predictor
from ecanet.errors import UserError

ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
WEBCAM = "webcam"
# Of a source that does not tell.
_FRAMES_PER_SECOND = 25.0


def is_video(name: str) -> bool:
    """Whether a name stands for a video file or a webcam: ``webcam``, or ``webcam:1`` for the second."""
    return name.partition(":")[0] == WEBCAM or name.lower().endswith(ENDINGS)


def predict_video(
    predictor: Predictor,
    name: str,
    out: Path,
    most_frames: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Draw the detections into each frame; return ``out/NAME.mp4``, beside ``NAME.jsonl``.

    The JSON has a line a frame: its ``frame`` from 0 on, ``seconds`` and ``detections`` as a picture's.
    A webcam is read until Ctrl-C, which keeps what was recorded, or ``most_frames``.

    Raises:
        UserError: OpenCV is missing, or the source cannot be read.
    """
    cv2 = _library()
    webcam = name.partition(":")[0] == WEBCAM
    capture = cv2.VideoCapture(_camera(name) if webcam else name)
    rate = capture.get(cv2.CAP_PROP_FPS)
    rate = rate if 0 < rate < 1000 else _FRAMES_PER_SECOND
    target = out / f"{name.replace(':', '') if webcam else Path(name).stem}.mp4"
    out.mkdir(parents=True, exist_ok=True)
    # The ending tells OpenCV the format.
    partial, partial_json = out / f".partial-{target.name}", out / f".partial-{target.stem}.jsonl"
    writer = None
    count = 0
    try:
        with open(partial_json, "w") as lines:
            try:
                while most_frames is None or count < most_frames:
                    there, frame = capture.read()
                    if not there:
                        break
                    # OpenCV has blue first.
                    image = torch.from_numpy(frame[:, :, ::-1].copy()).permute(2, 0, 1)
                    found = predictor.find(image)
                    drawn = np.asarray(predictor.draw(image, found))[:, :, ::-1]
                    if writer is None:
                        codec = cv2.VideoWriter.fourcc(*"mp4v")
                        size = (drawn.shape[1], drawn.shape[0])
                        writer = cv2.VideoWriter(str(partial), codec, rate, size)
                        if not writer.isOpened():
                            raise UserError(f"OpenCV cannot write {target} on this machine")
                    writer.write(np.ascontiguousarray(drawn))
                    line = {
                        "frame": count,
                        "seconds": round(count / rate, 3),
                        "detections": predictor.describe(found),
                    }
                    lines.write(json.dumps(line) + "\n")
                    count += 1
            except KeyboardInterrupt:
                if not webcam:
                    raise
        if writer is None:
            raise UserError(
                f"the webcam {name} gives no picture"
                if webcam
                else f"{name} is no video that can be read"
            )
        writer.release()
        os.replace(partial, target)
        os.replace(partial_json, target.with_suffix(".jsonl"))
    finally:
        capture.release()
        if writer is not None:
            writer.release()
        partial.unlink(missing_ok=True)
        partial_json.unlink(missing_ok=True)
    say(f"{name}: {count} frames")
    return target


def _camera(name: str) -> int:
    number = name.partition(":")[2] or "0"
    if not number.isdecimal():
        raise UserError(f"{name}: name a webcam as webcam, webcam:1, webcam:2 ...")
    return int(number)


def _library() -> Any:
    try:
        import cv2
    except ImportError:
        raise UserError("videos and webcams need OpenCV: pip install 'ecanet[video]'") from None
    cv2.setLogLevel(0)  # what it cannot open is told by us
    return cv2
