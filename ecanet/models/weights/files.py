"""What is in a weight file, whoever wrote it. Nothing that a file says is ever run.

torch pickles (``.pth.tar``, ``.pth``, ``.pt``, ``.bin``, ``.ckpt``) and safetensors are told apart by
their bytes; a folder of the Hugging Face Hub is read by its weight file.

A pickle is read by torch's own restricted reader, which makes tensors and plain containers and calls
nothing else. Objects of other classes that lie beside the weights (arguments, paths, arrays, schedulers)
become :class:`_StandIn`: their classes are not imported, and what they were made of is dropped. What is
read is held against the size of the file, so that nothing unfolds into more than it brings.
"""

from __future__ import annotations

import _compat_pickle
import io
import json
import os
import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ecanet.data.preprocessing import TIMM_CONFIG, TIMM_LABELS
from ecanet.errors import UserError

HUB_WEIGHTS = "model.safetensors"
_HUB_FILES = (HUB_WEIGHTS, "pytorch_model.bin")

# Bytes of a Hub folder's config.json that are read: ImageNet-21k's names are half a megabyte.
_LARGEST_CONFIG = 2**24
# Where a plain state_dict() that we wrote says more, in its `_metadata`.
NOTES_KEY = "ecanet"

# Where training programs keep the weights. Averaged ones come first: they are those that were tested.
_CONTAINERS = (
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "module",
)
_DEEPEST = 8

# Objects of these parts of Python's library are data that training programs leave beside the weights.
# All other parts are refused by name: weights need no program, and who asks for one means harm.
_DATA = {
    *("argparse", "collections", "datetime", "decimal", "enum", "fractions", "functools"),
    *("pathlib", "types", "uuid", "__main__"),
    *(f"builtins.{kind}" for kind in ("bool", "bytes", "dict", "float", "frozenset", "int")),
    *(f"builtins.{kind}" for kind in ("list", "object", "range", "slice", "str", "tuple")),
    # of torch's reader
    *("_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.set"),
}
_MOST_CLASSES = 100
# What torch's reader makes itself.
_TORCHS_OWN = re.compile(
    r"torch\.(\w*Storage|Tensor|Size|device|\w*\d+)$|torch\.(_utils|_tensor|serialization|storage)\.|(collections|builtins|_codecs)\."
)
# Of values in a pickle, all that they share counted each time.
_LARGEST_VALUE = 10_000_000

# More than any network has; names are looked through again and again.
_MOST_TENSORS, _LONGEST_NAME = 20_000, 300


