"""Trees with one folder a class."""

import os

import pytest
import torch

from pyro_vsm.data import DataConfig, load
from pyro_vsm.data.class_files import find_classes
from pyro_vsm.data.decode import read_image
from pyro_vsm.data.folder import read_class_folders
from pyro_vsm.errors import UserError


def load_quietly(root, **settings):
    return load(DataConfig(**{"name": "folder", "root": str(root), "image_size": 16, **settings}), log=lambda _: None)


@pytest.fixture
def split_tree(tmp_path, write_tree):
    write_tree(tmp_path / "train", {"cat": 3, "dog": 2}, size=16)
    write_tree(tmp_path / "val", {"owl": 2}, size=16)
    write_tree(tmp_path / "test", {"ape": 2, "zoë/große Katze": 3}, size=16)
    return tmp_path


@pytest.fixture
def flat_tree(tmp_path, write_tree):
    return write_tree(tmp_path, {f"c{i:02}": 2 for i in range(10)}, size=16)


def test_given_splits(split_tree):
    splits = load_quietly(split_tree)
    assert splits.train.names == ("cat", "dog")
    assert splits.validation.names == ("owl",)
    assert splits.test.names == ("ape", "zoë/große Katze")
    assert splits.test.counts.tolist() == [2, 3]
    assert torch.equal(splits.train.images[1], read_image(split_tree / "train" / "cat" / "1.png", 16))


@pytest.mark.parametrize("names", [("Train", "valid", "TEST"), ("train", "validation", "test")])
def test_other_names_of_the_splits(split_tree, names):
    for old, new in zip(("train", "val", "test"), names):
        (split_tree / old).rename(split_tree / new)
    assert load_quietly(split_tree).validation.names == ("owl",)


def test_a_class_may_be_called_train(tmp_path, write_tree):
    write_tree(tmp_path, {"train": 2, "bus": 2, "tram": 2}, size=16)
    splits = load_quietly(tmp_path)
    assert {name for data in splits.parts.values() for name in data.names} == {"train", "bus", "tram"}


def test_the_default_size_is_84(split_tree):
    assert load_quietly(split_tree, image_size=None).train.image_shape == (3, 84, 84)


@pytest.mark.parametrize("missing", ["val", "test", "train"])
def test_a_missing_split_is_named_with_the_remedy(split_tree, missing):
    (split_tree / missing).rename(split_tree / ".gone")
    full = {"val": "validation"}.get(missing, missing)
    with pytest.raises(UserError, match=f"none for {full}: add the missing folder .* or move all class folders"):
        load_quietly(split_tree)


def test_two_folders_for_one_split_are_refused(split_tree, write_tree):
    write_tree(split_tree / "valid", {"emu": 2}, size=16)
    with pytest.raises(UserError, match="two folders for validation, val and valid"):
        load_quietly(split_tree)


def test_a_class_in_two_splits_is_refused(split_tree, write_tree):
    write_tree(split_tree / "test", {"cat": 2}, size=16)
    with pytest.raises(UserError, match="stand in both train and test"):
        load_quietly(split_tree)


def test_fractions_for_given_splits_are_refused(split_tree):
    with pytest.raises(UserError, match="leave split out"):
        load_quietly(split_tree, split=(0.5, 0.25, 0.25))


def drawn(root, **settings):
    return {part: data.names for part, data in load_quietly(root, **settings).parts.items()}


def test_drawn_splits_share_out_the_classes(flat_tree):
    names = drawn(flat_tree)
    assert [len(names[part]) for part in ("train", "validation", "test")] == [6, 2, 2]
    assert sorted(sum(names.values(), ())) == [f"c{i:02}" for i in range(10)]
    assert drawn(flat_tree) == names
    assert any(drawn(flat_tree, seed=seed) != names for seed in (1, 2, 3))
    halves = drawn(flat_tree, split=(0.2, 0.5, 0.3))
    assert [len(halves[part]) for part in ("train", "validation", "test")] == [2, 5, 3]


@pytest.mark.parametrize("split", [(0.01, 0.98, 0.01), (0.01, 0.01, 0.98), (0.98, 0.01, 0.01)])
def test_every_drawn_split_gets_a_class(tmp_path, write_tree, split):
    write_tree(tmp_path, {"a": 1, "b": 1, "c": 1}, size=16)
    assert [len(names) for names in drawn(tmp_path, split=split).values()] == [1, 1, 1]


@pytest.mark.parametrize("classes", [{}, {"a": 2, "b": 2}])
def test_too_few_classes_are_refused(tmp_path, write_tree, classes):
    write_tree(tmp_path, classes, size=16)
    with pytest.raises(UserError, match=rf"holds {len(classes)} class\(es\)"):
        load_quietly(tmp_path)


def test_what_is_no_image_is_passed_over(flat_tree):
    before = load_quietly(flat_tree).identity
    (flat_tree / "c00" / "Thumbs.db").write_bytes(b"x")
    (flat_tree / "c00" / "._1.png").write_bytes(b"x")
    (flat_tree / "notes.txt").write_text("x")
    (flat_tree / "empty").mkdir()
    (flat_tree / ".git" / "x").mkdir(parents=True)
    assert load_quietly(flat_tree).identity == before


def test_a_pipe_is_passed_over_and_a_dead_link_reported(flat_tree):
    if hasattr(os, "mkfifo"):
        os.mkfifo(flat_tree / "c00" / "pipe.png")
    assert load_quietly(flat_tree).train.counts.tolist() == [2] * 6
    os.symlink(flat_tree / "gone.png", flat_tree / "c01" / "link.png")
    with pytest.raises(UserError, match=r"link\.png does not exist"):
        load_quietly(flat_tree)


