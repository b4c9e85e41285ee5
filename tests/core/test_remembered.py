"""Prediction of the closed form with matrices kept from the last call: as without them, and never stale."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from pyro_vsm.conjugate import conjugate_gain, conjugate_posterior
from pyro_vsm.distributions import LowRankGaussian
from pyro_vsm.remembered import Remembered, lasting
from pyro_vsm.vsm import VSM

from .small import memory, randomise, vsm

DOUBLE = torch.float64
D, T, N, Q = 12, 3, 4, 7
EXACT = {"class_path": "conjugate", "init_args": {"residual": False}}


def model(use: str = "moments", rank: int = D, dim: int = D, posterior_z=EXACT, **options) -> VSM:
    parts = {"prior_z": "empirical_bayes", "posterior_z": posterior_z, "likelihood": "generative", **options}
    made = randomise(vsm(dim, memory_use=use, within_rank=rank, **parts), 0.3)
    buffers = dict(memory(dim, 6, images=12, within_rank=rank).named_buffers())
    made.memory.load_state_dict({**made.memory.state_dict(), **buffers})
    return made.double().eval()


def episodes(shots: int = 1, dim: int = D, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor]:
    return torch.randn(T, N, shots, dim, dtype=dtype), torch.randn(T, Q, dim, dtype=dtype)


def counted(made: VSM) -> list[str]:
    """What the model computes anew, in order, from now on."""
    done: list[str] = []
    for part, name in ((made.program.posterior_z, "_gain"), (made.program.likelihood, "_precision")):
        function = getattr(part, name).function

        def counting(*arguments, function=function, name=name):
            done.append(name)
            return function(*arguments)

        setattr(part, name, Remembered(counting))
    return done


def predict(made: VSM, support: Tensor, query: Tensor, remember: bool = True) -> Tensor:
    torch.manual_seed(3)  # the same samples of m
    with torch.set_grad_enabled(not remember):
        return made.predict(support, query, 10).detach()


@pytest.mark.parametrize("use", ["moments", "rote", "latent", "off"])
@pytest.mark.parametrize("rank", [D, D // 2], ids=["full", "low-rank"])
@pytest.mark.parametrize("posterior_z", [EXACT, "conjugate"], ids=["exact", "residual"])
def test_the_same_probabilities_as_with_the_factors(use, rank, posterior_z):
    made = model(use, rank, posterior_z=posterior_z)
    done = counted(made)
    for shots in (1, 5):
        given = episodes(shots)
        found, expected = predict(made, *given), predict(made, *given, remember=False)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        assert found.std(-1).min() > 1e-4
    assert done.count("_gain") == 2
    assert done.count("_precision") == 2


@pytest.mark.parametrize("shots", [1, 5])
def test_dense_bayes_rule(shots):
    """``N(h; mean_n, W' + V)``, ``V = (B^-1 + K W^-1)^-1``, from whole matrices; W' is the likelihood's own W."""
    made, (support, query) = model(), episodes(shots)
    program, given = made.program, made.task(support, query)
    with torch.no_grad():
        prior = program.prior_z(program.memory_use(given), given)
        noise, other = program.posterior_z.noise(given), program.likelihood.noise(given)
        w, w_y = ((torch.diag_embed(d) + g @ g.mT)[0, 0] for d, g in (noise, other))
        b = prior.covariance_matrix[0, 0]
        assert (w / w.trace() - w_y / w_y.trace()).abs().max() > 1e-3
        v = torch.linalg.inv(torch.linalg.inv(b) + shots * torch.linalg.inv(w))
        pull = shots * given.prototype @ torch.linalg.inv(w) + prior.mean @ torch.linalg.inv(b)
        p = torch.linalg.inv(w_y + v)
        gap = query.unsqueeze(2) - (pull @ v).unsqueeze(1)
        square = torch.einsum("tqnd,de,tqne->tqn", gap, p, gap)
        expected = (-program.likelihood.tau() * square / p.trace()).softmax(-1)
    torch.testing.assert_close(predict(made, support, query), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("shots", [1, 5])
def test_float32_is_enough(shots):
    made, given = model(rank=200, dim=200), episodes(shots, 200)
    expected = predict(made, *given, remember=False)
    found = predict(made.float(), *(t.float() for t in given))
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


def test_computed_once_for_all_blocks_of_a_memory():
    made = model("latent")
    done = counted(made)
    for _ in range(4):
        predict(made, *episodes())
    assert done == ["_gain", "_precision"]
    predict(made, *episodes(5))
    assert done == ["_gain", "_precision"] * 2


CHANGES = {
    "entries": lambda m: m.memory.entries[:6].mul_(1.5),
    "one entry forgotten": lambda m: m.memory.classes[2].fill_(-1),
    "variances": lambda m: m.memory.variances[:6].add_(1.0),
    "covariance refreshed": lambda m: m.memory.within.set(m.memory.within.covariance + torch.eye(D, dtype=DOUBLE)),
    "classes consolidated": lambda m: m.memory.store(
        m.memory.consolidate(torch.randn(1, 6, 4, D, dtype=DOUBLE), torch.arange(3, 9).unsqueeze(0))
    ),
    "refilled": lambda m: m.start(torch.randn(30, D, dtype=DOUBLE), torch.arange(5).repeat_interleave(6)),
    "weights loaded": lambda m: m.load_state_dict(randomise(copy.deepcopy(m), 0.3).state_dict()),
    "parameters of the posterior, past autograd": lambda m: m.program.posterior_z.noise.shrink.raw.data.add_(1.0),
    "parameters of the likelihood": lambda m: m.program.likelihood.noise.shrink.raw.add_(1.0),
    "parameters of the prior": lambda m: m.program.prior_z.floor.raw.mul_(0.5),
    "another tensor": lambda m: setattr(m.memory.within, "factor", m.memory.within.factor * 0.5),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_is_stale(change):
    made, given = model(), episodes()
    before = predict(made, *given)
    with torch.no_grad():
        change(made)
    after = predict(made, *given)
    assert (after - before).abs().max() > 1e-6
    torch.testing.assert_close(after, predict(made, *given, remember=False), atol=1e-9, rtol=1e-9)


def test_gradients_are_those_of_a_model_that_remembers_nothing():
    made, given = model(), episodes()
    fresh = copy.deepcopy(made)
    with torch.inference_mode():
        predict(made, *given)
    found = []
    for m in (made, fresh):
        m.predict(*given, 1).square().sum().backward()
        found.append([p.grad for p in m.program.parameters()])
    assert sum(g is not None for g in found[0]) >= 6
    for a, b in zip(*found):
        assert (a is None and b is None) or torch.equal(a, b)


def test_kept_inside_inference_mode_it_serves_outside():
    made, given = model(), episodes()
    done = counted(made)
    with torch.inference_mode():
        inside = predict(made, *given)
    torch.testing.assert_close(predict(made, *given), inside)
    assert done == ["_gain", "_precision"]


def test_kept_inside_inference_mode_it_may_be_part_of_a_graph():
    made, given = model(), episodes()
    task = made.task(*given)
    with torch.inference_mode():
        predict(made, *given)
    with torch.no_grad():
        q = made.program.posterior_z(made.program.memory_use(task), task, made.program.prior_z(task.prototype, task))
    value = q.loc.clone().requires_grad_()
    q.log_prob(value).sum().backward()
    torch.testing.assert_close(value.grad, torch.zeros_like(value), atol=1e-9, rtol=0)


def test_tasks_and_classes_of_their_own_covariance():
    """Retrieved entries are a task's own; a class with more examples is surer: neither is remembered."""
    made = model(retrieve=1)
    done, (support, query) = counted(made), episodes()
    found = predict(made, support, query)
    one_by_one = torch.cat([predict(made, s[None], q[None], remember=False) for s, q in zip(support, query)])
    torch.testing.assert_close(found, one_by_one, atol=1e-9, rtol=1e-9)
    assert done == []
    made = model()
    done, unequal = counted(made), [torch.randn(k, D, dtype=DOUBLE) for k in (1, 4, 2)]
    with torch.no_grad():
        found = made.predict_exactly(unequal, query[0], 1)
    expected = made.predict_exactly(unequal, query[0], 1).detach()
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    assert done == []


def test_a_likelihood_may_be_asked_about_any_gaussian():
    """Of whatever posterior: each of these shares its covariance among the classes."""
    made, given = model(), episodes()
    task, part = made.task(*given), made.program.likelihood
    for width in (0.1, 0.1, 3.0):
        loc, factor = torch.randn(T, N, D, dtype=DOUBLE), width * torch.randn(1, 1, D, D, dtype=DOUBLE)
        q = LowRankGaussian(loc, factor, torch.full((1, 1, D), width, dtype=DOUBLE))
        expected = part.marginal(q, task).detach().log_softmax(-1)
        with torch.no_grad():
            found = part.marginal(q, task).log_softmax(-1)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("noise_factor", [None, torch.randn(1, 1, D, D, dtype=DOUBLE)], ids=["diagonal", "full"])
def test_gain_is_the_posteriors(noise_factor):
    factor, diag, noise = torch.randn(1, 1, D, 3, dtype=DOUBLE), *(torch.rand(2, 1, 1, D, dtype=DOUBLE) + 0.1)
    mu, mean = torch.randn(2, T, N, D, dtype=DOUBLE)
    q = conjugate_posterior(mu, factor, diag, mean, noise, 2, noise_factor)
    gain, low, rest = conjugate_gain(factor, diag, noise, 2, noise_factor)
    torch.testing.assert_close(mu + (mean - mu) @ gain.T, q.loc)
    assert torch.equal(low, q.factor)
    assert torch.equal(rest, q.diag)


def test_lasting():
    diag, factor, many = torch.ones(1, 1, D), torch.ones(1, 1, D, D // 2), torch.ones(T, 1, D, D)
    with torch.no_grad():
        assert lasting([diag, diag], [factor, None])
        assert lasting([diag], [factor[..., :3], factor[..., :3]])
        assert not lasting([diag], [factor[..., :3], None])  # few columns: cheaper than the whole matrix
        assert not lasting([diag], [factor, many])
        assert not lasting([diag, torch.ones(T, N, D)], [factor])
        assert not lasting([diag.to("meta")], [factor.to("meta")])
    assert not lasting([diag], [factor])


def test_remembered_compares_values_and_kinds():
    calls = []
    once = Remembered(lambda *a: calls.append(a) or len(calls))
    x = torch.tensor([1.0, 2.0])
    assert [once(x, 1, None), once(x.clone(), 1, None)] == [1, 1]
    assert once(x, 1, x) == 2
    assert once(x, 2, x) == 3
    x[0] = 5.0  # in place, in the same tensor
    assert once(x, 2, x) == 4
    assert once(x.double(), 2, x) == 5
    assert once(x[:1], 2, x) == 6
    assert once(x[:1], 2, None) == 7
    nan = torch.tensor([float("nan")])
    assert once(nan, 2, None) != once(nan, 2, None)


def test_threads_get_what_they_asked_for():
    once = Remembered(lambda x: 2 * x)

    @torch.no_grad()
    def asked(i: int) -> bool:
        x = torch.full((1000,), float(i % 3))
        found = once(x).clone()
        return torch.equal(found, 2 * x)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(asked, range(2000)))


def test_copies_and_pickles_take_nothing_along():
    made, given = model(), episodes()
    with torch.inference_mode():
        expected = predict(made, *given)
    assert not any("_gain" in name or "_precision" in name for name in made.state_dict())
    twin = copy.deepcopy(made)
    assert twin.program.posterior_z._gain._last is None
    torch.testing.assert_close(predict(twin, *given), expected)
    assert pickle.loads(pickle.dumps(made.program.likelihood._precision))._last is None
