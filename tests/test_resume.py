"""A training that was interrupted and resumed ends bit for bit like one that was not."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pyro_vsm import checkpoint, jobs
from pyro_vsm.cli import main
from pyro_vsm.data import folder as folder_source
from pyro_vsm.errors import UserError
from pyro_vsm.run import read_metrics
from pyro_vsm.systems import SYSTEMS
from pyro_vsm.training import Trainer


def silent(_: str) -> None:
    pass


class StopAt:
    """In place of Interrupt: asks to stop once the trainer has done so many steps in all."""

    steps = 0
    done = 0

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    @property
    def requested(self) -> bool:
        return StopAt.done >= StopAt.steps


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Drawing takes longer than the rest of these runs."""
    monkeypatch.setattr(jobs, "draw_run", lambda folder: [])


@pytest.fixture
def stop_after(monkeypatch):
    """``stop_after(n)``: training is interrupted after n further steps."""
    advance = Trainer._advance

    def counted(self):
        advance(self)
        StopAt.done += 1

    def stop(steps: int) -> None:
        StopAt.steps, StopAt.done = steps, 0
        monkeypatch.setattr(jobs, "Interrupt", StopAt)
        monkeypatch.setattr(Trainer, "_advance", counted)

    return stop


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_config):
    """An uninterrupted run of vsm and pn, 8 steps each."""
    torch.set_num_threads(1)
    return jobs.train(tiny_config(systems=["vsm", "pn"]), tmp_path_factory.mktemp("whole") / "run", log=silent)


def assert_same_run(a: Path, b: Path, systems=("vsm", "pn")) -> None:
    for system in systems:
        for name in ("model.safetensors", "state.safetensors"):
            x, y = load_file(a / system / name), load_file(b / system / name)
            assert x.keys() == y.keys()
            assert [k for k in x if not torch.equal(x[k], y[k])] == [], name
        assert (a / system / "metrics.jsonl").read_bytes() == (b / system / "metrics.jsonl").read_bytes()
    tables = [json.loads((run / "table.json").read_text())["rows"] for run in (a, b)]
    for rows in tables:
        for row in rows:
            del row["training_seconds"]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("stops", [[4], [2, 3, 2], [8], [11]])
def test_interrupted_runs_end_like_whole_ones(tmp_path, tiny_config, whole, stop_after, stops):
    config, lines = tiny_config(systems=["vsm", "pn"]), []
    for number, steps in enumerate(stops):
        stop_after(steps)
        assert jobs.train(config, tmp_path / "run", resume=number > 0, log=lines.append) is None
        torch.manual_seed(number)  # nothing may hang on the state this process is in
        assert f"pyro-vsm train --resume {tmp_path / 'run'}" in lines[-1]
    stop_after(100)
    assert jobs.train(config, tmp_path / "run", resume=True, log=silent) == tmp_path / "run"
    assert_same_run(tmp_path / "run", whole)


def stopped_and_whole(tmp_path, config, stop_after, stops=(3, 3)) -> tuple[Path, Path]:
    """The folders of the same run twice: interrupted after so many steps, and whole."""
    for number, steps in enumerate(stops):
        stop_after(steps)
        assert jobs.train(config, tmp_path / "stopped", resume=number > 0, log=silent) is None
        torch.manual_seed(number)
    stop_after(100)
    assert jobs.train(config, tmp_path / "stopped", resume=True, log=silent)
    assert jobs.train(config, tmp_path / "whole", log=silent)
    return tmp_path / "stopped", tmp_path / "whole"


@pytest.mark.parametrize("system", sorted(set(SYSTEMS) - {"vsm", "pn"}))
def test_every_system_ends_like_a_whole_run(tmp_path, tiny_config, stop_after, system):
    config = tiny_config(systems=[system], classifier={"batch": 8, "rotations": 1}, versa={"hidden": 16})
    assert_same_run(*stopped_and_whole(tmp_path, config, stop_after), systems=[system])


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"optimizer": "sgd", "schedule": "constant", "ema": 0.0}},
        {"training": {"clip": 0.0}, "augment": {"flip": True, "pad": 2, "brightness": 0.2}},
        {"model": {"memory_use": "shuffled", "memory_update": "mean", "capacity": 5, "top_k": 2}},
        {"model": {"objective": "importance_weighted", "posterior_m": "relaxed", "prior_z": "vamp"}},
        {"model": {"posterior_z": "conjugate", "prior_z": "empirical_bayes", "within_rank": 2}},
        {"training": {"calibrate": True}},
    ],
    ids=lambda changes: " ".join(f"{k}={v}" for c in changes.values() for k, v in c.items()),
)
def test_every_kind_of_training_ends_like_a_whole_one(tmp_path, tiny_config, stop_after, changes):
    assert_same_run(*stopped_and_whole(tmp_path, tiny_config(**changes), stop_after), systems=["vsm"])