def test_a_loop_of_links_ends(flat_tree):
    os.symlink(flat_tree, flat_tree / "c00" / "up")
    os.symlink(flat_tree / "c01", flat_tree / "c02" / "aside")
    os.symlink(flat_tree / "nowhere", flat_tree / "c03" / "broken")
    assert len(find_classes(flat_tree)) == 10


def test_a_linked_class_is_followed(tmp_path, write_tree):
    write_tree(tmp_path / "store", {"a": 1, "b": 1, "c": 1}, size=16)
    (tmp_path / "root").mkdir()
    for name in "abc":
        os.symlink(tmp_path / "store" / name, tmp_path / "root" / name)
    assert list(find_classes(tmp_path / "root")) == ["a", "b", "c"]


def test_names_that_are_no_text_do_not_stop_it(tmp_path, write_image):
    for i in range(3):
        folder = os.fsencode(tmp_path) + b"/\xff\xfe" + bytes([97 + i])
        try:
            os.mkdir(folder)
        except OSError:
            pytest.skip("this file system takes Unicode names only")
        write_image(tmp_path / "x.png", size=16).rename(os.fsdecode(folder + b"/\xfd.png"))
    first = load_quietly(tmp_path)
    assert load_quietly(tmp_path).identity == first.identity


@pytest.mark.parametrize(
    ("root", "message"),
    [(None, "set root"), ("", "set root"), ("gone", "does not exist"), ("file", "is not a folder")],
)
def test_a_root_that_is_no_folder_is_refused(tmp_path, root, message):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=message):
        load(DataConfig(name="folder", root=str(tmp_path / root) if root else root))


def test_bad_files_stop_or_are_skipped(split_tree, caplog):
    (split_tree / "train" / "dog" / "0.png").write_bytes(b"<html>")
    (split_tree / "test" / "ape" / "0.png").write_bytes(b"")
    (split_tree / "test" / "ape" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"dog.0\.png is an HTML page"):
        load_quietly(split_tree)
    for _ in range(2):  # said again when the images come from the cache
        caplog.clear()
        splits = load_quietly(split_tree, bad_files="skip")
        assert splits.train.counts.tolist() == [3, 1]
        assert splits.test.names == ("zoë/große Katze",)
        assert len(caplog.messages) == 4
        assert "class 'ape'" in caplog.messages[3]
    (split_tree / "val" / "owl" / "0.png").write_bytes(b"")
    (split_tree / "val" / "owl" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match="holds no readable image"):
        load_quietly(split_tree, bad_files="skip")


def test_a_changed_file_is_decoded_again(split_tree, cache, write_image):
    first = load_quietly(split_tree)
    assert load_quietly(split_tree).identity == first.identity
    assert len(list(cache.iterdir())) == 1
    write_image(split_tree / "val" / "owl" / "0.png", seed=99, size=16)
    changed = load_quietly(split_tree)
    assert changed.identity["validation"] != first.identity["validation"]
    assert changed.identity["train"] == first.identity["train"]
    (split_tree / "val" / "owl" / "0.png").unlink()
    assert load_quietly(split_tree).validation.counts.tolist() == [1]


def test_identity_depends_neither_on_place_nor_threads(split_tree, tmp_path_factory):
    first = load_quietly(split_tree, threads=1, cache=False).identity
    moved = tmp_path_factory.mktemp("elsewhere") / "set"
    split_tree.rename(moved)
    assert load_quietly(moved, threads=3, cache=False).identity == first


def test_support_folders_without_splits(tmp_path, write_tree, caplog):
    root = write_tree(tmp_path / "support", {"b": 1, "a": 2}, size=20)
    data = read_class_folders(root, 16, 1)
    assert data.names == ("a", "b")
    assert data.counts.tolist() == [2, 1]
    assert data.image_shape == (1, 16, 16)
    assert caplog.messages == []
    (root / "a" / "0.png").write_bytes(b"")
    assert read_class_folders(root, 16, 3, bad_files="skip").counts.tolist() == [1, 1]
    assert "0.png is empty" in caplog.text
    with pytest.raises(UserError, match="is empty"):
        read_class_folders(root, 16, 3)
    with pytest.raises(UserError, match="no folder with images"):
        read_class_folders(root / "b", 16, 3)
    with pytest.raises(UserError, match="does not exist"):
        read_class_folders(tmp_path / "gone", 16, 3)


def test_a_link_to_itself_is_a_bad_file_and_one_to_the_whole_is_not_followed(split_tree):
    before = load_quietly(split_tree).identity
    os.symlink(split_tree, split_tree / "train" / "up")
    os.symlink("../../train", split_tree / "train" / "cat" / "up")
    assert load_quietly(split_tree).identity == before
    os.symlink("self.png", split_tree / "train" / "cat" / "self.png")
    with pytest.raises(UserError, match=r"self\.png cannot be read"):
        load_quietly(split_tree)
    assert load_quietly(split_tree, bad_files="skip").identity == before


def test_names_in_any_script_and_in_no_encoding(split_tree):
    (split_tree / "train" / "cat").rename(split_tree / "train" / os.fsdecode(b"\xff\xfe"))
    (split_tree / "train" / "dog" / "0.png").rename(split_tree / "train" / "dog" / "größe 图\n🦉.png")
    for _ in range(2):  # the second time from the cache
        splits = load_quietly(split_tree)
        assert splits.train.names == ("dog", os.fsdecode(b"\xff\xfe"))
        assert splits.train.counts.tolist() == [2, 3]
