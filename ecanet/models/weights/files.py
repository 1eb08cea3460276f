"""Reads weight files of any origin without running code from them.

torch pickles (``.pth.tar``, ``.pth``, ``.pt``, ``.bin``, ``.ckpt``) and safetensors are distinguished by
their bytes; in a folder or repository of the Hugging Face Hub the weight file is read.

Pickles are read by torch's restricted unpickler, which creates tensors and plain containers and calls
nothing else. Objects of other classes beside the weights (arguments, paths, arrays, schedulers) become
:class:`_StandIn`: their classes are not imported, and their content is dropped. Sizes are checked against
that of the file, so that a small file cannot expand into a large object.
"""

from __future__ import annotations

import _compat_pickle
import io
import json
import os
import pickletools
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ecanet.data.preprocessing import TIMM_CONFIG, TIMM_LABELS
from ecanet.errors import UserError, first_of, one_line
from ecanet.inputs import check_weights, is_on_hub
from ecanet.models.weights.hub import CONFIG, FILES, hub_file

# Most bytes read of a Hub folder's config.json: ImageNet-21k's class names take half a megabyte.
_LARGEST_CONFIG = 2**24
# Keys of the metadata for what config.json of a Hub folder says about the model.
TIMM_MODEL = ("timm_architecture", "timm_num_classes", "timm_model_args")
# Key of our metadata in the `_metadata` of a plain state_dict() that we wrote.
NOTES_KEY = "ecanet"

# Where training programs keep the weights. Averaged weights come first: they are the ones evaluated.
_CONTAINERS = (
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "net", "module"),
)
_DEEPEST = 8

# Parts of Python's library whose objects are data that training programs save beside the weights. They
# too become stand-ins. All other parts are refused by name: weights need no code, so a file that refers
# to it is malicious.
_DATA = {
    *("argparse", "array", "collections", "dataclasses", "datetime", "decimal", "enum"),
    *("fractions", "functools", "ipaddress", "logging", "operator", "_operator", "pathlib"),
    *("random", "re", "time", "types", "typing", "uuid", "zoneinfo", "__main__"),
    *(f"builtins.{kind}" for kind in ("bool", "bytes", "dict", "float", "frozenset", "int")),
    *(f"builtins.{kind}" for kind in ("list", "object", "range", "slice", "str", "tuple")),
    # how methods and some enums are pickled: MMEngine's history holds its statistics so
    *(f"builtins.{function}" for function in ("getattr", "len", "max", "min", "sum", "type")),
    # allowed by torch's unpickler
    *("_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.set"),
}
_MOST_CLASSES = 100
# What torch's unpickler creates itself.
_TORCHS_OWN = re.compile(
    r"torch\.(\w*Storage|Tensor|Size|device|\w*\d+)$|torch\.(_utils|_tensor|serialization|storage)\.|(collections|builtins|_codecs)\."
)
# Most values in a pickle; shared values count each time they are referred to.
_LARGEST_VALUE = 10_000_000

# More than any network has; the names are searched many times.
_MOST_TENSORS, _LONGEST_NAME = 20_000, 300

_Contents = tuple[dict[str, Tensor], dict[str, str]]


@dataclass
class Checkpoint:
    """The weights of a file, under its own names, and its metadata.

    It is accepted wherever the path of a weight file is, and saves reading the file again.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__


def weight_file(path: str | os.PathLike[str]) -> Path:
    """Return the file with the weights: ``path``, or the weight file of a folder or repository of the Hub.

    Raises:
        UserError: there is no such file, or none in the folder or repository.
    """
    if is_on_hub(path):
        return hub_file(path)
    path = Path(path).expanduser()
    if path.is_dir():
        files = [path / name for name in FILES if (path / name).is_file()]
        if not files:
            there = sorted(file.name for file in path.glob("*.safetensors"))
            which = f"one of its files: {first_of(there, 5)}" if there else "a file"
            raise UserError(f"{path} is a folder without {' or '.join(FILES)}: name {which}")
        return files[0]
    check_weights(path)
    return path


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Return the tensors of a weight file, on the CPU, whatever container they are in, and its metadata.

    Args:
        path: a torch pickle, a safetensors file, a folder of the Hugging Face Hub, or
            ``hf-hub:OWNER/NAME``; a :class:`Checkpoint` is returned as it is.

    Raises:
        UserError: there is no such file, or it is damaged, holds no weights, or would run code.
    """
    if isinstance(path, Checkpoint):
        return path
    file = weight_file(path)
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    is_safe = file.suffix == ".safetensors" or start[8:] == b"{"
    tensors, metadata = _read_safetensors(file) if is_safe else _read_pickle(file)
    if not tensors:
        raise UserError(f"{file} holds no weights")
    if file.name in FILES:
        metadata |= _hub_description(file.with_name(CONFIG))
    return Checkpoint(tensors, metadata, Path(path))


