"""Faults of processes and disks: killed, interrupted, out of space, read-only."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from . import Ended, Scene, Tally

NOBODY = 65534


def after(seconds: float, number: int) -> Callable[[int], None]:
    """Sends a signal to a process after some time; one that has ended already is left alone."""

    def send(pid: int) -> None:
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    return send


def kill_at_random_moments(scene: Scene, tries: int) -> Tally:
    """One to three kills a run, then a resumption to the end."""
    tally = Tally("kill -9 at a random moment, then resume", "ends bit for bit like the run never killed")
    random, draw = np.random.default_rng(1), tries >= 50  # drawing is a moment to be killed at, too
    while tally.tried < tries:
        run, kills = scene.new("killed"), min(int(random.integers(1, 4)), tries - tally.tried)
        ended = []
        while len(ended) < kills:
            moment = float(random.uniform(0, scene.seconds + 2 * draw))
            ended.append(scene.train(run, draw=draw, meanwhile=after(moment, signal.SIGKILL)))
        wrong = scene.finishes(run)
        for one in ended:
            tally.add(one, not wrong, wrong)
    return tally


def _operations(scene: Scene) -> int:
    """How often a whole run opens for writing, renames, links or removes something."""
    run, count = scene.new("counted"), scene.folder / "count.txt"
    scene.train(run, watch=str(run), count=str(count))
    shutil.rmtree(run)
    return int(count.read_text())


def _spread(number: int, tries: int) -> list[int]:
    """So many different numbers from 1 to ``number``, spread over the range; all of them if there are not more."""
    return sorted({int(n) for n in np.linspace(1, number, min(tries, number)).round()})


def kill_at_every_write(scene: Scene, tries: int) -> Tally:
    """Just before each file operation in the run folder in turn."""
    tally = Tally("kill -9 just before the n-th change of the run folder, then resume", "as above")
    for n in _spread(_operations(scene), tries):
        run = scene.new("killed")
        ended = scene.train(run, watch=str(run), die_at=n)
        wrong = scene.finishes(run)
        tally.add(ended, not wrong and ended.status == -signal.SIGKILL, f"operation {n}: {wrong}")
    return tally


def interrupt(scene: Scene, tries: int) -> Tally:
    """Ctrl-C and SIGTERM."""
    tally = Tally(
        "SIGINT or SIGTERM at a random moment, then resume", "as above; a stopped training prints how to resume"
    )
    random = np.random.default_rng(2)
    for n in range(tries):
        run, number = scene.new("stopped"), (signal.SIGINT, signal.SIGTERM)[n % 2]
        ended = scene.train(run, meanwhile=after(float(random.uniform(0, scene.seconds)), number))
        told = "pyro-vsm train --resume" in ended.out
        # before the training begins there is nothing to save, and SIGTERM ends the process as any other
        fine = ended.status in (0, -number) or (ended.status == 130 and (told or "interrupted" in ended.err))
        wrong = scene.finishes(run)
        tally.add(ended, fine and not wrong, f"signal {number}: {wrong}")
    return tally


def _refused(ended: Ended) -> bool:
    return ended.status == 2 and bool(ended.sentence)


def failing_writes(scene: Scene, tries: int) -> Tally:
    """Each file operation in turn fails as on a full disk."""
    tally = Tally(
        "the n-th change of the run folder fails (no space left), then resume",
        "one sentence, status 2 (or no harm at all); ends like the run without a fault",
    )
    for n in _spread(_operations(scene), tries):
        run = scene.new("failing")
        ended = scene.train(run, watch=str(run), fail_at=n)
        wrong = scene.finishes(run)
        tally.add(ended, not wrong and (ended.status == 0 or _refused(ended)), f"operation {n}: {wrong}")
    return tally


def full_disk_by_limit(scene: Scene, tries: int) -> Tally:
    """Files cannot grow beyond a random size."""
    tally = Tally("file size limit in the middle of a save (RLIMIT_FSIZE), then resume", "as above")
    random = np.random.default_rng(3)
    largest = max(p.stat().st_size for p in scene.whole.rglob("*") if p.is_file())
    for _ in range(tries):
        run, limit = scene.new("limited"), int(random.integers(0, largest))
        ended = scene.train(run, largest=limit)
        wrong = scene.finishes(run)
        tally.add(ended, not wrong and (ended.status == 0 or _refused(ended)), f"{limit} bytes: {wrong}")
    return tally


def full_disk(scene: Scene, tries: int) -> Tally:
    """A run folder on a disk that is too small; then the files that made it full are removed."""
    tally = Tally("full disk (a tmpfs of 20 to 80 % of what a run needs), room made, then resume", "as above")
    random = np.random.default_rng(4)
    whole = sum(p.stat().st_size for p in scene.whole.rglob("*") if p.is_file()) >> 10
    for _ in range(tries):
        disk = scene.new("disk")
        disk.mkdir()
        size = int(whole * random.uniform(0.2, 0.8))
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], capture_output=True)
        if mounted.returncode:
            tally.remarks.append("not tried: no file system may be mounted here")
            break
        try:
            ended = scene.train(disk / "run")
            kept = scene.new("kept")
            if (disk / "run").exists():
                shutil.copytree(disk / "run", kept)
        finally:
            subprocess.run(["umount", disk], check=True)
        wrong = scene.finishes(kept)
        tally.add(ended, not wrong and _refused(ended), f"{size} KiB: {wrong}")
    return tally


def _as_user(scene: Scene, *paths: Path) -> bool:
    """Whether a process can be started for which permissions count, with access to all but what a test forbids."""
    if os.geteuid() != 0:
        return True
    for path in (scene.folder, *paths):
        path.chmod(0o777)
    return all(folder.stat().st_mode & 0o001 for folder in scene.folder.parents)


def read_only(scene: Scene, tries: int) -> Tally:
    """A folder that may not be written to: at the start, in the middle, before the evaluation."""
    tally = Tally("read-only run folder, later made writable, then resume", "as above, nothing changed meanwhile")
    if not _as_user(scene):
        tally.remarks.append("not tried: the temporary folder is closed to other users")
        return tally
    user = {"user": NOBODY} if os.geteuid() == 0 else {}
    for n in range(tries):
        run = scene.new("locked")
        if n % 2 == 0:  # nothing there yet
            run.mkdir(mode=0o555)
        else:
            scene.train(run, meanwhile=after(scene.seconds * 0.4, signal.SIGTERM))
            if not (run / "config.yaml").exists():
                run.mkdir(exist_ok=True)
        closed = [run, *(p for p in run.rglob("*"))]
        before = {p: p.read_bytes() for p in closed if p.is_file()}
        for p in closed:
            p.chmod(0o555 if p.is_dir() else 0o444)
        ended = scene.train(run, **user)
        same = before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        for p in closed:
            p.chmod(0o755 if p.is_dir() else 0o644)
        wrong = scene.finishes(run)
        tally.add(ended, same and not wrong and _refused(ended), f"{wrong}, unchanged: {same}")
    return tally


# fault -> how often in full and in the ordinary test run
FAULTS = {
    kill_at_random_moments: (60, 5),
    kill_at_every_write: (10_000, 3),
    interrupt: (20, 2),
    failing_writes: (10_000, 3),
    full_disk_by_limit: (20, 1),
    full_disk: (10, 1),
    read_only: (6, 1),
}
