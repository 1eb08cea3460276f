"""Downloads that end in the whole file, checked, or in one line that says why not.

pooch checks the hash and puts the file in its place; what its own downloader lacks is here: going on
behind a cut, giving up on a silent server, and telling a web page from a file.
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
import yaml
from filelock import FileLock
from tqdm import tqdm

from ecanet.data.cache import cache_folder
from ecanet.errors import UserError, did_you_mean
from ecanet.files import write_atomic
from ecanet.redaction import without_secrets

ATTEMPTS = 5
"""Requests in a row that bring nothing new, after which a download is given up."""
PAUSE = 1.0
"""Seconds before the second of them; twice as long before each further one."""
SILENCE = 60.0
"""Seconds without a byte after which a request is given up."""

_CHUNK = 1 << 16
_DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_BAD_ADDRESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
)


@dataclass
class Source:
    """Where a file comes from and how it is known to be the right one."""

    file: str
    url: str = ""
    drive: str = ""
    """Its id on Google Drive, in place of a url."""
    size: int | None = None
    """Bytes."""
    md5: str | None = None
    group: str = ""

    def address(self, mirror: str | None) -> str:
        """Return the URL to fetch, behind a mirror's base URL if there is one."""
        if mirror:
            return f"{mirror.rstrip('/')}/{self.file}"
        return self.url or _DRIVE.format(self.drive)


def sources() -> dict[str, Source]:
    """Return what :func:`download` can fetch, by name."""
    text = Path(__file__).with_name("downloads.yaml").read_text()
    return {name: Source(**values) for name, values in yaml.safe_load(text).items()}


