"""Every test starts from a fixed seed and an empty parameter store."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def clean_start():
    """Seed all generators and clear Pyro's parameter store before each test."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    np.random.seed(0)
    pyro.enable_validation(True)
    torch.set_num_threads(2)


def pytest_collection_modifyitems(items):
    """Skip what needs a CUDA device where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)
