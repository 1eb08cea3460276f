"""The commands, and what each takes."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ecanet.cli.options import SettingsParser

GROUPS = {
    "compare": {
        "compare": "train attention modules over several seeds; report which help, and their cost",
        "sweep": "try the settings of a W&B sweep file; report which are best",
        "plan": "show how many seeds a comparison needs, and the hours that takes",
    },
    "studies": {
        "study": "list, show, watch, cancel and retry studies and their runs",
        "worker": "work on a study's runs, beside workers on this and other machines",
        "report": "write the report of a study, finished or not",
    },
    "train and use one network": {
        "train": "train a classifier on a folder of images",
        "evaluate": "measure weights on a folder of images",
        "predict": "classify images of your own",
        "explain": "show what attention does, and where networks look",
        "fold": "turn gates that hardly depend on the image into constants",
        "export": "write ONNX or a torch.export program, and check it",
        "publish": "write or push weights with a model card",
    },
    "other tasks": {
        "detect": "train, evaluate, use and compare detectors",
        "yolo": "train YOLO and RT-DETR with attention, and compare modules",
    },
    "tools": {
        "profile": "measure parameters, multiply-adds, memory and speed of models",
        "convert": "convert weights between ecanet, official, torchvision, timm, ...",
        "download": "download the released ECA weights, COCO or CIFAR-10",
        "list": "list attention modules, models and recipes",
        "completion": "print a script that makes a shell complete commands and flags",
    },
}
"""Summaries of the commands by group, in the order of the help."""
WITH_JSON = set(GROUPS["compare"]) | {
    *(
        "study",
        "train",
        "evaluate",
        "predict",
        "explain",
        "fold",
        "detect",
        "yolo",
        "profile",
        "list",
    )
}
"""Those with results that ``--json`` gives."""
COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}


def parsers() -> Iterator[SettingsParser | argparse.ArgumentParser]:
    """Yield the parser of each command, those of ``detect`` and ``yolo`` one by one."""
    for name in COMMANDS:
        module = importlib.import_module(f"ecanet.cli.{name}")
        if hasattr(module, "parsers"):
            yield from module.parsers()
        else:
            yield module.parser()


def with_flag(name: str) -> list[str]:
    """Return the commands that have a flag, such as ``train`` and ``detect train`` of ``seed``."""
    found = []
    for parser in parsers():
        if isinstance(parser, argparse.ArgumentParser):
            has = {action.dest for action in parser._actions}
        else:
            has = set(parser.flags)
        if name in has:
            found.append(parser.prog.removeprefix("ecanet "))
    return found
