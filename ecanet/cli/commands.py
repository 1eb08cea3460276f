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
        "compare": "train attention modules over several seeds; report which help, at what cost",
        "sweep": "run a W&B sweep file; report the best settings",
        "plan": "estimate how many seeds and hours a comparison needs",
    },
    "studies": {
        "study": "list, show, watch, cancel and retry studies",
        "worker": "train runs of a study, alongside workers on this and other machines",
        "report": "write the report of a study, finished or not",
    },
    "train and use one network": {
        "train": "train a classifier on a folder of images",
        "evaluate": "evaluate a trained classifier on a folder of images",
        "predict": "classify your own images",
        "explain": "show what attention modules do and where networks look",
        "fold": "turn gates that barely depend on the image into constants",
        "export": "export to ONNX or torch.export, and check the file",
        "publish": "publish weights with a model card, to a folder or the Hugging Face Hub",
    },
    "other tasks": {
        "detect": "train, evaluate, use and compare detectors",
        "yolo": "train YOLO and RT-DETR with attention modules, and compare them",
    },
    "tools": {
        "profile": "measure parameters, multiply-adds, memory and speed of models",
        "convert": "convert weights between ecanet, official, torchvision, timm, ...",
        "download": "download released ECA weights, COCO or CIFAR-10",
        "list": "list attention modules, models and recipes",
        "completion": "print a script that makes a shell complete commands and flags",
    },
}
"""Summary of each command, by group, in the order of the help."""
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
"""Commands whose results ``--json`` prints."""
COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}


def parsers() -> Iterator[SettingsParser | argparse.ArgumentParser]:
    """Yield the parser of each command, including the subcommands of ``detect`` and ``yolo``."""
    for name in COMMANDS:
        module = importlib.import_module(f"ecanet.cli.{name}")
        if hasattr(module, "parsers"):
            yield from module.parsers()
        else:
            yield module.parser()


def with_flag(name: str) -> list[str]:
    """Return the commands that have a flag: ``train``, ``detect train`` ... for ``seed``."""
    found = []
    for parser in parsers():
        if isinstance(parser, argparse.ArgumentParser):
            has = {action.dest for action in parser._actions}
        else:
            has = set(parser.flags)
        if name in has:
            found.append(parser.prog.removeprefix("ecanet "))
    return found
