"""The Pyro programs: what Pyro's own tools make of them, and their limit, the prototypical network."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.poutine.util import prune_subsample_sites

from pyro_vsm.baselines import PrototypicalNetwork
from pyro_vsm.memory_uses import MEMORY_USES
from pyro_vsm.sampling import spread
from pyro_vsm.vsm import VSM

from . import statistics
from .small import memory, randomise, vsm
from .test_posteriors import M_SPECS, Z_SPECS
from .test_priors import M_SPECS as PRIOR_M_SPECS
from .test_priors import Z_SPECS as PRIOR_Z_SPECS

T, N, K, Q, D = 2, 3, 2, 5, 4
POSTERIOR_Z_SPECS = Z_SPECS


def trained(**options) -> VSM:
    model = randomise(vsm(D, **options), 0.2)
    model.memory.load_state_dict({**model.memory.state_dict(), **dict(memory(D, 4).named_buffers())})
    return model


def a_task(model: VSM, labels: bool = True):
    y = torch.arange(Q).expand(T, -1) % N if labels else None
    return model.task(torch.randn(T, N, K, D), torch.randn(T, Q, D), y)


VARIANTS = [
    *({"prior_m": s} for s in PRIOR_M_SPECS),
    *({"prior_z": s} for s in PRIOR_Z_SPECS),
    *({"posterior_m": s} for s in M_SPECS),
    *({"posterior_z": s} for s in POSTERIOR_Z_SPECS),
    *({"memory_use": s} for s in sorted(MEMORY_USES.classes)),
    {"prior_z": "empirical_bayes", "posterior_z": "conjugate"},
]


@pytest.mark.parametrize("parts", VARIANTS, ids=str)
def test_sites_and_shapes(parts):
    """Every variant: the same sites in model and guide, batch and event shapes as the plates say."""
    model = trained(**parts)
    task = a_task(model)
    guide = prune_subsample_sites(poutine.trace(model.guide).get_trace(task))
    program = prune_subsample_sites(poutine.trace(poutine.replay(model.model, guide)).get_trace(task))
    latents = ["m", "z"] if model.program.memory_use.latent else ["z"]
    assert guide.stochastic_nodes == latents
    assert program.stochastic_nodes == latents
    assert program.observation_nodes == ["y"]
    for trace in (guide, program):
        trace.compute_log_prob()
        for name in latents:
            site = trace.nodes[name]
            assert site["value"].shape == (T, N, D)
            assert site["fn"].batch_shape == (T, N)
            assert site["fn"].event_shape == (D,)
            assert site["log_prob"].shape == (T, N)
            assert [(f.name, f.dim, f.size) for f in site["cond_indep_stack"]] == [
                ("tasks", -2, T),
                ("classes", -1, N),
            ]
    y = program.nodes["y"]
    assert [(f.name, f.dim, f.size) for f in y["cond_indep_stack"]] == [("tasks", -2, T), ("queries", -1, Q)]
    assert y["log_prob"].shape == (T, Q)
    assert program.nodes["_RETURN"]["value"].shape == (T, Q, N)


@pytest.mark.parametrize("parts", VARIANTS, ids=str)
def test_particles_are_a_plate_to_the_left(parts):
    model = trained(**parts)
    task = a_task(model)
    with pyro.plate("particles", 7, dim=-3):
        guide = poutine.trace(model.guide).get_trace(task)
        program = poutine.trace(poutine.replay(model.model, guide)).get_trace(task)
    for trace in (guide, program):
        trace.compute_log_prob()
        assert trace.nodes["z"]["value"].shape == (7, T, N, D)
        assert trace.nodes["z"]["log_prob"].shape == (7, T, N)
        if "m" in trace:
            assert trace.nodes["m"]["value"].shape == (7, T, N, D)
    assert program.nodes["y"]["log_prob"].shape == (7, T, Q)
    z = guide.nodes["z"]["value"]
    if not isinstance(parts.get("posterior_z"), str) or parts["posterior_z"] != "deterministic":
        assert not torch.equal(z[0], z[1])


def test_sites_are_scaled_in_model_and_guide_alike():
    """Both programs carry the weights, and the likelihood never does."""
    model = trained()
    task = a_task(model)
    for beta in (0.25, torch.tensor(0.25)):
        model.program.beta_z, model.program.beta_m = beta, 0.0
        guide = poutine.trace(model.guide).get_trace(task)
        program = poutine.trace(poutine.replay(model.model, guide)).get_trace(task)
        for trace in (guide, program):
            assert trace.nodes["z"]["scale"] == 0.25
            assert trace.nodes["m"]["mask"] is False
        assert program.nodes["y"]["scale"] == 1.0
        assert program.nodes["y"]["mask"] is None


def test_render_model():
    """The graph of the paper's figure: m -> z -> y, in plates."""
    model = trained()
    graph = pyro.render_model(model.model, model_args=(a_task(model),), render_distributions=True)
    source = graph.source
    for edge in ("m -> z", "z -> y"):
        assert edge in source
    for plate in ("tasks", "classes", "queries"):
        assert plate in source
    assert "m -> y" not in source
    assert "Categorical" in source
    guide = pyro.render_model(model.guide, model_args=(a_task(model),)).source
    assert "m -> z" in guide
    assert "y" not in guide.split()


