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

PATIENCE = 2.0
"""Seconds between two words of the first process to the others, which must not wait for long without one."""

log = logging.getLogger("pyro_vsm.locking")


@contextmanager
def only_trainer(folder: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Nobody else on this machine and under this account trains in ``folder`` meanwhile.

    The lock lies in the cache folder, goes with the process that holds it, and is left out where that cannot be
    written or knows no locks. Of several processes of one training the first holds it, and all wait or fail together.

    Args:
        folder: of a run; it need not exist.
        waiting: called before waiting for another process that trains there; without it that is an error.

    Raises:
        UserError: another process trains there, and ``waiting`` is not given.
    """
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    lock = FileLock(cache_folder() / "locks" / f"{name}.lock")
    free = parallel.shared(_taken(lock, 0.0))
    if not free:
        if waiting is None:
            raise UserError(f"another process trains in {folder}; wait until it is over, or choose another --out")
        if parallel.is_main():
            waiting()
    try:
        while not free:
            free = parallel.shared(_taken(lock, PATIENCE))
        yield
    finally:
        lock.release()


def _taken(lock: FileLock, seconds: float) -> bool:
    """Whether the first process may go on, after trying for so long; the others' answer does not count."""
    if not parallel.is_main():
        return False
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds, poll_interval=0.2)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        log.debug("training without a lock: %s", error)
    return True
