"""CUB-200-2011: its folders, split by the rule of Chen et al."""

import shutil

import pytest
from PIL import Image

from pyro_vsm.data import DataConfig, load
from pyro_vsm.data.split_lists import split_names
from pyro_vsm.errors import UserError


def load_quietly(root, **settings):
    return load(DataConfig(name="cub", root=str(root), image_size=8, **settings), log=lambda _: None)


@pytest.fixture
def root(tmp_path):
    """The unpacked archive: photographs of several sizes, some of them grey."""
    for names in split_names("cub").values():
        for name in names:
            folder = tmp_path / "CUB_200_2011" / "images" / name
            folder.mkdir(parents=True)
            number = int(name[:3])
            Image.new("L" if number % 50 == 0 else "RGB", (20 + number % 7, 15)).save(folder / f"{name[4:]}_0001.jpg")
    (tmp_path / "CUB_200_2011" / "README").write_text("text")
    return tmp_path


def test_the_split(root):
    splits = load_quietly(root)
    assert [d.names for d in splits.parts.values()] == list(split_names("cub").values())
    assert splits.train.image_shape == (3, 8, 8)
    for inner in ("CUB_200_2011", "CUB_200_2011/images"):
        assert load_quietly(root / inner).identity == splits.identity


def test_missing_classes_are_named(root, tmp_path):
    shutil.rmtree(root / "CUB_200_2011" / "images" / "200.Common_Yellowthroat")
    with pytest.raises(UserError, match=r"lacks 1 of the 200 classes, 200\.Common_Yellowthroat"):
        load_quietly(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no CUB"):
        load_quietly(tmp_path / "empty")
