"""Features of a frozen encoder, kept between runs."""

import logging

import pytest
import torch

from pyro_vsm import checkpoint
from pyro_vsm.answering import encode_all
from pyro_vsm.backbones import Conv4
from pyro_vsm.baselines import PrototypicalNetwork
from pyro_vsm.data.images import ClassImages
from pyro_vsm.encoder import Encoder
from pyro_vsm.errors import UserError
from pyro_vsm.feature_cache import raw_features, split_features
from pyro_vsm.views import View, views


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_VSM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def images(seed: int = 0) -> ClassImages:
    pixels = torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return ClassImages(pixels, torch.tensor([3, 3]), ("a", "b"))


def model(seed: int = 0, **settings) -> PrototypicalNetwork:
    torch.manual_seed(seed)
    return PrototypicalNetwork(Encoder(Conv4(1, 16, width=4), [0.5], [0.2], **{"cached": True, **settings}))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 2])
def test_they_are_those_of_the_model_and_are_computed_once(folder, monkeypatch, flip, shift):
    system = model(flip=flip, shift=shift)
    expected = encode_all(system, images().images)
    torch.testing.assert_close(split_features(system, images()), expected)
    assert len(list(folder.iterdir())) == (1 + flip) * (5 if shift else 1)

    def computed(self, x):
        raise AssertionError("the backbone was asked again")

    monkeypatch.setattr(Encoder, "raw", computed)
    again = model(flip=flip, shift=shift)
    torch.testing.assert_close(split_features(again, images()), expected)
    assert again.training  # modes are as before


def test_what_they_depend_on(folder):
    device = torch.device("cpu")
    raw_features(model().encoder, images(), device)
    raw_features(model().encoder, images(), device)
    assert len(list(folder.iterdir())) == 1
    raw_features(model(1).encoder, images(), device)  # other weights
    raw_features(model().encoder, images(1), device)  # other pixels
    raw_features(model().encoder, images(), device, View(mirrored=True))
    raw_features(model().encoder, images(), device, View(down=2))
    other = model().encoder
    other.mean += 0.1
    raw_features(other, images(), device)
    assert len(list(folder.iterdir())) == 6


def test_an_encoder_that_may_change_keeps_nothing(folder):
    system = model(cached=False)
    torch.testing.assert_close(split_features(system, images()), encode_all(system, images().images))
    raw_features(system.encoder, images(), torch.device("cpu"))
    assert not folder.exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: b"<html>", lambda data: b""])
def test_a_damaged_file_costs_time_only(folder, caplog, damage):
    expected = split_features(model(), images())
    (path,) = folder.iterdir()
    kept = checkpoint.read(path)[0]["features"].clone()  # the file is mapped
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(split_features(model(), images()), expected)
    assert "computing the features anew" in caplog.text
    assert torch.equal(checkpoint.read(path)[0]["features"], kept)


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PYRO_VSM_CACHE", str(tmp_path / "file"))
    system = model()
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(split_features(system, images()), encode_all(system, images().images))
    assert "features are not kept" in caplog.text


def test_images_of_another_shape_are_refused(folder):
    wide = ClassImages(torch.zeros(4, 1, 20, 20, dtype=torch.uint8), torch.tensor([2, 2]), ("a", "b"))
    with pytest.raises(UserError, match="this model takes"):
        split_features(model(), wide)
    assert not folder.exists()


def test_enlarged_images_in_evaluation_only(folder):
    torch.manual_seed(0)
    plain = Encoder(Conv4(1, 16, width=4, pool="average", grid=2), [0.5], [0.2])
    large = Encoder(plain.backbone, [0.5], [0.2], enlarge=1.5, cached=True)
    x = images().images
    wide = Encoder(Conv4(1, 24, width=4, pool="average", grid=2), [0.5], [0.2])
    wide.backbone.load_state_dict(plain.backbone.state_dict())
    pixels = torch.nn.functional.interpolate(x / 255, (24, 24), mode="bilinear")
    torch.testing.assert_close(large.eval()(x), wide.eval()(pixels))
    system = PrototypicalNetwork(large)
    torch.testing.assert_close(split_features(system, images()), wide(pixels))
    raw_features(Encoder(plain.backbone, [0.5], [0.2], cached=True), images(), torch.device("cpu"))
    assert len(list(folder.iterdir())) == 2  # kept apart
    torch.testing.assert_close(large.train()(x), plain.train()(x))


def test_features_at_several_sizes_are_averaged(folder):
    torch.manual_seed(0)
    backbone = Conv4(1, 16, width=4, pool="average")
    sizes = [Encoder(backbone, [0.5], [0.2], enlarge=f, flip=True).eval()(images().images) for f in (1.0, 1.5)]
    both = Encoder(backbone, [0.5], [0.2], enlarge=[1.0, 1.5], flip=True, cached=True)
    torch.testing.assert_close(both.eval()(images().images), (sizes[0] + sizes[1]) / 2)
    torch.testing.assert_close(split_features(PrototypicalNetwork(both), images()), (sizes[0] + sizes[1]) / 2)
    assert len(list(folder.iterdir())) == 4  # two sizes, each mirrored, too


