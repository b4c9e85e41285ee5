"""miniImageNet in its three layouts, whole and broken."""

import pickle
import shutil

import numpy as np
import pytest
import torch

from pyro_vsm.data import DataConfig, load
from pyro_vsm.data.decode import read_image
from pyro_vsm.errors import UserError

COUNTS = {"train": {"n01": 3, "n02": 2}, "val": {"n03": 2, "n04": 2}, "test": {"n05": 2, "n06": 3}}
PARTS = ("train", "val", "test")


def load_quietly(root, **settings):
    return load(DataConfig(name="mini-imagenet", root=str(root), **settings), log=lambda _: None)


@pytest.fixture
def folders(tmp_path, write_tree):
    for part in PARTS:
        write_tree(tmp_path / part, COUNTS[part])
    return tmp_path


@pytest.fixture
def tables(tmp_path, folders):
    """The same images in one folder, with three tables that name them in another order."""
    root = tmp_path / "tables"
    (root / "images").mkdir(parents=True)
    for part in PARTS:
        lines = []
        for path in sorted((folders / part).rglob("*.png"), reverse=True):
            name = f"{path.parent.name}_{path.name}"
            shutil.copy(path, root / "images" / name)
            lines.append(f"{name},{path.parent.name}")
        (root / f"{part}.csv").write_text("filename,label\n" + "\n".join(lines) + "\n")
    return root


def arrays(folders, part):
    """Images `[I, 84, 84, 3]` in shuffled order, and each class's positions."""
    images, names = [], []
    for path in sorted((folders / part).rglob("*.png")):
        images.append(read_image(path, 84).permute(1, 2, 0).numpy())
        names.append(path.parent.name)
    order = np.random.default_rng(0).permutation(len(images))
    place = np.argsort(order).tolist()
    where = {name: [place[i] for i in range(len(names)) if names[i] == name] for name in sorted(set(names))}
    return np.stack(images)[order], where


def write_pickles(folders, root, protocol=4, change=None):
    root.mkdir(exist_ok=True)
    for part in PARTS:
        images, where = arrays(folders, part)
        content = {"image_data": images, "class_dict": where}
        if change:
            change(content)
        (root / f"mini-imagenet-cache-{part}.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    return root


@pytest.fixture
def pickles(tmp_path, folders):
    return write_pickles(folders, tmp_path / "pickles")


def write_labelled_pickles(folders, root):
    root.mkdir()
    for part, name in zip(PARTS, ("train_phase_train", "val", "test")):
        images, where = arrays(folders, part)
        order = np.concatenate([where[name] for name in where])
        labels = [label for label, positions in enumerate(where.values()) for _ in positions]
        content = {
            "data": images[order],
            "labels": labels,
            "catname2label": {n: i for i, n in enumerate(where)},
        }
        path = root / f"miniImageNet_category_split_{name}.pickle"
        path.write_bytes(pickle.dumps(content))
    return root


def test_all_layouts_give_the_same(folders, tables, pickles, tmp_path):
    splits = load_quietly(folders)
    assert splits.train.names == ("n01", "n02")
    assert splits.test.counts.tolist() == [2, 3]
    assert torch.equal(splits.train.images[4], read_image(folders / "train" / "n02" / "1.png", 84))
    assert load_quietly(tables).identity == splits.identity
    assert load_quietly(pickles).identity == splits.identity
    assert load_quietly(write_labelled_pickles(folders, tmp_path / "labelled")).identity == splits.identity


def test_all_layouts_give_the_same_at_another_size(folders, tables, pickles):
    identity = load_quietly(folders, image_size=20).identity
    assert identity["train"].size == (3, 20, 20)
    assert load_quietly(tables, image_size=20).identity == identity
    assert load_quietly(pickles, image_size=20, threads=1).identity == identity


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(folders, tmp_path, protocol):
    root = write_pickles(folders, tmp_path / "p", protocol)
    assert load_quietly(root).identity == load_quietly(folders).identity


def test_a_part_of_the_published_split_is_pointed_out(folders, caplog):
    load_quietly(folders)
    assert "train has 2 classes and 5 images, the published split has 64 and 38400" in caplog.text


@pytest.mark.parametrize("layout", ["folders", "tables", "pickles"])
def test_the_cache_is_used_and_follows_changes(layout, request, cache, monkeypatch):
    root = request.getfixturevalue(layout)
    first = load_quietly(root).identity
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        for name in ("class_files.decode_images", "mini_imagenet.read_pickle"):
            patch.setattr(f"pyro_vsm.data.{name}", None)  # not called again
        assert load_quietly(root).identity == first


def test_an_empty_root_says_what_was_looked_for(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"train\.csv.*train/, val/ and test/.*mini-imagenet-cache-train\.pkl"):
        load_quietly(tmp_path / "empty")


@pytest.mark.parametrize("root", [None, "/nowhere/at/all"])
def test_a_missing_root_is_named(root):
    with pytest.raises(UserError, match="set root"):
        load(DataConfig(name="mini-imagenet", root=root))


def first_image(root):
    return next(iter(sorted((root / "images").iterdir())))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "val.csv").unlink(), r"val\.csv does not exist, though"),
        (lambda root: shutil.rmtree(root / "images"), "no folder images/"),
        (lambda root: (root / "train.csv").write_text("file,label\na,b\n"), "no column filename"),
        (lambda root: (root / "train.csv").write_text(""), "no column filename and no column label"),
        (lambda root: (root / "train.csv").write_text("<!DOCTYPE html>\n"), "no column filename"),
        (lambda root: (root / "train.csv").write_text("filename,label\n"), r"holds 0 class\(es\)"),
        (lambda root: (root / "train.csv").write_text("filename,label\na.png,n01\n"), r"holds 1 class\(es\)"),
        (lambda root: (root / "train.csv").write_text("filename,label\na.png\n"), "line 2, lacks"),
        (lambda root: (root / "train.csv").write_text("filename,label\n../a.png,n01\n"), "outside images/"),
        (
            lambda root: (root / "train.csv").write_text("filename,label\n/etc/passwd,n01\n"),
            "outside images/",
        ),
        (lambda root: (root / "train.csv").write_bytes(b"filename,label\n\xff\xfe,a\n"), "no readable csv"),
        (
            lambda root: (root / "train.csv").write_text("filename,label\na.png,n01\nb.png,n02\n./a.png,n01\n"),
            r"line 4, lists '\./a\.png' a second time",
        ),
        (lambda root: (root / "train.csv").write_text("filename,label\n" + "x" * 200_000), "no readable csv"),
        (
            lambda root: (root / "train.csv").write_text("filename,label\na\0.png,n\n"),
            "outside images/|no readable csv",
        ),
        (lambda root: first_image(root).unlink(), "does not exist"),
        (lambda root: first_image(root).write_bytes(b""), "is empty"),
        (
            lambda root: (root / "test.csv").write_bytes((root / "train.csv").read_bytes()),
            "both train and test",
        ),
    ],
)
def test_broken_tables_are_refused(tables, damage, message):
    damage(tables)
    with pytest.raises(UserError, match=message):
        load_quietly(tables)


