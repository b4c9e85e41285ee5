"""A coverage-guided fuzzer (atheris, on libFuzzer) on each reader in turn, in a process of its own.

``python -m tests.fuzz [READER ...] [--seconds 60] [--corpus FOLDER]`` from the root of the repository; needs the
extra ``fuzz``. The corpus grows over runs if a folder is given. What crashes, hangs for 20 s or takes more than 4 GiB
is kept as a file, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 4096  # MiB
PAGE = """# Fuzzing

Every reader of bytes of unknown origin may answer with one sentence (`UserError`) and nothing else. A coverage-guided
fuzzer (atheris on libFuzzer; `pip install -e '.[fuzz]'`) starts each from sound files and looks for bytes after which
something else comes out, which take 20 s, or more than 4 GiB. `python -m tests.fuzz --table docs/fuzzing.md` runs it
for {seconds} s a reader and writes this page; with `--seconds` and `--corpus FOLDER` it looks longer and goes on from
what it found before. The ordinary test run tries 60 broken files on each reader (`tests/test_fuzz.py`), with
hypothesis, which also draws configurations, parts, episodes, images, and operations of the memory.

| reader | inputs | branches covered | outcome |
|---|---:|---:|---|
{rows}

Found by it and mended: a pickle of 867 bytes that took 4 GiB (a byte array that claims to be so long), and a zip file
whose damaged LZMA data ended in a traceback.
"""


def fuzz(name: str, seconds: int, corpus: Path, found: Path) -> None:
    """In a process of its own; ends it."""
    import atheris

    for module in ("pickle", "csv", "zipfile", "yaml"):  # atheris has loaded some of them already
        sys.modules.pop(module, None)
    with atheris.instrument_imports(include=["pyro_vsm", "pickle", "csv", "zipfile", "PIL", "yaml"]):
        from .readers import READERS, harmless
    import torch

    torch.set_num_threads(1)
    logging.getLogger("pyro_vsm").setLevel(logging.ERROR)  # millions of warnings
    reader = READERS[name]
    for content in reader.seeds():
        (corpus / hashlib.sha1(content).hexdigest()).write_bytes(content)
    words = corpus.parent / f"{name}.words"
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in reader.words))

    def one(content: bytes) -> None:
        harmless(reader, content)

    options = [
        f"-max_total_time={seconds}",
        "-timeout=20",
        f"-rss_limit_mb={MEMORY}",
        "-max_len=40000",
        "-len_control=0",
    ]
    options += [f"-artifact_prefix={found}/{name}-", "-print_final_stats=1", "-verbosity=1"]
    if reader.words:
        options.append(f"-dict={words}")
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


NAMES = (
    "image", "pickle", "pickle-stream", "checkpoint", "checkpoint-header", "cache", "results", "metrics",
    "configuration", "csv", "zip",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(NAMES)}; by default all")
    parser.add_argument("--seconds", type=int, default=60, help="for each")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--found", type=Path, default=Path("fuzz-found"), help="where inputs that fail are kept")
    parser.add_argument("--table", type=Path, help="write the outcome there, as a page")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        fuzz(args.child, args.seconds, args.corpus, args.found)
        return 0
    bad, rows = 0, []
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.readers or NAMES:
            corpus = (args.corpus or Path(temporary)) / name
            corpus.mkdir(parents=True, exist_ok=True)
            args.found.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "tests.fuzz", "--child", name, "--seconds", str(args.seconds)]
            command += ["--corpus", str(corpus), "--found", str(args.found)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace"
            )
            stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
            covered = re.findall(r"cov: (\d+)", done.stderr) or ["0"]
            outcome = "nothing found" if done.returncode == 0 else f"FAILED (status {done.returncode})"
            tried = stats.get("number_of_executed_units", "0")
            print(f"{name}: {tried} inputs, {covered[-1]} branches covered, {outcome}", flush=True)
            rows.append(f"| {name} | {tried} | {covered[-1]} | {outcome} |")
            if done.returncode:
                bad += 1
                print(done.stderr[-3000:], flush=True)
    if args.table:
        args.table.write_text(PAGE.format(seconds=args.seconds, rows="\n".join(rows)), encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
