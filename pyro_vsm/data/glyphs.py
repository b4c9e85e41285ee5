"""The embedded data set: letters of many scripts, rendered from the DejaVu fonts that matplotlib ships.

A class is one letter (one code point). Training, validation and test use different scripts, so that a test
class comes from a script never seen in training. Letters that look alike, within a script or across
scripts (Latin A, Greek Alpha, Cyrillic A; o and O), count once: only the first of them is kept, training
scripts first. Each image has a font, an affine distortion and a stroke weight of its own.
"""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL import __version__ as pillow_version

from pyro_vsm.data.cache import cached_splits
from pyro_vsm.data.images import ClassImages, Splits
from pyro_vsm.data.sources import SOURCES, DataConfig

_VERSION = 1  # raise it whenever the rendering changes
_SIZE = 28
_IMAGES = 24  # images of a class
SCRIPTS = {
    "train": ("LATIN", "CYRILLIC", "CANADIAN SYLLABICS", "ARABIC"),
    "test": ("ARMENIAN", "GEORGIAN"),
    "validation": ("GREEK", "COPTIC", "HEBREW", "LAO", "OLD ITALIC"),
}
_FONTS = tuple(
    f"DejaVu{family}.ttf"
    for family in (
        *("Sans", "Sans-Oblique", "Sans-Bold", "Sans-BoldOblique"),
        *("Serif", "Serif-Italic", "Serif-Bold", "Serif-BoldItalic"),
        *("SansMono", "SansMono-Oblique", "SansMono-Bold", "SansMono-BoldOblique"),
    )
)
_FEWEST_FONTS = 4  # a letter must stand in so many of them
_COMPARED = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")
_ALIKE = 0.92  # cosine similarity of blurred normalised renderings from which letters count as one
_STRETCHED = 0.7  # letters whose ratios of width to height differ less are compared stretched to a square, too
_OVERSAMPLING = 2  # glyphs are drawn larger by this and averaged down


def load_glyphs(config: DataConfig) -> Splits:
    """Renders the glyphs, or reads them from the cache; `root`, `split` and `bad_files` are not used."""
    size = config.image_size or _SIZE
    key: dict[str, Any] = {
        "version": _VERSION,
        "size": size,
        "seed": config.seed,
        "pillow": pillow_version,
        "fonts": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in font_paths()},
    }
    return cached_splits("glyphs", key, lambda: (render(size=size, seed=config.seed), []), use=config.cache)


def render(*, size: int = _SIZE, seed: int = 0, images: int = _IMAGES, limit: int | None = None) -> Splits:
    """Renders all splits; takes some seconds.

    Args:
        size: height and width in pixels.
        seed: of fonts, distortions and stroke weights. Letters are the same for every seed.
        images: images of a class.
        limit: at most so many letters a script before look-alikes are dropped; None takes all.

    Returns:
        Grey images `[I, 1, size, size]`, white on black.
    """
    artist = Artist(size)
    letters = artist.without_lookalikes(artist.letters(limit))
    parts = {}
    for part in SCRIPTS:
        codes = [code for where, code in letters if where == part]
        pixels = np.concatenate([artist.draw_class(code, images, seed) for code in codes])
        parts[part] = ClassImages(
            torch.from_numpy(pixels).unsqueeze(1),
            torch.full((len(codes),), images),
            tuple(unicodedata.name(chr(code)) for code in codes),
        )
    return Splits("glyphs", parts["train"], parts["validation"], parts["test"])


def font_paths() -> list[Path]:
    """The fonts that letters are drawn from."""
    return [Path(matplotlib.get_data_path(), "fonts", "ttf", name) for name in _FONTS]