def download(
    name: str,
    out: str | os.PathLike[str] | None = None,
    *,
    mirror: str | None = None,
    progress: bool = True,
) -> list[Path]:
    """Fetch a file, or the files of a group, unless they are there, whole; return their paths.

    A file under its own name is always complete and checked: by the published MD5, else by its
    length and the SHA-256 of the first download, kept in ``FILE.sha256``. What a cut download
    brought so far waits in ``FILE.part``.

    Args:
        name: one of :func:`sources`, or a group: ``coco``.
        out: folder; by default downloads in $ECANET_CACHE or in the user's cache of ecanet, where
            ``--data cifar10`` looks as well.
        mirror: base URL that has the files under their names, in place of where they come from; by
            default $ECANET_MIRROR.
        progress: show progress bars on stderr.

    Raises:
        UserError: the name is unknown, the file cannot be had or is not the published one, or the
            disk has no room for it.
    """
    known = sources()
    wanted = [source for key, source in known.items() if name in (key, source.group)]
    if not wanted:
        groups = {source.group for source in known.values() if source.group}
        raise UserError(f"unknown download {name!r}.{did_you_mean(name, [*known, *groups])}")
    folder = Path(out).expanduser() if out is not None else cache_folder() / "downloads"
    mirror = mirror or os.environ.get("ECANET_MIRROR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from error
    return [_fetch(source, folder, mirror, progress) for source in wanted]


def _fetch(source: Source, folder: Path, mirror: str | None, progress: bool) -> Path:
    record = folder / f"{source.file}.sha256"
    part = folder / f"{source.file}.part"
    known = f"md5:{source.md5}" if source.md5 else _recorded(record)
    pooch.get_logger().setLevel("WARNING")
    fetcher = pooch.create(folder, base_url="", registry={source.file: known})
    fetcher.urls = {source.file: source.address(mirror)}
    # pooch tries again when the hash is wrong.
    fetcher.retry_if_failed = 1
    try:
        # Several processes may get here together: one downloads, the others then find it done.
        with FileLock(folder / f".{source.file}.lock"):
            if known is None:
                # Nothing could tell whether two halves belong together.
                part.unlink(missing_ok=True)
            transfer = Transfer(part, source.size, progress)
            path = Path(fetcher.fetch(source.file, downloader=transfer))
            if known is None:
                write_atomic(record, f"{pooch.file_hash(str(path))}  {path.name}\n")
    except ValueError as error:
        if "hash of downloaded file" not in str(error):
            raise
        expected = f"the {known.partition(':')[0]} is not "  # type: ignore[union-attr]
        expected += "the published one" if source.md5 else f"that of the first download in {record}"
        raise UserError(
            f"{source.file} arrived twice, and {expected}: the file at "
            f"{without_secrets(source.address(mirror))} is damaged or another one; nothing was kept"
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
    """A request that ended early, for a reason that may pass."""


class Transfer:
    """A downloader for pooch: brings a URL to a file, by way of ``part``, where a cut one goes on.

    Args:
        part: what has arrived so far; behind a whole transfer there is none.
        size: bytes of the file, if known.
        progress: show a progress bar on stderr.
    """

    def __init__(self, part: Path, size: int | None, progress: bool) -> None:
        self.part, self.size, self.progress = part, size, progress
        self.validator: str | None = None

    def __call__(self, url: str, output_file: str, _: Any) -> None:
        """Fetch ``url``; ``output_file`` gets all of it at once.

        Raises:
            UserError: the server refuses, is silent, or cuts every request short.
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
                        f"{without_secrets(url)} cannot be had: {cut}, {failures} times in a row; "
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
        except _BAD_ADDRESS as error:
            # What it says of the address may be the password.
            raise UserError(f"{without_secrets(url)} is no address to download from") from error
        except requests.exceptions.RequestException as error:
            raise _Cut(_reason(error)) from error

    def _receive(self, response: requests.Response, url: str, have: int) -> None:
        url = without_secrets(url)
        if response.status_code == 416:  # there is nothing behind what we have
            if response.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            self.part.unlink()
            raise _Cut("the server has less than had arrived")
        if response.status_code in _BUSY:
            raise _Cut(f"the server answers {response.status_code} {response.reason}")
        if response.status_code >= 400:
            raise UserError(
                f"{url} cannot be had: the server answers {response.status_code} {response.reason}"
            )
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise UserError(
                f"{url} gives a web page in place of the file: open it in a browser to see why (on "
                "Google Drive, often too many downloads in a day), or take a --mirror"
            )
        goes_on = response.status_code == 206 and response.headers.get(
            "Content-Range", ""
        ).startswith(f"bytes {have}-")
        if response.status_code == 206 and not goes_on:
            self.part.unlink()
            raise _Cut("the server sent another part than the one asked for")
        if not goes_on:
            have = 0
        length = response.headers.get("Content-Length", "")
        whole = have + int(length) if length.isdecimal() else None
        if None not in (whole, self.size) and whole != self.size:
            raise UserError(f"{url} has {whole} bytes, and {self.size} are published: another file")
        # Weak validators are no proof that two parts belong together.
        tag = response.headers.get("ETag", "")
        self.validator = tag if tag.startswith('"') else response.headers.get("Last-Modified")
        self._check_room((whole or self.size or 0) - have)
        self._write(response, have, whole)
        if whole is not None and self._have() < whole:
            raise _Cut("the connection was cut")

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise UserError(
                f"{self.part.parent} has room for {free / 1e9:.1f} GB, and {needed / 1e9:.1f} GB "
                "are to come: free some, or name another folder with --out"
            )

    def _write(self, response: requests.Response, have: int, whole: int | None) -> None:
        bar = tqdm(
            total=whole or self.size,
            initial=have,
            desc=self.part.stem,
            unit="B",
            unit_scale=True,
            disable=None if self.progress else True,  # None: off where nobody watches
            leave=False,
        )
        with bar, self.part.open("ab" if have else "wb") as file:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))


def _reason(error: BaseException) -> str:
    # A silence in the middle of a file comes as a ConnectionError.
    if isinstance(error, requests.exceptions.Timeout) or "timed out" in str(error):
        return f"the server was silent for {SILENCE:g} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    found = re.search(r"\[Errno -?\d+\] ([\w ]+)", str(error))
    return found[1] if found else "no connection"
