"""What is fuzzed: each reader takes bytes of unknown origin, and may answer with a `UserError` and nothing else."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import pickle
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pyro_vsm import checkpoint
from pyro_vsm.config import Config
from pyro_vsm.data import DataConfig
from pyro_vsm.data import load as load_data
from pyro_vsm.data.archives import ImageZip
from pyro_vsm.data.cache import read_splits
from pyro_vsm.data.decode import decode_content
from pyro_vsm.data.pickle_stream import stream_list
from pyro_vsm.data.safe_pickle import numeric_array, read_pickle_bytes
from pyro_vsm.errors import UserError
from pyro_vsm.loading import load_model, read_config
from pyro_vsm.results import EpisodeResults
from pyro_vsm.run import read_metrics


@dataclass(frozen=True)
class Reader:
    """A reader and what it is started from.

    Attributes:
        read: takes bytes; only `UserError` may come out.
        seeds: sound inputs.
        words: pieces that make interesting inputs.
    """

    read: Callable[[bytes], object]
    seeds: Callable[[], Iterator[bytes]]
    words: tuple[bytes, ...] = ()


_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz")
_HERE = Path(_FOLDER.name)


def _file(name: str, content: bytes) -> Path:
    path = _HERE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- images -------------------------------------------------------------------------------------------------


def image(content: bytes) -> None:
    """An image file."""
    pixels = decode_content(content, Path("fuzzed"), 16)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8


def images() -> Iterator[bytes]:
    """A small one of each format and some modes."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8))
    kinds = [
        ("RGB", "PNG"),
        ("P", "PNG"),
        ("LA", "PNG"),
        ("1", "PNG"),
        ("I;16", "PNG"),
        ("RGB", "JPEG"),
        ("L", "JPEG"),
    ]
    kinds += [("CMYK", "JPEG"), ("RGB", "BMP"), ("P", "GIF"), ("RGB", "WEBP"), ("RGB", "TIFF"), ("CMYK", "TIFF")]
    kinds += [("F", "TIFF"), ("RGB", "PPM"), ("L", "PPM"), ("RGB", "JPEG2000"), ("RGBA", "AVIF")]
    for mode, form in kinds:
        buffer = io.BytesIO()
        with contextlib.suppress(OSError, KeyError, ValueError):  # a format that this Pillow does not write
            (noise.convert("L").convert("I;16") if mode == "I;16" else noise.convert(mode)).save(buffer, form)
            yield buffer.getvalue()
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("JPEG", "PNG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        noise.save(buffer, form, exif=exif)
        yield buffer.getvalue()
    buffer = io.BytesIO()
    noise.convert("P").save(buffer, "GIF", save_all=True, append_images=[noise.rotate(90)])
    yield buffer.getvalue()


# --- pickles ------------------------------------------------------------------------------------------------


def unpickled(content: bytes) -> None:
    """A pickle of arrays; only plain things may come out."""
    waiting, seen = [read_pickle_bytes(content, Path("fuzzed"))], 0
    while waiting and seen < 10_000:
        value, seen = waiting.pop(), seen + 1
        numeric_array(value)
        name = type(value).__module__ + "." + type(value).__name__
        assert name.startswith(("builtins.", "pyro_vsm.data.safe_pickle.")), name
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += list(value)


def streamed(content: bytes) -> None:
    """A pickled list, piece by piece."""
    stream_list(_file("list.pkl", content), lambda items: None)


def pickles() -> Iterator[bytes]:
    """Of every protocol."""
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for value in (
            {"image_data": array, "class_dict": {"a": [0, 1], "b": [2]}},
            [array, np.asfortranarray(array), np.int64(7), b"x" * 300, "text", 1.5, None, True, (1, (2,))],
            [{"data": array[0], "labels": [1, 2]}],
        ):
            yield pickle.dumps(value, protocol)
    yield b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."


# --- files of this package ----------------------------------------------------------------------------------


def _safetensors(name: str, content: bytes) -> Path:
    """A file whose checksum holds, if only that is wrong: otherwise no fuzzer would get past it."""
    path = _file(name, content)
    with contextlib.suppress(Exception):
        from safetensors import safe_open
        from safetensors.torch import save

        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata())
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header["sha256"] = checkpoint._digest(header["pyro_vsm"], tensors)
        path.write_bytes(save(tensors, header))
    return path


def model(content: bytes) -> None:
    """A checkpoint."""
    load_model(_safetensors("model.safetensors", content))


def models() -> Iterator[bytes]:
    """The smallest ones."""
    kept = Path(__file__).resolve().parent.parent / "checkpoints" / "format1" / "vsm"
    yield (kept / "model.safetensors").read_bytes()
    checkpoint.write(_HERE / "small.safetensors", {"a": torch.ones(2)}, {"system": "pn", "config": {}, "images": {}})
    yield (_HERE / "small.safetensors").read_bytes()


def header(content: bytes) -> None:
    """The JSON in a checkpoint, without the tensors: configuration and what is known of the images."""
    from safetensors.torch import save

    text = content.decode("utf-8", "replace")
    load_model(_file("header.safetensors", save({"a": torch.ones(2)}, {"pyro_vsm": text})))


def headers() -> Iterator[bytes]:
    """Of a real model."""
    for content in models():
        path = _file("seed.safetensors", content)
        meta = checkpoint.read(path)[1]
        yield json.dumps(meta).encode()


def cached(content: bytes) -> None:
    """A data set in the cache: anything broken is rebuilt, which None asks for."""
    found = read_splits(_file("cached.safetensors", content), "{}")
    assert found is None or found[0].train.n_classes > 0


