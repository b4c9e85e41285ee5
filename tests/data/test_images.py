"""ClassImages, Identity and Splits."""

import json

import numpy as np
import pytest
import torch

from pyro_vsm.data.images import ClassImages, Splits
from pyro_vsm.errors import UserError


def test_offsets_and_labels(make_set):
    data = make_set([2, 1, 3])
    assert data.n_classes == 3
    assert data.image_shape == (3, 8, 8)
    assert data.offsets.tolist() == [0, 2, 3]
    assert data.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert data.to("cpu") is data


def test_subset_keeps_order_asked_for(make_set):
    data = make_set([2, 1, 3])
    part = data.subset([2, 0])
    assert part.names == ("class 2", "class 0")
    assert part.counts.tolist() == [3, 2]
    assert torch.equal(part.images, torch.cat([data.images[3:6], data.images[0:2]]))


@pytest.mark.parametrize(("classes", "message"), [([3], "no class 3"), ([-1], "no class -1"), ([], "at least one")])
def test_subset_refuses(make_set, classes, message):
    with pytest.raises(UserError, match=message):
        make_set([2, 1, 3]).subset(classes)


IMAGES = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "counts", "names", "message"),
    [
        (IMAGES.float(), [1, 2], "ab", "uint8"),
        (IMAGES[0], [1, 2], "ab", "uint8 tensor"),
        (IMAGES, [1.0, 2.0], "ab", "int64"),
        (IMAGES, [[1, 2]], "ab", "int64"),
        (IMAGES, [1, 2], "abc", "2 class counts were given for 3"),
        (IMAGES[:0], [], "", "at least one class"),
        (IMAGES, [1, 1], "ab", "add up to 2"),
        (IMAGES, [3, 0], "ab", "'b' holds 0 images"),
        (IMAGES, [1, 2], "aa", "'a' is given twice"),
    ],
)
def test_refuses_what_does_not_fit(images, counts, names, message):
    counts = torch.tensor(counts) if counts else torch.zeros(0, dtype=torch.int64)
    with pytest.raises(UserError, match=message):
        ClassImages(images, counts, tuple(names))


def test_identity_says_what_it_holds(make_set):
    identity = make_set([2, 3], channels=1).identity()
    assert str(identity) == f"2 classes, 5 images of 1x8x8, sha256 {identity.sha256[:12]}"
    assert len(identity.sha256) == 64
    assert json.loads(json.dumps(identity.to_dict()))["size"] == [1, 8, 8]


def test_identity_is_of_the_content(make_set):
    data = make_set([2, 3])
    copy = ClassImages(data.images.clone(), data.counts.clone(), data.names)
    # other strides, same pixels
    strided = ClassImages(data.images.clone(memory_format=torch.channels_last), data.counts, data.names)
    assert data.identity() == copy.identity() == strided.identity()


def test_identity_changes_with_anything(make_set):
    data = make_set([2, 3])
    pixel = data.images.clone()
    pixel[4, 2, 7, 7] ^= 1
    swapped = data.images.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    others = [
        ClassImages(pixel, data.counts, data.names),
        ClassImages(swapped, data.counts, data.names),
        ClassImages(data.images, torch.tensor([3, 2]), data.names),
        ClassImages(data.images, data.counts, ("class 0", "class 2")),
        ClassImages(data.images.view(5, 3, 4, 16), data.counts, data.names),
        data.subset([1, 0]),
    ]
    assert len({data.identity().sha256, *(other.identity().sha256 for other in others)}) == len(others) + 1


def test_splits_refuse_a_class_in_two(make_set):
    train, test = make_set([2, 2], prefix="a"), make_set([2, 2], prefix="b")
    with pytest.raises(UserError, match=r"2 class\(es\) stand in both train and test \('a 0', 'a 1'\)"):
        Splits("toy", train, test, make_set([3, 3], prefix="a"))


def test_splits_refuse_two_image_sizes(make_set):
    with pytest.raises(UserError, match="one image size"):
        Splits("toy", make_set([2], prefix="a"), make_set([2], prefix="b", size=4), make_set([2], prefix="c"))


def test_splits_describe_themselves(make_set):
    splits = Splits("toy", make_set([2, 3], prefix="a"), make_set([2], prefix="b"), make_set([4, 4], prefix="c"))
    lines = splits.describe().splitlines()
    assert lines[0] == "data toy"
    assert "2 classes, 5 images of 3x8x8" in lines[1]
    assert lines[1].endswith("(2 to 3 images a class)")
    assert lines[3].endswith("(4 images a class)")
    assert splits.identity["test"] == splits.test.identity()


def test_statistics_are_those_of_the_training_pixels(make_set):
    train = make_set([150, 160])  # more than one chunk
    splits = Splits("toy", train, make_set([2], prefix="b"), make_set([2], prefix="c"))
    mean, std = splits.statistics()
    pixels = train.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-5)


def test_statistics_of_a_constant_can_be_divided_by(make_set):
    flat = ClassImages(torch.full((2, 1, 8, 8), 7, dtype=torch.uint8), torch.tensor([2]), ("flat",))
    b, c = make_set([2], prefix="b", channels=1), make_set([2], prefix="c", channels=1)
    mean, std = Splits("toy", flat, b, c).statistics()
    assert mean == pytest.approx([7 / 255])
    assert std == pytest.approx([1 / 255])


@pytest.mark.cuda
def test_identity_does_not_depend_on_the_device(make_set):
    data = make_set([2, 3])
    moved = ClassImages(data.images.cuda(), data.counts.cuda(), data.names)
    assert moved.identity() == data.identity()
    assert moved.labels.tolist() == data.labels.tolist()
