"""Pictures as somebody may have them: 32x32 pixels, 30 classes, drawn by other means than the training data.

python experiments/own_pictures/pictures.py KIND FOLDER [SEED] makes FOLDER/examples/CLASS/*.png (5 a class) and
FOLDER/new/CLASS-NN.png (15 a class). KIND is symbols, shapes, or the root of class folders to take 30 classes from.
"""

from __future__ import annotations

import colorsys
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFilter, ImageFont

CLASSES, EXAMPLES, NEW, SIDE, LARGE = 30, 5, 15, 32, 128

SYMBOLS = {
    "sun": "☀", "cloud": "☁", "umbrella": "☂", "snowman": "☃", "star": "★", "telephone": "☎", "shamrock": "☘",
    "skull": "☠", "radiation": "☢", "peace": "☮", "yin-yang": "☯", "king": "♔", "knight": "♞", "clubs": "♣",
    "heart": "♥", "recycling": "♻", "notes": "♫", "flag": "⚑", "anchor": "⚓", "scales": "⚖", "gear": "⚙",
    "lightning": "⚡", "scissors": "✂", "aeroplane": "✈", "envelope": "✉", "pencil": "✎", "flower": "✿",
    "snowflake": "❄", "smiley": "☺", "wheelchair": "♿",
}  # fmt: skip
"""None is a letter, so none is in the training data of the glyphs."""


def main(kind: str, target: str, seed: int = 0) -> None:
    """Write the two folders."""
    rng, root = random.Random(seed), Path(target)
    makers = {"symbols": symbols, "shapes": shapes}
    classes = makers[kind]() if kind in makers else from_folders(Path(kind), rng)
    for name, draw in classes.items():
        (root / "examples" / name).mkdir(parents=True, exist_ok=True)
        (root / "new").mkdir(parents=True, exist_ok=True)
        for i in range(EXAMPLES + NEW):
            path = root / "examples" / name / f"{i}.png" if i < EXAMPLES else root / "new" / f"{name}-{i}.png"
            draw(rng, i).resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(path)
    print(f"Wrote {len(classes)} classes to {root}")


def symbols() -> dict[str, Callable[[random.Random, int], Image.Image]]:
    """A symbol in any colour on any ground, turned by up to 20 degrees, of any size and place: shape alone tells."""
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 96)

    def maker(sign: str) -> Callable[[random.Random, int], Image.Image]:
        def draw(rng: random.Random, _: int) -> Image.Image:
            mask = Image.new("L", (LARGE, LARGE))
            ImageDraw.Draw(mask).text((LARGE / 2, LARGE / 2), sign, font=font, fill=255, anchor="mm")
            return stamped(mask, rng, colour(rng, rng.random()), colour(rng, rng.random()))

        return draw

    return {name: maker(sign) for name, sign in SYMBOLS.items()}


def shapes() -> dict[str, Callable[[random.Random, int], Image.Image]]:
    """Six shapes in five colours on any ground: shape and colour together tell."""
    outlines: dict[str, Callable[[ImageDraw.ImageDraw], None]] = {
        "disc": lambda d: d.ellipse((24, 24, 104, 104), fill=255),
        "ring": lambda d: d.ellipse((24, 24, 104, 104), outline=255, width=16),
        "square": lambda d: d.rectangle((28, 28, 100, 100), fill=255),
        "triangle": lambda d: d.polygon([(64, 20), (108, 100), (20, 100)], fill=255),
        "cross": lambda d: (d.rectangle((54, 20, 74, 108), fill=255), d.rectangle((20, 54, 108, 74), fill=255))[0],
        "star": lambda d: d.polygon(
            [(64 + (46, 19)[k % 2] * math.sin(k * math.pi / 5), 64 - (46, 19)[k % 2] * math.cos(k * math.pi / 5))
             for k in range(10)], fill=255),
    }  # fmt: skip
    hues = {"red": 0.0, "yellow": 0.15, "green": 0.36, "blue": 0.61, "violet": 0.82}

    def maker(outline: Callable[[ImageDraw.ImageDraw], None], hue: float) -> Callable[..., Image.Image]:
        def draw(rng: random.Random, _: int) -> Image.Image:
            mask = Image.new("L", (LARGE, LARGE))
            outline(ImageDraw.Draw(mask))
            ink = tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, rng.uniform(0.7, 1), rng.uniform(0.6, 1)))
            grey = rng.randrange(256)
            return stamped(mask, rng, ink, (grey, grey, grey))

        return draw

    return {f"{c} {s}": maker(o, h) for s, o in outlines.items() for c, h in hues.items()}


def from_folders(root: Path, rng: random.Random) -> dict[str, Callable[[random.Random, int], Image.Image]]:
    """30 of the class folders below a root, drawn at random; 20 of the pictures of each."""
    folders = sorted({p.parent for p in root.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg")})
    chosen = rng.sample([f for f in folders if len(list(f.iterdir())) >= EXAMPLES + NEW], CLASSES)

    def maker(folder: Path) -> Callable[[random.Random, int], Image.Image]:
        files = rng.sample(sorted(folder.iterdir()), EXAMPLES + NEW)
        return lambda _, i: Image.open(files[i]).convert("RGB")

    return {str(f.relative_to(root)).replace("/", " "): maker(f) for f in chosen}


def colour(rng: random.Random, value: float) -> tuple[int, ...]:
    """A colour of any hue."""
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(rng.random(), rng.random(), value))


def stamped(mask: Image.Image, rng: random.Random, ink: tuple[int, ...], ground: tuple[int, ...]) -> Image.Image:
    """The mask in ink on a ground that fades, turned, scaled and moved; ink and ground differ in brightness."""
    luma = [sum(w * v for w, v in zip((0.3, 0.59, 0.11), c)) for c in (ink, ground)]
    if abs(luma[0] - luma[1]) < 60:
        lift = -110 if luma[0] > 128 else 110
        ground = tuple(min(255, max(0, round(v + lift))) for v in ground)
    size = round(LARGE * rng.uniform(0.65, 1.05))
    turned = mask.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC).resize((size, size))
    placed = Image.new("L", (LARGE, LARGE))
    placed.paste(turned, tuple((LARGE - size) // 2 + rng.randint(-12, 12) for _ in range(2)))
    picture = Image.new("RGB", (LARGE, LARGE), ground)
    fade = Image.linear_gradient("L").resize((LARGE, LARGE)).rotate(90 * rng.randrange(4)).point(lambda v: v // 4)
    picture.paste(Image.new("RGB", (LARGE, LARGE), (rng.choice([0, 255]),) * 3), mask=fade)
    picture.paste(Image.new("RGB", (LARGE, LARGE), ink), mask=placed)
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
