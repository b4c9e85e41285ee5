"""Augmentation: ranges, exactness where pixels only move, one set of parameters an image."""

import math

import pytest
import torch

from pyro_vsm.data.augment import AugmentConfig, augment
from pyro_vsm.errors import UserError


@pytest.fixture
def images():
    return torch.randint(0, 256, (64, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


EVERYTHING = AugmentConfig(
    crop_scale=(0.3, 1.0), pad=2, flip=True, brightness=0.4, contrast=0.4, saturation=0.4, rotate=30
)
EACH = [
    AugmentConfig(),
    AugmentConfig(pad=2),
    AugmentConfig(flip=True),
    AugmentConfig(crop_scale=(0.5, 0.9)),
    AugmentConfig(rotate=20),
    AugmentConfig(brightness=0.5),
    AugmentConfig(contrast=0.5),
    AugmentConfig(saturation=0.5),
    EVERYTHING,
]


@pytest.mark.parametrize("config", EACH)
@pytest.mark.parametrize("channels", [1, 3])
def test_results_are_floats_in_the_unit_range_and_repeat_with_the_seed(images, config, channels):
    images = images[:, :channels]
    before = images.clone()
    first = augment(images, config, seeded())
    assert first.dtype == torch.float32
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(images, before)
    assert torch.equal(first, augment(images, config, seeded()))
    changes = config != AugmentConfig() and not (channels == 1 and config.saturation and not config.resamples)
    assert torch.equal(first, augment(images, config, seeded(1))) is not changes


def test_nothing_on_only_converts(images):
    assert torch.equal(augment(images, AugmentConfig()), images.float() / 255)


def test_pad_moves_pixels_and_fills_with_black(images):
    result = augment(images, AugmentConfig(pad=2), seeded())
    padded = torch.nn.functional.pad(images.float() / 255, (2, 2, 2, 2))
    seen = set()
    for image, source in zip(result, padded):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(image, source[:, y : y + 12, x : x + 10])]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) > 15  # of 25; 64 draws miss a place each with probability 0.07


def test_flip_mirrors_about_half(images):
    many = images.repeat(10, 1, 1, 1)
    result = augment(many, AugmentConfig(flip=True), seeded())
    plain = many.float() / 255
    same = (result == plain).all(3).all(2).all(1)
    mirrored = (result == plain.flip(3)).all(3).all(2).all(1)
    assert (same ^ mirrored).all()
    assert abs(mirrored.float().mean() - 0.5) < 0.08  # 4 standard deviations of 640 draws


def test_interpolated_and_indexed_moves_agree(images):
    indexed = augment(images, AugmentConfig(pad=3, flip=True), seeded())
    sampled = augment(images, AugmentConfig(pad=3, flip=True, rotate=1e-5), seeded())
    torch.testing.assert_close(sampled, indexed, atol=1e-3, rtol=0)


def test_rotation_turns_by_the_angle():
    """A bright spot right of the centre moves along a circle, up to the largest angle either way."""
    image = torch.zeros(1, 1, 41, 61, dtype=torch.uint8)
    image[0, 0, 19:22, 44:47] = 255  # 15 pixels right of the centre
    result = augment(image.expand(500, -1, -1, -1), AugmentConfig(rotate=90), seeded())
    weights = result[:, 0] / result.sum((1, 2, 3))[:, None, None]
    x = (weights * (torch.arange(61.0) - 30)).sum((1, 2))
    y = (weights * (torch.arange(41.0) - 20)[:, None]).sum((1, 2))
    torch.testing.assert_close((x**2 + y**2).sqrt(), torch.full((500,), 15.0), atol=0.2, rtol=0)
    angles = torch.atan2(y, x) * 180 / math.pi
    assert angles.abs().max() < 91
    assert angles.min() < -80
    assert angles.max() > 80


def test_crops_have_the_area_and_ratio_asked_for():
    """On a ramp, brightness gives the place: its range in the result is the crop's extent."""
    size = 64
    ramp = torch.arange(size, dtype=torch.uint8)
    across = ramp.expand(size, size).expand(400, 1, -1, -1)
    config = AugmentConfig(crop_scale=(0.25, 0.5), crop_ratio=(0.5, 2.0))

    def extents(images):
        result = augment(images, config, seeded()) * 255
        # an inner stretch, so that interpolation at the border does not matter
        return (result[:, 0, 48, 48] - result[:, 0, 16, 16]).abs() * size / 32 / size

    width, height = extents(across), extents(across.transpose(2, 3))
    area = width * height
    assert 0.24 < area.min() < 0.27
    assert 0.46 < area.max() < 0.51
    ratio = width / height
    assert 0.49 < ratio.min() < 0.6
    assert 1.7 < ratio.max() < 2.05


def test_crops_stay_within_the_image():
    white = torch.full((200, 1, 16, 16), 255, dtype=torch.uint8)
    result = augment(white, AugmentConfig(crop_scale=(0.1, 0.6)), seeded())
    assert result[:, :, 1:-1, 1:-1].min() == pytest.approx(1, abs=1e-4)


def test_brightness_and_contrast_are_factors(images):
    plain = images.float() / 255
    dark = augment(images // 4, AugmentConfig(brightness=0.5), seeded())
    factor = dark.sum((1, 2, 3)) / (images // 4).float().div(255).sum((1, 2, 3))
    torch.testing.assert_close(dark, (images // 4).float() / 255 * factor[:, None, None, None])
    assert 0.5 <= factor.min() < 0.6
    assert 1.4 < factor.max() <= 1.5
    grey = plain[:, :1].expand(-1, 3, -1, -1)
    flat = augment((grey * 255).round().byte() // 2 + 64, AugmentConfig(contrast=0.5), seeded())
    source = ((grey * 255).round().byte() // 2 + 64).float() / 255
    torch.testing.assert_close(flat.mean((1, 2, 3)), source.mean((1, 2, 3)), atol=1e-5, rtol=0)
    spread = flat.std((1, 2, 3)) / source.std((1, 2, 3))
    assert 0.5 <= spread.min() < 0.6
    assert 1.4 < spread.max() <= 1.5 + 1e-4


def test_saturation_leaves_grey_alone(images):
    grey = images[:, :1].expand(-1, 3, -1, -1)
    result = augment(grey, AugmentConfig(saturation=0.9), seeded())
    torch.testing.assert_close(result, grey.float() / 255, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.8, 0.5)},
        {"crop_scale": (0.5, 1.5)},
        {"crop_scale": (float("nan"), 1.0)},
        {"crop_ratio": (0.0, 1.0)},
        {"crop_ratio": (2.0, 1.0)},
        {"crop_ratio": (1.0, math.inf)},
        {"pad": -1},
        {"rotate": -5.0},
        {"rotate": float("nan")},
        {"brightness": 1.5},
        {"contrast": -0.1},
        {"saturation": float("nan")},
    ],
)
def test_configuration_out_of_range_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        AugmentConfig(**wrong)


def test_images_that_do_not_fit_are_refused(images):
    with pytest.raises(UserError, match="uint8"):
        augment(images.float(), AugmentConfig())
    with pytest.raises(UserError, match=r"\[B, C, H, W\]"):
        augment(images[0], AugmentConfig())
    with pytest.raises(UserError, match="pad is 10"):
        augment(images, AugmentConfig(pad=10))
