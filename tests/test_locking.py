"""A run folder belongs to one process at a time."""

import subprocess
import sys
import threading
import time

import pytest

from pyro_vsm.errors import UserError
from pyro_vsm.locking import only_trainer

HOLD = """
import sys, time
from pathlib import Path
from pyro_vsm.locking import only_trainer
with only_trainer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in ``tmp_path / "run"``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_folder_in_use_is_refused(tmp_path, holder):
    with (
        pytest.raises(UserError, match="run; wait until it is over, or choose another --out"),
        only_trainer(tmp_path / "run"),
    ):
        pass
    with only_trainer(tmp_path / "other"):
        pass


def test_a_process_that_dies_lets_go(tmp_path, holder):
    holder.kill()
    holder.wait()
    with only_trainer(tmp_path / "run"):
        pass


def test_waiting_ends_with_the_other_process(tmp_path, holder):
    told = []
    threading.Timer(0.5, holder.kill).start()
    started = time.monotonic()
    with only_trainer(tmp_path / "run", lambda: told.append(1)):
        assert time.monotonic() - started > 0.3
    assert told == [1]


def test_the_same_folder_by_another_name(tmp_path, holder):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="another process"), only_trainer(tmp_path / "link" / "run"):
        pass


def test_without_a_cache_folder_there_is_no_lock(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYRO_VSM_CACHE", str(tmp_path / "file"))
    with only_trainer(tmp_path / "run"), only_trainer(tmp_path / "run"):
        pass
