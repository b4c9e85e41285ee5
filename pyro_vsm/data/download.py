"""Downloads that go on where they were interrupted and are checked against a checksum."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from pyro_vsm.errors import UserError

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte


class WrongChecksum(UserError):
    """A file is not the one that was published."""


def md5_of(path: Path) -> str:
    """MD5 of a file, in hexadecimal; it tells damaged files, not forged ones.

    Raises:
        UserError: if the file cannot be read.
    """
    total = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                total.update(chunk)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): check its permissions and the disk") from error
    return total.hexdigest()


def verify(path: Path, md5: str) -> None:
    """Compares a file with its published checksum.

    Raises:
        WrongChecksum: if it is another.
    """
    found = md5_of(path)
    if found != md5:
        raise WrongChecksum(
            f"{path} has the wrong checksum: its md5 is {found}, the published one is {md5}; the file is damaged or "
            "another version: delete it and get it again"
        )


def download(url: str, target: Path, md5: str, log: Callable[[str], None] = print) -> Path:
    """Fetches a file unless it is there already.

    What has arrived is kept in `target` + ".part"; a later call goes on from there, or starts anew if the server
    cannot, or if the whole then has the wrong checksum.

    Args:
        url: http or https.
        target: where to; its folder is made.
        md5: of the whole file.
        log: receives what a user should read.

    Raises:
        WrongChecksum: if the file that is there, or arrived, is not the published one.
        UserError: if there is no network, the server refuses, or the file cannot be written.
    """
    if target.is_file():
        verify(target, md5)
        return target
    part = target.with_name(target.name + ".part")
    resumed = part.is_file() and part.stat().st_size > 0
    log(f"{'Going on with' if resumed else 'Downloading'} {url}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part)
        if resumed and md5_of(part) != md5:
            log("The parts do not fit together (wrong checksum), so the download starts anew")
            part.unlink()
            _fetch(url, part)
        try:
            verify(part, md5)
        except WrongChecksum as error:
            part.unlink()
            raise WrongChecksum(str(error).replace(str(part), f"what {url} sent")) from None
        part.replace(target)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        kept = f" ({part.stat().st_size} bytes are kept, run it again to go on)" if part.is_file() else ""
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"cannot download {url} ({reason}){kept}: check the network, or get the file elsewhere (md5 {md5}) and "
            f"put it at {target}"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror or error}): choose another root") from error
    return target


def _fetch(url: str, part: Path) -> None:
    """Appends to `part` what it lacks, or writes it anew."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url} is no address that can be downloaded: give one that starts with https://")
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        return  # nothing is lacking; the checksum decides
    with answer:
        going_on = answer.status == 206 and (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
        length = answer.headers.get("Content-Length")
        total = int(length) + (have if going_on else 0) if length else None
        bar = tqdm(total=total, initial=have if going_on else 0, unit="B", unit_scale=True, disable=None, leave=False)
        with part.open("ab" if going_on else "wb") as file, bar:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise http.client.IncompleteRead(b"", total - part.stat().st_size)
