"""miniImageNet (Vinyals et al. 2016, in the split of Ravi & Larochelle 2017), in its usual forms.

Under the root lie either

* `images/` with `train.csv`, `val.csv` and `test.csv` (columns filename and label),
* `train/`, `val/` and `test/` with one folder a class, or
* three pickles, `mini-imagenet-cache-{train,val,test}.pkl` or
  `miniImageNet_category_split_{train_phase_train,val,test}.pickle`, which are read without running them.
"""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_vsm.data.cache import cached_splits
from pyro_vsm.data.class_files import ClassFiles, existing_folder, find_classes, fingerprint
from pyro_vsm.data.decode import cores, fit_array
from pyro_vsm.data.folder import load_class_files, split_folders
from pyro_vsm.data.images import ClassImages, Splits
from pyro_vsm.data.safe_pickle import numeric_array, read_pickle
from pyro_vsm.data.sources import SOURCES, DataConfig
from pyro_vsm.errors import UserError

_NAME = "mini-imagenet"
_SIZE = 84
_CLASSES = {"train": 64, "validation": 16, "test": 20}
_IMAGES = 600
_CSV = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
_PICKLES = (
    {part: f"mini-imagenet-cache-{short}.pkl" for part, short in zip(_CSV, ("train", "val", "test"))},
    {
        part: f"miniImageNet_category_split_{short}.pickle"
        for part, short in zip(_CSV, ("train_phase_train", "val", "test"))
    },
)


def load_mini_imagenet(config: DataConfig) -> Splits:
    """Loads miniImageNet from whichever layout lies under the root.

    Raises:
        UserError: if no layout is there whole, or a file of it is broken.
    """
    root = existing_folder(config.root, f"data set {_NAME!r}")
    size = config.image_size or _SIZE
    if any((root / name).exists() for name in _CSV.values()):
        return _from_files(root, _read_tables(root), config, size)
    for names in _PICKLES:
        if any((root / name).exists() for name in names.values()):
            return _from_pickles(root, names, config, size)
    folders = split_folders(root)
    if folders:
        return _from_files(root, {part: find_classes(f) for part, f in folders.items()}, config, size)
    raise UserError(
        f"{root} holds no miniImageNet in a known layout: looked for train.csv, val.csv and test.csv beside "
        f"images/, for train/, val/ and test/ with one folder a class, and for {_PICKLES[0]['train']} and "
        f"{_PICKLES[1]['train']} with their val and test"
    )


def _from_files(root: Path, files: dict[str, ClassFiles], config: DataConfig, size: int) -> Splits:
    counts = {part: [len(paths) for paths in classes.values()] for part, classes in files.items()}
    return load_class_files(_NAME, root, files, config, size, _unusual(counts))


def _unusual(counts: dict[str, list[int]]) -> list[str]:
    """A line on each split that is not the published one: results are then not comparable."""
    return [
        f"{part} has {len(counts[part])} classes and {sum(counts[part])} images, the published split has "
        f"{classes} and {classes * _IMAGES}: results will not be comparable"
        for part, classes in _CLASSES.items()
        if counts[part] != [_IMAGES] * classes
    ]


def _read_tables(root: Path) -> dict[str, ClassFiles]:
    """Class -> files of each split, from the three tables."""
    images = root / "images"
    if not images.is_dir():
        raise UserError(f"{root} has csv files but no folder images/: put the images there")
    return {part: _read_table(root / name, images) for part, name in _CSV.items()}


def _read_table(table: Path, images: Path) -> ClassFiles:
    classes: ClassFiles = {}
    listed: set[PurePosixPath] = set()
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            absent = {"filename", "label"} - set(rows.fieldnames or ())
            if absent:
                raise UserError(
                    f"{table} has no column {' and no column '.join(sorted(absent))}: its first line must be "
                    "'filename,label'"
                )
            for row in rows:
                name, label = row["filename"], row["label"]
                if not name or not label:
                    raise UserError(f"{table}, line {rows.line_num}, lacks a file name or a label: mend the line")
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts or "\0" in name:
                    raise UserError(f"{table}, line {rows.line_num}, points outside images/ ({name!r}): give another")
                if path in listed:
                    raise UserError(
                        f"{table}, line {rows.line_num}, lists {name!r} a second time: an image could then be its "
                        "own example; remove the line"
                    )
                listed.add(path)
                classes.setdefault(label, []).append(images / name)
    except FileNotFoundError as error:
        raise UserError(f"{table} does not exist, though other splits' tables do: add it") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no readable csv file ({error}): download it again") from error
    _enough(len(classes), table)
    return {label: sorted(classes[label]) for label in sorted(classes)}