def test_further_columns_and_ragged_rows_do_not_matter(tables):
    before = load_quietly(tables).identity
    lines = (tables / "train.csv").read_text().splitlines()
    (tables / "train.csv").write_text("\n".join([f"{lines[0]},more", *(f"{line},1,2,3" for line in lines[1:])]))
    assert load_quietly(tables, cache=False).identity == before
    swapped = [",".join(reversed(line.split(","))) for line in lines]
    (tables / "train.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(swapped).encode())
    assert load_quietly(tables, cache=False).identity == before


def test_bad_images_can_be_skipped(tables, caplog):
    first_image(tables).unlink()
    splits = load_quietly(tables, bad_files="skip")
    assert splits.train.counts.tolist() == [2, 2]
    assert "n01_0.png does not exist" in caplog.text


def damaged_file(change):
    def damage(root):
        path = root / "mini-imagenet-cache-val.pkl"
        path.write_bytes(change(path.read_bytes()))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "mini-imagenet-cache-test.pkl").unlink(), r"test\.pkl does not exist, though"),
        (damaged_file(lambda content: b""), "is empty"),
        (damaged_file(lambda content: b"<!doctype HTML><html>"), "is an HTML page"),
        (damaged_file(lambda content: content[:-3000]), "cut short"),
        (damaged_file(lambda content: content[:100]), "cut short"),
        (damaged_file(lambda content: b"\x89PNG" + content), "no pickle of arrays"),
        (damaged_file(lambda content: pickle.dumps([1, 2])), "holds neither image_data"),
        (damaged_file(lambda content: pickle.dumps({"image_data": 1})), "holds neither image_data"),
    ],
)
def test_broken_pickles_are_refused(pickles, damage, message):
    damage(pickles)
    with pytest.raises(UserError, match=message):
        load_quietly(pickles)


def setting(**entries):
    return lambda content: content.update(entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting(image_data=np.zeros((9, 84, 84, 3), dtype=np.float32)), "no uint8 array"),
        (setting(image_data=np.zeros((9, 84, 84), dtype=np.uint8)), "no uint8 array"),
        (setting(image_data=np.zeros((9, 3, 84, 84), dtype=np.uint8)), "no uint8 array"),
        (setting(image_data=np.zeros((0, 84, 84, 3), dtype=np.uint8)), "holds no images"),
        (setting(image_data="pixels"), "no uint8 array"),
        (setting(class_dict=[1, 2]), "no dictionary"),
        (setting(class_dict={"a": [0, 1]}), r"holds 1 class\(es\)"),
        (setting(class_dict={"a": [0, 1], "b": [2, 99]}), "'b' points beyond the 5 images"),
        (setting(class_dict={"a": [0, 1], "b": [-1]}), "'b' points beyond"),
        (setting(class_dict={"a": [0, 1], "b": []}), "'b' has no list"),
        (setting(class_dict={"a": [0, 1], "b": ["x"]}), "'b' has no list"),
        (setting(class_dict={"a": [0, 1], "b": [10**30]}), "'b' has no list"),
        (setting(class_dict={"a": [0, 1], "b": np.zeros(2)}), "'b' has no list"),
        (setting(class_dict={"a": [0, 1], "b": None}), "'b' has no list"),
    ],
)
def test_pickles_of_something_else_are_refused(folders, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_quietly(write_pickles(folders, tmp_path / "p", change=change))


@pytest.mark.parametrize("labels", [["a", "b"], 3, np.zeros(5)])
def test_labels_that_are_no_numbers_are_refused(folders, tmp_path, labels):
    root = write_labelled_pickles(folders, tmp_path / "p")
    images = np.zeros((2, 84, 84, 3), dtype=np.uint8)
    path = root / "miniImageNet_category_split_val.pickle"
    path.write_bytes(pickle.dumps({"data": images, "labels": labels}))
    with pytest.raises(UserError, match="labels is no list of whole numbers"):
        load_quietly(root)