class Artist:
    """Holds the fonts and draws letters."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.canvas = _OVERSAMPLING * size
        paths = font_paths()
        points = max(1, round(0.72 * self.canvas))
        self.fonts = {path.name: _truetype(path, points) for path in paths}
        self.large = {path.name: _truetype(path, 64) for path in paths if path.name in _COMPARED}
        self.has = {path.name: set(FT2Font(str(path)).get_charmap()) for path in paths}

    def letters(self, limit: int | None) -> list[tuple[str, int]]:
        """Split and code point of each letter that enough fonts hold, training scripts first.

        A letter with a Unicode decomposition is an accent variant, a ligature or a styled copy: left out.
        """
        found = []
        every = sorted(set.union(*self.has.values()))
        for part, scripts in SCRIPTS.items():
            for script in scripts:
                codes = [
                    code
                    for code in every
                    if unicodedata.name(chr(code), "").startswith(script + " ")
                    and unicodedata.category(chr(code)) in ("Lu", "Ll", "Lo")
                    and unicodedata.normalize("NFKD", chr(code)) == chr(code)
                    and sum(code in has for has in self.has.values()) >= _FEWEST_FONTS
                ]
                found += [(part, code) for code in codes[:limit]]
        return found

    def without_lookalikes(self, letters: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Drops blanks and each letter that in some compared font looks like one kept before it."""
        alike = np.zeros((len(letters), len(letters)))
        blank = np.ones(len(letters), dtype=bool)
        for name, font in self.large.items():
            shapes = [_shapes(chr(code), font) if code in self.has[name] else _BLANK for _, code in letters]
            whole, square, aspects = (np.array(values) for values in zip(*shapes))
            blank &= ~whole.any(1)
            slimmer = np.minimum(aspects[:, None] / aspects, aspects / aspects[:, None])
            alike = np.maximum(alike, _cosines(whole))
            alike = np.maximum(alike, np.where(slimmer > _STRETCHED, _cosines(square), 0))
        kept: list[int] = []
        for i in np.flatnonzero(~blank):
            if not kept or alike[i, kept].max() < _ALIKE:
                kept.append(int(i))
        return [letters[i] for i in kept]

    def draw_class(self, code: int, images: int, seed: int) -> NDArray[np.uint8]:
        """Images of one letter, `[images, size, size]`; depends on the letter and the seed alone."""
        names = [name for name in _FONTS if code in self.has[name]]
        # PCG64's raw stream stays the same across versions of NumPy
        raw = np.random.PCG64([seed, code]).random_raw((images + 2) * 8)
        names = [names[i] for i in np.argsort(raw[: len(names)], kind="stable")]
        u = ((raw[16:] >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(8, images)
        letters = [_ink(chr(code), self.fonts[name]) for name in names]
        chosen = np.arange(images) % len(names)
        drawn = np.empty((images, self.canvas, self.canvas), dtype=np.uint8)
        size = (self.canvas, self.canvas)
        boxes = np.array([letters[i][1] for i in chosen])
        for out, i, coefficients in zip(drawn, chosen, self._affine(boxes, u)):
            image = letters[i][0].transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
            out[:] = np.asarray(image)
        bold = np.array(["Bold" in names[i] for i in chosen])
        return _reduced(_weighted(drawn, np.where(bold, np.floor(3 * u[0]) - 1, np.floor(4 * u[0]) - 1)))

    def _affine(self, boxes: NDArray[np.int64], u: NDArray[np.float64]) -> list[list[float]]:
        """Pillow's six coefficients (image -> letter) of each image's distortion.

        Args:
            boxes: left, top, right and bottom of the ink, `[images, 4]`.
            u: numbers in [0, 1), `[8, images]`; rows 1 to 6 give angle, shear, stretch, size and place.
        """
        angle, shear, stretch = np.radians(30 * u[1] - 15), 0.5 * u[2] - 0.25, np.exp(0.25 * u[3] - 0.125)
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        scale = self.canvas * (0.6 + 0.25 * u[4]) / np.maximum(width, height)
        # letter -> image is rotate(shear(scale)); these are the rows of its inverse
        sx, sy, cos, sin = scale * stretch, scale / stretch, np.cos(angle), np.sin(angle)
        a, b = (cos + shear * sin) / sx, (sin - shear * cos) / sx
        d, e = -sin / sy, cos / sy
        x, y = self.canvas * (0.43 + 0.14 * u[5]), self.canvas * (0.43 + 0.14 * u[6])
        c = (boxes[:, 0] + boxes[:, 2]) / 2 - a * x - b * y
        f = (boxes[:, 1] + boxes[:, 3]) / 2 - d * x - e * y
        return np.stack([a, b, c, d, e, f], axis=1).tolist()


def _weighted(images: NDArray[np.uint8], weights: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Thickens each image's strokes by its weight in pixels, or thins them where it is negative."""
    for step in range(1, int(np.abs(weights).max()) + 1):
        for these, grow in ((weights >= step, np.maximum), (weights <= -step, np.minimum)):
            part = images[these]
            part[:, 1:] = grow(part[:, 1:], part[:, :-1])
            part[:, :, 1:] = grow(part[:, :, 1:], part[:, :, :-1])
            images[these] = part
    return images


def _reduced(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of squares of `_OVERSAMPLING` pixels a side."""
    k = _OVERSAMPLING
    rows = images.reshape(len(images), -1, k, images.shape[2]).sum(2, dtype=np.uint16)
    squares = rows.reshape(*rows.shape[:2], -1, k).sum(3, dtype=np.uint16)
    return ((squares + k * k // 2) // (k * k)).astype(np.uint8)


def _truetype(path: Path, points: int) -> ImageFont.FreeTypeFont:
    # the basic layout engine is always there and draws one letter as it stands in the font
    return ImageFont.truetype(str(path), points, layout_engine=ImageFont.Layout.BASIC)


def _ink(letter: str, font: ImageFont.FreeTypeFont) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The letter, white on black, and the box of its ink (one pixel if it has none)."""
    points = int(font.size)
    image = Image.new("L", (3 * points, 2 * points))
    ImageDraw.Draw(image).text((1.5 * points, points), letter, font=font, fill=255, anchor="mm")
    return image, image.getbbox() or (0, 0, 1, 1)


_Shapes = tuple[NDArray[np.float64], NDArray[np.float64], float]
_BLANK: _Shapes = (np.zeros(32 * 32), np.zeros(32 * 32), 1.0)


def _shapes(letter: str, font: ImageFont.FreeTypeFont) -> _Shapes:
    """The letter's ink scaled to one size, and stretched to a square, both blurred; and width over height.

    The two pictures are whole numbers, `[32 * 32]`.
    """
    image, box = _ink(letter, font)
    ink = image.crop(box)
    if not ink.getbbox():
        return _BLANK
    scale = 24 / max(ink.size)
    pictures = []
    for size in ((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), (24, 24)):
        picture = Image.new("L", (32, 32))
        picture.paste(ink.resize(size, Image.Resampling.BILINEAR), ((32 - size[0]) // 2, (32 - size[1]) // 2))
        blurred = picture.filter(ImageFilter.GaussianBlur(1))
        pictures.append(np.asarray(blurred, dtype=np.float64).ravel())
    return pictures[0], pictures[1], ink.width / ink.height


def _cosines(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine similarity of all rows; exact up to the division, as whole numbers below 2^53 add up exactly."""
    products = vectors @ vectors.T
    norms = np.sqrt(np.maximum(products.diagonal(), 1))
    return products / norms[:, None] / norms


SOURCES["glyphs"] = load_glyphs
