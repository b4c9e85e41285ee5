"""The embedded colour pictures: determinism, visible letters, and classes that differ in shape, colour or texture."""

import numpy as np
import pytest
import torch

from pyro_vsm.data.colour_glyphs import _colours, render_colour


@pytest.fixture(scope="module")
def few():
    return render_colour(limit=6, images=6)


def test_rendering_repeats_and_varies_with_the_seed(few):
    again, other = render_colour(limit=6, images=6), render_colour(limit=6, images=6, seed=1)
    assert again.identity == few.identity
    assert other.train.names == few.train.names
    assert not torch.equal(other.train.images, few.train.images)


def test_pictures_are_coloured_and_no_two_are_the_same(few):
    for data in few.parts.values():
        assert data.image_shape == (3, 32, 32)
        assert len(torch.unique(data.images.flatten(1), dim=0)) == len(data.images)
    train = few.train.images.float()
    colourful = (train.amax(1) - train.amin(1)).mean((1, 2)) > 20
    assert 0.4 < colourful.float().mean() < 0.95  # some classes are black and white
    assert (train.mean(1).flatten(1).std(1) > 8).float().mean() > 0.85  # something is there to see in most of them


def test_letters_of_the_splits_come_from_different_scripts(few):
    scripts = [{name.split()[0] for name in data.names} for data in few.parts.values()]
    assert sum(map(len, scripts)) == len(set.union(*scripts))
    assert few.train.names[0][:-2] == few.train.names[1][:-2]  # two classes of one letter


def test_a_class_does_not_depend_on_the_others(few):
    fewer = render_colour(limit=3, images=6)
    there = few.train.names.index(fewer.train.names[2])
    assert torch.equal(fewer.train.subset([2]).images, few.train.subset([there]).images)


def test_colours_are_those_of_the_standard_library():
    from colorsys import hsv_to_rgb

    hsv = np.random.default_rng(0).random((50, 3))
    np.testing.assert_allclose(_colours(hsv), [hsv_to_rgb(*row) for row in hsv], atol=1e-12)
