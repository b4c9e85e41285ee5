"""One training a run folder: two processes that write to the same one would overwrite each other's states."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pyro_vsm import parallel
from pyro_vsm.data.cache import cache_folder
from pyro_vsm.errors import UserError

log = logging.getLogger("pyro_vsm.locking")


@contextmanager
def alone(folder: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Nobody else on this machine and under this account trains in ``folder`` meanwhile.

    The lock lies in the cache folder, goes with the process that holds it, and is left out where that cannot be
    written. Of several processes of one training the first holds it.

    Args:
        folder: of a run; it need not exist.
        waiting: called before waiting for another process that trains there; without it that is an error.

    Raises:
        UserError: another process trains there, and ``waiting`` is not given.
    """
    if not parallel.is_main():
        yield
        return
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    lock = FileLock(cache_folder() / "locks" / f"{name}.lock")
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder, waiting)
    except OSError as error:
        log.debug("training without a lock: %s", error)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path, waiting: Callable[[], None] | None) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            raise UserError(
                f"another process trains in {folder}; wait until it is over, or choose another --out"
            ) from None
        waiting()
        lock.acquire(poll_interval=0.5)
