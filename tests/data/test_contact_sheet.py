"""The contact sheet: layout, and what cannot be drawn."""

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vsm.data.contact_sheet import contact_sheet
from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_for_each_class_shown(tmp_path, channels):
    images = torch.zeros(9, channels, 28, 28, dtype=torch.uint8)
    images[2] = 200
    data = ClassImages(images, torch.tensor([2, 4, 3]), ("eins", "zwei", "drei"))
    path = contact_sheet(data, tmp_path / "new" / "sheet.png", rows=8, columns=3)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape == (3 * (84 + 18 + 4) + 4, 3 * 88 + 4, 3)
    row = 84 + 18 + 4
    assert (pixels[4 + row + 18 : row + 106, 4:88] == 200).all()  # first image of the second class
    assert (pixels[4 + 18 : 106, 4:88] == 0).all()
    assert (pixels[4 + 18 : 106, 180:] == 255).all()  # the first class has two images only
    assert (pixels[4:20, 4:60] < 128).any()  # a label
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


def test_classes_are_spread_over_all(tmp_path, make_set):
    data = make_set([1] * 50, size=84)
    with Image.open(contact_sheet(data, tmp_path / "a.png", rows=4)) as sheet:
        assert sheet.size == (84 + 8, 4 * 106 + 4)


@pytest.mark.parametrize("name", ["a.nonsense", "no_ending"])
def test_what_cannot_be_written_is_refused(tmp_path, make_set, name):
    with pytest.raises(UserError, match="cannot be written"):
        contact_sheet(make_set([2]), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_shown_is_refused(tmp_path, make_set):
    with pytest.raises(UserError, match="2 channels"):
        contact_sheet(make_set([2], channels=2), tmp_path / "a.png")
    with pytest.raises(UserError, match="0 rows"):
        contact_sheet(make_set([2]), tmp_path / "a.png", rows=0)