@pytest.mark.parametrize("views", [1, 2])
def test_a_training_on_frozen_features_ends_like_a_whole_one(tmp_path, tiny_config, whole, stop_after, views):
    training = {"init": str(whole / "pn"), "freeze": True, "views": views}
    config = tiny_config(training=training, augment={"flip": True})
    assert_same_run(*stopped_and_whole(tmp_path, config, stop_after), systems=["vsm"])


def test_interrupted_in_the_last_step_of_a_system_the_next_does_not_begin(tmp_path, tiny_config, stop_after):
    stop_after(8)
    assert jobs.train(tiny_config(systems=["vsm", "pn"]), tmp_path / "run", log=silent) is None
    assert not (tmp_path / "run" / "pn").exists()


def test_a_crash_loses_no_more_than_the_steps_since_the_last_state(tmp_path, tiny_config, whole, monkeypatch):
    config = tiny_config(systems=["vsm", "pn"])
    advance = Trainer._advance
    for after in (3, 3):  # before the first state (at step 4), and three steps after it
        left = [after + (4 if (tmp_path / "run").exists() else 0)]

        def counted(self, left=left):
            if left[0] == 0:
                raise MemoryError("killed")
            left[0] -= 1
            advance(self)

        monkeypatch.setattr(Trainer, "_advance", counted)
        with pytest.raises(MemoryError):
            jobs.train(config, tmp_path / "run", resume=(tmp_path / "run").exists(), log=silent)
    with (tmp_path / "run" / "vsm" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/lo')  # half a line
    monkeypatch.setattr(Trainer, "_advance", advance)
    jobs.train(config, tmp_path / "run", resume=True, log=silent)
    assert_same_run(tmp_path / "run", whole)


def test_resuming_a_finished_run_changes_nothing(tmp_path, tiny_config, whole):
    shutil.copytree(whole, tmp_path / "run")
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert_same_run(tmp_path / "run", whole)


# --- other settings, other data, damaged states -------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path, tiny_config, stop_after):
    """The folder of a run of pn stopped at step 5."""
    stop_after(5)
    assert jobs.train(tiny_config(systems=["pn"]), tmp_path / "run", log=silent) is None
    stop_after(100)
    return tmp_path / "run"


def test_other_settings_are_refused_by_name_unless_forced(stopped, tiny_config):
    before = (stopped / "config.yaml").read_bytes()
    other = tiny_config(systems=["pn"], training={"lr": 0.5, "steps": 9})
    with pytest.raises(UserError, match=r"config.training.lr: 0.002 -> 0.5; config.training.steps: 8 -> 9.*--force"):
        jobs.train(other, stopped, resume=True, log=silent)
    assert (stopped / "config.yaml").read_bytes() == before
    assert jobs.train(other, stopped, resume=True, force=True, log=silent) == stopped
    assert read_metrics(stopped / "pn" / "metrics.jsonl")[-1]["step"] == 9
    assert yaml.safe_load((stopped / "config.yaml").read_text())["training"]["lr"] == 0.5


def test_settings_given_beside_resume_come_on_top_of_the_runs_own(stopped, capsys):
    command = ["train", "--resume", str(stopped), "--training.steps", "10"]
    assert main(command) == 2
    assert "config.training.steps: 8 -> 10" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    stored = yaml.safe_load((stopped / "config.yaml").read_text())
    assert stored["training"]["steps"] == 10
    assert stored["training"]["log_every"] == 3  # as in the run, unlike the default


def test_fewer_steps_than_done_end_the_training_at_once(stopped, tiny_config):
    fewer = tiny_config(systems=["pn"], training={"steps": 4})
    # the model kept so far is of step 4
    assert jobs.train(fewer, stopped, resume=True, force=True, log=silent) == stopped


def test_other_data_is_refused_unless_forced(stopped, tiny_config, tiny_root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_root, copy)
    changed = next((copy / "train").glob("*/0.png"))
    shutil.copy(next((copy / "train").glob("*/1.png")), changed)
    config = tiny_config(systems=["pn"])
    config.data.root = str(copy)
    with pytest.raises(UserError, match=r"config\.data\.root: .*; data\.train\.sha256: "):
        jobs.train(config, stopped, resume=True, log=silent)
    assert jobs.train(config, stopped, resume=True, force=True, log=silent) == stopped


def damaged(content: bytes, how: str) -> bytes:
    if how == "truncated":
        return content[: len(content) // 2]
    if how == "empty":
        return b""
    if how == "HTML":
        return b"<!doctype html><html>404</html>"
    where = {"tensor bit": len(content) - 100, "header bit": 60, "length bit": 3}[how]
    return content[:where] + bytes([content[where] ^ 4]) + content[where + 1 :]


HOW = ["truncated", "empty", "HTML", "tensor bit", "header bit", "length bit"]


@pytest.fixture(scope="module")
def whole_pn(tmp_path_factory, tiny_config):
    torch.set_num_threads(1)
    return jobs.train(tiny_config(systems=["pn"]), tmp_path_factory.mktemp("whole pn") / "run", log=silent)


@pytest.mark.parametrize("how", [*HOW, "missing"])
def test_a_damaged_state_is_replaced_by_the_one_before_it(stopped, tiny_config, whole_pn, how):
    path, lines = stopped / "pn" / "state.safetensors", []
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(damaged(content, how))
    jobs.train(tiny_config(systems=["pn"]), stopped, resume=True, log=lines.append)
    assert "going on from state-previous.safetensors, saved at step 4" in lines[1]
    assert "state.safetensors" in lines[1]
    if how != "missing":
        assert (stopped / "pn" / "state-damaged.safetensors").read_bytes() == damaged(content, how)
    assert_same_run(stopped, whole_pn, systems=["pn"])


@pytest.mark.parametrize("how", HOW)
def test_where_both_states_are_damaged_nothing_is_touched(stopped, tiny_config, how):
    for name in ("state", "state-previous"):
        path = stopped / "pn" / f"{name}.safetensors"
        path.write_bytes(damaged(path.read_bytes(), how))
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}
    both = r"state\.safetensors is (damaged|a safetensors file of another).*; and .*state-previous\.safetensors is "
    with pytest.raises(UserError, match=both):
        jobs.train(tiny_config(systems=["pn"]), stopped, resume=True, log=silent)
    assert {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()} == before


def test_the_state_before_the_newest_is_kept(stopped):
    steps = [checkpoint.read(stopped / "pn" / f"{n}.safetensors")[1]["step"] for n in ("state-previous", "state")]
    assert steps == [4, 5]


@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_a_lost_best_model_is_replaced_by_the_next_one(stopped, tiny_config, how):
    path, lines = stopped / "pn" / "model.safetensors", []
    content = path.read_bytes()
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[:100])
    assert jobs.train(tiny_config(systems=["pn"]), stopped, resume=True, log=lines.append) == stopped
    assert any("model.safetensors is missing or damaged" in line for line in lines)
    assert checkpoint.read(path)[1]["step"] == 8


