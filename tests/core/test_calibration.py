"""Simulation-based calibration (Talts, Betancourt, Simpson, Vehtari, Gelman 2018) of the generative model.

Draw latents and data from the model, draw from the posterior given the data, rank the true value among the draws:
if model, data and posterior belong together, ranks are uniform. Every simulation is a task of one batch.
``python -m core.test_calibration FILE.png`` (in ``tests/``) draws the rank histograms.
"""

import sys

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch.distributions import Categorical

from pyro_vsm.posteriors import ConjugatePosteriorZ
from pyro_vsm.task import Task
from pyro_vsm.vsm import VSM

from . import statistics
from .small import memory, randomise, vsm

BINS = 10
Ranks = dict[str, np.ndarray]
"""For each quantity the rank of every simulation's truth, as a share in (0, 1)."""


def store(model: VSM, entries: int) -> None:
    model.memory.load_state_dict({**model.memory.state_dict(), **dict(memory(model.dim, entries).named_buffers())})


def exact_ranks(simulations: int, *, shots: int = 3, draws: int = 99, wrong: float = 1.0) -> Ranks:
    """Under the closed-form posterior: ``m ~ p(m|M)``, ``z ~ p(z|m)`` (empirical Bayes), ``h_k ~ N(z, W)``.

    Args:
        simulations: how many.
        shots: K.
        draws: from the posterior.
        wrong: factor on the noise that the posterior believes in, 1 for the truth.
    """
    D = 3
    posterior_z = {"class_path": "conjugate", "init_args": {"residual": False}}
    model = randomise(vsm(D, prior_z="empirical_bayes", posterior_z=posterior_z), 0.3)
    store(model, 6)
    with torch.no_grad():
        empty = model.task(torch.zeros(simulations, 1, shots, D), torch.zeros(simulations, 1, D))
        trace = poutine.trace(model.model).get_trace(empty)
        m, z = trace.nodes["m"]["value"], trace.nodes["z"]["value"]
        posterior: ConjugatePosteriorZ = model.program.posterior_z
        noise = posterior.within(empty)[0]
        support = z.unsqueeze(2) + noise.sqrt().unsqueeze(2) * torch.randn(simulations, 1, shots, D)
        posterior.noise.scale.raw.copy_((posterior.noise.scale() * wrong).expm1().log())
        task = model.task(support, empty.query)
        drawn = posterior(m, task, model.program.prior_z(m, task)).rsample((draws,))
    quantities = {f"z[{d}]": lambda v, d=d: v[..., d] for d in range(D)}
    quantities |= {"z[0] z[1]": lambda v: v[..., 0] * v[..., 1], "|z|": lambda v: v.norm(dim=-1)}
    ranks = {name: (f(drawn) < f(z)).sum(0).flatten() for name, f in quantities.items()}
    return {name: ((r + 0.5) / (draws + 1)).numpy() for name, r in ranks.items()}