def test_enlarging_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="takes images of one size"):
        model(enlarge=1.2)
    for factor in (0.9, 9, float("nan"), [], [1.0, 1.0], [1.0, 0.5]):
        with pytest.raises(UserError, match="from 1 to 8"):
            model(enlarge=factor)


def test_views():
    x = torch.arange(1, 10.0).view(1, 1, 3, 3)
    assert View(down=1, right=-1)(x).flatten().tolist() == [0, 0, 0, 2, 3, 0, 5, 6, 0]
    assert View(True, enlarge=2.0)(x).shape == (1, 1, 6, 6)
    assert View(True, down=-2)(x).flatten().tolist() == [9, 8, 7, 0, 0, 0, 0, 0, 0]
    corners = {(a, b) for a in (-2, 2) for b in (-2, 2)}
    assert [views(flip, shift)[0] for flip in (0, 1) for shift in (0, 2)] == [View()] * 4
    assert {(v.down, v.right) for v in views(False, 2)} == corners | {(0, 0)}
    assert len(set(views(True, 2))) == len(views(True, 2)) == 10


def test_pieces():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert View(piece=(0.5, 0.0, 1.0))(x).shape == x.shape
    corners = [View(piece=(0.25, a, b))(x).unique().tolist() for a in (0.0, 1.0) for b in (0.0, 1.0)]
    assert corners == [[0.0], [3.0], [12.0], [15.0]]
    centre = View(piece=(0.5, 0.5, 0.5))(x)
    wanted = torch.nn.functional.interpolate(x[..., 1:3, 1:3], size=(4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(centre, wanted)
    torch.testing.assert_close(View(True, piece=(0.5, 0.5, 0.5))(x), wanted.flip(-1))
    assert View(enlarge=2.0, piece=(0.5, 0.5, 0.5))(x).shape == (1, 1, 8, 8)
    assert views(False)[0] == views(True, 2, 1.0, 0.8)[0] == View()
    assert len(views(False, pieces=0.8)) == 6
    assert len(set(views(True, 2, [1.0, 1.5], 0.8))) == 2 * 2 * (5 + 5)
    assert {v.piece for v in views(False, pieces=0.8)} == {
        None, (0.8, 0.5, 0.5), (0.8, 0.0, 0.0), (0.8, 0.0, 1.0), (0.8, 1.0, 0.0), (0.8, 1.0, 1.0)
    }  # fmt: skip
    for pieces in (0.05, 1.1, float("nan")):
        with pytest.raises(UserError, match=r"features\.pieces is .*give a fraction of the image's side"):
            views(False, pieces=pieces)


def test_a_crop_stands_for_the_image():
    centre = View(piece=(0.8, 0.5, 0.5))
    assert views(False, crop=0.8) == [centre]
    assert {(v.piece, v.down) for v in views(True, 2, crop=0.8)} == {((0.8, 0.5, 0.5), d) for d in (-2, 0, 2)}
    assert len(views(False, pieces=0.8, crop=0.8)) == 5  # the centre is one of the pieces
    assert len(views(False, pieces=0.7, crop=0.8)) == 6
    x = images().images
    plain, cropped = model(flip=False).encoder.eval(), model(flip=False, crop=0.75).encoder.eval()
    torch.testing.assert_close(cropped(x), plain(View(piece=(0.75, 0.5, 0.5))(plain.pixels(x))))
    assert (cropped(x) - plain(x)).abs().max() > 0.1
    torch.testing.assert_close(cropped.train()(x), plain.train()(x))
    with pytest.raises(UserError, match=r"features\.crop is 1\.5; give a fraction of the image's side"):
        views(False, crop=1.5)


@pytest.mark.parametrize("pieces", [0.75, 0.5])
def test_features_of_pieces_are_averaged_and_kept(folder, pieces):
    system = model(flip=True, pieces=pieces)
    x = images().images
    alone = [
        model(flip=False).encoder.eval()(view(model().encoder.pixels(x))) for view in views(True, 0, 1.0, pieces)
    ]
    torch.testing.assert_close(system.encoder.eval()(x), torch.stack(alone).mean(0))
    torch.testing.assert_close(split_features(system, images()), torch.stack(alone).mean(0))
    assert len(list(folder.iterdir())) == 12


def test_features_are_means_over_the_views():
    encoder = model(flip=True, shift=2).encoder.eval()
    x = images().images
    alone = [model(flip=False).encoder.eval()(view(x)) for view in views(True, 2)]
    torch.testing.assert_close(encoder(x), torch.stack(alone).mean(0))
    torch.testing.assert_close(encoder.train()(x), model().encoder.train()(x))


@pytest.mark.parametrize("shift", [-1, 16])
def test_a_shift_that_leaves_nothing_is_refused(shift):
    with pytest.raises(UserError, match=f"features.shift is {shift}"):
        model(shift=shift)