def test_the_best_model_of_a_finished_training_can_be_lost_too(tmp_path, tiny_config, whole_pn):
    shutil.copytree(whole_pn, tmp_path / "run")
    (tmp_path / "run" / "pn" / "model.safetensors").unlink()
    assert jobs.train(tiny_config(systems=["pn"]), tmp_path / "run", resume=True, log=silent)
    assert checkpoint.read(tmp_path / "run" / "pn" / "model.safetensors")[1]["step"] == 8


def test_what_a_killed_writer_left_is_removed(stopped, tiny_config):
    left = stopped / "pn" / f".{'0' * 32}.tmp"
    left.write_bytes(b"half a state")
    jobs.train(tiny_config(systems=["pn"]), stopped, resume=True, log=silent)
    assert not left.exists()


def test_a_run_killed_before_it_wrote_anything_does_not_block_its_folder(tmp_path, tiny_config):
    (tmp_path / "run" / "pn").mkdir(parents=True)
    (tmp_path / "run" / f".{'0' * 32}.tmp").write_bytes(b"half a configuration")
    assert jobs.train(tiny_config(systems=["pn"]), tmp_path / "run", log=silent) == tmp_path / "run"


def test_moved_data_other_threads_and_no_cache_do_not_matter(stopped, tiny_config, tiny_root, tmp_path, whole_pn):
    shutil.copytree(tiny_root, tmp_path / "moved")
    config = tiny_config(systems=["pn"], data={"root": str(tmp_path / "moved"), "threads": 3})
    assert jobs.train(config, stopped, resume=True, log=silent) == stopped
    assert_same_run(stopped, whole_pn, systems=["pn"])


