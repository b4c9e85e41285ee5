"""Embedded colour pictures: letters of the glyphs data set in colours and textures, for models that meet any picture.

A class is a letter with some things that stay the same in all of its images (the colour of the letter, the colour
of the ground, the texture of the ground, or no letter at all but a texture) and others that vary from image to
image. What identifies a class is therefore sometimes shape, sometimes colour, sometimes texture; every fourth class
is without colour, dark on light or light on dark. The letters, and so the classes, are split by script as in
`glyphs`.
"""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import __version__ as pillow_version

from pyro_vsm.data.cache import cached_splits
from pyro_vsm.data.glyphs import SCRIPTS, Artist, font_paths
from pyro_vsm.data.images import ClassImages, Splits
from pyro_vsm.data.sources import SOURCES, DataConfig

_VERSION = 2  # raise it whenever the rendering changes
_SIZE = 32
_IMAGES = 20  # images of a class
_VARIANTS = {"train": 2, "validation": 1, "test": 1}  # classes of one letter

Floats = NDArray[np.float64]


def load_colour_glyphs(config: DataConfig) -> Splits:
    """Renders the pictures, or reads them from the cache; `root`, `split` and `bad_files` are not used."""
    size = config.image_size or _SIZE
    key: dict[str, Any] = {
        "version": _VERSION,
        "size": size,
        "seed": config.seed,
        "pillow": pillow_version,
        "fonts": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in font_paths()},
    }
    return cached_splits(
        "colour-glyphs", key, lambda: (render_colour(size=size, seed=config.seed), []), use=config.cache
    )


def render_colour(*, size: int = _SIZE, seed: int = 0, images: int = _IMAGES, limit: int | None = None) -> Splits:
    """Renders all splits; takes about ten seconds.

    Args:
        size: height and width in pixels.
        seed: of everything but the letters.
        images: images of a class.
        limit: at most so many letters a script before look-alikes are dropped; None takes all.

    Returns:
        Colour images `[I, 3, size, size]`.
    """
    artist = Artist(size)
    letters = artist.without_lookalikes(artist.letters(limit))
    parts = {}
    for part in SCRIPTS:
        names, pixels = [], []
        for code in (code for where, code in letters if where == part):
            for variant in range(_VARIANTS[part]):
                masks = artist.draw_class(code, images, seed + 1000 * (variant + 1)) / 255.0
                pixels.append(_paint(masks, np.random.PCG64([seed, code, variant])))
                names.append(f"{unicodedata.name(chr(code))} {variant + 1}")
        parts[part] = ClassImages(
            torch.from_numpy(np.concatenate(pixels)), torch.full((len(names),), images), tuple(names)
        )
    return Splits("colour-glyphs", parts["train"], parts["validation"], parts["test"])


class _Draw:
    """Uniform numbers in [0, 1) from PCG64's raw stream, which stays the same across versions of NumPy."""

    def __init__(self, bits: np.random.PCG64) -> None:
        self.bits = bits

    def __call__(self, *shape: int) -> Floats:
        raw = self.bits.random_raw(int(np.prod(shape))).reshape(shape)
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def kept(self, fixed: bool, images: int, width: int, jitter: float) -> Floats:
        """Numbers in [0, 1), `[images, width]`: near to each other where they are fixed, else free."""
        if not fixed:
            return self(images, width)
        return self(1, width) + jitter * (self(images, width) - 0.5)


def _paint(masks: Floats, bits: np.random.PCG64) -> NDArray[np.uint8]:
    """The images `[n, 3, size, size]` of one class, from the letter's masks `[n, size, size]` in [0, 1]."""
    draw = _Draw(bits)
    n, size, _ = masks.shape
    letter_fixed, ground_fixed, texture_fixed, grey = draw(4) < (0.35, 0.35, 0.5, 0.25)
    letterless = draw(1)[0] < 0.12
    ink = draw.kept(bool(letter_fixed), n, 3, 0.08)
    ground = draw.kept(bool(ground_fixed or letterless), n, 3, 0.08)
    texture = _texture(draw, n, size, bool(texture_fixed or letterless))
    strength = draw.kept(True, n, 1, 0.3) if texture_fixed or letterless else draw(n, 1)
    if grey:
        ink[:, 1] = ground[:, 1] = 0
        strength = 0.15 * strength
    elif not letterless:
        strength = 0.6 * strength
    # brightness apart, so that the letter can be seen: the ground dark and the letter bright, or the other way round
    dark_ground = draw.kept(bool(ground_fixed), n, 1, 0.0)[:, 0] < 0.5
    ink[:, 2] = np.where(dark_ground, 0.65 + 0.35 * (ink[:, 2] % 1), 0.35 * (ink[:, 2] % 1))
    ground[:, 2] = np.where(dark_ground, 0.4 * (ground[:, 2] % 1), 0.6 + 0.4 * (ground[:, 2] % 1))
    base = _colours(ground)[:, :, None, None]
    other = _colours((ground + np.array([0.35, 0, 0])) * np.array([1, 1, 0.8]))[:, :, None, None]
    share = (strength[:, :, None] * texture)[:, None]
    picture = base + share * (other - base) + 0.35 * share * (0.5 - base)
    if not letterless:
        cover = masks[:, None]
        picture = picture + cover * (_colours(ink)[:, :, None, None] - picture)
    noise = 0.06 * draw(n, 1, 1, 1) * (draw(n, 3, size, size) + draw(n, 3, size, size) - 1)
    return np.rint(255 * np.clip(picture + noise, 0, 1)).astype(np.uint8)


def _texture(draw: _Draw, n: int, size: int, fixed: bool) -> Floats:
    """Stripes, checks, blobs or a gradient, `[n, size, size]` in [0, 1]; their place varies, fixed or not."""
    kind = int(4 * draw(1)[0])
    shape = draw.kept(fixed, n, 2, 0.1)
    angle, period = np.pi * shape[:, :1, None], 3 + (size / 2) * (shape[:, 1:, None] % 1) ** 2
    phase = 2 * np.pi * draw(n, 2)[:, :, None, None]
    y, x = np.mgrid[:size, :size]
    u = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period
    v = 2 * np.pi * (y * np.cos(angle) - x * np.sin(angle)) / period
    if kind == 0:
        return 0.5 + 0.5 * np.sin(u + phase[:, 0])
    if kind == 1:
        return (np.sin(u + phase[:, 0]) * np.sin(v + phase[:, 1]) > 0).astype(np.float64)
    if kind == 2:
        return 0.5 + 0.25 * (np.sin(u + phase[:, 0]) + np.sin(1.3 * v + phase[:, 1]))
    return np.clip(0.5 + (x * np.cos(angle) + y * np.sin(angle) - size / 2) / size, 0, 1) * np.ones((n, 1, 1))


def _colours(hsv: Floats) -> Floats:
    """Hue (taken modulo 1), saturation and value, `[n, 3]`, to red, green and blue in [0, 1]."""
    hue, saturation, value = hsv[:, :1], np.clip(hsv[:, 1:2], 0, 1), np.clip(hsv[:, 2:], 0, 1)
    ramp = np.clip(np.abs((6 * hue + np.array([[0, 4, 2]])) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation + saturation * ramp)


SOURCES["colour-glyphs"] = load_colour_glyphs
