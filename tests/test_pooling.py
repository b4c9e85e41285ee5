"""Distance covariance of channels: the definition, its meaning, its gradient, and where backbones use it."""

import math

import pytest
import torch
from torch import nn

from pyro_vsm.backbones import BACKBONES, Conv4, ResNet12
from pyro_vsm.backbones.pooling import DistanceCovariance, distance_covariance
from pyro_vsm.errors import UserError


def by_loops(x, eps):
    """``[C, C]`` of one map ``[C, H, W]``, entry by entry."""
    channels = [c.flatten().tolist() for c in x]
    size = len(channels)

    def distance(u, v):
        return math.sqrt(sum((p - q) ** 2 for p, q in zip(u, v, strict=True)) / len(u) + eps)

    a = [[distance(u, v) for v in channels] for u in channels]
    rows = [sum(row) / size for row in a]
    columns = [sum(row[j] for row in a) / size for j in range(size)]
    mean = sum(rows) / size
    return torch.tensor([[a[i][j] - rows[i] - columns[j] + mean for j in range(size)] for i in range(size)])


def test_entries_are_those_of_the_definition():
    x = torch.randn(2, 5, 3, 4)
    for image, packed in zip(x, distance_covariance(x), strict=True):
        matrix = by_loops(image, 1e-5)
        i, j = torch.triu_indices(5, 5)
        torch.testing.assert_close(packed, matrix[i, j] * torch.where(i == j, 1, 2**0.5), rtol=1e-4, atol=1e-5)


def test_inner_products_are_squared_distance_covariances():
    """Of pairs of observations, one a channel: the mean of the products of doubly centred distances (Székely et al.

    2007, definition 4), here by its other form, the three means of remark 1.
    """
    x, y = torch.randn(1, 7, 2, 3).double(), torch.randn(1, 7, 4, 1).double()
    got = (distance_covariance(x, 0.0) * distance_covariance(y, 0.0)).sum() / 49
    a, b = (torch.cdist(m[0].flatten(1), m[0].flatten(1)) / m[0, 0].numel() ** 0.5 for m in (x, y))
    wanted = (a * b).mean() + a.mean() * b.mean() - 2 * (a.mean(1) * b.mean(1)).mean()
    torch.testing.assert_close(got, wanted)


def test_gradient():
    x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(distance_covariance, (x,))


def test_equal_channels_have_finite_gradients():
    x = torch.ones(1, 4, 3, 3, requires_grad=True)
    distance_covariance(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_what_it_does_not_depend_on():
    x = torch.randn(2, 6, 4, 4)
    h = distance_covariance(x)
    torch.testing.assert_close(
        distance_covariance(x + torch.randn(2, 1, 4, 4)), h, atol=1e-4, rtol=1e-3
    )  # of channels
    positions = torch.randperm(16)
    torch.testing.assert_close(distance_covariance(x.flatten(2)[:, :, positions].unflatten(2, (4, 4))), h)
    torch.testing.assert_close(distance_covariance(x.repeat(1, 1, 2, 1)), h)  # of the size of the map


def test_autocast_does_not_reach_it():
    x = torch.randn(2, 6, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        h = distance_covariance(x)
    torch.testing.assert_close(h, distance_covariance(x))
    assert distance_covariance(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("size", [84, 96])
def test_conv4_of_distance_covariance(size):
    backbone = Conv4(3, 84, width=8, pool="distance_covariance").eval()
    h = backbone(torch.rand(2, 3, size, size))
    assert backbone.dim == 36
    assert h.shape == (2, 36)
    assert sum(p.numel() for p in backbone.parameters()) == sum(
        p.numel() for p in Conv4(3, 84, width=8, pool="average").parameters()
    )


def test_resnet12_of_distance_covariance_keeps_the_positions_of_its_last_map():
    widths = [4, 8, 12, 16]
    init_args = {"pool": "distance_covariance", "widths": widths, "reduced": 6}
    backbone = BACKBONES.build({"class_path": "resnet12", "init_args": init_args}, 3, 32).eval()
    assert backbone.dim == 21
    images = torch.rand(2, 3, 32, 32)
    maps = backbone.blocks(images)
    assert maps.shape == (2, 16, 4, 4)  # 2 x 2 with pooling
    torch.testing.assert_close(backbone(images), distance_covariance(backbone.pool.reduce(maps)))
    plain = ResNet12(3, 32, widths=widths)
    added = sum(p.numel() for p in backbone.parameters()) - sum(p.numel() for p in plain.parameters())
    assert added == 16 * 6 + 2 * 6
    half = BACKBONES.build({"class_path": "resnet12_half", "init_args": {"pool": "distance_covariance"}}, 3, 32)
    assert half.dim == 8256


def test_pooling_that_is_unknown():
    with pytest.raises(UserError, match="resnet12: pool is 'max'; give average or distance_covariance"):
        ResNet12(3, 32, pool="max")


@pytest.mark.parametrize("channels", [0, 1, 2.5])
def test_too_few_channels(channels):
    with pytest.raises(UserError, match="give a whole number from 2 on"):
        DistanceCovariance(16, channels)


def test_reduction_is_convolution_normalisation_and_relu():
    pool = DistanceCovariance(5, 3)
    assert [type(m) for m in pool.reduce] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]


def test_a_large_offset_costs_no_digits():
    x = 30 + 0.01 * torch.randn(1, 5, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(
        distance_covariance(x.float(), 1e-8).double(), distance_covariance(x, 1e-8), rtol=1e-3, atol=1e-6
    )
