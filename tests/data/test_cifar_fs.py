"""CIFAR-FS from torchvision's layout, its archive and class folders, whole and broken."""

import shutil

import numpy as np
import pytest
import torch
from formats import python2_pickle, write_cifar
from PIL import Image

from pyro_vsm.data import DataConfig, load
from pyro_vsm.data.split_lists import split_names
from pyro_vsm.errors import UserError

LISTS = split_names("cifar_fs")


def load_quietly(root, **settings):
    return load(DataConfig(name="cifar-fs", root=str(root), **settings), log=lambda _: None)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    classes = [c for names in LISTS.values() for c in names]
    return {c: list(rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)) for c in classes}


@pytest.fixture
def root(tmp_path, images):
    return write_cifar(tmp_path, images)


def test_classes_are_split_by_name_and_keep_their_pixels(root, images, caplog):
    splits = load_quietly(root)
    assert [d.names for d in splits.parts.values()] == list(LISTS.values())
    for data in splits.parts.values():
        for c, name in enumerate(data.names):
            wanted = torch.from_numpy(np.stack(images[name])).permute(0, 3, 1, 2)
            assert torch.equal(data.images[3 * c : 3 * c + 3], wanted)
    assert "100 classes do not have the published 600 images" in caplog.text


def test_torchvision_reads_the_miniature_alike(root, images):
    """The miniature is in the format that torchvision reads, but for its checksums."""
    from torchvision.datasets import CIFAR100

    class Unchecked(CIFAR100):
        def _check_integrity(self):
            return True

    Unchecked.meta = {**CIFAR100.meta, "md5": None}
    theirs = Unchecked(str(root), train=False)
    assert theirs.classes == sorted(images)
    for pixels, label in zip(theirs.data, theirs.targets):
        assert np.array_equal(pixels, images[theirs.classes[label]][2])


def test_archive_folder_and_class_folders_give_the_same(root, images, tmp_path):
    identity = load_quietly(root).identity
    assert load_quietly(root / "cifar-100-python").identity == identity
    write_cifar(tmp_path / "tar", images, tar=True)
    assert load_quietly(tmp_path / "tar").identity == identity
    for c, each in images.items():
        (tmp_path / "tree" / "data" / c).mkdir(parents=True)
        for i, pixels in enumerate(each):
            Image.fromarray(pixels).save(tmp_path / "tree" / "data" / c / f"{i}.png")
    assert load_quietly(tmp_path / "tree").identity == identity


def test_another_size(root):
    assert load_quietly(root, image_size=16).test.image_shape == (3, 16, 16)


def test_broken_files_are_named(root, images, tmp_path):
    folder = root / "cifar-100-python"
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, content, message in (
        ("train", good["train"][:-99], "cut short"),
        ("train", python2_pickle({"data": np.zeros((2, 5), np.uint8), "fine_labels": [0, 1]}), "no uint8 array"),
        (
            "train",
            python2_pickle({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]}),
            "fine_labels is no list",
        ),
        ("train", python2_pickle({"data": np.zeros((1, 3072), np.uint8), "fine_labels": [100]}), "outside the 100"),
        ("meta", python2_pickle({"label_names": ["a"]}), "no list fine_label_names"),
        ("meta", python2_pickle({"fine_label_names": ["x", *sorted(images)[1:]]}), "lacks class 'apple'"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            load_quietly(root)
        assert "cifar-100-python" in str(caught.value)
        (folder / name).write_bytes(good[name])
    (folder / "test").unlink()
    with pytest.raises(UserError, match="test does not exist, though"):
        load_quietly(root)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="holds no CIFAR-100"):
        load_quietly(root)
    (root / "cifar-100-python.tar.gz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be read as an archive"):
        load_quietly(root)
