"""tieredImageNet: the published pickles and class folders, whole and broken."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from formats import python2_pickle, write_tiered
from PIL import Image

from pyro_vsm.data import DataConfig, load, tiered_imagenet
from pyro_vsm.data.split_lists import split_names
from pyro_vsm.errors import UserError

COUNTS = {"train": {"finch": 3, "tabby, cat": 2}, "val": {"crane": 2, "rake": 2}, "test": {"crab": 2, "dome": 3}}


def load_quietly(root, **settings):
    return load(DataConfig(name="tiered-imagenet", root=str(root), **settings), log=lambda _: None)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return {
        part: {c: [rng.integers(0, 256, (84, 84, 3), dtype=np.uint8) for _ in range(n)] for c, n in classes.items()}
        for part, classes in COUNTS.items()
    }


@pytest.fixture
def pickles(tmp_path, images):
    return write_tiered(tmp_path / "tiered-imagenet", images)


@pytest.fixture
def folders(tmp_path, images):
    root = tmp_path / "folders"
    for part, classes in images.items():
        for c, each in classes.items():
            (root / part / c).mkdir(parents=True)
            for i, pixels in enumerate(each):
                Image.fromarray(pixels).save(root / part / c / f"{i}.png")
    return root


def expected(images, part):
    return torch.from_numpy(np.concatenate([np.stack(v) for v in images[part].values()])).permute(0, 3, 1, 2)


def test_the_pickles_give_the_images_by_class(pickles, images, tmp_path):
    for root in (tmp_path, pickles):
        splits = load_quietly(root)
        assert splits.train.names == ("finch", "tabby, cat")
        assert splits.test.counts.tolist() == [2, 3]
        # the order within a class is that of the shuffled list
        for part, ours in (("train", splits.train), ("val", splits.validation), ("test", splits.test)):
            wanted = {p.numpy().tobytes() for p in expected(images, part)}
            assert {p.numpy().tobytes() for p in ours.images} == wanted
        first = {p.tobytes() for p in np.stack(images["train"]["finch"]).transpose(0, 3, 1, 2)}
        assert {p.numpy().tobytes() for p in splits.train.images[:3]} == first


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_gives_the_same(images, pickles, tmp_path, protocol):
    root = write_tiered(tmp_path / "p", images, protocol)
    assert load_quietly(root, cache=False).identity == load_quietly(pickles).identity


def test_the_cache_holds_what_memory_would(pickles, cache, caplog):
    in_memory = load_quietly(pickles, cache=False).identity
    assert list(cache.iterdir()) == []
    written = load_quietly(pickles)
    assert written.identity == in_memory
    (path,) = cache.iterdir()
    assert written.train.identity() == written.train.subset(range(2)).identity()  # of the mapped pixels themselves
    content, time = path.read_bytes(), path.stat().st_mtime_ns
    assert "the published split has 351 and 448695" in caplog.text
    caplog.clear()
    assert load_quietly(pickles).identity == in_memory
    assert path.stat().st_mtime_ns == time
    assert "the published split has 351 and 448695" in caplog.text
    path.write_bytes(content[:-5] + b"wrong")
    assert load_quietly(pickles).identity == in_memory
    assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_done_without(pickles, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PYRO_VSM_CACHE", str(tmp_path / "file" / "cache"))
    assert load_quietly(pickles).train.n_classes == 2
    assert "so all images stay in memory" in caplog.text


def test_a_full_disk_is_noticed_before_decoding(pickles, cache, monkeypatch, caplog):
    class Full:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    assert load_quietly(pickles).train.n_classes == 2
    assert f"({cache} has 0.0 GB free, 0.0 are needed), so all images stay in memory (0.0 GB)" in caplog.text
    assert list(cache.iterdir()) == []


def test_folders_of_splits(folders, images, cache):
    splits = load_quietly(folders)
    assert torch.equal(splits.test.images, expected(images, "test"))
    assert load_quietly(folders, bad_files="skip").identity == splits.identity
    assert load_quietly(folders, image_size=20).train.image_shape == (3, 20, 20)


def test_imagenet_is_split_by_the_published_list(tmp_path):
    lists = split_names("tiered_imagenet")
    picture = tmp_path / "one.png"
    Image.new("RGB", (9, 9), "red").save(picture)
    for c in [*(c for names in lists.values() for c in names), "n01440000"]:
        (tmp_path / "imagenet" / "train" / c).mkdir(parents=True)
        os.link(picture, tmp_path / "imagenet" / "train" / c / "0.png")
    (tmp_path / "imagenet" / "val").mkdir()
    splits = load_quietly(tmp_path / "imagenet", image_size=8)
    assert [d.names for d in splits.parts.values()] == list(lists.values())


def write_list(path, value):
    path.write_bytes(pickle.dumps(value, 2))


def hostile(path):
    class Run:
        def __reduce__(self):
            return os.system, ("touch hacked",)

    write_list(path, [Run()])


BROKEN = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-300]), "cut short"),
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "a page": (lambda p: p.write_bytes(b"<!doctype html><html>"), "is an HTML page"),
    "hostile": (hostile, "asks to run"),
    "missing": (lambda p: p.unlink(), "does not exist, though"),
    "a dictionary": (lambda p: write_list(p, {"a": 1}), "holds no list"),
    "numbers": (lambda p: write_list(p, [1, 2]), "lists a int where an encoded image belongs"),
    "one twice": (lambda p: write_list(p, [a := np.zeros(500, np.uint8), a]), "the same array twice"),
    "no image": (lambda p: write_list(p, [np.zeros(500, np.uint8)] * 1), "image 0 is no readable image"),
    "floats": (lambda p: write_list(p, [np.zeros(5)]), "image 0 is no array of bytes"),
    "too few": (lambda p: p.write_bytes(python2_pickle([])), "holds 0 images, but there are 5 labels"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_named(pickles, cache, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, message = BROKEN[name]
    change(pickles / "train_images_png.pkl")
    with pytest.raises(UserError, match=message) as caught:
        load_quietly(pickles)
    assert "train_images_png.pkl" in str(caught.value)
    assert not (tmp_path / "hacked").exists()
    assert not list(cache.rglob("*"))  # nothing half-written


def test_too_many_images_and_broken_labels_are_named(pickles):
    shutil.copy(pickles / "val_labels.pkl", pickles / "train_labels.pkl")
    with pytest.raises(UserError, match="holds more images than its labels"):
        load_quietly(pickles)
    for content in ({}, {"label_specific": [0, 2], "label_specific_str": ["a", "b"]}, {"label_specific": [0, -1]}):
        (pickles / "train_labels.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=r"train_labels\.pkl"):
            load_quietly(pickles)


def test_an_unknown_layout_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"train_images_png\.pkl"):
        load_quietly(tmp_path)


def test_published_sizes():
    assert sum(images for _, images in tiered_imagenet.PUBLISHED.values()) == 779_165
