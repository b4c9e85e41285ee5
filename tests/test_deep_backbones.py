"""ResNet-12 and wide residual networks: shapes, numbers of parameters, and the same blocks from other hands."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck
from torchvision.ops import drop_block2d

from pyro_vsm.backbones import BACKBONES
from pyro_vsm.backbones.resnet12 import DropBlock, ResidualBlock, ResNet12
from pyro_vsm.backbones.wrn import WideBlock, WideResNet
from pyro_vsm.errors import UserError


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def scrambled(module: nn.Module) -> nn.Module:
    """Normalisation that is not the identity."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean):
                nn.init.normal_(tensor, 0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return module


# --- shapes and sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels", "size", "options", "dim"),
    [
        ("resnet12", 3, 84, {}, 640),
        ("resnet12", 1, 28, {"widths": [4, 8, 12, 16], "drop": 0.1, "dropout": 0.1}, 16),
        ("resnet12_half", 3, 32, {"drop": 0.1}, 320),
        ("wrn", 3, 32, {"depth": 10, "width": 2}, 128),
        ("wrn", 1, 84, {"depth": 10, "width": 1, "stride": 2, "drop": 0.3}, 64),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_shape_of_the_features(name, channels, size, options, dim, training):
    backbone = BACKBONES.build({"class_path": name, "init_args": options}, channels, size).train(training)
    h = backbone(torch.rand(2, channels, size, size))
    assert backbone.dim == dim
    assert h.shape == (2, dim)
    assert torch.isfinite(h).all()
    assert backbone.any_size
    assert backbone.eval()(torch.rand(2, channels, size + 8, size + 8)).shape == (2, dim)


def test_parameters_of_resnet12():
    # kernels of 3x3 (and 1x1 of the shortcut) without bias, scale and shift of four normalisations a block
    sizes = [3, 64, 160, 320, 640]
    by_hand = sum(9 * a * b + 2 * 9 * b * b + a * b + 4 * 2 * b for a, b in pairwise(sizes))
    assert by_hand == 12_424_320  # 12.4 million, as published
    assert parameters(ResNet12(3, 84)) == by_hand


def test_the_half_has_half_the_widths():
    half = BACKBONES.build("resnet12_half", 3, 84)
    assert [b.main[0].out_channels for b in half.blocks] == [32, 80, 160, 320]
    assert parameters(ResNet12(3, 84)) / parameters(half) == pytest.approx(4, rel=0.01)


def test_parameters_of_wrn_28_10():
    # published: 36.5 million; 36 479 194 with the weights and biases of a classifier of ten classes
    assert parameters(WideResNet(3, 32)) == 36_479_194 - 6410


# --- the blocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_residual_block_is_wired_as_torchvisions(training):
    """A ``Bottleneck`` whose convolutions, activations and shortcut are ours."""
    block = scrambled(ResidualBlock(3, 6)).train(training)
    other = Bottleneck(3, 2, downsample=block.shortcut).train(training)
    other.conv1, other.bn1, _, other.conv2, other.bn2, _, other.conv3, other.bn3 = block.main
    other.relu = nn.LeakyReLU(0.1, inplace=True)
    x = torch.randn(4, 3, 11, 11)
    torch.testing.assert_close(block(x), F.max_pool2d(other(x), 2))


def test_wide_block_by_hand():
    block = scrambled(WideBlock(3, 6, 2, 0.0)).eval()
    x = torch.randn(2, 3, 9, 9)

    def active(norm: nn.BatchNorm2d, y: torch.Tensor) -> torch.Tensor:
        y = (y - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        return (y * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp_min(0)

    first = active(block.norm1, x)
    inner = active(block.norm2, F.conv2d(first, block.conv1.weight, stride=2, padding=1))
    expected = F.conv2d(first, block.shortcut.weight, stride=2) + F.conv2d(inner, block.conv2.weight, padding=1)
    torch.testing.assert_close(block(x), expected)
    same = scrambled(WideBlock(4, 4, 1, 0.0)).eval()
    x = torch.randn(2, 4, 5, 5)
    assert same.shortcut is None
    nn.init.zeros_(same.conv2.weight)
    assert torch.equal(same(x), x)  # nothing on the way of what is handed on


# --- DropBlock ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "size", "rate"), [(10, 5, 0.1), (5, 5, 0.3), (7, 3, 0.2), (6, 1, 0.4)])
def test_drop_block_is_torchvisions(monkeypatch, side, size, rate):
    """With the same uniform numbers: theirs are below the rate of the patches' centres in ``bernoulli_``."""
    x = torch.randn(3, 4, side, side)
    u = torch.rand(3, 4, side - size + 1, side - size + 1)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: u)
    monkeypatch.setattr(torch.Tensor, "bernoulli_", lambda self, p: self.copy_(u < p))
    torch.testing.assert_close(DropBlock(rate, size)(x), drop_block2d(x, rate, size))


def test_drop_block_drops_patches_at_its_rate_and_keeps_the_mean():
    block = DropBlock(0.1, 3)
    x = torch.ones(64, 32, 15, 15)
    y = block(x)
    kept = y != 0
    assert float(kept.float().mean()) == pytest.approx(0.9, abs=0.02)  # patches may overlap
    assert float(y.mean()) == pytest.approx(1, abs=1e-4)
    whole = F.avg_pool2d((~kept).float(), 3, 1) > 0.999  # where a whole patch is lost
    covered = F.max_pool2d(F.pad(whole.float(), [2] * 4), 3, 1)
    assert torch.equal(covered.bool(), ~kept)  # every lost element belongs to one
    assert block.eval()(x) is x


@pytest.mark.parametrize(("rate", "size"), [(1.0, 5), (-0.1, 5), (0.1, 0)])
def test_drop_block_that_cannot_be(rate, size):
    with pytest.raises(UserError, match=r"drop block: .*give a rate in \[0, 1\) and a size from 1 on"):
        DropBlock(rate, size)


def test_which_blocks_drop_what():
    blocks = ResNet12(3, 84, drop=0.1, dropout=0.2).blocks
    assert [(b.tail[2].rate, b.tail[2].size) for b in blocks] == [(0.2, 1), (0.2, 1), (0.1, 5), (0.1, 5)]


# --- what cannot be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("resnet12", 15, {}, "images of 15 pixels are too small; give at least 16"),
        ("resnet12", 84, {"widths": [8, 8]}, r"widths are \[8, 8\]; give four whole numbers"),
        ("resnet12", 84, {"widths": [8, 8, 0, 8]}, "give four whole numbers"),
        ("wrn", 84, {"depth": 27}, r"depth=27.*give a depth of 6 n \+ 4"),
        ("wrn", 84, {"width": 0}, "width=0"),
        ("wrn", 8, {}, "at least 16 pixels"),
    ],
)
def test_wrong_settings(name, size, options, message):
    with pytest.raises(UserError, match=message):
        BACKBONES.build({"class_path": name, "init_args": options}, 3, size)
