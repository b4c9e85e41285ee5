"""Miniature data sets in the formats that the real ones have, written by the tests themselves."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    """An image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# --- pickles of Python 2, which published data sets have and which Python 3 cannot write ----------------------------


def python2_pickle(value: Any) -> bytes:
    """Protocol 2 as Python 2 writes it: byte strings, every object numbered; containers, numbers, uint8 arrays."""
    writer = Python2Pickler()
    return b"\x80\x02" + b"".join(writer.pieces(value)) + b"."


class Python2Pickler:
    """Writes opcodes; numbers objects as it goes."""

    def __init__(self) -> None:
        self.count = 0
        self.globals: dict[tuple[str, str], int] = {}

    def put(self) -> bytes:
        self.count += 1
        number = self.count - 1
        return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def name(self, module: str, name: str) -> bytes:
        number = self.globals.get((module, name))
        if number is not None:
            return b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number)
        self.globals[module, name] = self.count
        return f"c{module}\n{name}\n".encode() + self.put()

    def string(self, value: bytes) -> bytes:
        short = len(value) < 256
        return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value + self.put()

    def pieces(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, dict):
            yield b"}" + self.put() + b"("
            for key, item in value.items():
                yield from self.pieces(key)
                yield from self.pieces(item)
            yield b"u"
        elif isinstance(value, list):
            yield from self.list(value)
        elif isinstance(value, str | bytes):
            yield self.string(value.encode() if isinstance(value, str) else value)
        elif isinstance(value, bool) or value is None:
            yield {True: b"\x88", False: b"\x89", None: b"N"}[value]
        elif isinstance(value, int):
            yield b"J" + struct.pack("<i", value)
        elif isinstance(value, np.ndarray):
            yield self.array(value)
        else:
            raise TypeError(type(value))

    def list(self, items: Iterable[Any]) -> Iterator[bytes]:
        yield b"]" + self.put()
        batch: list[bytes] = []
        for item in items:
            batch.append(b"".join(self.pieces(item)))
            if len(batch) == 1000:
                yield b"(" + b"".join(batch) + b"e"
                batch = []
        if batch:
            yield b"(" + b"".join(batch) + b"e"

    def array(self, value: np.ndarray) -> bytes:
        code = {"uint8": b"u1", "int64": b"i8", "int32": b"i4"}[value.dtype.name]
        shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in value.shape) + b"t" + self.put()
        order = self.string(b"|" if value.dtype.itemsize == 1 else b"<")
        return (
            self.name("numpy.core.multiarray", "_reconstruct")
            + (self.name("numpy", "ndarray") + b"K\x00\x85" + self.put() + self.string(b"b") + b"\x87" + self.put())
            + (b"R" + self.put() + b"(K\x01" + shape)
            + (self.name("numpy", "dtype") + self.string(code) + b"K\x00K\x01\x87" + self.put() + b"R" + self.put())
            + (b"(K\x03" + order + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t" + self.put() + b"b")
            + (b"\x89" + self.string(value.tobytes()) + b"t" + self.put() + b"b")
        )


# --- data sets ------------------------------------------------------------------------------------------------------


def write_tiered(root: Path, parts: dict[str, dict[str, list[np.ndarray]]], protocol: int | None = None) -> Path:
    """The published pickles: images of each class of each split, in a shuffled order.

    Args:
        root: folder to make.
        parts: train, val and test: class -> images `[H, W, 3]`.
        protocol: of Python 3, or None for Python 2's.
    """
    root.mkdir(parents=True, exist_ok=True)
    for part, classes in parts.items():
        labelled = [(label, image) for label, images in enumerate(classes.values()) for image in images]
        order = np.random.default_rng(0).permutation(len(labelled))
        images = [np.frombuffer(png(labelled[i][1]), np.uint8).reshape(-1, 1) for i in order]
        labels = np.array([labelled[i][0] for i in order])
        content = {
            "label_specific": labels.astype(np.int32),
            "label_general": (labels // 2).astype(np.int32),
            "label_specific_str": list(classes),
            "label_general_str": ["one", "other"],
        }
        dump = python2_pickle if protocol is None else lambda value: pickle.dumps(value, protocol)
        (root / f"{part}_images_png.pkl").write_bytes(dump(images))
        (root / f"{part}_labels.pkl").write_bytes(dump(content))
    return root


def write_cifar(root: Path, images: dict[str, list[np.ndarray]], tar: bool = False) -> Path:
    """CIFAR-100 for Python: every third image of a class in `test`, the others in `train`.

    Args:
        root: folder above `cifar-100-python`.
        images: class -> images `[32, 32, 3]`.
        tar: pack the folder into the archive that torchvision downloads.
    """
    names = sorted(images)
    files = {"meta": {"fine_label_names": names, "coarse_label_names": ["things"]}}
    for part, rest in (("train", (0, 1)), ("test", (2,))):
        rows = [(names.index(c), i, p) for c in names for i, p in enumerate(images[c]) if i % 3 in rest]
        rows.sort(key=lambda row: row[1])
        files[part] = {
            "filenames": [f"{c}_{i}.png" for c, i, _ in rows],
            "batch_label": "a batch",
            "fine_labels": [c for c, _, _ in rows],
            "coarse_labels": [0 for _ in rows],
            "data": np.stack([pixels.transpose(2, 0, 1).ravel() for _, _, pixels in rows]),
        }
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(python2_pickle(content))
    if tar:
        with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz") as archive:
            archive.add(folder, "cifar-100-python")
        for name in files:
            (folder / name).unlink()
        folder.rmdir()
    return root


def drawing(character: str, number: int, side: int = 105) -> np.ndarray:
    """A black line on white, as Omniglot's files have it: bool `[side, side]`, True is white."""
    rng = np.random.default_rng([*character.encode(), number])
    white = np.ones((side, side), dtype=bool)
    row = int(rng.integers(10, side - 14))
    white[row : row + 4, 10 : side // 2] = False
    white[10 : side // 3, row : row + 4] = False
    return white


def write_omniglot(root: Path, name: str, characters: Iterable[str], drawings: int = 3, folder: bool = False) -> Path:
    """One set of Omniglot, as a zip file with its folders, or as folders.

    Args:
        root: where to.
        name: of the set, `images_background` for one.
        characters: as in the split lists.
        drawings: of each character.
        folder: unpacked.
    """
    root.mkdir(parents=True, exist_ok=True)
    members = {}
    for number, character in enumerate(characters):
        for i in range(drawings):
            pixels = drawing(character, i)
            members[f"{name}/{character}/{number + 1:04}_{i + 1:02}.png"] = png(pixels)
    if folder:
        for member, content in members.items():
            (root / member).parent.mkdir(parents=True, exist_ok=True)
            (root / member).write_bytes(content)
        return root / name
    with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
        archive.writestr(f"{name}/", b"")
        archive.writestr(f"__MACOSX/{name}/._.png", b"not an image")
        for member, content in members.items():
            archive.writestr(member, content)
    return root / f"{name}.zip"
