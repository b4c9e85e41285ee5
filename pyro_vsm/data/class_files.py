"""Image files that lie in one folder a class: finding, fingerprinting and decoding them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pyro_vsm.data.decode import BadFiles, decode_images
from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError

ENDINGS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".png",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".avif",
    ]
)

ClassFiles = dict[str, list[Path]]
"""Class name -> its image files; both sorted."""


def existing_folder(root: str | os.PathLike[str] | None, what: str) -> Path:
    """The folder `root`, or a UserError that names `what` needs it."""
    if not root:
        raise UserError(f"{what} needs a folder: set root to where its images lie")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{what}: {folder} {state}: set root to where the images lie")
    return folder


def find_classes(root: Path) -> ClassFiles:
    """Every folder below `root` that holds images itself, named by its path relative to `root`.

    Hidden files and files with other endings are passed over. Links are followed, each real folder once, so a
    loop of links ends; one to a folder above `root` is not, as that would lead into the other splits.
    """
    found: ClassFiles = {}
    seen = {str(path) for path in Path(os.path.realpath(root)).parents}
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        files, folders = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        folders.append(folder / entry.name)
                    elif os.path.splitext(entry.name)[1].lower() not in ENDINGS:
                        continue
                    elif entry.is_symlink() or entry.is_file():  # no pipe; a dead link is reported when decoded
                        files.append(folder / entry.name)
        except OSError as error:
            raise UserError(f"folder {folder} cannot be read ({error}): check its permissions") from error
        waiting += sorted(folders, reverse=True)
        if files and folder != root:
            found[folder.relative_to(root).as_posix()] = sorted(files)
    return dict(sorted(found.items()))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def fingerprint(root: Path, files: Sequence[Path]) -> str:
    """Hash over names relative to `root`, sizes and times of change: another one means another content."""
    total = hashlib.sha256()
    for path in files:
        try:
            stat = path.stat()
            line = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            line = "missing"  # decoding it says what to do
        name = os.fsencode(path.relative_to(root))
        total.update(f"{len(name)} ".encode() + name + f" {line}\n".encode())
    return total.hexdigest()


def decode_classes(
    classes: Mapping[str, Sequence[Path]],
    size: int,
    channels: int = 3,
    *,
    bad_files: BadFiles = "stop",
    threads: int = 0,
    what: str = "the data",
) -> tuple[ClassImages, list[str]]:
    """Decodes the files of all classes.

    Args:
        classes: class name -> files, in the order wanted.
        size: height and width of the result.
        channels: 3 for colour, 1 for grey.
        bad_files: "stop" at the first bad file or "skip" bad files; a class with no good one is left out.
        threads: how many; 0 takes as many as help.
        what: the data, in words, for messages.

    Returns:
        The images and lines on what was skipped.

    Raises:
        UserError: for a bad file if `bad_files` is "stop", or if no image is left.
    """
    names = list(classes)
    paths = [path for files in classes.values() for path in files]
    sizes = torch.tensor([len(files) for files in classes.values()], dtype=torch.int64)
    images, good, notes = decode_images(paths, size, channels, bad_files=bad_files, threads=threads)
    labels = torch.arange(len(names)).repeat_interleave(sizes)
    counts = torch.bincount(labels[good], minlength=len(names))
    left_out = [name for name, count in zip(names, counts.tolist()) if count == 0]
    notes += [f"left out: class {name!r} of {what} has no readable image" for name in left_out]
    if len(left_out) == len(names):
        raise UserError(f"{what} holds no readable image: check the folder, or copy the images again")
    kept = tuple(name for name, count in zip(names, counts.tolist()) if count)
    return ClassImages(images, counts[counts > 0], kept), notes
