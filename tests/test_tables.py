"""A table by one command: what it says, how it goes on, what it uses again and what it refuses."""

import csv
import json
import math
import shutil
import threading
import weakref
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from pyro_vsm import data as data_sources
from pyro_vsm import jobs, metrics, plots
from pyro_vsm.answering import encode_all
from pyro_vsm.cli import main
from pyro_vsm.data import Splits
from pyro_vsm.data.episodes import fixed_episodes
from pyro_vsm.data.folds import leave_out
from pyro_vsm.errors import UserError
from pyro_vsm.evaluation import detect_unknown, evaluate, predict_probabilities
from pyro_vsm.loading import load_model
from pyro_vsm.locking import only_trainer
from pyro_vsm.replicates import over_both
from pyro_vsm.tables import make_table, read_table, scores
from pyro_vsm.tables.scores import TEMPERATURE_SEED
from pyro_vsm.training import Trainer

BOTH = {
    "title": "Tiny",
    "seeds": [0, 1],
    "reference": "pn",
    "unknown": True,
    "temperature_episodes": 8,
    "protocols": [{"way": 3, "shot": 1}, {"way": 3, "shot": 2}],
    "rows": [
        {"name": "start", "system": "classifier", "shown": False, "set": {"classifier.batch": 6}},
        {"name": "pn", "system": "pn", "label": "PN", "paper": {1: 47.4}},
        {
            "name": "vsm", "system": "vsm", "label": "VSM", "note": "from a start",
            "protocols": [{"way": 3, "shot": 1}], "paper": 54.73,
            "set": {"training": {"init": "run:start"}, "model.memory_use": "rote"},
        },
    ],
}  # fmt: skip


def silent(_: str) -> None:
    pass


@pytest.fixture(autouse=True)
def quick(monkeypatch, tiny_data, tiny_root):
    """Drawing and decoding take longer than the rest; the table of ``made`` comes about without these short cuts."""
    monkeypatch.setattr(plots, "save", lambda fig, path: path)
    monkeypatch.setattr(plots, "table_chart", lambda panels, reference: None)
    load = data_sources.load

    def remembered(config, log):
        return tiny_data if config.root == str(tiny_root) else load(config, log)

    monkeypatch.setattr(data_sources, "load", remembered)


