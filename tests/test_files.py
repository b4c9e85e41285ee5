"""Atomic writing."""

import os

import pytest

from pyro_vsm.errors import UserError
from pyro_vsm.files import write_atomic


def test_writes_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    assert write_atomic(path, b"one") == path
    write_atomic(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_permissions_follow_the_umask(tmp_path):
    mask = os.umask(0o022)
    try:
        assert write_atomic(tmp_path / "a", b"").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(mask)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "a.bin", b"old")

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"cannot write .*a\.bin: No space left on device"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    file = write_atomic(tmp_path / "file", b"")
    for path in (file / "inside", tmp_path):
        with pytest.raises(UserError, match="cannot write"):
            write_atomic(path, b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
