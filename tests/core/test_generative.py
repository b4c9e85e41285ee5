"""The likelihood ``generative``: z integrated out, against dense densities, samples and finite differences."""

from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_vsm.distributions import LowRankGaussian
from pyro_vsm.errors import UserError
from pyro_vsm.likelihood import EuclideanLikelihood, GaussianLikelihood, GenerativeLikelihood
from pyro_vsm.prediction import believe
from pyro_vsm.task import Task

from . import statistics
from .small import memory, randomise, recall, to, vsm

DOUBLE = torch.float64
D, T, N, Q, P = 4, 2, 3, 5, 2
RANKS = pytest.mark.parametrize("rank", [0, 2, D], ids=["diagonal", "low-rank", "full"])
KINDS = pytest.mark.parametrize("kind", ["diagonal", "a class", "shared", "particles"])


def task(rank: int, entries: int = 6, dim: int = D) -> Task:
    """A random task in float64 whose memory keeps so many eigenvectors of W."""
    store = memory(dim, entries, images=12, within_rank=rank)
    return to(recall(store, torch.randn(T, N, 2, dim), torch.randn(T, Q, dim)), DOUBLE)


def likelihood(dim: int = D) -> GenerativeLikelihood:
    return randomise(GenerativeLikelihood(dim)).double()


def parts(kind: str, dim: int = D) -> tuple[Tensor, Tensor | None, Tensor]:
    """Mean ``[..., T, N, D]``, factor (None for a diagonal Gaussian) and diagonal of q(z)."""
    lead = (P,) if kind == "particles" else ()
    loc = torch.randn(*lead, T, N, dim, dtype=DOUBLE)
    shape = {"shared": (T, 1), "particles": (P, T, N)}.get(kind, (T, N))
    diag = torch.rand(*shape, dim, dtype=DOUBLE) + 0.05
    return loc, None if kind == "diagonal" else torch.randn(*shape, dim, 2, dtype=DOUBLE), diag


def gaussian(loc: Tensor, factor: Tensor | None, diag: Tensor):
    return dist.Normal(loc, diag.sqrt()).to_event(1) if factor is None else LowRankGaussian(loc, factor, diag)


def covariances(part: GenerativeLikelihood, given: Task, factor: Tensor | None, diag: Tensor) -> Tensor:
    """W + V, ``[..., T, N, D, D]``."""
    noise, noise_factor = part.noise(given)
    whole = torch.diag_embed(noise.expand(T, N, -1)) + torch.diag_embed(diag)
    if noise_factor is not None:
        whole = whole + noise_factor @ noise_factor.mT
    return whole if factor is None else whole + factor @ factor.mT


def dense(part: GenerativeLikelihood, given: Task, loc: Tensor, factor: Tensor | None, diag: Tensor) -> Tensor:
    """Log probabilities ``[..., T, Q, N]``, by ``torch.distributions`` and an explicit inverse."""
    whole = covariances(part, given, factor, diag).expand(*loc.shape, loc.shape[-1])
    density = MultivariateNormal(loc.unsqueeze(-3), whole.unsqueeze(-4)).log_prob(given.query.unsqueeze(-2))
    scale = torch.linalg.inv(whole).diagonal(dim1=-2, dim2=-1).sum(-1).mean(-1)  # over the classes
    return (2 * part.tau() * density / scale[..., None, None]).log_softmax(-1)


@KINDS
@RANKS
@pytest.mark.parametrize("entries", [0, 6], ids=["empty", "full memory"])
def test_marginal_is_the_density_of_the_query(rank, kind, entries):
    """``p(h) = N(h; mean_n, W + V_n)``, determinant and quadratic term included, and its gradient in everything."""
    part, given, leaves = likelihood(), task(rank, entries), parts(kind)
    leaves = tuple(None if t is None else t.requires_grad_() for t in leaves)
    given = replace(given, query=given.query.clone().requires_grad_())
    inputs = [t for t in (*leaves, given.query, *part.parameters()) if t is not None]
    found, exact = part.marginal(gaussian(*leaves), given).log_softmax(-1), dense(part, given, *leaves)
    assert found.shape == exact.shape == (*leaves[0].shape[:-2], Q, N)
    torch.testing.assert_close(found, exact, atol=1e-9, rtol=1e-9)
    weights = torch.randn(found.shape, dtype=DOUBLE)
    mine, theirs = (torch.autograd.grad((weights * p).sum(), inputs) for p in (found, exact))
    for a, b in zip(mine, theirs):
        assert b.abs().max() > 1e-3 or (entries == 0 and b.numel() == 1)  # W = 1 has nothing to shrink
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-7)


