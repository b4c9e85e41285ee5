"""A table whose trainings run side by side: the same numbers, in the right order, and what happens when one fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pyro_vsm.cli import main
from pyro_vsm.errors import UserError
from pyro_vsm.tables import devices, make_table
from pyro_vsm.tables.devices import environment

ROWS = [
    {"name": "start", "system": "classifier", "shown": False, "set": {"classifier.batch": 6}},
    {"name": "pn", "system": "pn", "label": "PN"},
    {"name": "vsm", "system": "vsm", "label": "VSM", "set": {"training": {"init": "run:start"}}},
]


@pytest.fixture
def definition(tmp_path, tiny_settings):
    """``definition(**changes)``: the path of a table file."""

    def write(**changes) -> Path:
        training = {**tiny_settings["training"], "steps": 4, "checkpoint_every": 2}
        base = {**tiny_settings, "training": training, "evaluation": {"episodes": 6, "queries": 3, "samples": 5}}
        values = {
            "base": base,
            "seeds": [0, 1],
            "reference": "pn",
            "temperature_episodes": 8,
            "rows": ROWS,
            **changes,
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "default")


def test_side_by_side_is_one_after_the_other(definition, tmp_path, capsys):
    path = definition(seeds=[0])
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert main(["table", str(path), "--out", str(together), "--devices", "cpu", "cpu"]) == 0
    assert "PN" in capsys.readouterr().out
    logs = sorted(p.name for p in (together / "logs").iterdir())
    assert logs == sorted(f"{row['name']}-seed-0.log" for row in ROWS)
    make_table(path, alone, log=lambda _: None)
    rows = [json.loads((out / "tiny.json").read_text())["rows"] for out in (together, alone)]
    for mine, theirs in zip(*rows, strict=True):
        assert mine["accuracy"]["mean"] == pytest.approx(theirs["accuracy"]["mean"])
    # what is there needs no process; one whose evaluation is gone does
    for log in (together / "logs").iterdir():
        log.unlink()
    for kept in (together / "runs" / "vsm").rglob("evaluations/*"):
        kept.unlink()
    assert main(["table", str(path), "--out", str(together), "--devices", "cpu"]) == 0
    assert [p.name for p in (together / "logs").iterdir()] == ["vsm-seed-0.log"]
    # nothing is trained or written again, and a part of it writes no table
    (together / "tiny.md").unlink()
    before = {p: p.stat().st_mtime_ns for p in together.glob("runs/**/model.safetensors")}
    assert main(["table", str(path), "--out", str(together), "--only", "pn", "--prepare"]) == 0
    assert not (together / "tiny.md").exists()
    assert {p: p.stat().st_mtime_ns for p in together.glob("runs/**/model.safetensors")} == before


def test_what_needs_a_failed_row_is_left_out_and_the_rest_is_done(definition, tmp_path, capsys):
    broken = {**ROWS[0], "set": {"classifier.batch": 6, "training": {"lr": 1e30, "optimizer": "sgd", "bad_steps": 1}}}
    path, out = definition(rows=[broken, *ROWS[1:]], seeds=[0]), tmp_path / "out"
    assert main(["table", str(path), "--out", str(out), "--devices", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "2 of the 3 trainings left to do failed, start with seed 0 first (exit status 2: " in said
    assert "Traceback" not in said
    assert (out / "runs" / "pn" / "seed-0" / "pn" / "model.safetensors").exists()
    assert not (out / "runs" / "vsm").exists()
    assert not (out / "tiny.md").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interruption_saves_every_training(definition, tmp_path):
    path, out = definition(seeds=[0]), tmp_path / "out"
    words = ["--override", "training.steps=100000", "training.validate_every=0", "training.checkpoint_every=0"]
    program = [sys.executable, "-m", "pyro_vsm.cli", "table", str(path), "--out", str(out), *words]
    process = subprocess.Popen(
        [*program, "--devices", "cpu", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    logs = [
        out / "runs" / name / "seed-0" / system / "metrics.jsonl"
        for name, system in (("start", "classifier"), ("pn", "pn"))
    ]
    try:
        started = time.monotonic()
        while not all(log.exists() for log in logs) and process.poll() is None and time.monotonic() < started + 60:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Go on with the same command." in said
    assert all((log.parent / "state.safetensors").exists() for log in logs)


def test_each_process_sees_its_own_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(devices, "cores", lambda: 16)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    name, values = environment("cuda:2", 4)
    assert (name, values["CUDA_VISIBLE_DEVICES"], values["OMP_NUM_THREADS"]) == ("cuda", "2", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    assert environment("cuda:1", 32)[1]["CUDA_VISIBLE_DEVICES"] == "5"
    assert environment("cuda:1", 32)[1]["OMP_NUM_THREADS"] == "1"
    assert environment("cpu", 2)[0] == "cpu"
    with pytest.raises(UserError, match="cuda:9"):
        environment("cuda:9", 1)


def test_one_device_beside_several_is_refused(definition, tmp_path, capsys):
    words = ["table", str(definition()), "--out", str(tmp_path / "out"), "--devices", "cpu", "--device", "cpu"]
    assert main(words) == 2
    assert "--device cpu beside --devices; give one of the two" in capsys.readouterr().err
