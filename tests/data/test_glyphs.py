"""The embedded glyphs: determinism, scripts apart, no look-alikes."""

import unicodedata

import pytest
import torch

from pyro_vsm.data import glyphs
from pyro_vsm.data.glyphs import load_glyphs, render
from pyro_vsm.data.sources import DataConfig


@pytest.fixture(scope="module")
def few():
    return render(limit=8, images=6)


@pytest.fixture(scope="module")
def artist():
    return glyphs.Artist(28)


@pytest.fixture(scope="module")
def letters(artist):
    return artist.without_lookalikes(artist.letters(None))


def test_there_are_enough_classes_and_scripts_are_apart(letters):
    scripts = {}
    for part, code in letters:
        scripts.setdefault(part, []).append(unicodedata.name(chr(code)).split()[0])
    assert len(scripts["train"]) >= 200
    assert len(scripts["validation"]) >= 30
    assert len(scripts["test"]) >= 40
    sets = [set(names) for names in scripts.values()]
    assert sum(len(s) for s in sets) == len(set.union(*sets))
    assert len({code for _, code in letters}) == len(letters)


def test_lookalikes_count_once(artist):
    same = ["A", "Α", "А", "Ա", "c", "C", "С", "o", "O", "Ο", "K", "Κ", "к", "n", "Ո", " "]
    given = [("train", ord(letter)) for letter in same]
    kept = "".join(chr(code) for _, code in artist.without_lookalikes(given))
    assert kept == "AԱcoKn"


def test_accents_and_styles_are_no_classes_of_their_own(letters):
    for _, code in letters:
        assert unicodedata.normalize("NFKD", chr(code)) == chr(code)
        assert unicodedata.category(chr(code)) in ("Lu", "Ll", "Lo")


def test_rendering_repeats_and_varies_with_the_seed(few):
    again, other = render(limit=8, images=6), render(limit=8, images=6, seed=1)
    assert again.identity == few.identity
    assert other.train.names == few.train.names
    assert not torch.equal(other.train.images, few.train.images)


def test_a_class_does_not_depend_on_the_others(few):
    fewer = render(limit=3, images=6)
    name = fewer.train.names[1]
    there = few.train.names.index(name)
    assert torch.equal(fewer.train.subset([1]).images, few.train.subset([there]).images)


def test_images_are_white_letters_on_black_all_different(few):
    for data in few.parts.values():
        assert data.image_shape == (1, 28, 28)
        pixels = data.images.flatten(1)
        ink = pixels.float().mean(1) / 255
        assert ink.min() > 0.01
        assert ink.max() < 0.7
        assert len(torch.unique(pixels, dim=0)) == len(pixels)


def test_a_class_is_closer_to_itself_than_to_others(few):
    """Nearest mean on blurred pixels, half of the images against the other half: far above chance."""
    data = few.train
    images = torch.nn.functional.avg_pool2d(data.images.float(), 5, stride=2).flatten(1)
    images = images.view(data.n_classes, 6, -1)
    means = images[:, :3].mean(1)
    guess = torch.cdist(images[:, 3:].flatten(0, 1), means).argmin(1)
    accuracy = (guess == torch.arange(data.n_classes).repeat_interleave(3)).float().mean()
    assert accuracy > 5 / data.n_classes


def test_another_size(few):
    splits = render(limit=2, images=2, size=40)
    assert splits.test.image_shape == (1, 40, 40)
    assert splits.test.images.float().mean() / 255 > 0.03


def test_loading_uses_the_cache(cache, monkeypatch):
    calls = []

    def small(**arguments):
        calls.append(arguments)
        return render(limit=2, images=2, **arguments)

    monkeypatch.setattr(glyphs, "render", small)
    first, second = load_glyphs(DataConfig()), load_glyphs(DataConfig())
    assert calls == [{"size": 28, "seed": 0}]
    assert first.identity == second.identity
    assert len(list(cache.iterdir())) == 1
    load_glyphs(DataConfig(seed=1))
    load_glyphs(DataConfig(image_size=20))
    load_glyphs(DataConfig(cache=False))
    assert calls[1:] == [{"size": 28, "seed": 1}, {"size": 20, "seed": 0}, {"size": 28, "seed": 0}]
