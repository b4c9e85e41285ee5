"""Images that stand in two splits are reported."""

import shutil

import torch

from pyro_vsm.data import DataConfig, Splits, load
from pyro_vsm.data.duplicates import across_splits
from pyro_vsm.data.images import ClassImages


def splits(make_set) -> Splits:
    return Splits("toy", *(make_set([3, 4 + i], prefix=part) for i, part in enumerate(("a", "b", "c"))))


def with_image(data: ClassImages, at: int, image: torch.Tensor) -> ClassImages:
    images = data.images.clone()
    images[at] = image
    return ClassImages(images, data.counts, data.names)


def test_none(make_set):
    assert across_splits(splits(make_set)) == []


def test_duplicates_within_a_split_are_no_matter_here(make_set):
    found = splits(make_set)
    train = with_image(found.train, 5, found.train.images[0])
    assert across_splits(Splits("toy", train, found.validation, found.test)) == []


def test_each_pair_is_counted_and_the_first_are_named(make_set):
    found = splits(make_set)
    test = found.test
    for at, source in ((0, 0), (3, 6), (4, 1), (5, 2)):
        test = with_image(test, at, found.train.images[source])
    validation = with_image(found.validation, 4, found.train.images[0])
    (line,) = across_splits(Splits("toy", found.train, validation, test))
    assert line.startswith("5 image(s) of one split stand in another one, too: ")
    assert "image 1 of class 'a 0' (train) and image 2 of class 'b 1' (validation); " in line
    assert "image 4 of class 'a 1' (train) and image 1 of class 'c 1' (test), and 2 more; remove" in line


def test_the_report_comes_back_from_the_cache(tmp_path, write_tree, caplog):
    for part in ("train", "val", "test"):
        write_tree(tmp_path / part, {f"{part} {c}": 2 for c in range(2)}, size=16)
    shutil.copy(tmp_path / "train" / "train 1" / "0.png", tmp_path / "test" / "test 0" / "again.png")
    for _ in range(2):
        caplog.clear()
        load(DataConfig("folder", str(tmp_path), 16), lambda _: None)
        assert "1 image(s) of one split stand in another one, too: image 1 of class 'train 1' (train)" in caplog.text
        assert "image 3 of class 'test 0' (test)" in caplog.text