@pytest.mark.parametrize("parallel", [True, False])
def test_predictive(parallel):
    """Predictive over model and guide draws what :meth:`VSM.predict` averages."""
    model = trained()
    task = a_task(model, labels=False)
    with torch.no_grad():
        draws = Predictive(model.model, guide=model.guide, num_samples=60, parallel=parallel)(task)
        prior = Predictive(model.model, num_samples=60, parallel=parallel)(task)
    for drawn in (draws, prior):
        assert drawn["m"].shape == (60, T, N, D)
        assert drawn["z"].shape == (60, T, N, D)
        assert drawn["y"].shape == (60, T, Q)
        assert drawn["y"].max() < N


def test_predictive_labels_follow_the_predicted_probabilities():
    model = trained()
    support, query = torch.randn(1, N, K, D), torch.randn(1, 1, D)
    copies = 200
    with torch.no_grad():
        task = model.task(support.expand(copies, -1, -1, -1), query.expand(copies, -1, -1))
        y = Predictive(model.model, guide=model.guide, num_samples=40, parallel=True)(task)["y"]
        expected = model.predict(support, query, 8000)[0, 0].double()
    one_hot = torch.nn.functional.one_hot(y.reshape(40, copies), N).double().mean(1)
    statistics.agree(one_hot, expected, power=0.1, error=0.015)


PREDICTIVE = [
    {},
    {"memory_use": "rote"},
    {"prior_z": "empirical_bayes", "posterior_z": "conjugate"},
    {"prior_z": "empirical_bayes", "posterior_z": "conjugate", "likelihood": "generative"},
    {"memory_use": "rote", "likelihood": "generative"},
]


@pytest.mark.parametrize("parts", PREDICTIVE, ids=str)
def test_prediction_averages_the_samples_of_the_guide(parts, monkeypatch):
    """The same estimator as the model replayed against the guide, however many samples are drawn at a time."""
    model = trained(**parts)
    support, query = torch.randn(T, N, K, D), torch.randn(T, Q, D)
    with torch.no_grad():
        task = model.task(support, query)
        logits = model.marginal(task, 8000)
        exact = model.posterior(task, 8000)[1] if logits is None else logits
        monkeypatch.setattr("pyro_vsm.model.AT_ONCE", 3000 * T * N * D)
        expected = model.predict(support, query, 20_000)  # of m 5000, or 20 000 where z is not sampled
    torch.testing.assert_close(expected.sum(-1), torch.ones(T, Q))
    if parts == PREDICTIVE[-1]:  # nothing is random
        torch.testing.assert_close(exact.softmax(-1).mean(0), expected)
    else:
        statistics.agree(exact.softmax(-1).double(), expected.double(), power=0.05, error=0.005)


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
def test_a_few_samples_in_pairs_are_unbiased_and_more_precise_than_independent_ones(samples):
    """Of many predictions the mean is that of many samples, and the spread is below that of independent samples."""
    model = trained(posterior_z={"class_path": "amortised", "init_args": {"log_sigma": 0.0}})
    support, query = torch.randn(1, N, K, D), torch.randn(1, Q, D)
    many = 12_000
    with torch.no_grad():
        found = model.predict(support.expand(many, -1, -1, -1), query.expand(many, -1, -1), samples).double()
        independent = model.posterior(model.task(support, query), 240_000)[1].softmax(-1)[:, 0].double()
    statistics.agree(found, independent.mean(0), power=0.06, error=0.008)
    ratio = (found.var(0).sum() / independent.var(0).sum() * samples).item()
    assert ratio < (1.05 if samples == 1 else 0.92)


