"""Omniglot's three variants, from zip files and folders, whole and broken."""

import shutil

import numpy as np
import pytest
import torch
from formats import drawing, write_omniglot
from PIL import Image

from pyro_vsm.data import DataConfig, load
from pyro_vsm.data.decode import fit_array
from pyro_vsm.data.episodes import fixed_episodes
from pyro_vsm.data.split_lists import split_names
from pyro_vsm.errors import UserError


def load_quietly(root, variant="small", **settings):
    return load(DataConfig(name="omniglot", root=str(root), variant=variant, **settings), log=lambda _: None)


def small_sets(root, **settings):
    """Both small sets; the second repeats an alphabet of the first, as the real one does."""
    lists = split_names("omniglot_small")
    repeated = [c for c in lists["train"] if c.startswith("Greek/")]
    write_omniglot(root, "images_background_small1", lists["train"], **settings)
    write_omniglot(root, "images_background_small2", [*lists["validation"], *lists["test"], *repeated], **settings)
    return root


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    return small_sets(tmp_path_factory.mktemp("omniglot"))


def test_small_sets_follow_their_list(zips, caplog):
    splits = load_quietly(zips)
    for part, names in split_names("omniglot_small").items():
        assert splits.parts[part].names == names
        assert splits.parts[part].image_shape == (1, 28, 28)
    assert splits.name == "omniglot-small"
    assert "has 3 drawings, not 20" in caplog.text


def test_strokes_are_white_on_black(zips):
    data = load_quietly(zips, image_size=105).train
    assert torch.equal(data.images[1, 0], torch.from_numpy(255 * ~drawing(data.names[0], 1)).to(torch.uint8))
    small = load_quietly(zips).train.images[1, 0].numpy()
    grey = np.asarray(Image.fromarray(drawing(data.names[0], 1)).convert("L").convert("RGB"))
    assert np.abs(255 - fit_array(grey, 28)[..., 0].astype(int) - small).max() == 0


def test_folders_give_the_same_as_zip_files(zips, tmp_path):
    for name in ("images_background_small1", "images_background_small2"):
        shutil.unpack_archive(zips / f"{name}.zip", tmp_path / "omniglot-py")
    shutil.rmtree(tmp_path / "omniglot-py" / "__MACOSX")
    assert load_quietly(tmp_path).identity == load_quietly(zips).identity


def test_rotations_are_classes(zips):
    upright, turned = load_quietly(zips), load_quietly(zips, rotations="train")
    assert turned.test.identity() == upright.test.identity()
    assert turned.train.names[:4] == tuple(f"Balinese/character01{a}" for a in ("", "@90", "@180", "@270"))
    for quarter in range(4):
        wanted = torch.rot90(upright.train.images[:3, 0], quarter, (1, 2))
        assert torch.equal(turned.train.images[3 * quarter : 3 * quarter + 3, 0], wanted)
    assert load_quietly(zips, rotations="all").test.n_classes == 4 * 64


def test_episodes_within_an_alphabet(zips):
    data = load_quietly(zips, grouped=True).test
    index = fixed_episodes(data, way=5, shot=1, queries=1, episodes=50, seed=0)
    alphabets = [{data.names[c].split("/")[0] for c in classes} for classes in index.classes.tolist()]
    assert all(len(each) == 1 for each in alphabets)
    assert len(set.union(*alphabets)) == 2


def test_published_variants(tmp_path, caplog):
    lists = split_names("omniglot_alphabets")
    write_omniglot(tmp_path / "omniglot-py", "images_background", [*lists["train"], *lists["validation"]], 1)
    write_omniglot(tmp_path / "omniglot-py", "images_evaluation", lists["test"], 1)
    alphabets = load_quietly(tmp_path, None)
    assert [d.names for d in alphabets.parts.values()] == list(lists.values())
    vinyals = load_quietly(tmp_path, "vinyals", image_size=8)
    assert [d.n_classes for d in vinyals.parts.values()] == [4112, 688, 1692]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "large"}, "has no variant 'large': give one of alphabets, vinyals, small"),
        ({"rotations": "some"}, "data.rotations is 'some'; give none, train, all or None"),
        ({"variant": "vinyals"}, r"neither images_background\.zip nor a folder"),
    ],
)
def test_wrong_settings_are_answered(zips, settings, message):
    with pytest.raises(UserError, match=message):
        load_quietly(zips, **settings)


def test_variant_of_another_data_set_is_refused():
    with pytest.raises(UserError, match="'glyphs' has no variant 'small': leave it out"):
        load(DataConfig(name="glyphs", variant="small"))


def test_broken_zip_files_are_named(zips, tmp_path, cache):
    path = shutil.copy(zips / "images_background_small2.zip", tmp_path)
    first = tmp_path / "images_background_small1.zip"
    content = (zips / first.name).read_bytes()
    place = content.index(b"IDAT") + 10  # pixels of one drawing: the checksum of the member does not fit
    for broken, message in (
        (content[:-500], "cannot be read as an archive"),
        (b"<!DOCTYPE html>", "is an HTML page"),
        (b"", "is empty"),
        (content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :], "cannot be read as an archive"),
    ):
        first.write_bytes(broken)
        with pytest.raises(UserError, match=message) as caught:
            load_quietly(tmp_path)
        assert first.name in str(caught.value)
    shutil.copy(path, first)  # the other set
    with pytest.raises(UserError, match="lacks 112 characters, Balinese/character01 for one"):
        load_quietly(tmp_path)
    assert not list(cache.iterdir())
