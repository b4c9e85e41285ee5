"""Small data sets, written by the tests themselves; every test has a cache folder of its own."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vsm.data.images import ClassImages


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PYRO_VSM_CACHE", str(folder))
    return folder


@pytest.fixture
def make_set() -> Callable[..., ClassImages]:
    def make(counts: list[int], channels: int = 3, size: int = 8, prefix: str = "class") -> ClassImages:
        generator = torch.Generator().manual_seed(sum(counts))
        images = torch.randint(0, 256, (sum(counts), channels, size, size), dtype=torch.uint8, generator=generator)
        return ClassImages(images, torch.tensor(counts), tuple(f"{prefix} {i}" for i in range(len(counts))))

    return make


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """Writes an image of random pixels; lossless unless the ending says otherwise."""

    def write(path: Path, seed: int = 0, size: int = 84) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def write_tree(write_image: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a folder for each class, with as many PNG images as asked for."""

    def write(root: Path, classes: dict[str, int], size: int = 84) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        for name, count in classes.items():
            for i in range(count):
                seed = zlib.crc32(f"{root.name}/{name}/{i}".encode())
                write_image(root / name / f"{i}.png", seed=seed, size=size)
        return root

    return write
