"""Folders that torchvision's own data sets leave are read alike: its classes, its images, for cross-domain tests."""

import json

import numpy as np
import pytest
from formats import write_omniglot
from PIL import Image
from torchvision import datasets

from pyro_vsm.data import DataConfig, load
from pyro_vsm.data.split_lists import split_names

CLASSES = [f"thing {i}" for i in range(6)]
SIZE = 16


def write(folder, counts=(2, 3, 2, 2, 3, 2), ending="jpg"):
    rng = np.random.default_rng(0)
    for name, count in zip(CLASSES, counts):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"image_{i + 1:04}.{ending}")


def eurosat(root):
    write(root / "eurosat" / "2750")
    return datasets.EuroSAT(str(root)), "eurosat/2750"


def imagenette(root):
    for part in ("train", "val"):  # the class folders of both
        write(root / "imagenette2" / part, ending="JPEG")
    return datasets.ImageFolder(str(root / "imagenette2" / "train")), "imagenette2/train"


def food(root):
    write(root / "food-101" / "images")
    (root / "food-101" / "meta").mkdir()
    files = {c: [f"{c}/{p.stem}" for p in sorted((root / "food-101" / "images" / c).iterdir())] for c in CLASSES}
    (root / "food-101" / "meta" / "train.json").write_text(json.dumps(files))
    return datasets.Food101(str(root)), "food-101/images"


@pytest.mark.parametrize("make", [eurosat, imagenette, food])
def test_classes_and_images_are_those_of_torchvision(make, tmp_path):
    theirs, folder = make(tmp_path)
    data = load(DataConfig("folder", str(tmp_path / folder), image_size=SIZE), lambda _: None).together()
    place = {name: int(start) for name, start in zip(data.names, data.offsets)}
    assert sorted(data.names) == CLASSES
    assert len(data.images) == len(theirs)
    for image, label in theirs:
        name = theirs.classes[label]
        ours = data.images[place[name]]
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
        place[name] += 1


def test_omniglot_as_torchvision_leaves_it(tmp_path, monkeypatch):
    lists = split_names("omniglot_alphabets")
    folder = tmp_path / "omniglot-py"
    write_omniglot(folder, "images_background", [*lists["train"], *lists["validation"]], 1, folder=True)
    write_omniglot(folder, "images_evaluation", lists["test"], 1, folder=True)
    monkeypatch.setattr(datasets.Omniglot, "_check_integrity", lambda _: True)  # of zip files, which miniatures lack
    theirs = datasets.Omniglot(str(tmp_path), background=False)
    ours = load(DataConfig("omniglot", str(tmp_path), image_size=105), lambda _: None).test
    places = {name: i for i, name in enumerate(ours.names)}
    assert len(theirs) == len(ours.images) == len(places)
    for image, label in theirs:
        name = theirs._characters[label].replace("\\", "/")
        wanted = 255 - np.asarray(image.convert("L"))
        assert np.array_equal(ours.images[places[name], 0].numpy(), wanted)
