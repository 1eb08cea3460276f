"""Downloads: verified and resumable.

pooch checks the hash and moves the file into place. What its own downloader lacks is here: resuming
interrupted transfers, giving up on a silent server, and detecting a web page in place of a file.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
import requests
from filelock import FileLock
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema

from ecanet.activity import activity
from ecanet.data.cache import cache_folder
from ecanet.errors import UserError
from ecanet.files import write_atomic
from ecanet.names import check_download, downloads
from ecanet.redaction import without_secrets

ATTEMPTS = 5
"""Consecutive requests without progress after which a download is given up."""
PAUSE = 1.0
"""Seconds before the second of them, doubled before each further one."""
SILENCE = 60.0
"""Seconds without a byte after which a request is given up."""

_CHUNK = 1 << 16
_DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
_BUSY = {408, 425, 429, 500, 502, 503, 504}


@dataclass
class Source:
    """Where a file comes from, and how it is verified."""

    file: str
    url: str = ""
    drive: str = ""
    """Its id on Google Drive, instead of a URL."""
    size: int | None = None
    """Bytes."""
    md5: str | None = None
    group: str = ""

    def address(self, mirror: str | None) -> str:
        """Return the URL to fetch, from a mirror if one is given."""
        if mirror:
            return f"{mirror.rstrip('/')}/{self.file}"
        return self.url or _DRIVE.format(self.drive)


def sources() -> dict[str, Source]:
    """Return the sources that :func:`download` can fetch, by name."""
    return {name: Source(**values) for name, values in downloads().items()}


def download(
    name: str,
    out: str | os.PathLike[str] | None = None,
    *,
    mirror: str | None = None,
) -> list[Path]:
    """Download a file, or the files of a group, unless they exist; return their paths.

    A file under its final name is always complete and verified: by the published MD5, else by its
    length and the SHA-256 of the first download, which is kept in ``FILE.sha256``. An interrupted
    download is kept in ``FILE.part`` and resumed.

    Args:
        name: one of :func:`sources`, or a group: ``coco``.
        out: folder; by default downloads in $ECANET_CACHE or in the user's cache of ecanet, which
            ``--data cifar10`` uses too.
        mirror: base URL that serves the files under their names, instead of their sources; by default
            $ECANET_MIRROR.

    Raises:
        UserError: the name is unknown, the file cannot be fetched or is not the published one, or the
            disk has no room for it.
    """
    known = sources()
    check_download(name)
    wanted = [source for key, source in known.items() if name in (key, source.group)]
    folder = Path(out).expanduser() if out is not None else cache_folder() / "downloads"
    mirror = mirror or os.environ.get("ECANET_MIRROR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from error
    return [_fetch(source, folder, mirror) for source in wanted]


def _fetch(source: Source, folder: Path, mirror: str | None) -> Path:
    record = folder / f"{source.file}.sha256"
    part = folder / f"{source.file}.part"
    known = f"md5:{source.md5}" if source.md5 else _recorded(record)
    pooch.get_logger().setLevel("WARNING")
    fetcher = pooch.create(folder, base_url="", registry={source.file: known})
    fetcher.urls = {source.file: source.address(mirror)}
    # pooch retries if the hash is wrong.
    fetcher.retry_if_failed = 1
    try:
        # Of several processes one downloads, and the others then find the file.
        with FileLock(folder / f".{source.file}.lock"):
            if known is None:
                # Without a hash, two halves could be of different files.
                part.unlink(missing_ok=True)
            transfer = Transfer(part, source.size)
            path = Path(fetcher.fetch(source.file, downloader=transfer))
            if known is None:
                write_atomic(record, f"{pooch.file_hash(str(path))}  {path.name}\n")
    except ValueError as error:
        if "hash of downloaded file" not in str(error):
            raise
        expected = f"the {known.partition(':')[0]} is not "  # type: ignore[union-attr]
        expected += "the published one" if source.md5 else f"that of the first download in {record}"
        raise UserError(
            f"{source.file} was downloaded twice, and {expected}: the file at "
            f"{without_secrets(source.address(mirror))} is damaged or a different one; nothing was kept"
        ) from error
    except PermissionError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    return path


def _recorded(record: Path) -> str | None:
    try:
        digest = record.read_text().split()[0]
    except (OSError, IndexError):
        return None
    return f"sha256:{digest}" if re.fullmatch(r"[0-9a-f]{64}", digest) else None


class _Cut(Exception):
    """A request that ended early for a reason that may be temporary."""


class Transfer:
    """A downloader for pooch that resumes interrupted transfers.

    Args:
        part: file of what was received so far; removed by a complete transfer.
        size: bytes of the file, if known.
    """

    def __init__(self, part: Path, size: int | None) -> None:
        self.part, self.size = part, size
        self.validator: str | None = None

    def __call__(self, url: str, output_file: str, _: Any) -> None:
        """Download ``url``, and move the complete file to ``output_file``.

        Raises:
            UserError: the server refuses, is silent, or interrupts every request.
        """
        furthest, failures = self._have(), 0
        while True:
            try:
                self._request(url)
                break
            except _Cut as cut:
                failures = 1 if self._have() > furthest else failures + 1
                furthest = max(furthest, self._have())
                if failures >= ATTEMPTS:
                    raise UserError(
                        f"{without_secrets(url)} cannot be fetched: {cut}, {failures} times in a row; "
                        "the same command tries again"
                    ) from cut
                time.sleep(PAUSE * 2 ** (failures - 1))
        os.replace(self.part, output_file)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _request(self, url: str) -> None:
        have = self._have()
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.validator:
                headers["If-Range"] = self.validator
        try:
            with requests.get(
                url, headers=headers, stream=True, timeout=(SILENCE, SILENCE)
            ) as response:
                self._receive(response, url, have)
        except (InvalidSchema, InvalidURL, MissingSchema) as error:
            # Its text may contain the password.
            raise UserError(
                f"{without_secrets(url)} is not a URL that can be downloaded"
            ) from error
        except requests.RequestException as error:
            raise _Cut(_reason(error)) from error

    def _receive(self, response: requests.Response, url: str, have: int) -> None:
        url = without_secrets(url)
        if response.status_code == 416:  # nothing follows what we have
            if response.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            self.part.unlink()
            raise _Cut("the server's file is shorter than what was received")
        if response.status_code in _BUSY:
            raise _Cut(f"the server responded {response.status_code} {response.reason}")
        if response.status_code >= 400:
            raise UserError(
                f"{url} cannot be fetched: the server responded {response.status_code} {response.reason}"
            )
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise UserError(
                f"{url} returns a web page instead of the file: open it in a browser to see why (on "
                "Google Drive, often too many downloads in a day), or use a --mirror"
            )
        if response.status_code != 206:
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            self.part.unlink()
            raise _Cut("the server sent a different range from the one requested")
        length = response.headers.get("Content-Length", "")
        whole = have + int(length) if length.isdecimal() else None
        if None not in (whole, self.size) and whole != self.size:
            raise UserError(f"{url} has {whole} bytes, and the published file {self.size}")
        # Weak validators do not prove that two parts are of one file.
        tag = response.headers.get("ETag", "")
        self.validator = tag if tag.startswith('"') else response.headers.get("Last-Modified")
        needed, free = (whole or self.size or 0) - have, shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise UserError(
                f"{self.part.parent} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are "
                "needed: free some, or choose another folder with --out"
            )
        self._write(response, have, whole)
        if whole is not None and self._have() < whole:
            raise _Cut("the connection was interrupted")

    def _write(self, response: requests.Response, have: int, whole: int | None) -> None:
        receiving = activity(
            f"downloading {self.part.stem}", whole or self.size, "bytes", done=have, at_once=True
        )
        with receiving as shown, self.part.open("ab" if have else "wb") as file:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                shown.done += len(chunk)


def _reason(error: BaseException) -> str:
    # A timeout in the middle of a file is a ConnectionError.
    if isinstance(error, requests.exceptions.Timeout) or "timed out" in str(error):
        return f"no data arrived for {SILENCE:g} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was interrupted"
    found = re.search(r"\[Errno -?\d+\] ([\w ]+)", str(error))
    return found[1] if found else "no connection"
