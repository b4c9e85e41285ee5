"""The trainings of a table side by side: each row and seed in a process of its own, on one of several devices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from pyro_vsm.data.decode import cores
from pyro_vsm.errors import UserError
from pyro_vsm.jobs import Log
from pyro_vsm.signals import stopping
from pyro_vsm.tables.rows import Row
from pyro_vsm.training import pick_device

_POLL = 0.2
"""Seconds between looks at the processes."""


Key = tuple[str, int]
"""Name of a row, and seed of a training."""


def share_out(
    rows: Sequence[Row],
    seeds: Sequence[int],
    command: Sequence[str],
    devices: Sequence[str],
    folder: Path,
    done: Collection[Key] = (),
    log: Log = print,
) -> bool:
    """Train and evaluate rows with all seeds; a row begins when those that it needs are there.

    What a process prints is kept in ``folder/ROW-seed-S.log``. An interruption is passed on once to every process,
    which saves its training and ends.

    Args:
        rows: each after those it needs.
        seeds: of the trainings.
        command: words of ``pyro-vsm table`` that all share.
        devices: where to compute; a device that stands there twice takes two at a time.
        folder: of the logs.
        done: what needs no process, because it is there.
        log: receives what a user should read.

    Returns:
        Whether all is there; False if it was interrupted.

    Raises:
        UserError: an unknown device, or trainings that failed; those that do not need them have been done all the
            same.
    """
    work = _Work(rows, seeds, command, devices, folder, done)
    with work.bar, stopping():
        try:
            while work.waiting or work.running:
                work.collect()
                work.give_up()
                work.begin()
                time.sleep(_POLL)
        except KeyboardInterrupt:
            work.stop()
            log("Go on with the same command.")
            return False
        finally:  # of an error, or of a second interruption while the first was waited for
            work.stop()
    if work.failed:
        (name, seed), reason = next(iter(work.failed.items()))
        raise UserError(
            f"{len(work.failed)} of the {work.bar.total} trainings left to do failed, {name} with seed {seed} first "
            f"({reason}); read {work.path((name, seed))}, mend it and give the same command"
        )
    return True


@dataclass
class _Running:
    key: Key
    process: subprocess.Popen
    log: IO[bytes]
    started: float


class _Work:
    """Which trainings wait, run, are done or have failed."""

    def __init__(
        self,
        rows: Sequence[Row],
        seeds: Sequence[int],
        command: Sequence[str],
        devices: Sequence[str],
        folder: Path,
        done: Collection[Key],
    ):
        self.command, self.devices, self.folder = command, devices, folder
        self.places = [environment(device, len(devices)) for device in devices]
        names = {row.name for row in rows}
        self.needs = {row.name: [n for n in row.needs if n in names] for row in rows}
        self.done: set[Key] = set(done)
        self.waiting: list[Key] = [(r.name, seed) for seed in seeds for r in rows if (r.name, seed) not in self.done]
        self.running: dict[int, _Running] = {}
        self.failed: dict[Key, str] = {}
        self.bar = tqdm(total=len(self.waiting), desc="table", unit="training", dynamic_ncols=True)
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: Key) -> Path:
        """Of the log of a training."""
        return self.folder / f"{key[0]}-seed-{key[1]}.log"

    def collect(self) -> None:
        """Take note of the processes that have ended."""
        for place, now in list(self.running.items()):
            status = now.process.poll()
            if status is None:
                continue
            del self.running[place]
            now.log.close()
            if status:
                self.failed[now.key] = _last_words(self.path(now.key), status)
            else:
                self.done.add(now.key)
            name, seed = now.key
            seconds = round(time.monotonic() - now.started)
            how = "failed after " if status else ""
            self.bar.write(f"{name}, seed {seed}, on {self.devices[place]}: {how}{seconds} s")
            self.bar.update()

    def give_up(self) -> None:
        """What needs something that failed has failed, too."""
        for name, seed in list(self.waiting):
            lost = [n for n in self.needs[name] if (n, seed) in self.failed]
            if lost:
                self.waiting.remove((name, seed))
                self.failed[name, seed] = f"it needs {lost[0]}"
                self.bar.update()

    def begin(self) -> None:
        """Give each free place the first training that has all it needs."""
        for place in range(len(self.places)):
            if place in self.running:
                continue
            ready = [(n, s) for n, s in self.waiting if all((k, s) in self.done for k in self.needs[n])]
            if ready:
                self.waiting.remove(ready[0])
                self.running[place] = self._start(ready[0], *self.places[place])
        self.bar.set_postfix_str(", ".join(f"{n} {s}" for n, s in (r.key for r in self.running.values())), False)

    def _start(self, key: Key, device: str, values: Mapping[str, str]) -> _Running:
        words = [sys.executable, "-m", "pyro_vsm.cli", "table", *self.command, "--prepare"]
        words += ["--only", key[0], "--seeds", str(key[1]), "--device", device]
        out = self.path(key).open("wb")
        # a session of its own, or Ctrl-C would reach it beside what is passed on, and a second signal ends at once
        apart = os.name == "posix"
        process = subprocess.Popen(
            words, stdout=out, stderr=subprocess.STDOUT, env=dict(values), start_new_session=apart
        )
        return _Running(key, process, out, time.monotonic())

    def stop(self) -> None:
        """Ask each process to save and end, and wait until it has."""
        for now in self.running.values():
            if now.process.poll() is None:
                now.process.send_signal(signal.SIGTERM)
        for now in self.running.values():
            now.process.wait()
            now.log.close()
        self.running = {}


def environment(device: str, sharing: int) -> tuple[str, Mapping[str, str]]:
    """What a process for a device is told: the device's name there, and its environment.

    It sees that GPU alone, and takes its share of the cores.

    Raises:
        UserError: there is no such device.
    """
    found = pick_device(device)
    values = dict(os.environ)
    values.setdefault("OMP_NUM_THREADS", str(max(1, cores() // sharing)))
    if found.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        number = found.index or 0
        values["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)
    return found.type, values


def _last_words(path: Path, status: int) -> str:
    """What a process said at its end."""
    lines = path.read_text(errors="replace").replace("\r", "\n").split("\n")
    said = [line for line in lines if line.startswith("pyro-vsm: ")] or [line for line in lines if line.strip()]
    return f"exit status {status}: {said[-1].removeprefix('pyro-vsm: ')[:300] if said else 'it said nothing'}"
