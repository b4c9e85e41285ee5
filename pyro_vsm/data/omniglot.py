"""Omniglot (Lake et al. 2015): handwritten characters of 50 alphabets, 20 drawings each, as grey images.

Under the root (or its folder `omniglot-py`, where torchvision puts it) lie the sets `images_background`,
`images_evaluation`, or `images_background_small1` and `images_background_small2`, each as a zip file or as a folder
of the same name with `ALPHABET/CHARACTER/DRAWING.png`. Zip files are read without unpacking them.

Strokes are white on black, as in the glyphs data set: the files are black on white and are inverted. A class is
`ALPHABET/CHARACTER`, with `@90`, `@180` or `@270` behind it where a turned character is a class of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_vsm.data.archives import ImageZip
from pyro_vsm.data.cache import cached_splits
from pyro_vsm.data.class_files import existing_folder, find_classes, fingerprint
from pyro_vsm.data.decode import BadFiles, decode_content, read_image
from pyro_vsm.data.images import ClassImages, Splits
from pyro_vsm.data.sources import OPTIONS, SOURCES, DataConfig
from pyro_vsm.data.split_lists import SplitNames, split_names
from pyro_vsm.errors import UserError

_NAME = "omniglot"
_SIZE = 28
_DRAWINGS = 20
_TURNS = {"none": (), "train": ("train",), "all": ("train", "validation", "test")}
_ROTATIONS = {"alphabets": "none", "vinyals": "all", "small": "none"}  # as published
_SETS = {
    "alphabets": ("images_background", "images_evaluation"),
    "vinyals": ("images_background", "images_evaluation"),
    "small": ("images_background_small1", "images_background_small2"),
}

_Source = ImageZip | Path
"""A zip file, or a folder."""


def load_omniglot(config: DataConfig) -> Splits:
    """Loads one of the variants.

    * `alphabets`: training and validation on alphabets of the background set, test on the evaluation set;
    * `vinyals`: the characters of Vinyals et al. 2016, each with its three rotations as classes;
    * `small`: training on the first small background set, validation and test on alphabets of the second.

    Raises:
        UserError: if a set or a character is missing, or an image is bad.
    """
    root = existing_folder(config.root, f"data set {_NAME!r}")
    variant = config.variant or "alphabets"
    rotations = config.rotations or _ROTATIONS[variant]
    size = config.image_size or _SIZE
    sources = [_source(root, name) for name in _SETS[variant]]
    key = {
        "omniglot": 1,
        "variant": variant,
        "rotations": rotations,
        "size": size,
        "bad_files": config.bad_files,
        "files": [_fingerprint(source) for source in sources],
    }

    def build() -> tuple[Splits, list[str]]:
        notes: list[str] = []
        found: dict[str, NDArray[np.uint8]] = {}
        for source, wanted in zip(sources, _wanted(variant)):
            found |= _characters(source, wanted, size, config.bad_files, notes)
        parts = {}
        for part, names in split_names(f"omniglot_{variant}").items():
            parts[part] = _class_images(names, found, part in _TURNS[rotations])
        notes += [
            f"{name} has {len(images)} drawings, not {_DRAWINGS}: results will not be comparable"
            for name, images in found.items()
            if len(images) != _DRAWINGS
        ][:5]
        return Splits(f"{_NAME}-{variant}", parts["train"], parts["validation"], parts["test"]), notes

    return cached_splits(f"{_NAME}-{variant}", key, build, use=config.cache)


def _wanted(variant: str) -> list[set[str]]:
    """The characters to read from each set: those of the split list that lie there."""
    lists: SplitNames = split_names(f"omniglot_{variant}")
    if variant == "small":
        return [set(lists["train"]), {*lists["validation"], *lists["test"]}]
    evaluation = set(split_names("omniglot_alphabets")["test"])
    every = {name for names in lists.values() for name in names}
    return [every - evaluation, every & evaluation]


def _source(root: Path, name: str) -> _Source:
    """The set called `name`; a zip file before a folder, as its content can be checked."""
    places = [root, root / "omniglot-py"]
    for place in places:
        if (place / f"{name}.zip").is_file():
            return ImageZip(place / f"{name}.zip")
    for place in places:
        if (place / name).is_dir():
            return place / name
    raise UserError(
        f"{root} holds neither {name}.zip nor a folder {name}: 'pyro-vsm data prepare omniglot' says where to get it"
    )


def _fingerprint(source: _Source) -> str:
    if isinstance(source, ImageZip):
        return fingerprint(source.path.parent, [source.path])
    return fingerprint(source, [path for paths in find_classes(source).values() for path in paths])


def _characters(
    source: _Source, wanted: set[str], size: int, bad_files: BadFiles, notes: list[str]
) -> dict[str, NDArray[np.uint8]]:
    """Drawings `[n, size, size]` of each wanted character, white on black."""
    files: dict[str, list[Any]] = {name: [] for name in sorted(wanted)}
    if isinstance(source, ImageZip):
        place = source.path
        for member in source.names():
            name = "/".join(member.split("/")[-3:-1])
            if name in files:
                files[name].append(member)
    else:
        place = source
        for folder, paths in find_classes(source).items():
            if folder in files:
                files[folder] = list(paths)
    missing = [name for name, members in files.items() if not members]
    if missing:
        raise UserError(f"{place} lacks {len(missing)} characters, {missing[0]} for one: get it again")
    images: dict[str, NDArray[np.uint8]] = {}
    for name, members in files.items():
        drawings = []
        for member in sorted(members):
            try:
                if isinstance(source, ImageZip):
                    pixels = decode_content(source.read(member), place / member, size, 1)[..., 0]
                else:
                    pixels = read_image(member, size, 1)[0].numpy()
            except UserError as error:
                if bad_files == "stop":
                    raise
                notes.append(f"skipped: {error}")
                continue
            drawings.append(255 - pixels)
        if not drawings:
            raise UserError(f"{place}: no drawing of {name} can be read: get it again")
        images[name] = np.stack(drawings)
    return images


def _class_images(names: tuple[str, ...], found: dict[str, NDArray[np.uint8]], turned: bool) -> ClassImages:
    labels, pixels = [], []
    for name in names:
        for quarter in range(4 if turned else 1):
            labels.append(f"{name}@{90 * quarter}" if quarter else name)
            pixels.append(np.rot90(found[name], quarter, axes=(1, 2)))
    counts = torch.tensor([len(images) for images in pixels])
    return ClassImages(torch.from_numpy(np.concatenate(pixels)).unsqueeze(1), counts, tuple(labels))


SOURCES[_NAME] = load_omniglot
OPTIONS[_NAME] = {"variant": tuple(_SETS), "rotations": tuple(_TURNS)}
