"""tieredImageNet (Ren et al. 2018): 608 classes of ImageNet, split 351/97/160 so that splits share no category.

Under the root (or its folder `tiered-imagenet`) lie either

* the published pickles, `{train,val,test}_images_png.pkl` (a list of PNG files as arrays) with
  `{train,val,test}_labels.pkl`, which are read piece by piece and without running anything in them, or
* one folder of images a class, named by WordNet id: all of ImageNet (in the root or in `train/`), split by the list
  in the package, or `train/`, `val/` and `test/` with their classes.

779 165 images of 84x84 make 16.5 GB: they are decoded into the cache file, and mapped from there. The published
images were squeezed to a square; from folders, the shorter side is scaled and the centre cut out, as everywhere else
here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pyro_vsm.data.class_files import ClassFiles, existing_folder, find_classes, fingerprint
from pyro_vsm.data.decode import cores, decode_content, decode_images
from pyro_vsm.data.folder import load_class_files, split_folders
from pyro_vsm.data.images import Splits
from pyro_vsm.data.pickle_stream import stream_list
from pyro_vsm.data.safe_pickle import StoredArray, numeric_array, read_pickle
from pyro_vsm.data.sources import SOURCES, DataConfig
from pyro_vsm.data.split_lists import split_names
from pyro_vsm.data.streamed import Layout, Store, streamed_splits
from pyro_vsm.errors import UserError

_NAME = "tiered-imagenet"
_SIZE = 84
_SHORT = {"train": "train", "validation": "val", "test": "test"}
PUBLISHED = {"train": (351, 448_695), "validation": (97, 124_261), "test": (160, 206_209)}
"""Classes and images of each split."""
_CHUNK = 2048  # files decoded before they are written


def load_tiered_imagenet(config: DataConfig) -> Splits:
    """Loads tieredImageNet from whichever layout lies under the root.

    Raises:
        UserError: if no layout is there whole, or a file of it is broken.
    """
    root = existing_folder(config.root, f"data set {_NAME!r}")
    size = config.image_size or _SIZE
    for folder in (root / "tiered-imagenet", root):
        if any((folder / f"{short}_images_png.pkl").exists() for short in _SHORT.values()):
            return _from_pickles(folder, config, size)
    lists = split_names("tiered_imagenet")
    for folder in (root / "train", root):  # ImageNet
        if folder.is_dir() and all((folder / c).is_dir() for names in lists.values() for c in names):
            classes = find_classes(folder)
            return _from_folders(
                root, {p: {c: classes[c] for c in names} for p, names in lists.items()}, config, size
            )
    folders = split_folders(root)
    if folders:
        return _from_folders(root, {part: find_classes(folder) for part, folder in folders.items()}, config, size)
    raise UserError(
        f"{root} holds no tieredImageNet in a known layout: looked for train_images_png.pkl and train_labels.pkl "
        "with their val and test, for the 608 folders of ImageNet by WordNet id, and for train/, val/ and test/ with "
        "one folder a class; 'pyro-vsm data prepare tiered-imagenet' says where to get it"
    )


def _unusual(layouts: dict[str, Layout]) -> list[str]:
    return [
        f"{part} has {len(layouts[part].counts)} classes and {sum(layouts[part].counts)} images, the published split "
        f"has {classes} and {images}: results will not be comparable"
        for part, (classes, images) in PUBLISHED.items()
        if (len(layouts[part].counts), sum(layouts[part].counts)) != (classes, images)
    ]


# --- the published pickles ------------------------------------------------------------------------------------------


def _from_pickles(folder: Path, config: DataConfig, size: int) -> Splits:
    paths = {part: folder / f"{short}_images_png.pkl" for part, short in _SHORT.items()}
    labels = {part: folder / f"{short}_labels.pkl" for part, short in _SHORT.items()}
    for path in (*paths.values(), *labels.values()):
        if not path.is_file():
            raise UserError(f"{path} does not exist, though other files of tieredImageNet do: add it")
    layouts, positions = {}, {}
    for part, path in labels.items():
        layouts[part], positions[part] = _read_labels(path)

    def fill(store: Store) -> list[str]:
        for part, path in paths.items():
            _decode_list(path, positions[part], size, config.threads, partial(store.put, part))
        return _unusual(layouts)

    files = [*paths.values(), *labels.values()]
    key = {"tiered pickles": 1, "size": size, "files": fingerprint(folder, files)}
    return streamed_splits(_NAME, key, (3, size, size), layouts, fill, use=config.cache)


def _read_labels(path: Path) -> tuple[Layout, NDArray[np.int64]]:
    """What a split holds, and where each image of the list belongs in the order by class."""
    content = read_pickle(path)
    known = content if isinstance(content, dict) else {}
    labels = numeric_array(known.get("label_specific"))
    names = known.get("label_specific_str")
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0:
        raise UserError(f"{path}: label_specific is no list of whole numbers: download the file again")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: label_specific_str is no list of class names: download the file again")
    counts = np.bincount(labels) if labels.min() >= 0 else np.zeros(0, dtype=np.int64)
    if len(counts) != len(names) or not counts.all():
        raise UserError(f"{path}: its labels do not fit its {len(names)} class names: download the file again")
    positions = np.empty(len(labels), dtype=np.int64)
    positions[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    distinct = [name if names.index(name) == i else f"{name} ({i})" for i, name in enumerate(names)]
    return Layout(tuple(distinct), tuple(counts.tolist())), positions


def _decode_list(
    path: Path,
    positions: NDArray[np.int64],
    size: int,
    threads: int,
    put: Callable[[NDArray[np.int64], NDArray[np.uint8]], None],
) -> None:
    """Decodes a pickled list of encoded images and puts each where `positions` says."""
    done = 0

    def decode(numbered: tuple[int, Any]) -> NDArray[np.uint8]:
        number, item = numbered
        array = item.array if isinstance(item, StoredArray) else np.frombuffer(item, np.uint8)
        if array is None or array.dtype != np.uint8:
            raise UserError(f"{path}: image {number} is no array of bytes: download the file again")
        pixels = decode_content(array.tobytes(), Path(f"{path}, image {number}"), size)
        return pixels.transpose(2, 0, 1)

    bar = tqdm(total=len(positions), desc=f"decoding {path.name}", unit="images", delay=2, disable=None, leave=False)
    with ThreadPoolExecutor(threads or cores()) as pool, bar:

        def take(items: list[Any]) -> None:
            nonlocal done
            if done + len(items) > len(positions):
                raise UserError(f"{path} holds more images than its labels ({len(positions)}): download both again")
            chunk = max(1, len(items) // (8 * cores()))
            images = np.stack(_map(pool, decode, list(enumerate(items, done)), chunk))
            put(positions[done : done + len(items)], images)
            done += len(items)
            bar.update(len(items))

        stream_list(path, take)
    if done != len(positions):
        raise UserError(f"{path} holds {done} images, but there are {len(positions)} labels: download both again")


def _map(pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Sequence[Any], chunk: int) -> list[Any]:
    """As `pool.map`, a thread working on `chunk` items at once: taking turns costs more than one PNG."""
    starts = range(0, len(items), chunk)
    parts = pool.map(lambda start: [work(item) for item in items[start : start + chunk]], starts)
    return [result for part in parts for result in part]


# --- class folders --------------------------------------------------------------------------------------------------


def _from_folders(root: Path, files: dict[str, ClassFiles], config: DataConfig, size: int) -> Splits:
    layouts = {p: Layout(tuple(classes), tuple(map(len, classes.values()))) for p, classes in files.items()}
    notes = _unusual(layouts)
    if config.bad_files == "skip":  # how many images there will be is not known beforehand
        return load_class_files(_NAME, root, files, config, size, notes)

    def fill(store: Store) -> list[str]:
        for part, classes in files.items():
            paths = [path for each in classes.values() for path in each]
            for start in range(0, len(paths), _CHUNK):
                images, _, _ = decode_images(paths[start : start + _CHUNK], size, threads=config.threads)
                store.put(part, np.arange(start, start + len(images)), images.numpy())
        return notes

    every = [path for classes in files.values() for paths in classes.values() for path in paths]
    key = {
        "tiered folders": 1,
        "size": size,
        "files": fingerprint(root, every),
        "classes": {part: {c: len(paths) for c, paths in classes.items()} for part, classes in files.items()},
    }
    return streamed_splits(_NAME, key, (3, size, size), layouts, fill, use=config.cache)


SOURCES[_NAME] = load_tiered_imagenet
