"""Pictures that no model has seen, in a folder, as somebody may have them: far better than raw pixels."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "experiments" / "own_pictures"
pictures = runpy.run_path(str(FOLDER / "pictures.py"))
measure = runpy.run_path(str(FOLDER / "measure.py"))["measure"]


@pytest.mark.parametrize(("kind", "margin"), [("symbols", 0.25), ("shapes", 0.1)])
def test_five_examples_beat_the_nearest_mean_of_raw_pixels(kind, margin, tmp_path):
    pictures["main"](kind, str(tmp_path / kind), 5)
    examples = [len(list(c.iterdir())) for c in (tmp_path / kind / "examples").iterdir()]
    assert examples == [5] * 30
    row = measure(tmp_path / kind)
    assert row["classes"] == 30
    raw = float(row["raw pixels, nearest mean (%)"].split()[0]) / 100
    assert row["accuracy"].n == 450
    assert row["accuracy"].mean - row["accuracy"].half_width > raw + margin


def test_classes_are_taken_from_folders(tmp_path):
    source = tmp_path / "source"
    pictures["main"]("shapes", str(source), 1)
    flat = tmp_path / "flat"
    for path in (source / "new").iterdir():
        name = path.stem.rpartition("-")[0]
        (flat / name).mkdir(parents=True, exist_ok=True)
        path.rename(flat / name / path.name)
    for path in (source / "examples").glob("*/*"):
        path.rename(flat / path.parent.name / path.name)
    pictures["main"](str(flat), str(tmp_path / "made"), 2)
    assert len(list((tmp_path / "made" / "new").iterdir())) == 450