@RANKS
def test_gradient_against_finite_differences(rank):
    part, given = likelihood(), task(rank)
    loc, factor, diag = parts("a class")
    query = given.query.clone()

    def run(loc, factor, root, query, tau, shrink):
        names = {"tau.raw": tau, "noise.shrink.raw": shrink}
        arguments = (LowRankGaussian(loc, factor, root.square()), replace(given, query=query))
        return torch.func.functional_call(Marginal(part), {f"part.{k}": v for k, v in names.items()}, arguments)

    inputs = [loc, factor, diag.sqrt(), query, part.tau.raw.detach(), part.noise.shrink.raw.detach()]
    assert torch.autograd.gradcheck(run, [t.clone().requires_grad_() for t in inputs])


class Marginal(torch.nn.Module):
    def __init__(self, part: GenerativeLikelihood):
        super().__init__()
        self.part = part

    def forward(self, q, given):
        return self.part.marginal(q, given).log_softmax(-1)


@pytest.mark.parametrize("rank", [0, 2])
def test_marginal_against_sampled_prototypes(rank):
    """``E_q N(h; z_n, W)`` by sampling z, with a temperature of one."""
    part, given = likelihood(2), task(rank, dim=2)
    loc, factor, diag = parts("a class", 2)
    with torch.no_grad():
        precision = torch.linalg.inv(covariances(part, given, factor, diag))
        scale = precision.diagonal(dim1=-2, dim2=-1).sum(-1).mean(-1)[0]
        part.tau.raw.copy_(((scale / 2).expm1()).log())  # of the first task, which alone is looked at
        noise, noise_factor = part.noise(given)
        w = torch.diag_embed(noise) + (0 if noise_factor is None else noise_factor @ noise_factor.mT)
        draws = LowRankGaussian(loc, factor, diag).rsample((40_000,))  # [S, T, N, D]
        white = MultivariateNormal(torch.zeros(2, dtype=DOUBLE), w[0, 0])
        densities = white.log_prob(given.query[0].unsqueeze(-2) - draws[:, 0].unsqueeze(-3)).exp()  # [S, Q, N]
        batches = densities.unflatten(0, (40, -1)).mean(1)
        probabilities = part.marginal(LowRankGaussian(loc, factor, diag), given)[0].softmax(-1)
        total = batches.mean(0).sum(-1, keepdim=True)
        statistics.agree(batches, probabilities * total, power=0.1, scale=densities.mean(0).max(), error=2e-3)
        given_z = part(loc, given)[0].softmax(-1)  # and the samples can tell: at the mean prototype it is another
    assert (given_z - probabilities).abs().max() > 0.02


@RANKS
def test_a_certain_prototype_leaves_the_gaussian_likelihood(rank):
    part, given = likelihood(), task(rank)
    z = torch.randn(T, N, D, dtype=DOUBLE)
    other = GaussianLikelihood(D).double()
    other.load_state_dict(part.state_dict())
    torch.testing.assert_close(part(z, given), other(z, given))
    certain = LowRankGaussian(z, torch.zeros(T, N, D, 1, dtype=DOUBLE), torch.full((T, N, D), 1e-12, dtype=DOUBLE))
    torch.testing.assert_close(part.marginal(certain, given).log_softmax(-1), part(z, given).log_softmax(-1))


def test_an_uncertain_class_takes_the_queries_that_are_far_from_all():
    """What ``gaussian`` cannot say: it knows the samples of z, not how wide they make a class."""
    part, given = likelihood(), task(0)
    loc, diag = torch.zeros(T, N, D, dtype=DOUBLE), torch.full((T, N, D), 0.01, dtype=DOUBLE)
    diag[:, 1] = 4.0
    far = replace(given, query=torch.full((T, 1, D), 3.0, dtype=DOUBLE))
    near = replace(given, query=torch.full((T, 1, D), 0.1, dtype=DOUBLE))
    p = [part.marginal(gaussian(loc, None, diag), t).softmax(-1)[..., 1] for t in (near, far)]
    assert (p[0] < 1 / 3).all()
    assert (p[1] > 0.5).all()