@dataclass
class Checkpoint:
    """The weights of a file, under its own names, and what it says of them."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def weight_file(path: str | os.PathLike[str]) -> Path:
    """Return the file that holds the weights: ``path``, or the one inside it if it is a Hub folder.

    Raises:
        UserError: there is no such file, or none in the folder.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = [path / name for name in _HUB_FILES if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} is a folder without {' or '.join(_HUB_FILES)}: name a file")
        return found[0]
    if not path.is_file():
        raise UserError(f"there is no weight file {path}")
    return path


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Return the tensors in a weight file, on the CPU, out of whatever container they are in.

    Args:
        path: a torch pickle, a safetensors file, or a folder of the Hugging Face Hub.

    Raises:
        UserError: there is no such file, it is damaged, holds no weights, or wants to run a program.
    """
    file = weight_file(path)
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    is_safe = file.suffix == ".safetensors" or start[8:] == b"{"
    checkpoint = _read_safetensors(file) if is_safe else _read_pickle(file)
    if not checkpoint.tensors:
        raise UserError(f"{file} holds no weights")
    if file.name in _HUB_FILES:
        checkpoint.metadata.update(_hub_description(file.with_name("config.json")))
    return checkpoint


def _check_names(file: Path, names: Collection[str]) -> None:
    """Refuse names that no network has: nested or numbered without end."""
    if len(names) > _MOST_TENSORS:
        raise UserError(
            f"{file} holds {len(names):,} tensors: no network has over {_MOST_TENSORS:,}"
        )
    longest = max(names, key=len)
    if len(longest) > _LONGEST_NAME:
        raise UserError(
            f"{file} holds a tensor whose name has {len(longest):,} characters ({longest[:40]!r} ...): "
            "it is damaged or no weight file"
        )


def _read_safetensors(file: Path) -> Checkpoint:
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            if names:
                _check_names(file, names)
            tensors = {name: opened.get_tensor(name) for name in names}
            return Checkpoint(tensors, opened.metadata() or {})
    except MemoryError as error:
        raise UserError(f"{file}: out of memory, it holds more than can be read here") from error
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{file} is damaged or no safetensors file ({_short(error)})") from error


def _hub_description(file: Path) -> dict[str, str]:
    """Return what a Hub folder says of images and classes, as JSON: not parsed before it is needed."""
    try:
        with file.open("rb") as opened:
            config = json.loads(opened.read(_LARGEST_CONFIG))
        if not isinstance(config, dict):
            return {}
        return {key: json.dumps(config[key]) for key in (TIMM_CONFIG, TIMM_LABELS) if key in config}
    except (OSError, ValueError, RecursionError):
        return {}


# ---- pickles


def _read_pickle(file: Path) -> Checkpoint:
    pickled = _unpickle(file)
    checkpoint = _unwrap(pickled.content)
    if not checkpoint.tensors and pickled.stand_ins:
        raise UserError(
            f"{file} is refused: it holds no weights outside of objects such as {pickled.stand_ins[0]}, "
            "whose program would have to run: save the state_dict() alone"
        )
    if checkpoint.tensors:
        _check_names(file, checkpoint.tensors)
    return Checkpoint(_plain_tensors(file, checkpoint.tensors), checkpoint.metadata)


class _StandIn(list):
    """Stands where an object of some class would: takes whatever it is given, and keeps nothing."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    __hash__ = object.__hash__  # type: ignore[assignment]


class _DictStandIn(_StandIn):
    """Makes plain dicts where the classes are kinds of dict."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _Dtype(_StandIn):
    """Stands for a numpy.dtype; keeps its name."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        super().__init__()
        self.code = code


def _number(dtype: Any = None, data: Any = None) -> Any:
    """Return the number that a pickled numpy scalar is: the best accuracy, mostly."""
    code = getattr(dtype, "code", None)
    if isinstance(code, str) and re.fullmatch("f[248]|[iu][1248]", code) and type(data) is bytes:
        return np.frombuffer(data, code)[0].item()
    return _StandIn()


_NUMPY = {
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
}


@dataclass
class _Pickle:
    """What is in a pickle."""

    content: Any
    stand_ins: list[str]
    """Names of the classes and functions that have a stand-in."""


def _unpickle(file: Path) -> _Pickle:
    try:
        names = sorted({name for opened in _pickles(file) for name in _globals(opened)})
        wanted = [name for name in names if not _is_data(name)]
        if wanted:
            raise UserError(
                f"{file} is refused: reading it would run {wanted[0]}, and weights need no program. "
                "Nothing of it was run"
            )
        if len(names) > _MOST_CLASSES:
            raise UserError(f"{file} is refused: it holds objects of {len(names):,} classes")
        try:
            content = _load(file, names, _StandIn)
        except pickle.UnpicklingError as error:
            if "SETITEM" not in str(error):
                raise
            content = _load(file, names, _DictStandIn)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        if "TorchScript" in str(error):
            raise UserError(
                f"{file} is a TorchScript program, not weights: save its state_dict()"
            ) from error
        raise UserError(f"{file} is damaged or no weight file ({_short(error)})") from error
    return _Pickle(content, [name for name in names if not _TORCHS_OWN.match(name)])


def _load(file: Path, names: list[str], stand_in: Callable[..., Any]) -> Any:
    # torch looks among its own first, so that no stand-in takes a tensor's place.
    stand_ins = [(_NUMPY.get(name, stand_in), name) for name in names]
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _is_data(name: str) -> bool:
    """Whether what a pickle wants to call is torch's own to judge, or makes data of a known kind."""
    module = name.partition(".")[0]
    return module not in sys.stdlib_module_names or bool(_DATA & {module, name})