def caches() -> Iterator[bytes]:
    """A small data set."""
    from pyro_vsm.data.cache import _write
    from pyro_vsm.data.images import ClassImages, Splits

    def part(name: str) -> ClassImages:
        images = torch.arange(3 * 2 * 2, dtype=torch.uint8).view(3, 1, 2, 2)
        return ClassImages(images, torch.tensor([1, 2]), (f"{name} 0", f"{name} 1"))

    _write(_HERE / "seed-cache.safetensors", "{}", Splits("toy", part("a"), part("b"), part("c")), ["a note"])
    yield (_HERE / "seed-cache.safetensors").read_bytes()


def results(content: bytes) -> None:
    """Results of an evaluation."""
    EpisodeResults.load(_file("results.safetensors", content))


def some_results() -> Iterator[bytes]:
    """Two episodes."""
    two, pooled = torch.tensor([0.5, 1.0]).double(), torch.tensor([0.5, 0.9, 0.8, 0.7])
    found = EpisodeResults(two, two * 2, two / 2, pooled, pooled > 0.6, 2, 1, 1, 3, 0, 10, 1.0, "data", "hash")
    yield found.save(_HERE / "seed-results.safetensors").read_bytes()


def metrics(content: bytes) -> None:
    """A log."""
    read_metrics(_file("metrics.jsonl", content))


def logs() -> Iterator[bytes]:
    """Two lines."""
    yield b'{"step": 1, "train/loss": 0.5}\n{"step": 2, "validation/accuracy": 1}\n'


def configuration(content: bytes) -> None:
    """A run folder's settings."""
    _file("run/config.yaml", content)
    read_config(_HERE / "run")


def configurations() -> Iterator[bytes]:
    """The default and an old one."""
    import yaml

    yield yaml.safe_dump(Config().to_dict(), sort_keys=False).encode()
    kept = Path(__file__).resolve().parent.parent / "checkpoints" / "format1"
    yield (kept / "config.yaml").read_bytes()


# --- tables and archives ------------------------------------------------------------------------------------


def table(content: bytes) -> None:
    """A csv file of miniImageNet."""
    root = _HERE / "mini"
    if not root.exists():
        (root / "images").mkdir(parents=True)
        for k in range(8):
            Image.new("RGB", (8, 8), (k, k, k)).save(root / "images" / f"{k}.png")
        for part, first in (("val", 4), ("test", 6)):
            rows = [["filename", "label"], [f"{first}.png", f"{part} 0"], [f"{first + 1}.png", f"{part} 1"]]
            with (root / f"{part}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(rows)
    (root / "train.csv").write_bytes(content)
    load_data(DataConfig("mini-imagenet", str(root), 8, cache=False, threads=1), lambda _: None)


def tables() -> Iterator[bytes]:
    """Sound and odd ones."""
    yield b"filename,label\n0.png,a\n1.png,b\n2.png,b\n"
    yield b'\xef\xbb\xbflabel,filename,more\r\n"a",0.png,1\r\nb,"1.png",2\r\n'


def zipped(content: bytes) -> None:
    """A zip file of images."""
    archive = ImageZip(_file("images.zip", content))
    for name in archive.names()[:20]:
        archive.read(name)


def zips() -> Iterator[bytes]:
    """Stored and packed."""
    import zipfile

    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("a/b.png", b"x" * 200)
            archive.writestr("c.jpg", b"")
        yield buffer.getvalue()


_OPCODES = tuple(
    bytes([code]) for code in b"(.0123FGIJKLMNPQRSTUVXabcdeghijlopqrstu}])\x80\x85\x86\x87\x88\x89\x8c\x93\x94"
)
_NAMES = (
    b"numpy.core.multiarray\n_reconstruct\n", b"numpy\nndarray\n", b"numpy\ndtype\n",
    b"numpy.core.numeric\n_frombuffer\n",
    b"_codecs\nencode\n", b"collections\nOrderedDict\n", b"builtins\nbytes\n", b"os\nsystem\n",
)  # fmt: skip

READERS: dict[str, Reader] = {
    "image": Reader(image, images, (b"IHDR", b"IDAT", b"zTXt", b"acTL", b"\xff\xd8\xff", b"II*\0", b"MM\0*")),
    "pickle": Reader(unpickled, pickles, _OPCODES + _NAMES),
    "pickle-stream": Reader(streamed, pickles, _OPCODES + _NAMES),
    "checkpoint": Reader(model, models, (b'"F32"', b'"BF16"', b'"data_offsets"', struct.pack("<Q", 64))),
    "checkpoint-header": Reader(header, headers, (b"null", b"[]", b"{}", b"1e999", b"-1", b'"class_path"', b"vsm")),
    "cache": Reader(cached, caches, (b'"U8"', b'"I64"', b'"data_offsets"')),
    "results": Reader(results, some_results, (b"NaN", b"null", b"[]")),
    "metrics": Reader(metrics, logs, (b"NaN", b"1e999", b"{}", b"[")),
    "configuration": Reader(configuration, configurations, (b"&a ", b"*a", b"!!python/object:", b"<<: ", b"? ")),
    "csv": Reader(table, tables, (b"filename", b"label", b'"', b"../", b"\0")),
    "zip": Reader(zipped, zips, (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06")),
}  # fmt: skip


def harmless(reader: Reader, content: bytes) -> None:
    """Read; a `UserError` with a message is the one answer allowed."""
    try:
        reader.read(content)
    except UserError as error:
        if not str(error).strip():
            raise AssertionError("a refusal without a reason") from error
