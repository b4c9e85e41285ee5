"""Trained models evaluated on data sets other than their own."""

import json
import shutil
from pathlib import Path

import pytest
from formats import write_omniglot

from pyro_vsm.cli import main
from pyro_vsm.data.split_lists import split_names

PROTOCOL = ["--evaluation.episodes", "4", "--evaluation.queries", "2", "--evaluation.samples", "3", "--device", "cpu"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYRO_VSM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def omniglot(tmp_path):
    lists = split_names("omniglot_small")
    write_omniglot(tmp_path / "omniglot", "images_background_small1", lists["train"], 1)
    write_omniglot(tmp_path / "omniglot", "images_background_small2", [*lists["validation"], *lists["test"]], 3)
    return ["--data.name", "omniglot", "--data.root", str(tmp_path / "omniglot"), "--data.variant", "small"]


def notes():
    return " ".join(json.loads(Path("evaluation/table.json").read_text())["notes"])


def test_a_colour_model_on_grey_characters(tiny_run, omniglot, capsys):
    assert main(["compare", str(tiny_run / "pn"), str(tiny_run / "vsm"), *omniglot, *PROTOCOL]) == 0
    table = json.loads(Path("evaluation/table.json").read_text())
    assert [row["system"] for row in table["rows"]] == ["pn", "vsm"]
    assert "Trained on folder, evaluated on the test classes of omniglot-small." in notes()
    assert "pn is given the images as 3x28x28." in notes()
    assert "64 classes" in notes()
    assert "trained on other images" not in capsys.readouterr().out


def test_episodes_within_an_alphabet(tiny_run, omniglot):
    command = ["evaluate", str(tiny_run / "pn"), *omniglot, *PROTOCOL, "--data.grouped", "true"]
    assert main([*command, "--evaluation.way", "20"]) == 0
    assert main([*command, "--evaluation.way", "50"]) == 2


def test_all_classes_of_another_folder(tiny_run, tiny_root, capsys):
    shutil.copytree(tiny_root / "test", "mine")
    mine = ["--data.name", "folder", "--data.root", "mine", "--data.all_classes", "true"]
    assert main(["evaluate", str(tiny_run / "pn"), *mine, *PROTOCOL, "--evaluation.way", "6"]) == 0
    assert "6 classes, 36 images of 3x28x28" in notes()
    assert "all classes of folder" in notes()


def test_all_classes_of_the_training_data_are_refused(tiny_run, capsys):
    assert main(["evaluate", str(tiny_run / "pn"), "--data.all_classes", "true", *PROTOCOL]) == 2
    assert "would include the training classes" in capsys.readouterr().err


def test_an_unknown_data_set_is_answered(tiny_run, capsys):
    assert main(["evaluate", str(tiny_run / "pn"), "--data.name", "omniglott", *PROTOCOL]) == 2
    assert "did you mean 'omniglot'?" in capsys.readouterr().err
