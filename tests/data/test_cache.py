"""The cache folder: used when sound, rebuilt when not, never needed."""

import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyro_vsm.data.cache import cache_folder, cached_splits
from pyro_vsm.data.images import Splits


@pytest.fixture
def build(make_set):
    def make():
        make.calls += 1
        parts = (make_set([2, 3], prefix=part) for part in ("a", "b", "c"))
        return Splits("toy", *parts), ["one file was skipped"]

    make.calls = 0
    return make


def stored(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_built_once_then_read(cache, build):
    first = cached_splits("toy", {"size": 8}, build)
    second = cached_splits("toy", {"size": 8}, build)
    assert build.calls == 1
    assert second.identity == first.identity
    assert second.name == "toy"
    assert torch.equal(second.test.images, first.test.images)
    assert stored(cache).name.startswith("toy-")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_what_is_read_back_is_mapped_not_copied(cache, build):
    cached_splits("toy", {"size": 8}, build)
    again = cached_splits("toy", {"size": 8}, build)
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(stored(cache)) in line]
    spans = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in lines]
    assert any(low <= again.test.images.data_ptr() < high for low, high in spans)


def test_notes_are_logged_at_every_start(build, caplog):
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "pyro_vsm"):
            cached_splits("toy", {}, build)
        assert caplog.messages[0] == "toy: one file was skipped"
        assert len(caplog.messages) == 2  # the toy's splits hold the same images
    assert build.calls == 1


def test_another_key_is_another_file(cache, build):
    cached_splits("toy", {"size": 8}, build)
    cached_splits("toy", {"size": 9}, build)
    assert build.calls == 2
    assert len(list(cache.iterdir())) == 2


def test_without_use_nothing_is_read_or_written(cache, build):
    cached_splits("toy", {}, build, use=False)
    assert list(cache.iterdir()) == []
    cached_splits("toy", {}, build)
    cached_splits("toy", {}, build, use=False)
    assert build.calls == 3


def change_pixel(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        meta = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors["validation.images"][0, 0, 0, 0] ^= 1
    save_file(tensors, path, meta)


def other_key(path):
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"key": "something else"})


@pytest.mark.parametrize(
    "damage",
    [
        change_pixel,
        other_key,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"<html>not found</html>"),
        lambda path: path.write_bytes(b"\xff" * 5000),
    ],
)
def test_a_broken_file_is_noticed_and_rebuilt(cache, build, damage):
    sound = cached_splits("toy", {}, build)
    damage(stored(cache))
    assert cached_splits("toy", {}, build).identity == sound.identity
    assert build.calls == 2
    assert cached_splits("toy", {}, build).identity == sound.identity
    assert build.calls == 2  # what was rebuilt is sound


def test_an_unusable_folder_is_no_error(tmp_path, build, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PYRO_VSM_CACHE", str(tmp_path / "file" / "below"))
    assert cached_splits("toy", {}, build).name == "toy"
    assert build.calls == 1


def test_a_failed_write_leaves_nothing_behind(cache, build, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert cached_splits("toy", {}, build).name == "toy"
    assert list(cache.iterdir()) == []


def test_where_the_folder_is(monkeypatch, tmp_path):
    monkeypatch.setenv("PYRO_VSM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PYRO_VSM_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "pyro_vsm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "pyro_vsm"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "pyro_vsm"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "pyro_vsm"


def test_what_a_killed_writer_left_long_ago_is_removed(build, cache):
    cached_splits("toy", {}, build)
    (whole,) = cache.iterdir()
    old, young = (cache / f"{whole.stem}{name}.tmp" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half a data set")
    os.utime(old, (0, 0))
    whole.unlink()
    cached_splits("toy", {}, build)
    assert sorted(cache.iterdir()) == sorted([whole, young])
