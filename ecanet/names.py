"""Names of attention modules and models, read from source files: a wrong one is refused without torch.

Only what can be known to be wrong is refused here, with a plugin nothing; the registries have the last word.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from ecanet.errors import UserError, did_you_mean, shown

_PACKAGE = Path(__file__).parent
_FREE = re.compile(r"[/:.]")
"""In what is no name of a registry alone: torchvision/NAME, hf-hub:NAME, a tag, a file."""

CIFAR_DEPTHS = (20, 32, 44, 56, 110)
RESNET_DEPTHS = (18, 34, 50, 101, 152)


def our_models() -> dict[str, str]:
    """Return the names of our own models, and what each is."""
    plain = {
        **{f"resnet{depth}": f"ResNet-{depth} for small images" for depth in CIFAR_DEPTHS},
        **{f"resnet{depth}": f"ResNet-{depth} for photographs" for depth in RESNET_DEPTHS},
        "mobilenet_v2": "MobileNetV2 for photographs",
    }
    released = [name for name in plain if name not in {f"resnet{depth}" for depth in CIFAR_DEPTHS}]
    eca = {f"eca_{name}": f"{plain[name]}, with ECA" for name in released}
    return dict(sorted({**plain, **eca}.items(), key=_by_number))


def _by_number(item: tuple[str, str]) -> tuple[str, int]:
    letters = item[0].rstrip("0123456789")
    return letters, int(item[0][len(letters) :] or 0)


@functools.cache
def built_in_attention() -> dict[str, str]:
    """Return the registered name of each built-in attention module, and its docstring."""
    found = {}
    for file in sorted((_PACKAGE / "attention").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "@register_attention" not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                for name in map(functools.partial(_registered, node), node.decorator_list):
                    if name:
                        found[name] = ast.get_docstring(node) or ""
    return dict(sorted(found.items()))


def _registered(node: ast.ClassDef | ast.FunctionDef, decorator: ast.expr) -> str | None:
    if isinstance(decorator, ast.Name) and decorator.id == "register_attention":
        return node.name
    if (
        not isinstance(decorator, ast.Call)
        or getattr(decorator.func, "id", "") != "register_attention"
    ):
        return None
    argument = decorator.args[0]
    assert isinstance(argument, ast.Constant)
    return str(argument.value)


def check_names(
    models: str | Collection[str] | None = None,
    attention: str | Collection[str] | None = None,
    plugins: Collection[str] = (),
) -> None:
    """Refuse names of models and attention modules that neither ecanet nor timm can have.

    Args:
        models: names of classifiers or backbones.
        attention: specs, such as ``eca:kernel_size=9``; ``control`` and its kinds are those of comparisons.
        plugins: files that may register others: then all is accepted.

    Raises:
        UserError: a name is unknown; similar ones are suggested.
    """
    if plugins:
        return
    for spec in _listed(attention):
        name = spec.partition(":")[0].strip().lower()
        known = built_in_attention()
        if name not in known and name != "control":
            raise UserError(f"unknown attention module {name!r}.{did_you_mean(name, known)}")
    for name in _listed(models):
        if not _FREE.search(name) and name not in our_models() and not _in_timm(name):
            everything = [*our_models(), *_timm_models()]
            # Without a similar name, ours alone: timm has over a thousand.
            hint = did_you_mean(name, everything, listed=our_models())
            raise UserError(f"unknown model {shown(name)}.{hint}")


def _listed(names: str | Collection[str] | None) -> list[str]:
    """Return the names of a setting, in which commas may separate several."""
    several = [names] if isinstance(names, str) else names or []
    return [one.strip() for text in several for one in text.split(",") if one.strip()]


def _timm_sources() -> Iterator[bytes]:
    found = importlib.util.find_spec("timm")  # of a package itself, this imports nothing
    for folder in found.submodule_search_locations or [] if found else []:
        for file in Path(folder, "models").glob("*.py"):
            yield file.read_bytes()


def _in_timm(name: str) -> bool:
    """Whether timm may have a model: a function, or a text, of its sources has the name."""
    if not name.isidentifier():
        return False
    text = name.encode()
    wanted = (b"def %s(" % text, b"'%s'" % text, b'"%s"' % text)
    return any(one in source for source in _timm_sources() for one in wanted)


def _timm_models() -> list[str]:
    pattern = re.compile(rb"@register_model\n(?:#.*\n)*def (\w+)")
    return [name.decode() for source in _timm_sources() for name in pattern.findall(source)]


@functools.cache
def downloads() -> dict[str, dict[str, Any]]:
    """Return what `ecanet download` can fetch: name to the fields of :class:`ecanet.data.download.Source`."""
    text = (_PACKAGE / "data" / "downloads.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def check_download(name: str) -> None:
    """Refuse the name of a download that there is not.

    Raises:
        UserError: it is unknown; similar ones are suggested.
    """
    known = {*downloads(), *(entry["group"] for entry in downloads().values() if "group" in entry)}
    if name not in known:
        raise UserError(f"unknown download {name!r}.{did_you_mean(name, known)}")