@pytest.fixture(scope="module")
def definition(tmp_path_factory, tiny_settings):
    """``definition(**changes)``: the path of a table file beside a file with its base."""

    def write(table=BOTH, **changes) -> Path:
        folder = tmp_path_factory.mktemp("definition")
        base = {**tiny_settings, "training": {**tiny_settings["training"], "steps": 4, "checkpoint_every": 2}}
        (folder / "base.yaml").write_text(yaml.safe_dump(base))
        values = {"base": "base.yaml", **table, **changes}
        (folder / "both.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
        return folder / "both.yaml"

    return write


@pytest.fixture(scope="module")
def made(definition, tmp_path_factory):
    """The folder of a table that was made without interruption."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("made")
    make_table(definition(), out, log=silent)
    return out


def models(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("runs/*/*/*/model.safetensors"))}


def rows_of(out: Path, name: str = "both") -> list[dict]:
    return json.loads((out / f"{name}.json").read_text())["rows"]


def test_what_another_process_trains_is_waited_for(definition, tmp_path):
    told, held, over = [], threading.Event(), threading.Event()

    def other():
        with only_trainer(tmp_path / "runs" / "pn" / "seed-0"):
            held.set()
            over.wait(60)

    def log(line):
        told.append(line)
        if "waiting" in line:
            over.set()

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(60)
    make_table(definition(), tmp_path, seeds=[0], only=["pn"], write=False, log=log)
    thread.join()
    assert told[0] == "pn, seed 0: waiting for another process that trains it"
    assert any(line.startswith("pn, seed 0: training") for line in told)


def test_what_the_table_says_is_what_its_models_do(made, tiny_data):
    """Every number of PN's lines, from the trained models and first principles."""
    lines = {(r["row"], r["shot"]): r for r in rows_of(made)}
    assert list(lines) == [("pn", 1), ("vsm", 1), ("pn", 2)]
    settings = {"samples": 5, "seed": 0}
    per_seed = {name: [] for name in ("pn", "vsm")}
    doubt, temperatures = [], []
    index = fixed_episodes(tiny_data.test, way=3, shot=1, queries=3, episodes=6, seed=0)
    wide = fixed_episodes(tiny_data.test, way=6, shot=1, queries=3, episodes=6, seed=0)
    fitting = fixed_episodes(tiny_data.validation, way=3, shot=1, queries=3, episodes=8, seed=TEMPERATURE_SEED)
    for seed in (0, 1):
        for name in per_seed:
            model = load_model(made / "runs" / name / f"seed-{seed}" / name)[0]
            features = encode_all(model, tiny_data.test.images)
            if name == "pn":
                probs, labels = predict_probabilities(
                    model, encode_all(model, tiny_data.validation.images), fitting, **settings
                )
                temperatures.append(metrics.fit_temperature(probs, labels))
                doubt.append(detect_unknown(model, features, wide, 3, **settings))
            results = [evaluate(model, features, index, temperature=t, **settings) for t in (1.0, temperatures[-1])]
            per_seed[name].append(results)
    line, plain = lines["pn", 1], [r[0] for r in per_seed["pn"]]
    accuracy = torch.stack([r.accuracy for r in plain])
    assert line["accuracy"]["mean"] == pytest.approx(float(accuracy.mean()))
    half = 1.96 * float(accuracy.mean(0).std()) / math.sqrt(6)
    assert line["accuracy"]["half_width"] == pytest.approx(half)
    assert line["accuracy_seed_sd"] == pytest.approx(float(accuracy.mean(1).std()))
    assert (line["accuracy_seed_min"], line["accuracy_seed_max"]) == tuple(sorted(accuracy.mean(1).tolist()))
    assert line["ece"] == pytest.approx(sum(r.ece for r in plain) / 2)
    assert line["ece_tempered"] == pytest.approx(sum(r[1].ece for r in per_seed["pn"]) / 2)
    assert line["temperature"] == pytest.approx(sum(temperatures) / 2)
    assert line["nll"]["mean"] == pytest.approx(float(torch.stack([r.nll for r in plain]).mean()))
    assert line["brier"]["mean"] == pytest.approx(float(torch.stack([r.brier for r in plain]).mean()))
    assert line["auroc"]["mean"] == pytest.approx(float(torch.stack(doubt).mean()))
    assert line["accuracy_difference"] is None
    assert (line["paper"], lines["vsm", 1]["paper"], lines["pn", 2]["paper"]) == (0.474, 0.5473, None)
    other = torch.stack([r[0].accuracy for r in per_seed["vsm"]])
    difference = over_both(other - accuracy)
    assert lines["vsm", 1]["accuracy_difference"]["mean"] == pytest.approx(difference.mean, abs=1e-12)
    assert lines["vsm", 1]["accuracy_difference"]["half_width"] == pytest.approx(difference.half_width)
    assert line["training_seconds"] > 0
    assert line["hardware"].startswith("CPU")


def test_what_is_written(made, definition):
    text = (made / "both.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    for heading in ("accuracy %", "sd of seeds %", "paper %", "Δ accuracy %", "NLL, tempered", "ECE %, tempered",
                    "AUROC %", "Brier", "training (s)", "hardware"):  # fmt: skip
        assert heading in table[0]
    assert "47.40" in table[2]
    assert "– " in table[4]  # no published figure at two shots
    assert "VSM: from a start" in text
    assert "Made by `pyro-vsm table both.yaml`" in text
    assert str(made) not in text
    assert "half² = t²(1) v_s/S" in text
    seeds = list(csv.DictReader((made / "both-seeds.csv").read_text().splitlines()))
    assert [(r["row"], r["seed"], r["protocol"]) for r in seeds] == [
        ("pn", "0", "3-way 1-shot"), ("pn", "0", "3-way 2-shot"), ("pn", "1", "3-way 1-shot"),
        ("pn", "1", "3-way 2-shot"), ("vsm", "0", "3-way 1-shot"), ("vsm", "1", "3-way 1-shot"),
    ]  # fmt: skip
    with Image.open(made / "both.png") as image:
        assert len(image.convert("L").getcolors()) > 10
    for seed in (0, 1):
        stored = yaml.safe_load((made / "runs" / "vsm" / f"seed-{seed}" / "config.yaml").read_text())
        assert stored["training"]["init"] == str(made / "runs" / "start" / f"seed-{seed}")
        assert stored["training"]["seed"] == seed
        assert stored["systems"] == ["vsm"]


class StopAt:
    """In place of Interrupt: asks to stop once the trainers have done so many steps in all."""

    left = 0

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    @property
    def requested(self) -> bool:
        return StopAt.left <= 0


def test_an_interrupted_table_goes_on_and_ends_like_a_whole_one(definition, made, tmp_path, monkeypatch):
    advance = Trainer._advance

    def counted(self):
        advance(self)
        StopAt.left -= 1

    monkeypatch.setattr(Trainer, "_advance", counted)
    monkeypatch.setattr(jobs, "Interrupt", StopAt)
    path, lines = definition(), []
    for steps in (3, 4, 11):
        StopAt.left = steps
        assert make_table(path, tmp_path, log=lines.append) is None
        assert lines[-1] == "Go on with the same command."
        assert not (tmp_path / "both.md").exists()
    StopAt.left = 1000
    assert main(["table", str(path), "--out", str(tmp_path)]) == 0
    here, there = models(tmp_path), models(made)
    assert here.keys() == there.keys()
    apart = {"training_seconds"}
    mine, whole = ([{k: v for k, v in r.items() if k not in apart} for r in rows_of(o)] for o in (tmp_path, made))
    assert mine == whole
    StopAt.left = 0
    monkeypatch.setattr(main.__globals__["sys"], "argv", ["pyro-vsm"])
    with pytest.raises(SystemExit) as stopped:
        main(["table", str(path), "--out", str(tmp_path / "other")])
    assert stopped.value.code == 130


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the finished table, where the test may write."""
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def counting(monkeypatch):
    """Counts what is trained, and what is loaded to be evaluated; at most one model may live at a time."""
    trained, evaluated, alive = [], [], weakref.WeakSet()
    train, load = jobs.train_system, scores.load_model

    def counted(name, *args, **kwargs):
        trained.append(name)
        return train(name, *args, **kwargs)

    def loaded(path):
        assert not alive, "the model before is still held"
        evaluated.append(path.parent.name)
        model, meta = load(path)
        alive.add(model)
        return model, meta

    monkeypatch.setattr(jobs, "train_system", counted)
    monkeypatch.setattr(scores, "load_model", loaded)
    return trained, evaluated


def test_finished_runs_and_evaluations_are_used_again(definition, made, copied, counting):
    trained, evaluated = counting
    make_table(definition(), copied, device="cpu", log=silent)
    assert trained == evaluated == []
    assert rows_of(copied) == rows_of(made)
    make_table(definition(), copied, evaluation={"samples": 3}, log=silent)
    assert trained == []
    assert evaluated == ["pn", "vsm", "pn", "vsm"]
    key = copied / "runs" / "pn" / "seed-0" / "pn" / "evaluations" / "3way-1shot-test-plain.safetensors"
    key.write_bytes(key.read_bytes()[:-10])
    make_table(definition(), copied, evaluation={"samples": 3}, log=silent)
    assert evaluated == ["pn", "vsm", "pn", "vsm", "pn"]


def test_comparisons_hold_one_model_at_a_time(copied, tmp_path, monkeypatch):
    load, alive, most = jobs.load_model, weakref.WeakSet(), []

    def loaded(path):
        model, meta = load(path)
        alive.add(model)
        most.append(len(alive))
        return model, meta

    monkeypatch.setattr(jobs, "load_model", loaded)
    models = {f"pn {seed}": copied / "runs" / "pn" / f"seed-{seed}" / "pn" for seed in (0, 1)}
    config = jobs.Config.from_dict(load(models["pn 0"])[1]["config"])
    data = data_sources.load(config.data, silent)
    found = jobs.compare_systems(models, data.test, config, tmp_path / "comparison", log=silent)
    assert list(found) == list(models)
    assert most == [1, 1]


def test_other_code_means_evaluating_again(definition, copied, counting, monkeypatch):
    _, evaluated = counting
    monkeypatch.setattr(scores, "source_digest", lambda: "other")
    make_table(definition(), copied, only=["pn"], seeds=[0], log=silent)
    assert evaluated == ["pn"]
    make_table(definition(), copied, seeds=[0], log=silent)
    assert evaluated == ["pn", "vsm"]


def test_validation_has_a_table_of_its_own(definition, copied):
    assert main(["table", str(definition()), "--out", str(copied), "--evaluation.split", "validation"]) == 0
    text = (copied / "both-validation.md").read_text()
    assert "6 validation episodes" in text
    assert "of the very classes that are tested" in text
    assert "--evaluation.split validation" in text
    assert rows_of(copied)  # the other one is still there


def test_moved_pictures_are_the_same_data(definition, copied, counting, tiny_root, tmp_path):
    trained, _ = counting
    shutil.copytree(tiny_root, tmp_path / "elsewhere")
    make_table(definition(), copied, root=str(tmp_path / "elsewhere"), log=silent)
    assert trained == []
    shutil.copy(*(sorted((tmp_path / "elsewhere" / "train").glob(f"*/{i}.png"))[0] for i in (1, 0)))
    with pytest.raises(UserError, match=r"seed-0 holds another run .* data\.train\.sha256: .*--force"):
        make_table(definition(), copied, root=str(tmp_path / "elsewhere"), log=silent)


def test_runs_of_other_settings_are_refused_unless_forced(definition, copied, counting):
    trained, _ = counting
    before = models(copied)
    command = ["table", str(definition()), "--out", str(copied), "--override", "training.lr=0.5"]
    with pytest.raises(UserError, match=r"row 'start' asks for: config\.training\.lr: 0\.002 -> 0\.5; remove"):
        make_table(definition(), copied, override={"training.lr": 0.5}, log=silent)
    assert main(command) == 2
    assert main([*command, "--force"]) == 0
    assert trained == []
    assert models(copied) == before
    text = (copied / "both.md").read_text()
    assert "although it differs" in text
    assert "pn, seed 1: config.training.lr: 0.002 -> 0.5" in text


def test_another_start_is_another_run(definition, copied):
    """What was trained from a start that has changed since is not passed off as trained from this one."""
    shutil.copy(
        copied / "runs" / "start" / "seed-1" / "classifier" / "model.safetensors",
        copied / "runs" / "start" / "seed-0" / "classifier" / "model.safetensors",
    )
    with pytest.raises(UserError, match=r"vsm.seed-0 holds another run .*inputs\.training\.init"):
        make_table(definition(), copied, log=silent)


def test_only_some_rows(definition, tmp_path, counting):
    trained, _ = counting
    path = definition()
    make_table(path, tmp_path, only=["vsm"], seeds=[1], log=silent)
    assert trained == ["classifier", "vsm"]  # with what it starts from
    assert [r["row"] for r in rows_of(tmp_path)] == ["vsm"]
    assert rows_of(tmp_path)[0].get("accuracy_difference") is None
    make_table(path, tmp_path, only=["pn"], seeds=[1], log=silent)
    assert trained == ["classifier", "vsm", "pn"]
    assert [r["row"] for r in rows_of(tmp_path)] == ["pn", "vsm", "pn"]
    assert rows_of(tmp_path)[1]["accuracy_difference"] is not None
    assert "there is one training seed" in (tmp_path / "both.md").read_text()
    assert "--seeds 1 --only pn" in (tmp_path / "both.md").read_text()
    assert make_table(path, tmp_path, only=["start"], seeds=[1], log=silent)  # shows the others
    assert trained == ["classifier", "vsm", "pn"]


def test_rows_that_were_not_asked_for_are_not_evaluated(definition, tmp_path, counting):
    _, evaluated = counting
    path, said = definition(), []
    make_table(path, tmp_path, only=["pn"], seeds=[1], log=silent)
    evaluated.clear()
    make_table(path, tmp_path, only=["vsm"], seeds=[1], evaluation={"episodes": 7}, log=said.append)
    assert evaluated == ["vsm"]
    assert [r["row"] for r in rows_of(tmp_path)] == ["vsm"]
    assert any(
        "Left out: pn is trained, but not evaluated like this; name it in --only, too" in line for line in said
    )


def test_a_table_uses_what_another_trains_for_it(definition, tmp_path, counting):
    trained, _ = counting
    path = definition()
    make_table(path, tmp_path, only=["vsm"], seeds=[1], log=silent)
    rows = [{"name": "vsm-again", "system": "vsm", "set": {"training.init": "run:start"}}]
    settings = {"base": "base.yaml", "uses": "both.yaml", "protocols": [{"way": 3, "shot": 1}], "rows": rows}
    (path.parent / "again.yaml").write_text(yaml.safe_dump(settings))
    make_table(path.parent / "again.yaml", tmp_path, seeds=[1], log=silent)
    assert trained == ["classifier", "vsm", "vsm"]  # one start for both
    assert [r["row"] for r in rows_of(tmp_path, "again")] == ["vsm-again"]  # nothing else of the other table
    (path.parent / "chain.yaml").write_text(yaml.safe_dump({**settings, "uses": "again.yaml"}))
    assert [r.name for r in read_table(path.parent / "chain.yaml").rows] == ["start", "vsm-again"]
    (path.parent / "again.yaml").write_text(yaml.safe_dump({**settings, "uses": "chain.yaml"}))
    with pytest.raises(UserError, match=r"again\.yaml, which uses it in turn; take one of the two out"):
        read_table(path.parent / "again.yaml")
    (path.parent / "other.yaml").write_text(yaml.safe_dump({**settings, "set": {"data.seed": 7}}))
    with pytest.raises(UserError, match="row 'start' has other data than base"):
        read_table(path.parent / "other.yaml")
    (path.parent / "other.yaml").write_text(yaml.safe_dump({**settings, "folds": 3}))
    with pytest.raises(UserError, match="row 'start' has other data than base"):
        read_table(path.parent / "other.yaml")


def test_what_finished_trainings_needed_may_be_removed(definition, tmp_path, counting):
    """A start that nothing needs any more is not trained again; for a training to come it is."""
    trained, _ = counting
    path = definition()
    make_table(path, tmp_path, only=["vsm"], seeds=[1], log=silent)
    shutil.rmtree(tmp_path / "runs" / "start")
    trained.clear()
    make_table(path, tmp_path, only=["vsm", "pn"], seeds=[1], log=silent)
    assert trained == ["pn"]
    shutil.rmtree(tmp_path / "runs" / "vsm")
    make_table(path, tmp_path, only=["vsm"], seeds=[1], log=silent)
    assert trained == ["pn", "classifier", "vsm"]


def test_folds_are_of_the_training_classes_alone(definition, tmp_path, tiny_data, counting):
    """Each seed trains without its fold and is evaluated on it; no image of a test class is looked at."""
    hidden = Splits("hidden", tiny_data.train, tiny_data.validation, tiny_data.test)
    object.__setattr__(hidden, "test", None)
    trained, evaluated = counting
    settings = {"folds": 3, "seeds": [0, 1, 2], "unknown": False, "protocols": [{"way": 3, "shot": 1}]}
    path = definition(**settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_sources, "load", lambda config, log: hidden)
        for _ in range(2):
            make_table(path, tmp_path, evaluation={"split": "validation"}, log=silent)
    assert trained == ["classifier", "pn", "vsm"] * 3
    assert len(evaluated) == 6
    lines = {r["row"]: r for r in rows_of(tmp_path, "both-folds")}
    seen, means = [], []
    for seed in range(3):
        data = leave_out(tiny_data, seed, 3)
        config = yaml.safe_load((tmp_path / "runs" / "start" / f"seed-{seed}" / "config.yaml").read_text())
        assert (config["data"]["fold"], config["data"]["folds"]) == (seed, 3)
        record = json.loads((tmp_path / "runs" / "pn" / f"seed-{seed}" / "record.json").read_text())
        assert record["data"] == {k: v.to_dict() for k, v in data.identity.items()}
        model = load_model(tmp_path / "runs" / "pn" / f"seed-{seed}" / "pn")[0]
        index = fixed_episodes(data.validation, way=3, shot=1, queries=3, episodes=6, seed=0)
        means.append(float(evaluate(model, encode_all(model, data.validation.images), index).accuracy.mean()))
        seen += data.validation.names
    assert sorted(seen) == sorted(tiny_data.train.names)
    assert lines["pn"]["accuracy"]["mean"] == pytest.approx(sum(means) / 3, abs=1e-6)
    assert lines["pn"]["accuracy_seed_min"] == pytest.approx(min(means), abs=1e-6)
    assert "seed s trains without fold s mod 3" in (tmp_path / "both-folds.md").read_text()


def test_a_table_of_one_fold_says_what_its_test_classes_are(definition, tmp_path, tiny_data):
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_sources, "load", lambda config, log: leave_out(tiny_data, config.fold, config.folds))
        settings = {"seeds": [0], "only": ["pn"], "override": {"data.fold": 1, "data.folds": 3}}
        make_table(definition(unknown=False), tmp_path, **settings, log=lines.append)
    assert "the validation classes stand in for the test split" in (tmp_path / "both.md").read_text()
    assert str(tiny_data.validation.identity()) in (tmp_path / "both.md").read_text()


def test_rows_that_were_not_asked_for_do_not_stop_those_that_were(definition, copied):
    (copied / "runs" / "vsm" / "seed-0" / "record.json").write_text("{")
    lines = []
    assert make_table(definition(), copied, only=["pn"], log=lines.append)
    assert any(line.startswith("Left out: ") and "record.json is damaged" in line for line in lines)
    assert [r["row"] for r in rows_of(copied)] == ["pn", "pn"]


def test_damaged_records_are_refused(definition, copied):
    (copied / "runs" / "pn" / "seed-0" / "record.json").write_text("{")
    with pytest.raises(UserError, match=r"record\.json is damaged"):
        make_table(definition(), copied, log=silent)


def test_a_file_from_the_folder_of_the_table_for_each_seed(definition, copied):
    """Rows start from files as they start from runs: each seed from its own."""
    row = {"name": "same", "system": "vsm", "protocols": [{"way": 3, "shot": 1}]}
    settings = {"training.init": "file:start-{seed}.safetensors", "model.memory_use": "rote"}
    path = definition(rows=[*BOTH["rows"][1:2], {**row, "set": settings}])
    for seed in (0, 1):
        start = copied / "runs" / "start" / f"seed-{seed}" / "classifier" / "model.safetensors"
        shutil.copy(start, path.parent / f"start-{seed}.safetensors")
    make_table(path, copied, log=silent)
    for seed in (0, 1):
        ours, theirs = (
            load_file(copied / "runs" / name / f"seed-{seed}" / "vsm" / "model.safetensors")
            for name in ("same", "vsm")
        )
        assert all(torch.equal(ours[k], v) for k, v in theirs.items())


def changed(**row) -> dict:
    return {"rows": [{"name": "pn", "system": "pn", **row}], "reference": "pn"}


WRONG = {
    "base is missing": {"base": None},
    "there is no base": {"base": "nowhere.yaml"},
    "base must be a mapping": {"base": 3},
    "has no entry 'sedes'": {"sedes": [1]},
    "rows must be a list": {"rows": {}},
    "which is not there; name a table from this one's folder": {"uses": "nothing.yaml"},
    "which uses it in turn": {"uses": "both.yaml"},
    "has no entry 'papper'; entries are": changed(papper=3),
    "row 1: its name is '../x'": changed(name="../x"),
    "row 'pn': there is no system 'pnn'; known are": changed(system="pnn"),
    "there are two rows 'pn'": {"rows": [{"name": "pn", "system": "pn"}] * 2},
    "seeds are [0, 0]": {"seeds": [0, 0]},
    "seeds are [-1]": {"seeds": [-1]},
    "seeds are ['a']": {"seeds": ["a"]},
    "seeds is 3; give a list": {"seeds": 3},
    "there is no row 'nobody'": {"reference": "nobody"},
    "the reference 'start' is not shown": {"reference": "start"},
    "a protocol is 5": {"protocols": [5]},
    "protocols must be some of the table's: 3-way 1-shot": changed(protocols=[{"way": 3, "shot": 9}]),
    "paper is 470; give a percentage": {**changed(paper=470), "protocols": None},
    "needs run:later, but no row above it": changed(set={"training.init": "run:later"}),
    "row 'pn': there is no": changed(set={"training.init": "file:of-{seed}.safetensors"}),
    "does not accept option 'lrr'": changed(set={"training.lrr": 1}),
    "training: steps=-1": changed(set={"training.steps": -1}),
    "training is 3; a section of settings is a mapping": changed(set={"training": 3}),
    "set changes evaluation.samples, which the rows of a table share": changed(set={"evaluation.samples": 1}),
    "a table with folds is for choosing": {"folds": 2},
    "folds is -1": {"folds": -1},
    "unknown is 'maybe'; give true or false": {"unknown": "maybe"},
    "10-way episodes need 10 classes, but the split has 6": {"protocols": [{"way": 5, "shot": 1}], **changed()},
}


@pytest.mark.parametrize(("message", "changes"), WRONG.items(), ids=WRONG)
def test_wrong_definitions_are_answered_with_one_sentence(definition, tmp_path, capsys, message, changes):
    assert main(["table", str(definition(**changes)), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert message in err[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "nobody"], "there is no row 'nobody'"),
        (["--seeds", "1", "1"], "seeds are [1, 1]"),
        (["--override", "training.lr"], "give settings as NAME=VALUE"),
        (["--override", "training.lr=[1"], "is no YAML"),
        (["--override", "training.lr=abc"], "training.lr"),
        (["--evaluation.episodes", "1"], "evaluation: episodes=1"),
    ],
)
def test_wrong_options_are_answered_with_one_sentence(definition, tmp_path, capsys, words, message):
    assert main(["table", str(definition()), "--out", str(tmp_path / "out"), *words]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert message in err[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"rows: [", b"- 1"])
def test_files_that_are_no_table(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "table.yaml").write_bytes(content)
    assert main(["table", str(tmp_path / "table.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_options_lie_over_rows_and_rows_over_the_base(definition):
    table = read_table(
        definition(set={"training.clip": 2.0, "training.ema": 0.5}, **changed(set={"training.ema": 0.6})),
        seeds=[7],
        override={"training.lr": 0.25},
    )
    config = table.row("pn").config(7, Path)
    assert (config.training.clip, config.training.ema, config.training.lr) == (2.0, 0.6, 0.25)
    assert config.training.seed == 7


def test_numbers_with_exponents_are_numbers(tmp_path):
    (tmp_path / "t.yaml").write_text(
        "base: {training: {lr: 1e-3}}\n"
        "rows: [{name: a, system: vsm, set: {model.prior_z: {class_path: vamp, init_args: {x: 5E-1}}}}]\n"
    )
    config = read_table(tmp_path / "t.yaml").row("a").config(0, Path)
    assert config.training.lr == 1e-3
    assert config.model.prior_z["init_args"]["x"] == 0.5


TABLES = sorted((Path(__file__).parent.parent / "experiments").glob("*/tables/*.yaml"))


@pytest.mark.parametrize("path", TABLES, ids=[f"{p.parent.parent.name} {p.stem}" for p in TABLES])
def test_the_tables_of_this_project_can_be_read(path):
    table = read_table(path)
    for row in table.rows:
        row.config(table.seeds[-1], Path)
    assert len(table.seeds) >= 3 or "--evaluation.split validation" in path.read_text()  # only to choose a recipe
    assert data_sources.SOURCES.get(table.rows[0].config(0, Path).data.name)


@pytest.mark.cuda
def test_a_table_on_cuda(definition, tmp_path):
    assert main(["table", str(definition()), "--out", str(tmp_path), "--device", "cuda"]) == 0
    assert [r["row"] for r in rows_of(tmp_path)] == ["pn", "vsm", "pn"]
    assert not rows_of(tmp_path)[0]["hardware"].startswith("CPU")