def chain_ranks(simulations: int, *, steps: int = 9, particles: int = 40, wrong: float = 1.0) -> Ranks:
    """Of m and z given the labels, under the posterior that the importance weights of the guide's samples define.

    The weights are those of the importance-weighted objective: the whole of model and guide is under test, the
    likelihood of the labels among it. Weighted particles alone are exact only in large numbers. To be exact with
    few, each draw is chosen by weight among fresh particles *and the last draw*, which keeps the posterior and is
    reversible (Andrieu, Lee, Vihola 2018); the truth stands at a random place of the chain (Besag, Clifford 1989).

    Args:
        simulations: how many.
        steps: draws of the chain besides the truth.
        particles: fresh ones for each draw.
        wrong: factor on the log likelihood of the labels, 1 for the truth.
    """
    wide = {"class_path": "amortised", "init_args": {"log_sigma": 0.0}}  # a guide with enough tails
    model = randomise(vsm(1, posterior_z=wide), 0.2)
    model.program.likelihood.tau.raw.data.fill_(1.5)
    store(model, 3)
    support = torch.tensor([[[[0.3]], [[-0.3]]]]).expand(simulations, -1, -1, -1)
    query = torch.linspace(-1.5, 1.5, 6).reshape(1, 6, 1).expand(simulations, -1, -1)

    def log_weight(guide: poutine.Trace, task: Task) -> torch.Tensor:
        program = poutine.trace(poutine.replay(model.model, guide)).get_trace(task)
        guide.compute_log_prob()
        program.compute_log_prob()
        p = {name: program.nodes[name]["log_prob"].sum(-1) for name in ("m", "z", "y")}
        return p["m"] + p["z"] + wrong * p["y"] - sum(guide.nodes[name]["log_prob"].sum(-1) for name in ("m", "z"))

    with torch.no_grad():
        truth = poutine.trace(model.model).get_trace(model.task(support, query))
        task = model.task(support, query, truth.nodes["y"]["value"])
        known = poutine.trace(poutine.replay(model.guide, truth)).get_trace(task)
        with pyro.plate("particles", steps * particles, dim=-3):
            guide = poutine.trace(model.guide).get_trace(task)
        weight, true_weight = log_weight(guide, task).unflatten(0, (steps, particles)), log_weight(known, task)

    def values(trace: poutine.Trace) -> torch.Tensor:
        """``[..., simulations, 4]``: m and z of both classes."""
        return torch.cat([trace.nodes[name]["value"].flatten(-2) for name in ("m", "z")], -1)

    fresh, true = values(guide).unflatten(0, (steps, particles)), values(known)
    place, every = torch.randint(0, steps + 1, (simulations,)), torch.arange(simulations)
    state, state_weight = true, true_weight
    below, equal = torch.zeros_like(true), torch.zeros_like(true)
    for step in range(steps):
        again = place == step  # the draws before this one stand to the left of the truth, from here on to its right
        state, state_weight = torch.where(again[:, None], true, state), torch.where(again, true_weight, state_weight)
        weights = torch.cat([weight[step], state_weight.unsqueeze(0)])
        choice = Categorical(logits=weights.T).sample()
        state = torch.cat([fresh[step], state.unsqueeze(0)])[choice, every]
        state_weight = weights[choice, every]
        below, equal = below + (state < true), equal + (state == true)
    ranks = below + (torch.rand_like(true) * (equal + 1)).floor()  # ties at random
    shares = ((ranks + 0.5) / (steps + 1)).numpy()
    return {name: shares[:, i] for i, name in enumerate(("m[0]", "m[1]", "z[0]", "z[1]"))}


def histogram(ranks: np.ndarray) -> np.ndarray:
    """Counts in ``BINS`` bins."""
    return np.histogram(ranks, BINS, (0, 1))[0]


@pytest.mark.parametrize("shots", [1, 5])
def test_the_conjugate_posterior_is_calibrated(shots):
    for ranks in exact_ranks(4000, shots=shots).values():
        statistics.equally_often(histogram(ranks))


def test_the_importance_weights_are_calibrated():
    for ranks in chain_ranks(2000).values():
        statistics.equally_often(histogram(ranks))


@pytest.mark.parametrize(
    "ranks",
    [lambda: exact_ranks(4000, shots=10, wrong=2.0), lambda: chain_ranks(1000, wrong=4.0)],
    ids=["conjugate", "weights"],
)
def test_a_wrong_posterior_is_noticed(ranks):
    """The check can fail: twice the noise, or a likelihood counted four times, is seen."""
    assert min(stats.chisquare(histogram(r)).pvalue for r in ranks().values()) < statistics.ALPHA


def plot_ranks(groups: dict[str, Ranks], path: str) -> None:
    """Rank histograms, one row a group, with the band that 99 % of the bins of a calibrated model fall into."""
    import matplotlib.pyplot as plt

    columns = max(len(g) for g in groups.values())
    size = (2.4 * columns, 2.1 * len(groups))
    figure, axes = plt.subplots(len(groups), columns, figsize=size, squeeze=False, layout="constrained")
    for row, (title, ranks) in zip(axes, groups.items()):
        for axis in row[len(ranks) :]:
            axis.set_axis_off()
        for axis, (name, values) in zip(row, ranks.items()):
            low, high = stats.binom.interval(0.99, len(values), 1 / BINS)
            axis.axhspan(low, high, color="0.85")
            axis.axhline(len(values) / BINS, color="0.4", linewidth=1)
            axis.bar((np.arange(BINS) + 0.5) / BINS, histogram(values), 0.8 / BINS, color="#0072B2")
            axis.set(title=name, xlabel="rank of the truth", xlim=(0, 1), xticks=(0, 0.5, 1))
        row[0].set_ylabel(f"{title}\nsimulations")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def test_rank_plot(tmp_path):
    path = tmp_path / "ranks.png"
    plot_ranks({"conjugate": exact_ranks(200), "weights": chain_ranks(50, particles=5)}, str(path))
    assert path.stat().st_size > 10_000


if __name__ == "__main__":
    torch.manual_seed(0)
    plot_ranks(
        {
            "conjugate": exact_ranks(4000),
            "importance weights": chain_ranks(4000),
            "wrong: noise twice": exact_ranks(4000, shots=10, wrong=2.0),
            "wrong: labels 4 times": chain_ranks(4000, wrong=4.0),
        },
        sys.argv[1],
    )