def test_posterior_replays_the_guide():
    model = trained()
    task = a_task(model)
    trace, logits = model.posterior(task, 6)
    z = trace.nodes["z"]["value"]
    torch.testing.assert_close(logits, model.program.likelihood(z, task))


def test_latents_of_one_class_do_not_reach_another():
    """The guide factorises over classes: q(z_n) depends on the support of n alone (and on the memory)."""
    model = trained()
    task = a_task(model)
    m = torch.randn(T, N, D)
    q = model.program.posterior_z(m, task, model.program.prior_z(m, task))
    support = task.support.clone()
    support[:, 0] += 10
    other = model.task(support, task.query)
    shifted = model.program.posterior_z(m, other, model.program.prior_z(m, other))
    torch.testing.assert_close(shifted.mean[:, 1:], q.mean[:, 1:])
    assert not torch.allclose(shifted.mean[:, 0], q.mean[:, 0])
    torch.testing.assert_close(other.recall.log_address[:, 1:], task.recall.log_address[:, 1:])


# --- limits -----------------------------------------------------------------------------------------------------


def test_without_memory_and_noise_it_is_the_prototypical_network():
    """Point posterior, residual still zero, memory off: the same probabilities, to the last bit."""
    model = vsm(D, posterior_z="deterministic", memory_use="off")
    network = PrototypicalNetwork(model.encoder)
    support, query = torch.randn(T, N, K, D), torch.randn(T, Q, D)
    for tau in (None, 0.7):
        if tau is not None:
            model.program.likelihood.tau.raw.data.fill_(tau)
            network.tau.raw.data.fill_(tau)
        assert torch.equal(model.predict(support, query, 1), network.predict(support, query))
        torch.testing.assert_close(model.predict(support, query, 20), network.predict(support, query))


def test_without_memory_and_noise_it_trains_as_the_prototypical_network():
    """With the KL weights at 0 the loss is its cross-entropy, and so is the backbone's gradient."""
    model = vsm(D, posterior_z="deterministic", memory_use="off", beta_z=0.0, beta_m=0.0, particles=3)
    network = PrototypicalNetwork(model.encoder)
    features = torch.randn(T, N, 4, D, requires_grad=True)
    classes = torch.arange(T * N).reshape(T, N)
    loss = model.loss(features, 2, classes, torch.tensor(1.0))[0]
    expected = network.loss(features, 2, classes, torch.tensor(1.0))[0]
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, features)
    (wanted,) = torch.autograd.grad(expected, features)
    torch.testing.assert_close(gradient, wanted)


def test_more_shots_sharpen_the_conjugate_posterior():
    model = trained(
        posterior_z={"class_path": "conjugate", "init_args": {"residual": False}}, prior_z="empirical_bayes"
    )
    support, query = torch.randn(1, N, 20, D), torch.randn(1, Q, D)
    sds = []
    for shots in (1, 5, 20):
        with torch.no_grad():
            task = model.task(support[:, :, :shots], query)
            m = torch.zeros(1, N, D)
            sds.append(model.program.posterior_z(m, task, model.program.prior_z(m, task)).variance.mean())
    assert sds[0] > sds[1] > sds[2]


def test_parts_that_a_use_of_the_memory_does_not_need_are_not_there():
    assert not hasattr(vsm(D, memory_use="rote").program, "prior_m")
    assert hasattr(vsm(D, memory_use="shuffled").program, "prior_m")


@pytest.mark.parametrize("cached", [1, 10**9])
@pytest.mark.parametrize(
    ("parts", "samples", "of_m"),
    [
        ({}, 1, 1), ({}, 3, 2), ({}, 63, 32), ({}, 64, 16), ({}, 65, 17), ({}, 67, 17),
        ({"posterior_z": "deterministic"}, 67, 67),
        ({"prior_z": "empirical_bayes", "posterior_z": "conjugate", "likelihood": "generative"}, 67, 67),
    ],
    ids=str,
)  # fmt: skip
def test_as_many_samples_as_asked_for_share_so_many_m(parts, samples, of_m, cached, monkeypatch):
    model = trained(**parts)
    drawn = []
    monkeypatch.setattr("pyro_vsm.model.AT_ONCE", cached)
    monkeypatch.setattr("pyro_vsm.model.spread", lambda q, n, at_once: drawn.append(n) or spread(q, n, at_once))
    with torch.no_grad():
        p = model.predict(torch.randn(T, N, K, D), torch.randn(T, Q, D), samples)
    torch.testing.assert_close(p.sum(-1), torch.ones(T, Q))
    assert drawn == [of_m]
