"""Writing files so that a reader never finds half of one, whenever the writer is killed."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from pyro_vsm import parallel
from pyro_vsm.errors import UserError

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


def write_atomic(path: Path | str, data: bytes, *, previous: Path | None = None) -> Path:
    """Writes `data` to a temporary file beside `path`, then renames it; an older file stays until then.

    Missing folders are made. File and folder are flushed to the disk.

    Of several processes of one training (:mod:`pyro_vsm.parallel`) the first one writes, the others do nothing.

    Args:
        path: of the file.
        data: its content.
        previous: in the same folder; if given, the older file is kept under this name.

    Returns:
        The path written.

    Raises:
        UserError: if the file cannot be written there.
    """
    path = Path(path)
    if not parallel.is_main():
        return path
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                _keep(path, previous)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        flush(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    return path


def is_temporary(path: Path) -> bool:
    """Whether :func:`write_atomic` left this file when it was killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def sweep(folder: Path) -> None:
    """Removes what a killed :func:`write_atomic` left anywhere below; no other process may be writing there."""
    if parallel.is_main():
        with suppress(OSError):
            for path in [p for p in folder.rglob(".*.tmp") if is_temporary(p)]:
                path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.parent / f".{uuid.uuid4().hex}.tmp"


def _keep(path: Path, previous: Path) -> None:
    """A second name for the file; both names hold a whole file at every moment."""
    temporary = _temporary(previous)
    try:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
        os.replace(temporary, previous)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Makes what was written to a file, or the names in a folder, outlast a power failure, where the system can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
