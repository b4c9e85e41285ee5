"""Apply each mutation to a copy of the package, run the tests that should notice, print a Markdown table.

``python -m tests.mutations [WORD ...]`` from the root of the repository; with words, only the mutations whose
description holds one of them. Exit status 1 if a mutation survives, or if the unchanged copy fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
CRASHED = "the run itself broke"


def run(folder: Path, tests: tuple[str, ...]) -> str | None:
    """The first test that fails in the copy; None if all pass."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *(located(folder, t) for t in tests),
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) tests/(?:core/)?(\S+)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or not found:
        print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
        return CRASHED
    return found.group(1).split("[")[0]


def located(folder: Path, test: str) -> str:
    """Its path from the folder."""
    return f"tests/core/{test}" if (folder / "tests" / "core" / test).is_file() else f"tests/{test}"


def mutate(folder: Path, mutation: Mutation) -> None:
    """Write the wrong line."""
    path = folder / "pyro_vsm" / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise SystemExit(
            f"{mutation.what}: {mutation.old!r} occurs {text.count(mutation.old)} times in {mutation.file}"
        )
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(w in m.what for w in words)]
    if not chosen:
        raise SystemExit(
            f"no description holds any of {', '.join(words)}; they are listed in tests/mutations/README.md"
        )
    survived, start = 0, time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ignore = shutil.ignore_patterns("__pycache__", "mutations")
        shutil.copytree(ROOT / "tests", folder / "tests", ignore=ignore)
        shutil.copytree(ROOT / "experiments", folder / "experiments", ignore=ignore)
        shutil.copy(ROOT / "setup.cfg", folder)
        shutil.copytree(ROOT / "pyro_vsm", folder / "pyro_vsm", ignore=ignore)
        failed = run(folder, tuple(sorted({t for m in chosen for t in m.tests})))
        if failed:
            print(f"The unchanged package fails: {failed}")
            return 1
        print("| deliberate error | where | noticed by |\n|---|---|---|")
        for mutation in chosen:
            original = (folder / "pyro_vsm" / mutation.file).read_text(encoding="utf-8")
            mutate(folder, mutation)
            failed = run(folder, mutation.tests)
            (folder / "pyro_vsm" / mutation.file).write_text(original, encoding="utf-8")
            survived += failed is None or failed == CRASHED
            verdict = f"`{failed}`" if failed and failed != CRASHED else f"**{failed or 'nothing'}**"
            print(f"| {mutation.what} | `{mutation.file}` | {verdict} |", flush=True)
    print(f"\n{len(chosen) - survived} of {len(chosen)} noticed ({time.time() - start:.0f} s).")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
