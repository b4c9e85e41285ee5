"""The experiments of the data sets say of every table whether it has been run."""

import re
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
FOLDERS = ["tiered_imagenet", "cifar_fs", "cub", "omniglot"]


@pytest.mark.parametrize("name", FOLDERS)
def test_every_table_has_results_or_is_marked_as_not_run(name):
    folder = EXPERIMENTS / name
    lines = (folder / "README.md").read_text().splitlines()
    tables = sorted((folder / "tables").glob("*.yaml"))
    assert tables
    for path in tables:
        start = next(i for i, line in enumerate(lines) if f"](tables/{path.name})" in line)
        rows = [lines[start]]
        for line in lines[start + 1 :]:
            if not re.match(r"\| +\|", line):  # further rows leave the first cell empty
                break
            rows.append(line)
        run = (folder / "results" / f"{path.stem}.json").is_file()
        assert all(("not run: data not at hand" in row) != run for row in rows), path
        assert ("Not run: data not at hand." in path.read_text()) != run


@pytest.mark.parametrize("name", FOLDERS)
def test_shallow_and_deep_with_one_and_five_shots(name):
    tables = {p.stem for p in (EXPERIMENTS / name / "tables").glob("*.yaml")}
    kinds = ("small", "vinyals") if name == "omniglot" else ("conv4", "resnet12")
    assert tables == {f"{kind}_{shot}shot" for kind in kinds for shot in (1, 5)}
