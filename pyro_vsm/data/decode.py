"""From image files to uint8 tensors: any common format and mode, one size, many files at once.

An image of another size is scaled so that its shorter side fits and cropped around its centre; an image of
the right size and mode keeps its pixels bit for bit.
"""

from __future__ import annotations

import os
import stat
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from pyro_vsm.errors import UserError

MOST_PIXELS = 64_000_000  # an image that claims more is refused before it is decoded
_MOST_BYTES = 512 << 20  # an uncompressed image of so many pixels is smaller
_CHUNK = 64  # files a thread takes at once
_FEW = 5  # bad files named one by one before they are only counted
# no format that starts another program (EPS) or hides others in itself
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")

BadFiles = Literal["stop", "skip"]


def read_image(path: str | os.PathLike[str], size: int, channels: int = 3) -> Tensor:
    """Reads one image.

    Args:
        path: of the file; of an animation, the first frame is taken.
        size: height and width of the result.
        channels: 3 for colour, 1 for grey.

    Returns:
        uint8 `[channels, size, size]`.

    Raises:
        UserError: if the file is missing, empty, truncated, no image or too large.
    """
    return torch.from_numpy(_decode(Path(path), size, channels).transpose(2, 0, 1).copy())


def decode_images(
    paths: Sequence[Path],
    size: int,
    channels: int = 3,
    *,
    bad_files: BadFiles = "stop",
    threads: int = 0,
) -> tuple[Tensor, Tensor, list[str]]:
    """Decodes files in parallel; the result does not depend on the number of threads.

    Args:
        paths: the files.
        size: height and width of the result.
        channels: 3 for colour, 1 for grey.
        bad_files: "stop" at the first bad file, in the order of `paths`, or "skip" bad files.
        threads: how many; 0 takes as many as help, at most one a core.

    Returns:
        Images uint8 `[I, channels, size, size]` of the good files, a bool tensor `[len(paths)]` that marks
        them, and a line on each skipped file (a count instead from the sixth on).

    Raises:
        UserError: for a bad file if `bad_files` is "stop".
    """
    out = np.empty((len(paths), channels, size, size), dtype=np.uint8)

    def work(start: int) -> list[tuple[int, str]]:
        bad = []
        for i in range(start, min(start + _CHUNK, len(paths))):
            try:
                out[i] = _decode(paths[i], size, channels).transpose(2, 0, 1)
            except UserError as error:
                if bad_files == "stop":
                    raise
                bad.append((i, str(error)))
        return bad

    bad: list[tuple[int, str]] = []
    _formats()  # once, before the threads all ask for it
    pool = ThreadPoolExecutor(threads or _useful_threads(paths))
    try:
        results = pool.map(work, range(0, len(paths), _CHUNK))
        for part in _progress(results, -(-len(paths) // _CHUNK)):
            bad += part
    finally:
        pool.shutdown(cancel_futures=True)
    notes = [f"skipped: {line}" for _, line in bad[:_FEW]]
    if len(bad) > _FEW:
        notes.append(f"skipped: {len(bad) - _FEW} further files that cannot be read")
    images, good = torch.from_numpy(out), torch.ones(len(paths), dtype=torch.bool)
    if bad:
        good[torch.tensor([i for i, _ in bad])] = False
        images = images[good]
    return images, good, notes


def fit_array(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scales and crops an array `[H, W, 3]` to `[size, size, 3]`, as files are."""
    return np.asarray(_fit(Image.fromarray(pixels), size))


def fit_image(image: Image.Image, size: int, channels: int = 3) -> Tensor:
    """An image in memory as uint8 `[channels, size, size]`, scaled and cropped as files are.

    Raises:
        UserError: if it holds 32-bit values of unknown range.
    """
    pixels = np.asarray(_flat(_fit(_plain(image, Path("in memory")), size), channels))
    return torch.from_numpy(pixels.reshape(size, size, channels).transpose(2, 0, 1).copy())


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _useful_threads(paths: Sequence[Path]) -> int:
    """Few for small files: Pillow reads headers under the interpreter lock, and 16 threads take turns.

    Measured with 84x84 JPEGs on 16 cores: 201 us an image with 1 thread, 122 with 2, 140 with 4, 281 with 16.
    """
    sizes = [path.stat().st_size for path in paths[:: max(1, len(paths) // 32)] if path.is_file()]
    return min(cores(), max(2, int(statistics.median(sizes)) // 4096)) if sizes else 1


def _progress(results: Iterable[list[tuple[int, str]]], total: int) -> Iterable[list[tuple[int, str]]]:
    """A bar after two seconds, on a terminal only."""
    return tqdm(results, desc="decoding", total=total, unit=f"x{_CHUNK} images", delay=2, disable=None, leave=False)


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _decode(path: Path, size: int, channels: int) -> NDArray[np.uint8]:
    """The file as `[size, size, channels]`."""
    return decode_content(_content(path), path, size, channels)


def decode_content(content: bytes, path: Path, size: int, channels: int = 3) -> NDArray[np.uint8]:
    """An image file's bytes as uint8 `[size, size, channels]`.

    Args:
        content: the bytes.
        path: of the file, or a name for the place that the bytes come from; for messages.
        size: height and width of the result.
        channels: 3 for colour, 1 for grey.

    Raises:
        UserError: see `read_image`.
    """
    try:
        with Image.open(BytesIO(content), formats=_formats()) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise _too_large(path, f"{width}x{height} pixels")
            # a JPEG much too large is decoded at a fraction of its size, still at least twice the target
            image.draft(None, (2 * size * width // min(width, height), 2 * size * height // min(width, height)))
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.asarray(_flat(_fit(_plain(image, path), size), channels))
            return pixels.reshape(size, size, channels)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, "far too many pixels") from error
    except Exception as error:  # on a broken file Pillow raises almost anything
        reason = foreign_content(content) or (
            f"is no readable image ({type(error).__name__}: {error}): replace or remove it, "
            "or skip such files with bad_files=skip"
        )
        raise UserError(f"{path} {reason}") from error


def _content(path: Path) -> bytes:
    """The whole file at once: many small reads would hand the interpreter lock from thread to thread."""
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            raise UserError(f"{path} is a folder, not an image: give a file")
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{path} is a pipe or a device, not an image: give a file")
        if about.st_size > _MOST_BYTES:
            raise UserError(f"{path} has {about.st_size >> 20} MiB, the limit is {_MOST_BYTES >> 20}: scale it down")
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except FileNotFoundError as error:
        raise UserError(f"image {path} does not exist: check the path") from error
    except OSError as error:
        raise UserError(f"image {path} cannot be read ({error}): check its permissions and the disk") from error


def _too_large(path: Path, what: str) -> UserError:
    return UserError(f"image {path} has {what}, the limit is {MOST_PIXELS // 10**6} million: scale it down")


def foreign_content(content: bytes) -> str | None:
    """Says what a file's first bytes show it to be, and what to do; None if it is nothing known."""
    head = content[:256].lstrip().lower()
    if not head:
        return "is empty: download or copy it again"
    if head.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, probably the download site's error page: download the file again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: fetch it with 'git lfs pull'"
    return None


def _plain(image: Image.Image, path: Path) -> Image.Image:
    """The image in mode L, RGB, LA or RGBA."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if mode in ("I", "F"):
        raise UserError(f"image {path} holds 32-bit values of unknown range: convert it to 8 or 16 bits")
    if mode in ("PA", "La", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA")
    if mode == "1":
        return image.convert("L")
    return image if mode in ("L", "RGB", "LA", "RGBA") else image.convert("RGB")


def _fit(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size`, then the centre; in one step, as the crop can be made first."""
    width, height = image.size
    if (width, height) == (size, size):
        return image
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _flat(image: Image.Image, channels: int) -> Image.Image:
    """Alpha over white, then grey or colour."""
    if image.mode in ("LA", "RGBA"):
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        image = Image.alpha_composite(white, colour).convert("RGB")
    wanted = "RGB" if channels == 3 else "L"
    return image if image.mode == wanted else image.convert(wanted)