def test_other_versions_are_mentioned(stopped, tiny_config, monkeypatch):
    lines = []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "versions", lambda: {"torch": "9.0"})
        jobs.train(tiny_config(systems=["pn"]), stopped, resume=True, log=lines.append)
    assert any("saved by other versions (" in line and "-> 9.0" in line for line in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_training_loses_nothing(tmp_path, tiny_config, whole_pn, monkeypatch, number):
    lines = []
    # a shell that starts something in the background lets it ignore Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "evaluate_model", lambda *_, **__: signal.raise_signal(number))
            assert jobs.train(tiny_config(systems=["pn"]), tmp_path / "run", log=lines.append) is None
    finally:
        signal.signal(signal.SIGINT, before)
    assert lines[-1].endswith(f"pyro-vsm train --resume {tmp_path / 'run'}")
    assert jobs.train(tiny_config(systems=["pn"]), tmp_path / "run", resume=True, log=silent)
    assert_same_run(tmp_path / "run", whole_pn, systems=["pn"])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_loading_threads_does_not_change_the_numbers(tmp_path, tiny_config, whole_pn, threads):
    config = tiny_config(systems=["pn"], data={"threads": threads})
    jobs.train(config, tmp_path / "run", log=silent)
    assert_same_run(tmp_path / "run", whole_pn, systems=["pn"])


@pytest.mark.cuda
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("system", ["vsm", "pn"])
def test_on_cuda_a_resumed_run_ends_like_a_whole_one(tmp_path, tiny_config, stop_after, system, graph):
    """To 1e-3 of the largest value of each tensor: sums over threads are not in one order, and steps amplify that."""
    training = {"device": "cuda", "cuda_graph": graph, "steps": 20, "validate_every": 10, "checkpoint_every": 10}
    config = tiny_config(systems=[system], training=training)
    stopped, whole = stopped_and_whole(tmp_path, config, stop_after, stops=(7, 6))
    a, b = (load_file(run / system / "state.safetensors") for run in (stopped, whole))
    assert a.keys() == b.keys()
    assert torch.equal(a["random.cpu"], b["random.cpu"])
    assert torch.equal(a["random.cuda"], b["random.cuda"])  # the same episodes, augmentation and noise to come
    for name in a:
        if name.startswith(("model.", "average.")):
            x, y = a[name].double(), b[name].double()
            assert (x - y).abs().max() <= 1e-3 * y.abs().max() + 1e-6, name


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("other", ["model", "vsm"])
def test_foreign_states_are_refused_even_if_forced(stopped, tiny_config, whole, other, force):
    foreign = {"model": stopped / "pn" / "model.safetensors", "vsm": whole / "vsm" / "state.safetensors"}[other]
    shutil.copy(foreign, stopped / "pn" / "state.safetensors")
    with pytest.raises(UserError, match=r"state\.safetensors (is no state|does not fit)"):
        jobs.train(tiny_config(systems=["pn"]), stopped, resume=True, force=force, log=silent)


def test_damaged_logs_are_refused(stopped, tiny_config):
    path = stopped / "pn" / "metrics.jsonl"
    path.write_text("not JSON\n" + path.read_text())
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        jobs.train(tiny_config(systems=["pn"]), stopped, resume=True, log=silent)


def test_run_folder_below_a_file(tmp_path, tiny_config):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(UserError, match=r"cannot (use|make|write) .*file"):
            jobs.train(tiny_config(systems=["pn"]), out, log=silent)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_read_only_run_folder(tmp_path, tiny_config):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"cannot make .* choose another --out"):
        jobs.train(tiny_config(systems=["pn"]), tmp_path / "locked" / "run", log=silent)


def test_nothing_is_written_where_a_setting_is_wrong(tmp_path, tiny_config):
    wrong = [{"model": {"prior_z": "memmory"}}, {"episodes": {"way": 7}}, {"evaluation": {"way": 7}}]
    for changes in wrong:
        with pytest.raises(UserError):
            jobs.train(tiny_config(systems=["pn", "vsm"], **changes), tmp_path / "run", log=silent)
        assert not (tmp_path / "run").exists()


def test_loading_damaged_data_does_not_leave_a_run_behind(tmp_path, tiny_config, monkeypatch):
    def fails(config):
        raise UserError("no such data")

    monkeypatch.setitem(folder_source.SOURCES, "folder", fails)
    with pytest.raises(UserError, match="no such data"):
        jobs.train(tiny_config(), tmp_path / "run", log=silent)
    assert not (tmp_path / "run").exists()


# --- real signals -------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_a_real_training_that_the_printed_command_resumes(tmp_path, tiny_config, number):
    settings = tiny_config(systems=["pn"], training={"steps": 100_000, "checkpoint_every": 0, "validate_every": 0})
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings.to_dict()))
    run, log = tmp_path / "a run", tmp_path / "a run" / "pn" / "metrics.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    program = [sys.executable, "-m", "pyro_vsm.cli"]
    process = subprocess.Popen(
        [*program, "train", "--config", str(tmp_path / "settings.yaml"), "--out", str(run)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        while not log.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    command = shlex.split(out.strip().splitlines()[-1].partition("pyro-vsm ")[2])
    assert command == ["train", "--resume", str(run)]
    done = read_metrics(log)[-1]["step"]
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored == yaml.safe_load((tmp_path / "settings.yaml").read_text())
    assert (run / "pn" / "state.safetensors").exists()
    assert main([*command, "--training.steps", str(done + 3), "--force"]) == 0
    assert read_metrics(log)[-1]["step"] == done + 3
    assert (run / "table.md").exists()
