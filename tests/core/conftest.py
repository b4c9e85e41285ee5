"""One thread for tensors this small: with two, and another process beside, they spend their time waiting."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(clean_start):
    """After the general set-up, which asks for more."""
    torch.set_num_threads(1)
