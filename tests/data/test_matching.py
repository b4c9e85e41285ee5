"""Images in another model's channels and size."""

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vsm.data.images import ClassImages
from pyro_vsm.data.matching import matched
from pyro_vsm.errors import UserError


def test_what_fits_is_returned(make_set):
    data = make_set([2, 3])
    assert matched(data, 3, 8) is data


def test_grey_becomes_colour_by_repetition(make_set):
    data = make_set([2, 3], channels=1)
    colour = matched(data, 3, 8)
    assert torch.equal(colour.images, data.images.repeat(1, 3, 1, 1))
    assert colour.names == data.names


def test_colour_becomes_grey_as_pillow_has_it(make_set):
    data = make_set([20, 30], size=16)
    grey = matched(data, 1, 16).images[:, 0].numpy()
    theirs = [np.asarray(Image.fromarray(x).convert("L")) for x in data.images.permute(0, 2, 3, 1).numpy()]
    assert np.array_equal(grey, np.stack(theirs))


@pytest.mark.parametrize(("channels", "wanted"), [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_another_size_is_made_as_from_files(make_set, channels, wanted):
    data = make_set([2, 3], channels=channels, size=20)
    result = matched(data, wanted, 12)
    assert result.image_shape == (wanted, 12, 12)
    pixels = matched(data, wanted, 20).images.permute(0, 2, 3, 1).squeeze(-1).numpy()
    theirs = [np.asarray(Image.fromarray(x).resize((12, 12), Image.Resampling.BICUBIC)) for x in pixels]
    ours = result.images.permute(0, 2, 3, 1).squeeze(-1).numpy()
    assert np.abs(ours.astype(int) - np.stack(theirs)).max() <= 1  # grey before or after scaling


def test_groups_stay(make_set):
    data = make_set([2, 2], channels=1)
    grouped = ClassImages(data.images, data.counts, ("a/1", "a/2")).by_group()
    assert matched(grouped, 3, 8).groups == (0, 0)


def test_other_channels_are_refused(make_set):
    with pytest.raises(UserError, match="images of 2 channels"):
        matched(make_set([2, 3], channels=2), 3, 8)