def _pickles(file: Path) -> Iterator[IO[bytes]]:
    """Yield the pickles that torch would read in a file, each at its beginning.

    Raises:
        ValueError: it is an archive that unfolds into more than the file.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > _room(file):
                raise ValueError("it unfolds into more than it holds")
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
    """Return the bytes that a file may unfold into; torch compresses nothing, other tools may a little."""
    return 2 * file.stat().st_size + 2**26


def _globals(opened: IO[bytes]) -> set[str]:
    """Return the names of all classes and functions that a pickle refers to.

    Raises:
        ValueError: the bytes are no pickle, or one that unfolds without end: tuples of the same tuples
            of the same tuples take a few bytes each, and for ever to look through.
    """
    names = set()
    mark = 0
    sizes: list[int] = []  # how large each value on the pickle's stack is, unfolded
    memo: dict[Any, int] = {}
    for opcode, argument, _ in pickletools.genops(opened):
        if opcode.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            if (module, name) in _compat_pickle.NAME_MAPPING:
                module, name = _compat_pickle.NAME_MAPPING[module, name]
            names.add(f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}")
        if "PUT" in opcode.name:
            memo[argument] = sizes[-1]
        elif "GET" in opcode.name:
            sizes.append(memo[argument])
        elif opcode.name == "MARK":
            sizes.append(mark)
        else:
            takes, gives = opcode.stack_before, opcode.stack_after
            size = 1
            if pickletools.markobject in takes:
                while (taken := sizes.pop()) != mark:
                    size += taken
                takes = takes[: takes.index(pickletools.markobject)]
            for _ in takes:
                size += sizes.pop()
            if size > _LARGEST_VALUE:
                raise ValueError("it unfolds without end")
            sizes += [size] * len(gives)
    return names


def _unwrap(content: Any, depth: int = 0, seen: set[int] | None = None) -> Checkpoint:
    """Look for weights in ``content`` and the containers in it."""
    seen = set() if seen is None else seen
    # A dict can hold itself.
    if not isinstance(content, dict) or id(content) in seen or depth > _DEEPEST:
        return Checkpoint({}, {})
    seen.add(id(content))
    # As a dict: a pickle can give an OrderedDict attributes that hide its methods.
    entries = {name: value for name, value in dict.items(content) if isinstance(name, str)}
    for container in _CONTAINERS:
        if container == "ema_state_dict" and _is_mmengines(entries):
            continue
        found = _unwrap(entries.get(container), depth + 1, seen)
        if found.tensors:
            return Checkpoint(found.tensors, {**_plain_values(entries), **found.metadata})
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    # Beside the versions of modules that a state_dict() carries: no key of its own, so that it loads.
    noted = getattr(content, "__dict__", {}).get("_metadata")
    notes = dict.get(noted, NOTES_KEY) if isinstance(noted, dict) else None
    return Checkpoint(tensors, _plain_values(notes) if type(notes) is dict else {})


def _is_mmengines(entries: dict[str, Any]) -> bool:
    """Whether MMEngine wrote it: it saves the averaged weights as ``state_dict``, the others as averaged."""
    meta = entries.get("meta")
    return isinstance(meta, dict) and dict.__contains__(meta, "mmengine_version")


def _plain_tensors(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without attributes and gradients of their own.

    Raises:
        UserError: one is not plain, or all together claim more than the file holds.
    """
    storages = {}
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            raise UserError(
                f"{file}: {name} is no plain tensor, but sparse, quantized or of another kind: save the "
                "weights as plain numbers"
            )
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise UserError(f"{file}: {name} claims more numbers than the file has for it")
    if sum(storages.values()) > _room(file):
        raise UserError(f"{file} claims more weights than a file of its size can hold")
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
    # torch puts advice for other programs in front of what it found.
    found = str(error).rpartition("WeightsUnpickler error:")[2]
    return " ".join(found.split())[:120] or type(error).__name__
