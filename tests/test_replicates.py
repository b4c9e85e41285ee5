"""Intervals over seeds and episodes: against hand computation and by simulation."""

import math

import pytest
import torch

from pyro_vsm import metrics
from pyro_vsm.errors import UserError
from pyro_vsm.replicates import over_both, over_episodes, spread, student


def test_spread_by_hand():
    s = spread([0.5, 0.52, 0.57])
    assert s.mean == pytest.approx(0.53)
    assert s.sd == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    assert (s.low, s.high, s.n) == (0.5, 0.57, 3)
    one = spread([0.5])
    assert math.isnan(one.sd)
    assert (one.mean, one.low, one.high) == (0.5, 0.5, 0.5)


def test_student_quantiles_of_the_tables():
    for freedom, quantile in ((1, 12.706), (2, 4.303), (4, 2.776), (9999, 1.960)):
        assert student(freedom) == pytest.approx(quantile, abs=5e-4)


def test_interval_over_both_by_hand():
    # two seeds, three episodes; means of seeds 2 and 4, of episodes 1.5, 3, 4.5
    y = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
    # residuals (0.5, 0, -0.5) and their negatives: var(c) = 1 / (1 * 2); var_e(mean_s) = 2.25, var_s(mean_e) = 2
    half = math.sqrt(12.7062047**2 * 2 / 2 + 4.3026527**2 * (2.25 - 0.5 / 2) / 3)
    interval = over_both(y)
    assert interval.mean == 3
    assert interval.half_width == pytest.approx(half, rel=1e-6)
    assert interval.n == 6
    assert over_episodes(y).half_width == pytest.approx(1.96 * 1.5 / math.sqrt(3))


def test_one_seed_covers_the_episodes_only():
    y = torch.randn(1, 5000)
    assert over_both(y).half_width == pytest.approx(metrics.mean_interval(y[0]).half_width, rel=1e-3)
    assert over_both(y).n == 5000


def test_equal_seeds_add_nothing():
    row = torch.randn(400)
    assert over_both(row.expand(3, -1)).half_width == pytest.approx(over_both(row[None]).half_width)


def test_seeds_that_agree_by_chance_do_not_make_the_interval_short():
    """The mean over episodes is the same for every seed, but only as the noise of each has cancelled."""
    noise = torch.randn(3, 400)
    y = noise - noise.mean(1, keepdim=True)
    assert over_both(y).half_width == pytest.approx(1.96 / math.sqrt(1200), rel=0.15)


def test_constants_and_single_episodes():
    assert over_both(torch.full((3, 7), 0.25)).half_width == pytest.approx(0, abs=1e-12)
    assert math.isnan(over_both(torch.tensor([[0.5], [0.6]])).half_width)


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize(
    "effects", [(0, 0.2, 0.2), (0, 0, 0.2), (0.01, 0.2, 0.2), (0.1, 0.2, 0.2), (0.03, 0.05, 0.2)]
)
def test_coverage_by_simulation(seeds, effects):
    """Of 600 experiments each; the binomial standard error is 0.9 %."""
    generator = torch.Generator().manual_seed(seeds)
    of_seed, of_episode, of_both = effects
    episodes, hits, naive = 100, 0, 0
    for _ in range(600):
        y = (
            0.5
            + of_seed * torch.randn(seeds, 1, generator=generator)
            + of_episode * torch.randn(1, episodes, generator=generator)
            + of_both * torch.randn(seeds, episodes, generator=generator)
        )
        interval = over_both(y)
        hits += abs(interval.mean - 0.5) <= interval.half_width
        naive += abs(over_episodes(y).mean - 0.5) <= over_episodes(y).half_width
    assert 0.925 <= hits / 600 <= 0.995
    if of_seed == 0.1:
        assert naive / 600 < 0.75  # why the second interval is there
    if of_seed == 0:
        assert 0.925 <= naive / 600 <= 0.975


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(0, 3), torch.tensor([[1.0, math.nan]])])
def test_what_is_refused(wrong):
    with pytest.raises(UserError):
        over_both(wrong)
    with pytest.raises(UserError):
        over_episodes(wrong)
    with pytest.raises(UserError):
        spread([math.nan])