def _check_names(file: Path, names: Collection[str]) -> None:
    """Refuse more or longer names than any network has."""
    if len(names) > _MOST_TENSORS:
        raise UserError(
            f"{file} holds {len(names):,} tensors: no network has more than {_MOST_TENSORS:,}"
        )
    longest = max(names, key=len, default="")
    if len(longest) > _LONGEST_NAME:
        raise UserError(
            f"{file} holds a tensor whose name has {len(longest):,} characters ({longest[:40]!r} ...): "
            "it is damaged or not a weight file"
        )


def _read_safetensors(file: Path) -> _Contents:
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            _check_names(file, names)
            tensors = {name: opened.get_tensor(name) for name in names}
            return tensors, opened.metadata() or {}
    except MemoryError as error:
        raise UserError(f"{file} does not fit into memory") from error
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{file} is damaged or not a safetensors file ({_short(error)})") from error


def _hub_description(file: Path) -> dict[str, str]:
    """Return a Hub folder's description of images, classes and model, as JSON that is parsed when needed."""
    try:
        with file.open("rb") as opened:
            config = json.loads(opened.read(_LARGEST_CONFIG))
        if not isinstance(config, dict):
            return {}
        if "architecture" in config:  # before timm 0.9 its entries stood beside this one
            config.setdefault(TIMM_CONFIG, dict(config))
        described = {key: config[key] for key in (TIMM_CONFIG, TIMM_LABELS) if key in config}
        # A pickle's "architecture" can be anything; that of a folder is timm's, which wrote it.
        theirs = {key: key.removeprefix("timm_") for key in TIMM_MODEL}
        described |= {key: config[name] for key, name in theirs.items() if name in config}
        return {key: json.dumps(value) for key, value in described.items()}
    except (OSError, ValueError, RecursionError):
        return {}


# ---- pickles


def _read_pickle(file: Path) -> _Contents:
    if torch.torch_version.TorchVersion(torch.__version__) < "2.10":
        raise UserError(
            f"{file} is a torch pickle, and reading one with torch {torch.__version__} can corrupt memory "
            "(CVE-2026-24747): upgrade to torch 2.10 or newer, or give a safetensors file"
        )
    content, stand_ins = _unpickle(file)
    tensors, metadata = _unwrap(content)
    if not tensors and stand_ins:
        raise UserError(
            f"{file} is refused: it holds no weights outside of objects such as {stand_ins[0]}, "
            "whose code would have to run: save the state_dict() alone"
        )
    _check_names(file, tensors)
    return _plain_tensors(file, tensors), metadata


class _StandIn(list):
    """Replaces an object of any class: accepts any content and keeps none."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    __hash__ = object.__hash__  # type: ignore[assignment]


class _DictStandIn(_StandIn):
    """Replaces objects of subclasses of dict by plain dicts."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _Dtype(_StandIn):
    """Replaces a numpy.dtype; keeps its name."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        super().__init__()
        self.code = code


def _number(dtype: Any = None, data: Any = None) -> Any:
    """Return the value of a pickled numpy scalar, usually the best accuracy."""
    code = getattr(dtype, "code", None)
    if isinstance(code, str) and re.fullmatch("f[248]|[iu][1248]", code) and type(data) is bytes:
        return np.frombuffer(data, code)[0].item()
    return _StandIn()


def _attribute(*_: Any) -> type[_StandIn]:
    """Stand in for getattr, whose result may be called."""
    return _StandIn


_OTHER_STAND_INS = {
    "builtins.getattr": _attribute,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
}


def _unpickle(file: Path) -> tuple[Any, list[str]]:
    """Return the content of a pickle, and the names of the classes and functions that were replaced."""
    try:
        used: dict[str, bool] = {}
        for opened in _pickles(file):
            for name, is_dict in _globals(opened).items():
                used[name] = used.get(name, False) or is_dict
        names = sorted(used)
        wanted = [name for name in names if not _is_data(name)]
        if wanted:
            raise UserError(
                f"{file} is refused: reading it would run {wanted[0]}, and weights need no code. "
                "Nothing was run"
            )
        if len(names) > _MOST_CLASSES:
            raise UserError(f"{file} is refused: it holds objects of {len(names):,} classes")
        content = _load(file, used)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        if "TorchScript" in str(error):
            raise UserError(
                f"{file} is a TorchScript program, not weights: save its state_dict()"
            ) from error
        raise UserError(f"{file} is damaged or not a weight file ({_short(error)})") from error
    return content, [name for name in names if not _TORCHS_OWN.match(name)]


def _load(file: Path, used: dict[str, bool]) -> Any:
    # torch looks up its own classes first, so no stand-in can replace a tensor.
    stand_ins = [
        (_OTHER_STAND_INS.get(name, _DictStandIn if is_dict else _StandIn), name)
        for name, is_dict in used.items()
    ]
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _is_data(name: str) -> bool:
    """Whether a pickle's reference is for torch to judge, or to data of a known kind."""
    module = name.partition(".")[0]
    return module not in sys.stdlib_module_names or bool(_DATA & {module, name})


