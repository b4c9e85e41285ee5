"""Float32 matrix products by oneDNN: every digit kept, and the setting of the process as it was before."""

import pytest
import torch

from pyro_vsm import precision
from pyro_vsm.precision import fast_products


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.mark.parametrize(
    ("rows", "inner", "columns"), [(1, 1600, 512), (75, 1600, 5), (1280, 1600, 512), (500, 64, 3)]
)
def test_products_keep_the_digits_of_float32(rows, inner, columns):
    torch.manual_seed(0)
    a, b = torch.randn(3, rows, inner), torch.randn(inner, columns)
    exact = a.double() @ b.double()
    with fast_products():
        found = [a @ b, torch.nn.functional.linear(a, b.T.contiguous()), torch.einsum("tri,ic->trc", a, b)]
    for product in found:
        # bfloat16 would be off by about 1e-3 of this scale, float32 by about 5e-6
        assert (product - exact).abs().max() < 2e-5 * inner**0.5


def test_the_setting_is_restored():
    before = setting()
    with pytest.raises(KeyError), fast_products():
        raise KeyError
    assert setting() == before


def test_without_the_digits_nothing_is_set(monkeypatch):
    monkeypatch.setattr(precision, "_digits_kept", lambda: False)
    before = setting()
    with fast_products():
        assert setting() == before
