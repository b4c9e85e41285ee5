"""Backbones and the encoder around them."""

import pytest
import torch

from pyro_vsm.backbones import BACKBONES, Conv4
from pyro_vsm.encoder import Encoder
from pyro_vsm.errors import UserError


def encoder(channels: int = 3, size: int = 28, width: int = 8, **settings) -> Encoder:
    return Encoder(Conv4(channels, size, width=width), [0.4] * channels, [0.2] * channels, **settings).eval()


@pytest.mark.parametrize(("size", "dim"), [(28, 64), (84, 1600), (16, 64), (31, 64), (32, 256)])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_of_the_features(channels, size, dim):
    backbone = BACKBONES.build("conv4", channels, size)
    assert backbone.dim == dim
    assert backbone(torch.rand(2, channels, size, size)).shape == (2, dim)


def test_parameters_of_conv4():
    # a 3x3 kernel without bias for each pair of channels, then scale and shift of batch normalisation
    by_hand = 64 * 3 * 9 + 3 * (64 * 64 * 9) + 4 * 2 * 64
    assert by_hand == 112_832
    assert sum(p.numel() for p in Conv4(3, 84).parameters()) == by_hand


@pytest.mark.parametrize("size", [28, 84])
def test_average_pooling_of_conv4(size):
    """The same convolutions; the last map is averaged instead of pooled and flattened."""
    torch.manual_seed(0)
    flat, mean = Conv4(3, size).eval(), Conv4(3, size, pool="average").eval()
    mean.load_state_dict(flat.state_dict())
    images = torch.rand(2, 3, size, size)
    before_pooling = torch.nn.Sequential(*flat.blocks[:3], *flat.blocks[3][:3])(images)
    assert mean.dim == 64
    torch.testing.assert_close(mean(images), before_pooling.mean((2, 3)))


def test_grid_of_averages_of_conv4():
    torch.manual_seed(0)
    one, four = Conv4(3, 84, pool="average").eval(), Conv4(3, 84, pool="average", grid=2).eval()
    four.load_state_dict(one.state_dict())
    images = torch.rand(2, 3, 84, 84)
    assert four.dim == 256
    # the map of 10 x 10 falls into four equal parts
    torch.testing.assert_close(four(images).unflatten(1, (64, 4)).mean(-1), one(images))


@pytest.mark.parametrize(
    ("pool", "grid"), [("average", 0), ("average", 11), ("flatten", 2), ("distance_covariance", 2)]
)
def test_grid_that_cannot_be(pool, grid):
    with pytest.raises(UserError, match=f"conv4: grid is {grid}; with pool average give 1 to 10"):
        Conv4(3, 84, pool=pool, grid=grid)


def test_pooling_that_is_unknown():
    with pytest.raises(UserError, match="conv4: pool is 'max'; give flatten, average or distance_cov"):
        Conv4(3, 28, pool="max")


@pytest.mark.parametrize("width", [0, -1, "8"])
def test_width_that_is_no_number_of_channels(width):
    with pytest.raises(UserError, match="conv4: width is"):
        Conv4(3, 28, width=width)


@pytest.mark.parametrize("pool", ["flatten", "average", "distance_covariance"])
def test_conv4_in_evaluation_is_its_layers_one_after_the_other(pool):
    backbone = Conv4(3, 20, width=8, pool=pool).eval()
    for norm in (m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        for values, low in (
            (norm.weight, -1.0),
            (norm.bias, -1.0),
            (norm.running_mean, -1.0),
            (norm.running_var, 0.2),
        ):
            torch.nn.init.uniform_(values, low, 2.0)
    images = torch.randn(6, 3, 20, 20)
    x = images
    for block in backbone.blocks[:-1]:
        for layer in block:
            x = layer(x)
    x = backbone.blocks[-1](x)
    found = backbone(images)
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-4)
    slopes = [torch.autograd.grad(y.square().sum(), list(backbone.parameters())) for y in (found, x)]
    for slope, wanted in zip(*slopes):
        torch.testing.assert_close(slope, wanted, atol=1e-3, rtol=1e-3)


def test_images_too_small():
    with pytest.raises(UserError, match="at least 16"):
        Conv4(3, 15)


@pytest.mark.parametrize("training", [True, False])
def test_features_have_unit_rms(training):
    h = encoder(size=84).train(training)(torch.randint(0, 256, (6, 3, 84, 84), dtype=torch.uint8))
    assert h.dtype == torch.float32
    torch.testing.assert_close(h.square().mean(-1), torch.ones(6), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [0, 127, 255])
@pytest.mark.parametrize("training", [True, False])
def test_constant_images_have_finite_features_and_gradients(value, training):
    network = encoder().train(training)
    h = network(torch.full((2, 3, 28, 28), value, dtype=torch.uint8))
    assert h.isfinite().all()
    h.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_features_that_are_all_zero_stay_zero():
    network = encoder()
    torch.nn.init.zeros_(network.backbone.blocks[3][1].weight)
    assert torch.equal(network(torch.rand(2, 3, 28, 28)), torch.zeros(2, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_whole_numbers_and_fractions_agree(dtype):
    network, images = encoder(), torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8)
    wanted = network(images)
    tolerance = 3e-2 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(network((images.double() / 255).to(dtype)), wanted, rtol=tolerance, atol=tolerance)


def test_images_are_normalised_by_channel():
    network = encoder()
    network.mean.copy_(torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))
    network.std.copy_(torch.tensor([0.5, 0.25, 0.125]).view(3, 1, 1))
    seen = []
    network.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 28, 28)
    network(images)
    for c, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 0.125)]):
        torch.testing.assert_close(seen[0][:, c], (images[:, c] - mean) / std)


def test_a_channel_without_spread_does_not_divide_by_zero():
    network = Encoder(Conv4(1, 28, width=4), [0.5], [0.0]).eval()
    assert network(torch.full((1, 1, 28, 28), 0.5)).isfinite().all()


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 28, 29), (2, 3, 84, 84), (3, 28, 28), (2, 28, 28, 3)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(UserError, match=r"this model takes \[batch, 3, 28, 28\]"):
        encoder()(torch.rand(shape))


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.2] * 3), ([0.5] * 3, [0.2] * 2), ([], [])])
def test_statistics_must_fit_the_channels(mean, std):
    with pytest.raises(UserError, match="give one each"):
        Encoder(Conv4(3, 28, width=4), mean, std)


def test_mixed_precision_and_compilation_leave_evaluation_on_the_cpu_alone():
    images = torch.rand(2, 3, 28, 28)
    plain, other = encoder(), encoder(amp=True, compiled=True)
    other.load_state_dict(plain.state_dict())
    assert torch.equal(plain(images), other(images))
