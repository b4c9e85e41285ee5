"""Every test starts from a fixed seed and an empty parameter store; tiny images and runs for the application."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start, see clean_start

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from PIL import Image

from pyro_vsm import data as data_sources
from pyro_vsm.cli import main
from pyro_vsm.config import Config
from pyro_vsm.data import DataConfig, Splits
from pyro_vsm.run import Run
from pyro_vsm.systems import ImageSpec, build_model
from pyro_vsm.training import Trainer


@pytest.fixture(autouse=True)
def clean_start():
    """Seed all generators and clear Pyro's parameter store before each test."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    np.random.seed(0)  # noqa: NPY002  the state that users seed
    pyro.enable_validation(True)
    torch.set_num_threads(1)  # the tensors are tiny, and two threads that share a core wait for each other


LONG = ("test_table_devices.py", "test_notebooks.py", "test_parallel.py", "test_faults.py", "test_own_pictures.py")


def pytest_collection_modifyitems(items):
    """Begin with what takes long, or one worker ends alone; skip what needs a CUDA device where there is none."""
    items.sort(key=lambda item: item.path.name not in LONG)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 6 PNG files each, 12 train / 6 val / 6 test; a class is a pattern of stripes in a colour."""
    root = tmp_path_factory.mktemp("tiny images")
    random = np.random.default_rng(0)
    number = 0
    for split, classes in (("train", 12), ("val", 6), ("test", 6)):
        for c in range(classes):
            folder = root / split / f"{split} {c}"
            folder.mkdir(parents=True)
            angle, period, colour = 2.4 * number, 3 + number % 4, random.uniform(0.2, 1, 3)
            number += 1
            for i in range(6):
                side = int(random.integers(28, 41))
                y, x = np.mgrid[:side, :side]
                wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + random.uniform(0, 6))
                pixels = 128 + 100 * wave[..., None] * colour + random.normal(0, 8, (side, side, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def tiny_data(tiny_root: Path) -> Splits:
    """The images of ``tiny_root`` at 28 pixels."""
    return data_sources.load(DataConfig("folder", str(tiny_root), 28, cache=False, threads=1), lambda _: None)


@pytest.fixture(scope="session")
def tiny_settings(tiny_root: Path) -> dict:
    """Settings of a run of a few seconds, as nested dictionaries."""
    return {
        "systems": ["vsm"],
        "data": {"name": "folder", "root": str(tiny_root), "image_size": 28, "cache": False, "threads": 1},
        "episodes": {"way": 3, "shot": 1, "queries": 2, "tasks": 2},
        "model": {
            "backbone": {"class_path": "conv4", "init_args": {"width": 8}},
            "posterior_z": {"class_path": "amortised", "init_args": {"hidden": 16}},
            "address_dim": 4,
            "particles": 2,
        },
        "training": {
            "steps": 8,
            "log_every": 3,
            "validate_every": 4,
            "checkpoint_every": 4,
            "validation_episodes": 4,
            "device": "cpu",
        },
        "evaluation": {"episodes": 6, "queries": 3, "samples": 5},
    }


@pytest.fixture(scope="session")
def tiny_config(tiny_settings: dict) -> Callable[..., Config]:
    """``tiny_config(systems=[...], training={"steps": 2})``: the tiny settings with some changed."""

    def make(**changes) -> Config:
        values = {**tiny_settings}
        for name, change in changes.items():
            values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
        return Config.from_dict(values)

    return make


@pytest.fixture
def make_trainer(tmp_path: Path, tiny_config: Callable[..., Config], tiny_data: Splits) -> Callable[..., Trainer]:
    """``make_trainer("vsm", training={...})``: a fresh trainer from the tiny settings."""

    def make(system: str = "vsm", folder: str = "run", **changes) -> Trainer:
        changes.setdefault("classifier", {"batch": 8})
        config = tiny_config(**changes)
        torch.manual_seed(config.training.seed)
        model = build_model(system, config, ImageSpec.of(tiny_data))
        meta = {"system": system, "config": config.to_dict(), "data": {}}
        return Trainer(model, tiny_data, config, Run(tmp_path / folder, meta), system)

    return make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Config]) -> Path:
    """The folder of a finished run of vsm, vpn and pn by the command line. Do not write there."""
    import yaml

    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_config(systems=["vsm", "vpn", "pn"]).to_dict()))
    assert main(["train", "--config", str(folder / "tiny.yaml"), "--out", str(folder / "tiny run")]) == 0
    return folder / "tiny run"
