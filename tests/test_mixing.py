"""Mixtures of training images: what is in an image is what its label says."""

import pytest
import torch
from torch.nn import functional as F

from pyro_vsm.backbones import Conv4
from pyro_vsm.baseline_config import ClassifierConfig
from pyro_vsm.classifier import Classifier
from pyro_vsm.encoder import Encoder
from pyro_vsm.errors import UserError
from pyro_vsm.mixing import mixed, soft_targets


def flat(size: int = 64, height: int = 12, width: int = 20) -> torch.Tensor:
    """Image i is i everywhere."""
    return torch.arange(size, dtype=torch.float32)[:, None, None, None].expand(size, 3, height, width)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_label_is_what_is_in_the_image(kind):
    images = flat()
    result, other, lam = mixed(images, kind, 1.0, 1.0)
    assert torch.equal(other, torch.arange(64).roll(-1))
    shares = lam * images[:, 0, 0, 0] + (1 - lam) * images[other, 0, 0, 0]
    torch.testing.assert_close(result.mean((1, 2, 3)), shares, rtol=1e-4, atol=1e-3)
    assert lam.unique().numel() > 20, "each image has a share of its own"
    target = soft_targets(torch.arange(64), other, lam, 64)
    torch.testing.assert_close(target.sum(1), torch.ones(64))
    torch.testing.assert_close(target.diagonal(), lam)


def test_cutmix_cuts_one_rectangle_of_the_images_proportions():
    images = flat(256, 30, 60)
    result, _, lam = mixed(images, "cutmix", 1.0, 1.0)
    assert set((result != images).flatten(1).float().mean(1).tolist()) != {0.0}
    inside = 0
    for cut, kept in zip((result != images)[:, 0], lam, strict=True):
        rows, columns = cut.any(1).nonzero().flatten(), cut.any(0).nonzero().flatten()
        assert torch.equal(cut, cut.any(1)[:, None] & cut.any(0))
        assert float(kept) == pytest.approx(1 - float(cut.float().mean()), abs=1e-6)
        if len(rows) > 3 and rows[0] > 0 and rows[-1] < 29 and columns[0] > 0 and columns[-1] < 59:
            assert len(columns) == pytest.approx(2 * len(rows), abs=2)
            inside += 1
    assert inside > 5


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_of_mixup_are_those_of_the_beta_distribution(alpha):
    lam = mixed(torch.zeros(40_000, 1, 1, 1), "mixup", alpha, 1.0)[2]
    exact = torch.distributions.Beta(alpha, alpha)
    assert float(lam.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(lam.var()) == pytest.approx(float(exact.variance), rel=0.03)


def test_only_a_share_of_the_images_is_mixed():
    images = torch.rand(4000, 1, 4, 4)
    for share in (0.0, 0.3):
        result, _, lam = mixed(images, "mixup", 1.0, share)
        alone = (result == images).flatten(1).all(1)
        assert float(alone.float().mean()) == pytest.approx(1 - share, abs=0.03)
        assert torch.equal(alone, lam == 1)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("rotations", [0, 1])
def test_a_classifier_learns_from_the_mixtures(kind, rotations):
    config = ClassifierConfig(mix=kind, mix_share=1.0, rotations=rotations, smoothing=0.1)
    model = Classifier(Encoder(Conv4(1, 16, width=8), [0.5], [0.25]), 6, config)
    seen = []
    raw = model.encoder.raw
    model.encoder.raw = lambda x: seen.append(x.clone()) or raw(x)
    images, labels = torch.rand(5, 1, 16, 16), torch.tensor([0, 3, 1, 5, 3])
    torch.manual_seed(3)
    loss, terms = model.classify(images, labels, torch.tensor(0.0))
    torch.manual_seed(3)
    result, other, lam = mixed(images, kind, 1.0, 1.0)
    assert torch.equal(seen[0][:5], result)
    with torch.no_grad():
        logits = model.head(raw(seen[0]))
    own, rest = (F.cross_entropy(logits, y.repeat(1 + rotations), reduction="none") for y in (labels, labels[other]))
    lam = lam.repeat(1 + rotations)
    smooth = -logits.log_softmax(-1).mean(-1)
    wanted = (0.9 * (lam * own + (1 - lam) * rest) + 0.1 * smooth).mean()
    torch.testing.assert_close(terms["cross_entropy"], wanted)
    loss.backward()
    assert model.head.weight.grad.abs().max() > 0


NUMBERS = "classifier: mix_alpha=.*, mix_share=.*; give a number above 0 and a fraction"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mix": "paste"}, r"classifier\.mix is 'paste'; give none, mixup or cutmix"),
        ({"mix_alpha": 0.0}, NUMBERS),
        ({"mix_share": 1.5}, NUMBERS),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(UserError, match=message):
        ClassifierConfig(**wrong)
