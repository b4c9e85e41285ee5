"""The command line end to end, and its answer to every kind of bad input."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pyro_vsm.cli import main

COMMANDS = ["train", "evaluate", "compare", "predict", "data"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Nothing is written outside the test's own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYRO_VSM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def settings(tiny_config):
    """A configuration file of a run of two steps."""
    values = tiny_config(systems=["pn"], training={"steps": 2, "validate_every": 0}).to_dict()

    def write(text: str | None = None, **changes) -> str:
        Path("settings.yaml").write_text(yaml.safe_dump({**values, **changes}) if text is None else text)
        return "settings.yaml"

    return write


# --- what each command does ---------------------------------------------------------------------------------------


def test_train_leaves_a_whole_run_folder(tiny_run, tiny_config):
    for system in ("vsm", "vpn", "pn"):
        folder = tiny_run / system
        assert (folder / "model.safetensors").stat().st_size > 1000
        assert (folder / "state.safetensors").stat().st_size > 1000
        assert len(list(folder.glob("events.*"))) == 1
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [r["step"] for r in records if "train/loss" in r] == [3, 6, 8]
        assert [r["step"] for r in records if "validation/accuracy" in r] == [4, 8]
    assert {"train/kl_z", "train/kl_m", "train/log_likelihood"} <= set(
        json.loads((tiny_run / "vsm" / "metrics.jsonl").read_text().splitlines()[0])
    )
    stored = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert stored == json.loads(json.dumps(tiny_config(systems=["vsm", "vpn", "pn"]).to_dict()))
    rows = json.loads((tiny_run / "table.json").read_text())["rows"]
    assert [r["system"] for r in rows] == ["vsm", "vpn", "pn"]
    assert all(r["training_seconds"] > 0 for r in rows)
    assert rows[2]["accuracy_difference"] is None
    assert rows[0]["accuracy_difference"]["n"] == 6
    assert "| vsm" in (tiny_run / "table.md").read_text()
    assert len(list(csv.DictReader((tiny_run / "table.csv").read_text().splitlines()))) == 3
    plots = {p.name for p in (tiny_run / "plots").iterdir()}
    assert {"vsm-learning.png", "vsm-objective.png", "pn-learning.png", "reliability.png", "accuracy.png"} <= plots
    for name in plots:
        with Image.open(tiny_run / "plots" / name) as image:
            assert len(image.convert("L").getcolors(2**20)) > 20, f"{name} is blank"
    assert not list(tiny_run.rglob("*.tmp"))


def test_tensorboard_reads_the_events(tiny_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tiny_run / "vsm"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [3, 6, 8]
    records = [json.loads(line) for line in (tiny_run / "vsm" / "metrics.jsonl").read_text().splitlines()]
    assert events.Scalars("train/loss")[0].value == pytest.approx(records[0]["train/loss"])


def test_evaluate_repeats_the_table_of_the_training(tiny_run, capsys):
    protocol = ["--evaluation.episodes", "6", "--evaluation.queries", "3", "--evaluation.samples", "5"]
    assert main(["evaluate", str(tiny_run), *protocol, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "3-way 1-shot, 6 test episodes of 3 queries a class" in out
    again = json.loads(Path("evaluation/table.json").read_text())["rows"][0]
    trained = json.loads((tiny_run / "table.json").read_text())["rows"][0]
    for name in ("accuracy", "nll", "brier"):
        assert again[name] == pytest.approx(trained[name])


def test_compare_takes_the_first_as_reference(tiny_run):
    systems = [str(tiny_run / s) for s in ("pn", "vsm", "vpn")]
    changed = ["--evaluation.episodes", "5", "--evaluation.way", "4", "--evaluation.shot", "2"]
    rest = ["--evaluation.queries", "3", "--evaluation.split", "validation", "--out", "c", "--device", "cpu"]
    assert main(["compare", *systems, *changed, *rest]) == 0
    table = json.loads(Path("c/table.json").read_text())
    assert table["title"] == "4-way 2-shot, 5 validation episodes of 3 queries a class"
    assert [r["system"] for r in table["rows"]] == ["pn", "vsm", "vpn"]
    assert [r["accuracy_difference"] is None for r in table["rows"]] == [True, False, False]


def test_compare_names_systems_of_the_same_name_by_their_paths(tiny_run):
    copy = shutil.copytree(tiny_run / "pn", "other")
    command = ["compare", str(tiny_run / "pn"), str(copy), "--evaluation.episodes", "3", "--evaluation.queries", "3"]
    assert main([*command, "--device", "cpu"]) == 0
    rows = json.loads(Path("evaluation/table.json").read_text())["rows"]
    assert [r["system"] for r in rows] == [str(tiny_run / "pn"), "other"]
    assert rows[1]["accuracy_difference"]["mean"] == 0


def test_evaluate_says_that_the_images_are_others(tiny_run, tiny_root, capsys):
    shutil.copytree(tiny_root, "copy")
    shutil.copy("copy/test/test 0/1.png", "copy/test/test 0/0.png")
    command = ["evaluate", str(tiny_run), "--data.root", "copy", "--evaluation.queries", "3"]
    assert main([*command, "--evaluation.episodes", "3", "--device", "cpu"]) == 0
    assert "was trained on other images than these (data.test.sha256" in capsys.readouterr().out


@pytest.fixture
def predicting(tiny_run, tiny_root):
    """``predict`` on two folders of the tiny test classes as examples, and three of their images as queries."""
    queries = [str(tiny_root / "test" / c / "5.png") for c in ("test 0", "test 1", "test 0")]
    for c in ("test 0", "test 1"):
        shutil.copytree(tiny_root / "test" / c, f"examples/{c}")
    return ["predict", "--checkpoint", str(tiny_run), "--support", "examples", "--query", *queries, "--samples", "9"]


def test_predict_prints_a_table(predicting, capsys):
    assert main(predicting) == 0
    out = capsys.readouterr().out
    assert "p(test 0)" in out
    assert len(out.strip().splitlines()) == 2 + 3


def test_predict_prints_json_and_csv_of_the_same_numbers(predicting, capsys):
    assert main([*predicting, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert main([*predicting, "--format", "csv"]) == 0
    table = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == len(table) == 3
    for a, b in zip(rows, table):
        assert a["image"] == b["image"]
        assert float(b["p(test 1)"]) == a["p(test 1)"]
        assert a["p(test 0)"] + a["p(test 1)"] == pytest.approx(1, abs=2e-4)
        assert 0 <= a["uncertainty"] <= 1
        best = max(("test 0", "test 1"), key=lambda c: a[f"p({c})"])
        assert a["prediction"] == best


def test_predict_writes_a_file(predicting, capsys):
    assert main([*predicting, "--format", "json", "--out", "new/answers.json"]) == 0
    assert capsys.readouterr().out == ""
    assert len(json.loads(Path("new/answers.json").read_text())["rows"]) == 3


def test_data_prints_identities_and_draws_a_sheet_of_each_split(tiny_root, capsys):
    data = ["folder", "--data.root", str(tiny_root), "--data.image_size", "28"]
    assert main(["data", "show", *data, "--out", "sheets"]) == 0
    out = capsys.readouterr().out
    assert "12 classes, 72 images of 3x28x28" in out
    for split in ("train", "validation", "test"):
        with Image.open(f"sheets/folder-{split}.png") as image:
            assert min(image.size) > 100


@pytest.mark.parametrize("action", ["prepare", "check"])
def test_data_prepares_and_checks(action, tiny_root, capsys):
    data = ["folder", "--data.root", str(tiny_root), "--data.image_size", "28"]
    assert main(["data", action, *data]) == 0
    assert "12 classes, 72 images of 3x28x28" in capsys.readouterr().out


# --- help and configuration -----------------------------------------------------------------------------------------


def exit_status(argv) -> int:
    """Of the program, whether it returns or raises SystemExit."""
    try:
        return main(argv)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command, capsys):
    assert exit_status([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Example" in out
    assert f"pyro-vsm {command}" in out


def test_help_of_the_program_lists_the_commands_and_where_to_start(capsys):
    assert exit_status(["--help"]) == 0
    out = capsys.readouterr().out
    assert 'Start with "pyro-vsm train"' in out
    assert all(c in out for c in COMMANDS)


def test_help_of_train_explains_settings(capsys):
    exit_status(["train", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for text in ("--model.prior_z", "posterior samples in a training step", "--training.amp", "default: cosine"):
        assert text in out


def test_printed_configuration_can_be_fed_back(settings, tiny_root, capsys):
    changes = ["--data.name", "folder", "--data.root", str(tiny_root), "--model.prior_z", "empirical_bayes"]
    assert exit_status(["train", *changes, "--print_config"]) == 0
    first = capsys.readouterr().out
    Path("printed.yaml").write_text(first)
    assert exit_status(["train", "--config", "printed.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == first
    assert yaml.safe_load(first)["model"]["prior_z"] == "empirical_bayes"


def test_settings_after_the_file_win_and_exponents_are_numbers(settings):
    path = settings()
    text = Path(path).read_text()
    assert "lr: 0.002" in text
    settings(text.replace("\n  lr: 0.002", "\n  lr: 1e-2").replace("weight_decay: 0.0\n", "weight_decay: 5e-4\n"))
    assert main(["train", "--config", path, "--episodes.way", "4", "--training.ema", "5e-1", "--out", "run"]) == 0
    stored = yaml.safe_load(Path("run/config.yaml").read_text())
    assert stored["training"]["lr"] == 0.01
    assert stored["training"]["weight_decay"] == 0.0005
    assert stored["training"]["ema"] == 0.5
    assert stored["episodes"] == {"way": 4, "shot": 1, "queries": 2, "tasks": 2}


def test_part_with_arguments_from_the_command_line(settings):
    part = '{"class_path": "conv4", "init_args": {"width": 4}}'
    assert main(["train", "--config", settings(), "--model.backbone", part, "--out", "run"]) == 0
    assert yaml.safe_load(Path("run/config.yaml").read_text())["model"]["backbone"]["init_args"] == {"width": 4}


def test_the_default_run_folder_is_a_new_one(settings):
    for name in ("folder-3way-1shot", "folder-3way-1shot-2"):
        assert main(["train", "--config", settings()]) == 0
        assert (Path("runs") / name / "table.md").exists()


def test_own_parts_of_a_checkpoint_are_allowed_by_name(settings, predicting, tmp_path, monkeypatch):
    (tmp_path / "my_backbones.py").write_text("from pyro_vsm.backbones import Conv4\nclass Mine(Conv4): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    part = '{"class_path": "my_backbones.Mine", "init_args": {"width": 4}}'
    try:
        assert main(["train", "--config", settings(), "--model.backbone", part, "--out", "run"]) == 0
        del sys.modules["my_backbones"]
        command = ["predict", "--checkpoint", "run", *predicting[3:]]
        assert main(command) == 2
        assert main([*command, "--allow-module", "my_backbones"]) == 0
    finally:
        sys.modules.pop("my_backbones", None)


# --- bad input ------------------------------------------------------------------------------------------------------


TRAIN = ["train", "--config", "SETTINGS", "--out", "run"]
EVALUATE = ["--evaluation.episodes", "3", "--evaluation.queries", "3", "--device", "cpu"]

BAD_SETTINGS = [  # jsonargparse answers these, with a line on usage before its own
    ([*TRAIN, "--trainig.steps", "3"], "trainig"),
    ([*TRAIN, "--training.steps", "many"], "training.steps"),
    ([*TRAIN, "--training.schedule", "linear"], "linear"),
    ([*TRAIN, "--model.objective", "vae"], "vae"),
    (["train", "--config", "missing.yaml"], "missing.yaml"),
    (["train", "--config", "broken.yaml"], "did not find expected node content"),
    (["train", "--config", "unknown.yaml"], "modle"),
    (["train", "--config", "image.png"], "--config is no text"),
    (["data"], "{prepare,check,show}"),
    (["data", "show"], "name"),
    (["predict"], "predict.support"),
    (["compare"], "checkpoints"),
    (["learn"], "learn"),
    ([], "command"),
]

BAD_INPUT = [
    ([*TRAIN, "--systems", "[vsm,gpt]"], "must name at least one of classifier, gp, maml"),
    ([*TRAIN, "--systems", "[pn,pn]"], "each once"),
    ([*TRAIN, "--systems", "[]"], "must name at least one of"),
    ([*TRAIN, "--systems", "[vsm]", "--model.prior_z", "memroy"], "did you mean 'memory'?"),
    ([*TRAIN, "--systems", "[vsm]", "--model.likelihood", "a.b.C"], "cannot import 'a.b.C'"),
    ([*TRAIN, "--systems", "[vsm]", "--model.memory_use", "os.path"], "is no MemoryUse"),
    ([*TRAIN, "--model.backbone", '{"class_path": "conv4", "init_args": {"wdth": 8}}'], "it takes width"),
    (
        [*TRAIN, "--model.backbone", '{"class_path": "conv4", "init_args": {"width": "wide"}}'],
        "conv4: width is 'wide'",
    ),
    ([*TRAIN, "--model.backbone", '{"class_path": "conv4", "init_args": {"width": -8}}'], "conv4: width is -8"),
    ([*TRAIN, "--model.backbone", '{"name": "conv4"}'], "describes no part"),
    ([*TRAIN, "--systems", "[vsm]", "--model.alpha", "1.5"], "alpha"),
    ([*TRAIN, "--systems", "[vsm]", "--model.particles", "0"], "particles"),
    ([*TRAIN, "--systems", "[vsm]", "--model.warmup", "2"], "warm-up"),
    ([*TRAIN, "--training.ema", "1"], "ema"),
    ([*TRAIN, "--training.steps", "0"], "steps"),
    ([*TRAIN, "--training.seed", "-1"], "seed"),
    ([*TRAIN, "--training.device", "tpu!"], "training.device"),
    ([*TRAIN, "--training.device", "cuda:77"], "CUDA devices"),
    ([*TRAIN, "--episodes.way", "0"], "at least 1"),
    ([*TRAIN, "--episodes.way", "7"], "7-way episodes need 7 classes"),
    ([*TRAIN, "--evaluation.way", "7"], "7-way episodes need 7 classes"),
    ([*TRAIN, "--episodes.shot", "6"], "lower shot or queries"),
    ([*TRAIN, "--evaluation.queries", "6"], "lower shot or queries"),
    ([*TRAIN, "--augment.pad", "-1"], "pad"),
    ([*TRAIN, "--data.root", "nowhere"], "nowhere does not exist"),
    ([*TRAIN, "--data.root", "empty"], "holds 0 class(es)"),
    ([*TRAIN, "--data.name", "imagenet"], "there is no data set 'imagenet'"),
    ([*TRAIN, "--data.name", "mini-imagenet", "--data.root", "empty"], "empty"),
    ([*TRAIN, "--data.image_size", "2"], "image_size"),
    ([*TRAIN, "--data.image_size", "12"], "at least 16"),
    (["train", "--config", "SETTINGS", "--out", "full"], "full is not empty"),
    (["train", "--config", "SETTINGS", "--out", "image.png"], "cannot use image.png"),
    (["train", "--config", "SETTINGS", "--out", "image.png/run"], "cannot"),
    (["train", "--resume", "empty"], "no config.yaml in empty"),
    (["train", "--resume", "nowhere"], "no config.yaml in nowhere"),
    (["train", "--resume", "broken"], "cannot be read"),
    (["train", "--resume", "strange"], "no setting 'modle'"),
    (["train", "--resume", "RUN", "--out", "run"], "leave it out"),
    (["evaluate", "nowhere", *EVALUATE], "there is no checkpoint nowhere"),
    (["evaluate", "empty", *EVALUATE], "is no run folder"),
    (["evaluate", "truncated.safetensors", *EVALUATE], "is damaged or no checkpoint"),
    (["evaluate", "page.safetensors", *EVALUATE], "is damaged or no checkpoint"),
    (["evaluate", "RUN/vsm/state.safetensors", *EVALUATE], "is a state to resume from"),
    (["evaluate", "RUN", *EVALUATE, "--data.root", "nowhere"], "nowhere does not exist"),
    (["evaluate", "RUN", *EVALUATE, "--evaluation.way", "9"], "9-way episodes need 9 classes"),
    (["evaluate", "RUN", *EVALUATE, "--evaluation.episodes", "1"], "at least 2 episodes"),
    (["evaluate", "RUN", *EVALUATE, "--out", "image.png"], "cannot write image.png"),
    (["evaluate", "RUN", *EVALUATE, "--allow-module", "no_such"], "--allow-module no_such"),
    (["compare", "RUN/vsm", "nowhere", *EVALUATE], "there is no checkpoint nowhere"),
    (["data", "show", "folder"], "needs a folder"),
    (["data", "show", "folder", "--data.root", "ROOT", "--out", "image.png"], "image.png"),
    (["data", "show", "folders", "--data.root", "ROOT"], "did you mean 'folder'?"),
    (["data", "show", "glyphs", "--data.variant", "small"], "has no variant 'small'"),
    (["data", "check", "omniglot", "--data.root", "empty"], "of the points above are wrong"),
    (["data", "prepare", "cub", "--data.root", "empty", "--download", "false"], "holds no CUB-200-2011"),
    (["data", "prepare", "tiered-imagenet", "--data.root", "empty"], "holds no tieredImageNet"),
    (["predict", "--checkpoint", "nowhere", "PICTURES"], "there is no checkpoint nowhere"),
    (["predict", "--checkpoint", "page.safetensors", "PICTURES"], "is damaged or no checkpoint"),
    (["predict", "--checkpoint", "RUN", "PICTURES", "--samples", "0"], "--samples is 0"),
    (["predict", "--checkpoint", "RUN", "PICTURES", "--device", "cuda:77"], "CUDA devices"),
    (["predict", "--checkpoint", "RUN", "PICTURES", "--out", "image.png/x"], "cannot write"),
    (["predict", "--checkpoint", "RUN", "--support", "nowhere", "--query", "image.png"], "nowhere does not exist"),
    (["predict", "--checkpoint", "RUN", "--support", "image.png", "--query", "image.png"], "is not a folder"),
    (["predict", "--checkpoint", "RUN", "--support", "empty", "--query", "image.png"], "holds no folder with images"),
    (["predict", "--checkpoint", "RUN", "--support", "single", "--query", "image.png"], "the class 'one' alone"),
    (["predict", "--checkpoint", "RUN", "--support", "hollow", "--query", "image.png"], "hollow/b holds no image"),
    (["predict", "--checkpoint", "RUN", "--support", "spoilt", "--query", "image.png"], "is an HTML page"),
    (["predict", "--checkpoint", "RUN", "--support", "good", "--query", "nowhere.jpg"], "no file or folder nowhere"),
    (["predict", "--checkpoint", "RUN", "--support", "good", "--query", "note.txt"], "note.txt is no readable image"),
    (["predict", "--checkpoint", "RUN", "--support", "good", "--query", "empty"], "no image in empty"),
    (
        ["predict", "--checkpoint", "RUN", "--support", "good", "--query", "note.txt", "--bad_files", "skip"],
        "no readable image in note.txt",
    ),
]


@pytest.fixture
def scene(settings, tiny_run, tiny_root, tmp_path):
    """The files that bad input is made of; returns a function that puts real paths into a command."""
    path = settings()
    picture = tiny_root / "test" / "test 0" / "0.png"
    for folder in ("empty", "full", "broken", "strange", "single/one", "hollow/a", "hollow/b"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("good/a", "good/b", "spoilt/a", "spoilt/b", "single/one", "hollow/a"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, tmp_path / folder / "0.png")
    page = "<!doctype html><html><body>404 Not Found</body></html>"
    texts = {
        "full/x": "", "broken.yaml": "training: [", "broken/config.yaml": "training: [", "page.safetensors": page,
        "unknown.yaml": "modle: {prior_z: memory}",
        "strange/config.yaml": "modle: {}", "spoilt/b/1.png": page, "note.txt": "a note",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    shutil.copy(picture, tmp_path / "image.png")
    content = (tiny_run / "vsm" / "model.safetensors").read_bytes()
    (tmp_path / "truncated.safetensors").write_bytes(content[:-1000])

    def fill(argv: list[str]) -> list[str]:
        filled = []
        for word in argv:
            if word == "PICTURES":
                filled += ["--support", "good", "--query", "image.png"]
            else:
                word = word.replace("RUN", str(tiny_run)).replace("ROOT", str(tiny_root))
                filled.append(path if word == "SETTINGS" else word)
        return filled

    return fill


@pytest.mark.parametrize(("argv", "message"), BAD_INPUT, ids=[" ".join(a) for a, _ in BAD_INPUT])
def test_bad_input_is_answered_with_one_sentence(scene, argv, message, capsys):
    assert exit_status(scene(argv)) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("pyro-vsm: ")]
    assert lines == err.splitlines()[-1:], err
    others = err.splitlines()[:-1]
    assert all(line.startswith("Skipped: ") for line in others), err
    assert message in lines[0]
    assert "Traceback" not in err
    assert not Path("run").exists()


@pytest.mark.parametrize(("argv", "message"), BAD_SETTINGS, ids=[" ".join(a) or "nothing" for a, _ in BAD_SETTINGS])
def test_bad_settings_are_answered_without_a_traceback(scene, argv, message, capsys):
    assert exit_status(scene(argv)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training: {steps: null}", "training.steps is null"),
        ("training: {seed: }", "training.seed is null"),
        ("data: {name: null}", "data.name is null"),
        ("systems: null", "systems is null"),
        ("augment: {crop_scale: null}", "augment.crop_scale is null"),
        ("training: {lr: .inf}", "training.lr is inf"),
        ("model: {beta_z: .nan}", "model.beta_z is nan"),
        ("augment: {crop_scale: [0.5, .nan]}", "augment.crop_scale is nan"),
    ],
)
def test_null_and_numbers_that_are_not_finite_are_refused_by_name(text, said, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text + "\n")
    assert main(["train", "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_part_that_is_set_in_two_files_is_one_sentence(tmp_path, monkeypatch, capsys):
    part = "class Mine:\n    def __init__(self, dim, scale: float = 1.0):\n        pass\n"
    (tmp_path / "part_in_two_files.py").write_text(part)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "model: {prior_z: {class_path: part_in_two_files.Mine, init_args: {scale: 2}}}\n"
    )
    twice = ["--config", str(tmp_path / "c.yaml")] * 2
    assert main(["train", *twice, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("pyro-vsm: the settings cannot be read")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
