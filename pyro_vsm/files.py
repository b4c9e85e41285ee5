"""Writing files so that a reader never finds half of one."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from pyro_vsm import parallel
from pyro_vsm.errors import UserError


def write_atomic(path: Path | str, data: bytes) -> Path:
    """Writes `data` to a temporary file beside `path`, then renames it; an older file stays until then.

    Missing folders are made.

    Of several processes of one training (:mod:`pyro_vsm.parallel`) the first one writes, the others do nothing.

    Returns:
        The path written.

    Raises:
        UserError: if the file cannot be written there.
    """
    path = Path(path)
    if not parallel.is_main():
        return path
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    return path