@KINDS
@RANKS
def test_classes_queries_and_axes_are_exchangeable(rank, kind):
    part, given = likelihood(), task(rank)
    loc, factor, diag = parts(kind)
    logits = part.marginal(gaussian(loc, factor, diag), given).log_softmax(-1)
    order, turn = torch.tensor([2, 0, 1]), torch.tensor([3, 4, 0, 2, 1])
    pick = (lambda t: None if t is None else t[..., order, :, :]) if kind != "shared" else (lambda t: t)
    classes = gaussian(loc[..., order, :], pick(factor), diag[..., order, :] if kind != "shared" else diag)
    torch.testing.assert_close(part.marginal(classes, given).log_softmax(-1), logits[..., order])
    queries = replace(given, query=given.query[:, turn])
    found = part.marginal(gaussian(loc, factor, diag), queries).log_softmax(-1)
    torch.testing.assert_close(found, logits[..., turn, :])
    moved = replace(given, query=given.query + 2.5)
    found = part.marginal(gaussian(loc + 2.5, factor, diag), moved).log_softmax(-1)
    torch.testing.assert_close(found, logits)


@pytest.mark.parametrize("rank", [3, 60, 250], ids=["low", "middle", "more columns than rows"])
def test_float32_is_enough(rank):
    part, dim = randomise(GenerativeLikelihood(200)), 200
    store = memory(dim, 6, images=12, within_rank=20)
    given = recall(store, torch.randn(T, N, 2, dim), torch.randn(T, Q, dim))
    loc, factor, diag = torch.randn(T, N, dim), torch.randn(T, N, dim, rank) / rank**0.5, torch.rand(T, N, dim) + 0.01
    single = part.marginal(LowRankGaussian(loc, factor, diag), given).log_softmax(-1)
    q = LowRankGaussian(loc.double(), factor.double(), diag.double())
    double = part.double().marginal(q, to(given, DOUBLE)).log_softmax(-1)
    torch.testing.assert_close(single.double(), double, atol=1e-3, rtol=1e-3)


def test_no_matrix_of_dimension_squared_for_a_class():
    """Classes with variances of their own in 4000 dimensions: dense matrices would take 15 GB."""
    dim = 4000
    part, given = GenerativeLikelihood(dim), task(0, dim=dim)
    given = to(given, torch.float32)
    loc, diag = torch.randn(40, T, N, dim), torch.rand(40, T, N, dim) + 0.1
    logits = part.marginal(gaussian(loc, None, diag), given)
    assert logits.shape == (40, T, Q, N)
    assert torch.isfinite(logits).all()


def test_only_a_gaussian_has_a_marginal():
    part, given, z = likelihood(), task(0), torch.randn(T, N, D, dtype=DOUBLE)
    for q in (dist.Delta(z, event_dim=1), dist.Laplace(z, torch.ones_like(z)).to_event(1)):
        with pytest.raises(UserError, match=r"likelihood generative. needs a Gaussian .* posterior_z conjugate or"):
            part.marginal(q, given)
    for other in (GaussianLikelihood(D), EuclideanLikelihood(D)):
        assert other.marginal(dist.Normal(z, 1.0).to_event(1), given) is None


# --- the prediction of the whole model ----------------------------------------------------------------------------

EXACT = {"class_path": "conjugate", "init_args": {"residual": False}}


def model(use: str, posterior_z=EXACT, prior_z="empirical_bayes"):
    made = randomise(vsm(D, memory_use=use, prior_z=prior_z, posterior_z=posterior_z, likelihood="generative"), 0.3)
    buffers = dict(memory(D, 6, images=12).named_buffers())
    made.memory.load_state_dict({**made.memory.state_dict(), **buffers})
    return made.double().eval()


