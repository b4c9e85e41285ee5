"""CIFAR-FS (Bertinetto et al. 2019): the 100 classes of CIFAR-100, split 64/16/20 by name, 600 images of 32x32 each.

Under the root lies torchvision's layout, `cifar-100-python/` with the pickles `train`, `test` and `meta`, or the
archive `cifar-100-python.tar.gz` that holds them; the pickles are read without running anything in them. One folder
of images a class, named as in CIFAR-100 (the published archive of CIFAR-FS), is read as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_vsm.data.archives import read_tar_members
from pyro_vsm.data.cache import cached_splits
from pyro_vsm.data.class_files import existing_folder, find_classes, fingerprint
from pyro_vsm.data.decode import fit_array
from pyro_vsm.data.folder import load_class_files
from pyro_vsm.data.images import ClassImages, Splits
from pyro_vsm.data.safe_pickle import numeric_array, read_pickle, read_pickle_bytes
from pyro_vsm.data.sources import SOURCES, DataConfig
from pyro_vsm.data.split_lists import split_names
from pyro_vsm.errors import UserError

_NAME = "cifar-fs"
_SIZE = 32
_IMAGES = 600
_FOLDER = "cifar-100-python"
_FILES = ("train", "test", "meta")


def load_cifar_fs(config: DataConfig) -> Splits:
    """Loads CIFAR-FS.

    Raises:
        UserError: if no layout is there whole, a class is missing, or a file is broken.
    """
    root = existing_folder(config.root, f"data set {_NAME!r}")
    size = config.image_size or _SIZE
    for folder in (root / _FOLDER, root):
        if (folder / "meta").is_file():
            return _from_pickles(config, size, folder=folder)
    archive = root / f"{_FOLDER}.tar.gz"
    if archive.is_file():
        return _from_pickles(config, size, archive=archive)
    classes = {Path(name).name: paths for name, paths in find_classes(root).items()}
    splits = split_names(_NAME.replace("-", "_"))
    if set(classes) >= {c for names in splits.values() for c in names}:
        files = {part: {c: classes[c] for c in sorted(names)} for part, names in splits.items()}
        counts = {c: len(paths) for part in files.values() for c, paths in part.items()}
        return load_class_files(_NAME, root, files, config, size, _unusual(counts))
    raise UserError(
        f"{root} holds no CIFAR-100 in a known layout: looked for {_FOLDER}/ or {_FOLDER}.tar.gz as torchvision "
        "leaves them, and for 100 class folders; 'pyro-vsm data prepare cifar-fs' says how to get it"
    )


def _unusual(counts: dict[str, int]) -> list[str]:
    wrong = sorted(c for c, count in counts.items() if count != _IMAGES)
    if not wrong:
        return []
    return [
        f"{len(wrong)} classes do not have the published {_IMAGES} images ({wrong[0]} has {counts[wrong[0]]}): "
        "results will not be comparable"
    ]


def _from_pickles(
    config: DataConfig, size: int, *, folder: Path | None = None, archive: Path | None = None
) -> Splits:
    if folder is not None:
        place, files = folder, [folder / name for name in _FILES]
        for path in files:
            if not path.is_file():
                raise UserError(f"{path} does not exist, though other files of CIFAR-100 do: add it")
    else:
        assert archive is not None
        place, files = archive, [archive]

    def build() -> tuple[Splits, list[str]]:
        if archive is not None:
            raw = read_tar_members(archive, {name: f"{_FOLDER}/{name}" for name in _FILES})
            content = {name: read_pickle_bytes(raw[name], archive / name) for name in _FILES}
        else:
            content = {path.name: read_pickle(path) for path in files}
        names = _class_names(content["meta"], place)
        batches = [_batch(content[name], len(names), place / name) for name in ("train", "test")]
        images = np.concatenate([pixels for pixels, _ in batches])
        labels = np.concatenate([numbers for _, numbers in batches])
        counts = dict(zip(names, np.bincount(labels, minlength=len(names)).tolist()))
        parts = {}
        for part, wanted in split_names("cifar_fs").items():
            missing = [c for c in wanted if not counts.get(c)]
            if missing:
                raise UserError(f"{place} lacks class {missing[0]!r} of CIFAR-FS: is it CIFAR-100, and whole?")
            order = np.concatenate([np.flatnonzero(labels == names.index(c)) for c in wanted])
            parts[part] = ClassImages(_sized(images[order], size), torch.tensor([counts[c] for c in wanted]), wanted)
        return Splits(_NAME, parts["train"], parts["validation"], parts["test"]), _unusual(counts)

    key = {"cifar": 1, "size": size, "files": fingerprint(place.parent, files)}
    return cached_splits(_NAME, key, build, use=config.cache)


def _class_names(meta: Any, place: Path) -> list[str]:
    names = meta.get("fine_label_names") if isinstance(meta, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{place / 'meta'} holds no list fine_label_names: is it CIFAR-100 for Python?")
    return names


def _batch(content: Any, classes: int, place: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images `[I, 3, 32, 32]` and class numbers `[I]` of one pickle."""
    known = content if isinstance(content, dict) else {}
    pixels, labels = numeric_array(known.get("data")), numeric_array(known.get("fine_labels"))
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3 * _SIZE**2:
        raise UserError(f"{place}: data is no uint8 array [images, 3072]: is it CIFAR-100 for Python?")
    if labels is None or labels.dtype.kind not in "iu" or labels.shape != (len(pixels),):
        raise UserError(f"{place}: fine_labels is no list with a number for each image: download it again")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(f"{place}: a label lies outside the {classes} classes: download it again")
    return pixels.reshape(-1, 3, _SIZE, _SIZE), labels.astype(np.int64)


def _sized(images: NDArray[np.uint8], size: int) -> torch.Tensor:
    if size == _SIZE:
        return torch.from_numpy(images)
    fitted = [fit_array(image.transpose(1, 2, 0), size).transpose(2, 0, 1) for image in images]
    return torch.from_numpy(np.stack(fitted))


SOURCES[_NAME] = load_cifar_fs
