"""Choosing a data set by name."""

import pytest

from pyro_vsm.data import SOURCES, DataConfig, Splits, load
from pyro_vsm.errors import UserError


def test_the_shipped_sources():
    assert {"glyphs", "mini-imagenet", "folder"} <= set(SOURCES)


def test_a_source_of_ones_own(make_set, monkeypatch):
    def mine(config: DataConfig) -> Splits:
        parts = (make_set([2, 3], prefix=part, size=config.image_size) for part in "abc")
        return Splits("mine", *parts)

    monkeypatch.setitem(SOURCES, "mine", mine)
    lines = []
    splits = load(DataConfig(name="mine", image_size=9), log=lines.append)
    assert splits.train.image_shape == (3, 9, 9)
    assert lines == [splits.describe()]


@pytest.mark.parametrize(("name", "hint"), [("mini_imagenet", "did you mean 'mini-imagenet'"), ("qqq", "'qqq'")])
def test_an_unknown_name_gets_the_known_ones(name, hint):
    with pytest.raises(UserError, match=hint) as caught:
        load(DataConfig(name=name))
    assert "folder, glyphs, mini-imagenet" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 4}, "image_size is 4"),
        ({"image_size": 5000}, "image_size is 5000"),
        ({"bad_files": "ignore"}, "bad_files is 'ignore'"),
        ({"seed": -1}, "seed is -1"),
        ({"threads": -2}, "threads is -2"),
        ({"split": (0.5, 0.5, 0.5)}, "split is"),
        ({"split": (1.0, 0.0, 0.0)}, "split is"),
        ({"split": (0.5, 0.5)}, "split is"),
        ({"split": (float("nan"), 0.5, 0.5)}, "split is"),
    ],
)
def test_configuration_out_of_range_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**wrong)
