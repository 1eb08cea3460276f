"""Weights on the Hugging Face Hub, named as timm names them: ``hf-hub:OWNER/NAME[@REVISION]``.

They are downloaded once, into the cache of huggingface_hub, and read from there without a network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ecanet.errors import UserError, disk_is_full, one_line
from ecanet.files import absolute
from ecanet.inputs import HUB_PREFIX, is_on_hub
from ecanet.network import hub_or_cache

WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "pytorch_model.bin")
"""Names of the weight file in a folder of the Hub, the preferred one first."""
CONFIG = "config.json"


def resolve_weights(name: str | None) -> str | None:
    """Return a name of the same weights for other folders and later times.

    It is the absolute path of a file, or the repository with the commit that its revision is at today,
    ``hf-hub:OWNER/NAME@COMMIT``, whose files are then in the cache.

    Raises:
        UserError: the repository or its revision cannot be found or downloaded.
    """
    if name is None or not is_on_hub(name):
        return absolute(name)
    return f"hf-hub:{_parts(name)[0]}@{_commit(hub_file(name))}"


def hub_file(name: str | os.PathLike[str]) -> Path:
    """Return the weight file of a repository in the cache, its ``config.json`` beside it if it has one.

    Raises:
        UserError: the repository or its revision cannot be found or downloaded, or has no weight file.
    """
    repository, revision = _parts(name)
    with _in_one_line(name):
        for file in FILES:
            try:
                found = Path(hf_hub_download(repository, file, revision=revision))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
            try:
                # Of the same commit, whatever is pushed meanwhile.
                hf_hub_download(repository, CONFIG, revision=_commit(found))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                pass  # weights alone
            return found
    raise UserError(f"{name} has no {' or '.join(FILES)}: download its weight file, and give that")


def _parts(name: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Return the repository and the revision of a name."""
    repository, _, revision = HUB_PREFIX.sub("", os.fspath(name), count=1).partition("@")
    return repository, revision or None


def _commit(cached: Path) -> str:
    """Return the commit of a file in the cache, ``.../snapshots/COMMIT/FILE``."""
    return cached.parent.name


@contextmanager
def _in_one_line(name: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the errors of huggingface_hub, of several lines, into one line."""
    unreachable = None
    try:
        with hub_or_cache() as unreachable:
            yield
    except HFValidationError as error:
        raise UserError(
            f"{name} is not the name of a repository on the Hub: write hf-hub:OWNER/NAME or "
            f"hf-hub:OWNER/NAME@REVISION"
        ) from error
    except GatedRepoError as error:
        raise UserError(
            f"{name} is gated: request access on its page, log in with "
            "'hf auth login', or give a file of weights"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"there is no repository {name} on the Hub, or it is private: check the name, log in with "
            "'hf auth login', or give a file of weights"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name}: the repository has no such revision") from error
    except Exception as error:  # those of the HTTP library, which differs from version to version
        if disk_is_full(error):
            raise
        reason = unreachable or one_line(error.__cause__ or error)
        raise UserError(
            f"{name} cannot be downloaded and is not in the cache ({reason}): check the network, or "
            "give a file of weights"
        ) from error
