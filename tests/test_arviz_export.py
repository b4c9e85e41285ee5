"""Posterior samples reach ArviZ with their dimensions named."""

import sys

import numpy as np
import pytest
import torch

from pyro_vsm.arviz_export import to_arviz
from pyro_vsm.errors import UserError
from pyro_vsm.vsm import Inference


@pytest.fixture
def belief():
    p = torch.rand(7, 4, 3)
    p = p / p.sum(-1, keepdim=True)
    z, m = torch.randn(7, 3, 6), torch.randn(7, 3, 6)
    return Inference(p.mean(0), p, z, m, torch.rand(3, 5), torch.randn(3, 2, 6), torch.randn(4, 6))


def test_samples_keep_their_values_and_get_names(belief):
    pytest.importorskip("arviz", reason="an optional extra")
    data = to_arviz(belief, ["a", "b", "c"], features=[4, 1])
    z = data.posterior["z"].sel(**{"class": "b", "feature": 4})
    np.testing.assert_allclose(z.values[0], belief.z[:, 1, 4].numpy())
    assert dict(data.posterior.sizes) == {"chain": 1, "draw": 7, "class": 3, "feature": 2}
    np.testing.assert_allclose(
        data.posterior_predictive["probability"].mean(("chain", "draw")), belief.probabilities.numpy(), rtol=1e-5
    )
    assert data.constant_data["addressing"].dims == ("class", "entry")
    with pytest.raises(UserError, match="3 classes, but 1 names"):
        to_arviz(belief, ["a"])
    with pytest.raises(UserError, match="from 0 to 5"):
        to_arviz(belief, features=[6])


def test_without_arviz_the_install_command_is_named(belief, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(UserError, match=r"pip install 'pyro-vsm\[arviz\]'"):
        to_arviz(belief)