def data(shots: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(1, N, shots, D, dtype=DOUBLE), torch.randn(1, Q, D, dtype=DOUBLE)


@torch.no_grad()
def by_hand(vsm, given: Task, m: Tensor) -> Tensor:
    """Probabilities ``[..., Q, N]`` for ``m [..., 1, N, D]``, from dense matrices alone."""
    program = vsm.program
    p_z = program.prior_z(m, given)
    b = p_z.covariance_matrix.expand(1, N, D, D)
    post = program.posterior_z
    w = torch.diag_embed(post.noise(given)[0]).expand(1, N, D, D)
    shots = torch.as_tensor(given.shots).expand(1, N, 1).double() if isinstance(given.shots, Tensor) else given.shots
    k = shots.unsqueeze(-1) if isinstance(shots, Tensor) else shots
    v = torch.linalg.inv(torch.linalg.inv(b) + k * torch.linalg.inv(w))
    pull = torch.linalg.solve(w, given.prototype.unsqueeze(-1)) * k + torch.linalg.solve(b, p_z.mean.unsqueeze(-1))
    mean = (v @ pull).squeeze(-1)
    whole = v + torch.diag_embed(program.likelihood.noise(given)[0]).expand(1, N, D, D)
    density = MultivariateNormal(mean.unsqueeze(-3), whole.unsqueeze(-4)).log_prob(given.query.unsqueeze(-2))
    scale = torch.linalg.inv(whole).diagonal(dim1=-2, dim2=-1).sum(-1).mean(-1)
    return (2 * program.likelihood.tau() * density / scale[..., None, None]).softmax(-1)


@pytest.mark.parametrize("use", ["rote", "transformed", "moments", "off"])
def test_prediction_with_the_conjugate_posterior_is_bayes_rule(use):
    """The formula of the closed form, from the entries of the memory to the probabilities."""
    made, (support, query) = model(use), data()
    given = made.task(support, query)
    with torch.no_grad():
        exact = by_hand(made, given, made.program.memory_use(given))
        torch.testing.assert_close(made.predict(support, query, 3), exact, atol=1e-7, rtol=1e-6)
        belief = made.infer(support[0], query[0], 20)
        torch.testing.assert_close(belief.probabilities, exact[0], atol=1e-7, rtol=1e-6)
        p, _ = believe(made, list(support[0]), query[0], samples=7)
    torch.testing.assert_close(p, exact[0], atol=1e-7, rtol=1e-6)


def test_classes_with_different_numbers_of_examples():
    made = model("rote")
    support, query = [torch.randn(k, D, dtype=DOUBLE) for k in (1, 4, 2)], torch.randn(Q, D, dtype=DOUBLE)
    given = made._ragged(support, query)
    assert given.counts.tolist() == [[1, 4, 2]]
    with torch.no_grad():
        exact = by_hand(made, given, made.program.memory_use(given))[0]
        torch.testing.assert_close(made.predict_exactly(support, query, 3), exact, atol=1e-7, rtol=1e-6)
        p, information = believe(made, support, query, samples=7)
    torch.testing.assert_close(p, exact, atol=1e-7, rtol=1e-6)
    assert (information >= 0).all()


@pytest.mark.parametrize("posterior_z", [EXACT, "amortised"], ids=["conjugate", "amortised"])
def test_m_is_averaged_over(posterior_z):
    """``E_q(m) p(y|m)``: probabilities, not logits, are averaged over samples of m."""
    prior_z = "memory" if posterior_z == "amortised" else {"class_path": "memory", "init_args": {"hidden": 8}}
    made, (support, query) = model("latent", posterior_z, prior_z), data()
    randomise(made.program, 1.0)  # m matters
    given = made.task(support, query)
    with torch.no_grad():
        m = made.program.posterior_m(given).rsample((40_000,))  # [S, 1, N, D]
        p_z = made.program.prior_z(m, given)
        logits = made.program.likelihood.marginal(made.program.posterior_z(m, given, p_z), given)
        expected = logits.softmax(-1)[:, 0].unflatten(0, (100, -1)).mean(1)
        found = made.predict(support.expand(100, -1, -1, -1), query.expand(100, -1, -1), 400)
        exact = made.predict_exactly(list(support[0]), query[0], 20_000)
    gap = found - expected
    statistics.agree(gap, torch.zeros_like(gap[0]), power=0.017, scale=torch.ones(()), error=1e-6)
    statistics.agree(found, exact, power=0.017, scale=torch.ones(()), error=0.005)
    assert (logits.softmax(-1).mean((0, 1)) - logits.mean((0, 1)).softmax(-1)).abs().max() > 0.018


def test_training_is_on_the_likelihood_given_z():
    """Given z, y has the logits of ``gaussian``: the same loss and gradient, whatever prediction does."""
    losses = []
    for name in ("gaussian", "generative"):
        torch.manual_seed(0)
        made = vsm(D, prior_z="empirical_bayes", posterior_z="conjugate", likelihood=name)
        torch.manual_seed(1)
        classes = torch.arange(6).view(2, 3)
        loss, _ = made.loss(torch.randn(2, 3, 4, D), 1, classes, torch.tensor(0.5))
        loss.backward()
        losses.append((loss, [p.grad for p in made.parameters()]))
    assert torch.equal(losses[0][0], losses[1][0])
    for a, b in zip(losses[0][1], losses[1][1]):
        assert (a is None and b is None) or torch.equal(a, b)
