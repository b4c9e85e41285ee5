"""The published splits in the package: complete, without overlap, with their sources."""

import re

import pytest

from pyro_vsm.data.split_lists import class_groups, list_names, split_names, split_source

SIZES = {
    "cifar_fs": (64, 16, 20),
    "cub": (100, 50, 50),
    "omniglot_alphabets": (792, 172, 659),
    "omniglot_small": (136, 42, 64),
    "omniglot_vinyals": (1028, 172, 423),
    "tiered_imagenet": (351, 97, 160),
}


def test_every_list_is_known_here():
    assert set(list_names()) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_overlap(name):
    splits = split_names(name)
    assert tuple(len(names) for names in splits.values()) == SIZES[name]
    every = [c for names in splits.values() for c in names]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("name", SIZES)
def test_the_source_is_stated(name):
    assert re.search(r"[Ss]ources?( of [\w ]+)?: ", split_source(name))
    assert "github.com/" in split_source(name)


def test_tiered_splits_share_no_category():
    groups = class_groups("tiered_imagenet")
    assert all(re.fullmatch(r"n\d{8}", c) and re.fullmatch(r"n\d{8}", g) for c, g in groups.items())
    sets = [{groups[c] for c in names} for names in split_names("tiered_imagenet").values()]
    assert [len(s) for s in sets] == [20, 6, 8]
    assert len(set.union(*sets)) == 34


def test_cub_follows_its_rule():
    place = {c: p for p, names in split_names("cub").items() for c in names}
    for i, name in enumerate(sorted(place)):
        assert name.startswith(f"{i + 1:03}.")
        assert place[name] == ("train", "validation", "train", "test")[i % 4]


def test_omniglot_lists_cover_the_same_characters():
    vinyals, alphabets = split_names("omniglot_vinyals"), split_names("omniglot_alphabets")
    assert {c for names in vinyals.values() for c in names} == {c for names in alphabets.values() for c in names}
    assert vinyals["validation"] == alphabets["validation"]
    for name in ("omniglot_alphabets", "omniglot_small"):
        groups = [{c.split("/")[0] for c in names} for names in split_names(name).values()]
        assert not groups[0] & groups[1]
        assert not groups[0] & groups[2]
        assert not groups[1] & groups[2]
    both = [{c.split("/")[0] for c in vinyals[p]} for p in ("train", "test")]
    assert both[0] & both[1] == {"Gurmukhi"}  # the published list cuts through one alphabet