def _pickles(file: Path) -> Iterator[IO[bytes]]:
    """Yield the pickles that torch would read in a file, each positioned at its start.

    Raises:
        ValueError: the file is an archive that expands beyond its size.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > _room(file):
                raise ValueError("it decompresses to more than its stated size")
            for entry in entries:
                if entry.filename.endswith("data.pkl"):
                    with archive.open(entry) as opened:
                        yield io.BytesIO(opened.read())
    else:
        with file.open("rb") as opened:
            # torch before 1.6: magic number, version, system, content, keys of storages; bytes follow.
            for _ in range(5):
                yield opened


def _room(file: Path) -> int:
    """Return the bytes that a file may expand to; torch does not compress, other tools may a little."""
    return 2 * file.stat().st_size + 2**26


def _globals(opened: IO[bytes]) -> dict[str, bool]:
    """Return the names of all classes and functions that a pickle refers to.

    Each comes with whether items are set in what it makes, as in a subclass of dict: torch sets them in
    plain dicts alone.

    Raises:
        ValueError: the bytes are no pickle, or one that expands exponentially: nested tuples of the same
            tuples take a few bytes each, and forever to traverse.
    """
    names: dict[str, bool] = {}
    # Each value on the pickle's stack: its expanded size, and the name of what it is or is made by.
    stack: list[tuple[int, str]] = []
    mark = (0, "")
    memo: dict[Any, tuple[int, str]] = {}
    for opcode, argument, _ in pickletools.genops(opened):
        made_by = ""
        if opcode.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            if (module, name) in _compat_pickle.NAME_MAPPING:
                module, name = _compat_pickle.NAME_MAPPING[module, name]
            made_by = f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
            names.setdefault(made_by, False)
        if "PUT" in opcode.name:
            memo[argument] = stack[-1]
        elif "GET" in opcode.name:
            stack.append(memo[argument])
        elif opcode.name == "MARK":
            stack.append(mark)
        else:
            takes, gives = opcode.stack_before, opcode.stack_after
            size = 1
            if pickletools.markobject in takes:
                while (taken := stack.pop()) != mark:
                    size += taken[0]
                takes = takes[: takes.index(pickletools.markobject)]
            for _ in takes:
                taken = stack.pop()
                size += taken[0]
                made_by = taken[1]  # in the end the lowest: a class, a dict, an object
            if size > _LARGEST_VALUE:
                raise ValueError("it expands exponentially")
            if opcode.name in ("SETITEM", "SETITEMS") and made_by in names:
                names[made_by] = True
            stack += [(size, made_by)] * len(gives)
    return names


def _unwrap(content: Any, depth: int = 0, seen: set[int] | None = None) -> _Contents:
    """Search ``content`` and the containers in it for weights and plain values."""
    seen = set() if seen is None else seen
    # A dict can contain itself.
    if not isinstance(content, dict) or id(content) in seen or depth > _DEEPEST:
        return {}, {}
    seen.add(id(content))
    # As a dict: a pickle can give an OrderedDict attributes that hide its methods.
    entries = {name: value for name, value in dict.items(content) if isinstance(name, str)}
    for container in _CONTAINERS:
        if container == "ema_state_dict" and _is_mmengines(entries):
            continue
        tensors, values = _unwrap(entries.get(container), depth + 1, seen)
        if tensors:
            return tensors, {**_plain_values(entries), **values}
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    # Beside the module versions of a state_dict(): as a key of its own it would prevent loading.
    noted = getattr(content, "__dict__", {}).get("_metadata")
    notes = dict.get(noted, NOTES_KEY) if isinstance(noted, dict) else None
    return tensors, _plain_values(notes) if type(notes) is dict else {}


def _is_mmengines(entries: dict[str, Any]) -> bool:
    """Whether MMEngine wrote it, whose ``state_dict`` holds the averaged weights, not ``ema_state_dict``."""
    meta = entries.get("meta")
    return isinstance(meta, dict) and dict.__contains__(meta, "mmengine_version")


def _plain_tensors(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without extra attributes and gradients.

    Raises:
        UserError: one is not plain, or together they are larger than the file.
    """
    storages = {}
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            raise UserError(
                f"{file}: {name} is not a plain dense tensor (sparse, quantized or another kind): "
                "save the weights as plain numbers"
            )
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise UserError(f"{file}: {name} is larger than its data in the file")
    if sum(storages.values()) > _room(file):
        raise UserError(f"{file} describes more weights than a file of its size can hold")
    return {name: Tensor.detach(tensor) for name, tensor in tensors.items()}


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_complex())
    )


def _plain_values(content: dict[str, Any]) -> dict[str, str]:
    values = {}
    for key, value in dict.items(content):
        if isinstance(value, Tensor) and _is_plain(value) and value.ndim == 0:
            value = Tensor.item(value)
        is_long = isinstance(value, int) and value.bit_length() > 64
        if isinstance(key, str) and isinstance(value, (str, int, float)) and not is_long:
            values[key] = str(value)
    return values


def _short(error: BaseException) -> str:
    # torch puts advice for other programs before the reason.
    reason = str(error).rpartition("WeightsUnpickler error:")[2]
    return one_line(reason, 120) or type(error).__name__
