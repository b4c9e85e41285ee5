"""Your own images: any tree with one folder a class.

Either the splits are given as folders (`train/`, `val/` or `valid/` or `validation/`, `test/`, in any case of
letters), or the classes are drawn from fractions. Class folders may lie deeper (alphabet/character): a class
is a folder that holds images itself, named by its path.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyro_vsm.data.cache import cached_splits
from pyro_vsm.data.class_files import ClassFiles, decode_classes, existing_folder, find_classes, fingerprint
from pyro_vsm.data.decode import BadFiles
from pyro_vsm.data.images import ClassImages, Splits
from pyro_vsm.data.sources import SOURCES, DataConfig
from pyro_vsm.errors import UserError

log = logging.getLogger("pyro_vsm.data")

_SIZE = 84
_FRACTIONS = (0.64, 0.16, 0.20)
_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def load_folder(config: DataConfig) -> Splits:
    """Loads a tree of class folders as colour images.

    Raises:
        UserError: if the folder, a split or enough classes are missing, or an image is bad.
    """
    root = existing_folder(config.root, "data set 'folder'")
    splits = split_folders(root)
    if splits and config.split is not None:
        raise UserError(f"{root} has folders for its splits, so fractions cannot be drawn: leave split out")
    if splits:
        files = {part: find_classes(folder) for part, folder in splits.items()}
    else:
        files = _drawn(find_classes(root), config.split or _FRACTIONS, config.seed, root)
    return load_class_files("folder", root, files, config, config.image_size or _SIZE)


def read_class_folders(
    root: str | os.PathLike[str], size: int, channels: int = 3, bad_files: BadFiles = "stop"
) -> ClassImages:
    """Reads one folder a class, without splits; a class may hold a single image. Logs what is skipped.

    Args:
        root: the folder above the class folders.
        size: height and width of the result.
        channels: 3 for colour, 1 for grey.
        bad_files: "stop" at the first bad file or "skip" bad files.

    Returns:
        The images, classes in the order of their names.

    Raises:
        UserError: if the folder is missing, holds no class, or an image is bad.
    """
    folder = existing_folder(root, "the support set")
    classes = find_classes(folder)
    if not classes:
        raise UserError(f"{folder} holds no folder with images: put the images of each class in a folder of its own")
    data, notes = decode_classes(classes, size, channels, bad_files=bad_files, what=str(folder))
    for note in notes:
        log.warning("%s: %s", folder, note)
    return data


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the three splits below `root`; none if there is not one of them.

    Raises:
        UserError: if some but not all are there, or a split has two folders or no class.
    """
    found: dict[str, Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        part = _NAMES.get(folder.name.lower())
        if part is None or not find_classes(folder):
            continue  # a folder of this name that holds images itself is a class
        if part in found:
            raise UserError(f"{root} has two folders for {part}, {found[part].name} and {folder.name}: keep one")
        found[part] = folder
    parts = ("train", "validation", "test")
    missing = [part for part in parts if part not in found]
    if found and missing:
        raise UserError(
            f"{root} has class folders in {', '.join(path.name for path in found.values())} but none for "
            f"{' and '.join(missing)}: add the missing folder with classes of its own, or move all class "
            f"folders directly into {root} to have the classes split by fractions"
        )
    return {part: found[part] for part in parts} if found else {}


def load_class_files(
    name: str,
    root: Path,
    files: dict[str, ClassFiles],
    config: DataConfig,
    size: int,
    notes: Sequence[str] = (),
) -> Splits:
    """Decodes the files of three splits, or reads them from the cache.

    Args:
        name: of the data set.
        root: the folder above all files.
        files: split -> class -> files.
        config: says how to treat bad files, how many threads, and whether to cache.
        size: height and width of the result.
        notes: lines to log at every start.
    """
    every = [path for classes in files.values() for paths in classes.values() for path in paths]
    key = {
        "layout": 1,
        "size": size,
        "files": fingerprint(root, every),
        "classes": {part: {c: len(paths) for c, paths in classes.items()} for part, classes in files.items()},
        "bad_files": config.bad_files,
    }

    def build() -> tuple[Splits, list[str]]:
        parts, lines = {}, list(notes)
        for part, classes in files.items():
            parts[part], skipped = decode_classes(
                classes,
                size,
                bad_files=config.bad_files,
                threads=config.threads,
                what=f"{part} of {root}",
            )
            lines += skipped
        return Splits(name, parts["train"], parts["validation"], parts["test"]), lines

    return cached_splits(name, key, build, use=config.cache)


def _drawn(
    classes: ClassFiles, fractions: tuple[float, float, float], seed: int, root: Path
) -> dict[str, ClassFiles]:
    """Splits the classes by fractions, at least one a split; one draw for the same names and seed."""
    if len(classes) < 3:
        raise UserError(
            f"{root} holds {len(classes)} class(es), but a training, a validation and a test split need "
            "three at least: put the images of each class in a folder of its own"
        )
    names = sorted(classes)
    # PCG64's raw stream stays the same across versions of NumPy
    order = np.argsort(np.random.PCG64(seed).random_raw(len(names)), kind="stable").tolist()
    validation = min(max(1, round(fractions[1] * len(names))), len(names) - 2)
    test = min(max(1, round(fractions[2] * len(names))), len(names) - validation - 1)
    cuts = {
        "train": order[validation + test :],
        "validation": order[:validation],
        "test": order[validation : validation + test],
    }
    return {part: {names[i]: classes[names[i]] for i in sorted(chosen)} for part, chosen in cuts.items()}


SOURCES["folder"] = load_folder
