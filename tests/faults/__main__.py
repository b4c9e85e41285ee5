"""Make every fault in full number: ``python -m tests.faults [--table docs/faults.md] [WORD ...]``.

With words, only faults whose function's name holds one of them are made, and the other rows of the page stay;
``--few`` makes as few as the ordinary test run. Exit status 1 if anything was lost or a process ended in a traceback.
Best as root on Linux: without that, full and read-only disks are made in fewer ways, and the table says so.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import __version__ as pillow
from tqdm import tqdm

from pyro_vsm.checkpoint import versions

from . import Tally, stage
from .everything import GROUPS

INTRODUCTION = """# Faults

What happens when a process is killed, a disk is full, a file is damaged or hostile, or a number is not finite: each
fault below was really made, on a small data set, with processes of the command line. A process that meets a fault may
end with one sentence and status 2, never with a traceback; and what it had saved may not be lost: after the fault is
over, `pyro-vsm train --resume` must end with the same weights, states, log and table, bit for bit, as a run that met
no fault (on CPU; file times and the seconds of training excepted).

`python -m tests.faults --table docs/faults.md` makes all of them anew and writes this page; the ordinary test run
makes a few of each.
"""

NOTES = """
## What is promised, and what is not

- **Checkpoints**: weights, moving average, memory, optimiser, counts of skipped steps, random states (Python, NumPy,
  PyTorch, CUDA; the position in the stream of episodes is theirs), best validation so far, configuration, identity of
  the data and versions, in safetensors with a JSON header and a checksum. Schedule and warm-up follow from the step.
  Nothing in them is executed. The newest two states are kept; where the newest is damaged, the one before it is taken
  and the damaged one put aside as `state-damaged.safetensors`.
- **Exact resumption** is bit for bit on CPU, on the same machine with the same versions and number of threads of
  PyTorch, and independent of the number of loading threads. On CUDA, where sums over threads are in no fixed order,
  the random states are equal and weights agree to 1e-3 of the largest value of each tensor after 20 steps
  (`tests/test_resume.py`, marked `cuda`; run on one H100, PyTorch 2.11).
- **Steps that are not finite** (a term of the loss, the gradient, the memory) are skipped on the device without
  waiting for it; `training.bad_steps` of them in a row (10) end the training at the next line of the log with the
  factor and the step, and the weights from before are saved.
- **Bad image files** stop with the first one's name, or are left out and reported: `data.bad_files: stop | skip`.
- Images that stand in two splits are reported when a data set is decoded, except for tieredImageNet's pickles, which
  are never in memory whole.
- Two processes that train in one run folder at the same time are not kept apart.
- A checkpoint from a stranger may ask for a model as large as memory holds; it is refused only where PyTorch
  refuses it.
"""


def renewed(page: str, tallies: list[tuple[str, Tally]]) -> str:
    """An earlier page with the rows of these faults made anew, and the sum over all rows."""
    rows = {tally.what: row(tally) for _, tally in tallies}
    lines = [rows.get(line[2:].split(" | ")[0], line) for line in page.splitlines()]
    numbers = [re.findall(r"\| (\d+) \| (\d+) \| (\d+) \|$", line) for line in lines]
    total = [sum(int(found[0][k]) for found in numbers if found) for k in range(3)]
    return "\n".join(summary(*total) if line.startswith("In all ") else line for line in lines) + "\n"


def row(tally: Tally) -> str:
    """Of the table."""
    return f"| {tally.what} | {tally.wanted} | {tally.tried} | {tally.lost} | {tally.tracebacks} |"


def summary(tried: int, lost: int, broken: int) -> str:
    """Over all rows."""
    return f"In all {tried} faults: {lost} lost data or ended otherwise than they should, {broken} in a traceback."


def text(tallies: list[tuple[str, Tally]], seconds: float, few: bool) -> str:
    """The page."""
    lines = [INTRODUCTION]
    group = ""
    for name, tally in tallies:
        if name != group:
            head = "| fault | what should happen | tried | lost or otherwise | tracebacks |\n|---|---|---:|---:|---:|"
            lines.append(f"\n## {name}\n\n{head}")
            group = name
        lines.append(row(tally))
    tried, lost, broken = (sum(getattr(t, k) for _, t in tallies) for k in ("tried", "lost", "tracebacks"))
    lines.append("\n" + summary(tried, lost, broken))
    untried = [f"{t.what}: {r}" for _, t in tallies for r in t.remarks if r.startswith("not tried")]
    lines += [f"\nNot tried here: {line}." for line in untried]
    used = ", ".join(f"{k} {v}" for k, v in {**versions(), "pillow": pillow}.items())
    lines.append(
        f"\nMade in {seconds / 60:.0f} minutes{' (a few of each)' if few else ''} on {platform.system()}, "
        f"Python {platform.python_version()}, {used}."
    )
    return "\n".join([*lines, NOTES])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--few", action="store_true")
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    tallies: list[tuple[str, Tally]] = []
    chosen = [
        (group, fault, numbers)
        for group, faults in GROUPS.items()
        for fault, numbers in faults.items()
        if not args.words or any(word in fault.__name__ for word in args.words)
    ]
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        os.chmod(folder, 0o755)  # another user must reach what is in it
        with stage(Path(folder) / "stage") as scene:
            for group, fault, (full, few) in tqdm(chosen, unit="fault", dynamic_ncols=True):
                tally = fault(scene, few if args.few else full)
                tallies.append((group, tally))
                tqdm.write(f"{tally.what}: {tally.tried} tried, {tally.lost} lost, {tally.tracebacks} tracebacks")
                for remark in tally.remarks:
                    tqdm.write(f"    {remark}")
    if args.table:
        page = text(tallies, time.perf_counter() - started, args.few)
        if args.words and args.table.exists():
            page = renewed(args.table.read_text(encoding="utf-8"), tallies)
        args.table.write_text(page, encoding="utf-8")
    return 0 if all(tally.sound for _, tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