def _enough(classes: int, source: Path) -> None:
    if classes < 2:
        raise UserError(f"{source} holds {classes} class(es), but an episode needs two at least: is it complete?")


def _from_pickles(root: Path, names: dict[str, str], config: DataConfig, size: int) -> Splits:
    paths = {part: root / name for part, name in names.items()}
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"{path} does not exist, though other splits' pickles do: add it")

    def build() -> tuple[Splits, list[str]]:
        parts = {part: _read_split(path, size, config.threads) for part, path in paths.items()}
        counts = {part: data.counts.tolist() for part, data in parts.items()}
        return Splits(_NAME, parts["train"], parts["validation"], parts["test"]), _unusual(counts)

    key = {"pickles": 1, "size": size, "files": fingerprint(root, list(paths.values()))}
    return cached_splits(_NAME, key, build, use=config.cache)


def _read_split(path: Path, size: int, threads: int) -> ClassImages:
    """One split from one pickle of either kind."""
    content = read_pickle(path)
    keys = set(content) if isinstance(content, dict) else set()
    if {"image_data", "class_dict"} <= keys:
        pixels, classes = content["image_data"], content["class_dict"]
        if not isinstance(classes, dict):
            raise UserError(f"{path}: class_dict is no dictionary of class names: download the file again")
        indices = {str(name): numeric_array(where) for name, where in classes.items()}
    elif {"data", "labels"} <= keys:
        pixels, indices = content["data"], _by_label(content, path)
    else:
        raise UserError(f"{path} holds neither image_data and class_dict nor data and labels: no miniImageNet pickle")
    images = numeric_array(pixels)
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(f"{path}: its images are no uint8 array [images, height, width, 3]: download it again")
    if 0 in images.shape:
        raise UserError(f"{path} holds no images: download it again")
    _enough(len(indices), path)
    order, counts = [], []
    for name in sorted(indices):
        where = indices[name]
        if where is None or where.ndim != 1 or where.dtype.kind not in "iu" or len(where) == 0:
            raise UserError(f"{path}: class {name!r} has no list of image numbers: download the file again")
        if where.min() < 0 or where.max() >= len(images):
            raise UserError(f"{path}: class {name!r} points beyond the {len(images)} images: download the file again")
        order.append(where.astype(np.int64))
        counts.append(len(where))
    sorted_images = _resized(images, np.concatenate(order), size, threads)
    return ClassImages(torch.from_numpy(sorted_images), torch.tensor(counts), tuple(sorted(indices)))


def _by_label(content: dict[str, Any], path: Path) -> dict[str, NDArray[Any] | None]:
    """Image numbers of each class, named by `catname2label` where that is given."""
    labels = numeric_array(content["labels"])
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: labels is no list of whole numbers: download the file again")
    given = content.get("catname2label")
    names = {label: str(name) for name, label in given.items()} if isinstance(given, dict) else {}
    return {names.get(label, str(label)): np.flatnonzero(labels == label) for label in np.unique(labels).tolist()}


def _resized(images: NDArray[Any], order: NDArray[np.int64], size: int, threads: int) -> NDArray[np.uint8]:
    """`[I, H, W, 3]` in the given order, as `[I, 3, size, size]`; the threads each fill rows of their own."""
    out = np.empty((len(order), 3, size, size), dtype=np.uint8)

    def work(start: int) -> None:
        rows = slice(start, start + 256)
        chunk = images[order[rows]]
        if images.shape[1:3] != (size, size):
            chunk = np.stack([fit_array(image, size) for image in chunk])
        out[rows] = chunk.transpose(0, 3, 1, 2)

    with ThreadPoolExecutor(threads or cores()) as pool:
        list(pool.map(work, range(0, len(order), 256)))
    return out


SOURCES[_NAME] = load_mini_imagenet
