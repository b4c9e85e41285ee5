"""Trained models evaluated on data sets other than their own."""

import json
import runpy
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


# --- the table of all models and data sets --------------------------------------------------------------------------

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "cross_domain"
FEW = ["--episodes", "4", "--queries", "2", "--samples", "3", "--device", "cpu", "--out", "table"]


@pytest.fixture(scope="module")
def measure():
    return runpy.run_path(str(EXPERIMENT / "measure.py"))["main"]


def reseeded(model, folder, seed):
    """The same model, as if trained with another seed."""
    from pyro_vsm import checkpoint

    tensors, meta = checkpoint.read(model / "model.safetensors")
    meta["config"]["training"]["seed"] = seed
    checkpoint.write(folder / "model.safetensors", tensors, meta)
    return str(folder)


def test_one_table_of_all_models_and_targets(measure, tiny_run, tiny_root, omniglot, tmp_path):
    shutil.copytree(tiny_root / "test", "mine")
    seeds = [reseeded(tiny_run / name, tmp_path / name, 1) for name in ("pn", "vsm")]
    models = [str(tiny_run / "pn"), str(tiny_run / "vsm"), *seeds, f"again={tiny_run / 'vsm'}"]
    root = omniglot[omniglot.index("--data.root") + 1]
    assert measure([*models, "--target", f"omniglot:small={root}", "--target", "folder=mine", *FEW]) == 0
    table = json.loads(Path("table/table.json").read_text())
    lines = {(row["target"], row["system"]): row for row in table["rows"]}
    assert len(lines) == len(table["rows"]) == 8
    assert [lines["folder", s]["seeds"] for s in ("PN", "VSM", "again")] == [2, 2, 1]
    assert lines["omniglot", "PN"]["accuracy_difference"] is None
    assert lines["omniglot", "VSM"]["accuracy_difference"]["n"] == 8
    assert lines["omniglot", "again"]["accuracy_difference"] is None  # one seed is not paired with two
    assert "64 classes" in table["notes"][1]
    assert "folder: all classes, 6 classes" in table["notes"][2]
    # the seeds are copies of one model, and `again` is that model
    for target in ("omniglot", "folder"):
        assert lines[target, "again"]["accuracy"]["mean"] == lines[target, "VSM"]["accuracy"]["mean"]
        assert lines[target, "VSM"]["accuracy_seed_sd"] == 0
    assert Path("table/5way_1shot.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("models", "target", "message"),
    [
        (["{run}/pn", "{run}/pn"], "glyphs", "are both PN folder 1-shot with training seed 0"),
        (["{run}/pn"], "glyph", "there is no data set 'glyph'"),
        (["{run}/pn"], "omniglot:large=mine", "has no variant 'large'"),
        (["nowhere"], "glyphs", "nowhere"),
    ],
)
def test_what_cannot_be_tabled_is_one_sentence(measure, tiny_run, models, target, message, capsys):
    Path("mine").mkdir()
    assert measure([*(m.format(run=tiny_run) for m in models), "--target", target, *FEW]) == 2
    assert message in capsys.readouterr().err
    assert not Path("table").exists()


def test_a_folder_of_pictures_can_be_made(tmp_path):
    main = runpy.run_path(str(EXPERIMENT / "folder.py"))["main"]
    main.__globals__["PICTURES"] = 2
    main("shapes", str(tmp_path / "shapes"))
    assert len(list((tmp_path / "shapes").glob("*/0[01].png"))) == 30 * 2
