"""The compared systems against independent computations: MAML, VERSA, RFS, and the distillation of classifiers.

What holds for every system alike is in ``test_systems.py``.
"""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from core import statistics
from core.quadrature import trapezoid
from core.small import Flat
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vsm.backbones import Backbone
from pyro_vsm.backbones.conv4 import Conv4
from pyro_vsm.baselines import MAML, Versa, maml
from pyro_vsm.baselines.gaussian_process import GaussianProcess, regression
from pyro_vsm.baselines.rfs import RFS, logistic_regression
from pyro_vsm.classifier import Classifier, rotated
from pyro_vsm.config import ClassifierConfig, MAMLConfig, RFSConfig, VersaConfig
from pyro_vsm.encoder import Encoder
from pyro_vsm.errors import UserError
from pyro_vsm.fewshot import split_episode

DOUBLE = torch.float64
PROGRESS = torch.zeros(())


class Pixels(Backbone):
    """A backbone without parameters: features are the pixels of 2x2 images."""

    def __init__(self):
        super().__init__(1, 2)
        self.dim = 4

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad))
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found)}


# --- MAML ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_order", [False, True])
def test_maml_of_a_linear_model_in_closed_form(first_order):
    """One step of logistic regression: ``dL/dW = (1 - a H) L'(W - a g)``, its Hessian H written out."""
    way, shot, rate = 3, 2, 0.7
    config = MAMLConfig(inner_steps=1, inner_lr=rate, first_order=first_order, head="per_way")
    model = MAML(Encoder(Pixels(), [0.0], [1.0]), config, way).double()
    features = torch.randn(2, way, shot + 3, 4, dtype=DOUBLE)
    loss, _ = model.loss(features, shot, torch.zeros(2, way), PROGRESS)
    found = torch.cat([g.reshape(way, -1) for g in gradients(loss, model).values()], 1)  # [N, D + 1]

    start = torch.cat([model.head.weight, model.head.bias.unsqueeze(1)], 1).detach().numpy()

    def softmax(logits):
        e = np.exp(logits - logits.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    expected, losses = 0.0, []
    for task in features.numpy():
        unit = task / np.sqrt((task**2).mean(-1, keepdims=True) + 1e-6)
        one = np.concatenate([unit, np.ones((*unit.shape[:2], 1))], -1)
        x, y = one[:, :shot].reshape(-1, 5), np.repeat(np.eye(way), shot, 0)
        q, t = one[:, shot:].reshape(-1, 5), np.repeat(np.eye(way), 3, 0)
        p = softmax(x @ start.T)
        adapted = start - rate * (p - y).T @ x / len(x)
        after = softmax(q @ adapted.T)
        losses.append(-np.log((after * t).sum(1)).mean())
        slope = (after - t).T @ q / len(q)
        if not first_order:
            curvature = np.einsum("in,nm->inm", p, np.eye(way)) - np.einsum("in,im->inm", p, p)
            hessian = np.einsum("inm,id,ie->ndme", curvature, x, x) / len(x)
            slope = slope - rate * np.einsum("ndme,me->nd", hessian, slope)
        expected = expected + slope / len(features)
    assert float(loss.detach()) == pytest.approx(np.mean(losses), abs=1e-12)
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-10, rtol=1e-8)


def unrolled(model: MAML, features: Tensor, shot: int, steps: int) -> Tensor:
    """Logits ``[T, Q, N]`` of MAML on a Conv-4, one task after another, by autograd with graphs of gradients."""
    support, query, _ = split_episode(features, shot)
    way, c = support.shape[1], model.config
    blocks = [(b[0].weight, b[1].weight, b[1].bias) for b in model.encoder.backbone.blocks[:4]]
    if model.head is None:
        head = [torch.zeros(*shape, dtype=DOUBLE, requires_grad=True) for shape in ((way, model.encoder.dim), (way,))]
    else:
        head = [model.head.weight, model.head.bias]
    size = model.encoder.backbone.image_size

    def logits(weights: list[Tensor], pixels: Tensor, first: int) -> Tensor:
        h = pixels.reshape(-1, 1, size, size)
        for i in range(4):
            kernel, scale, shift = weights[3 * i : 3 * i + 3]
            h = F.conv2d(h, kernel, padding=1)
            own = h[:first] if first else h
            var, mean = torch.var_mean(own, (0, 2, 3), correction=0, keepdim=True)
            h = (h - mean) / (var + 1e-5).sqrt() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
            h = F.max_pool2d(F.relu(h), 2)
        h = h.flatten(1)
        h = h * torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-6)
        return h @ weights[12].T + weights[13]

    answers = []
    for s, q in zip(support, query):
        weights, x = [*(w for block in blocks for w in block), *head], s.flatten(0, 1)
        for _ in range(steps):
            loss = F.cross_entropy(logits(weights, x, 0), torch.arange(way).repeat_interleave(shot))
            slopes = torch.autograd.grad(loss, weights, create_graph=not c.first_order, retain_graph=True)
            weights = [w - model.inner_lr * g for w, g in zip(weights, slopes)]
        if c.batch_norm == "transductive":
            answers.append(logits(weights, q, 0))
        else:
            answers.append(logits(weights, torch.cat([x, q]), len(x))[len(x) :])
    return torch.stack(answers)


def conv_maml(way: int = 3, **options) -> MAML:
    config = MAMLConfig(**{"inner_steps": 3, "inner_lr": 0.4, **options})
    model = MAML(Encoder(Conv4(1, 16, width=4), [0.5], [0.25]), config, way).double()
    with torch.no_grad():  # so that every parameter matters
        for block in model.encoder.backbone.blocks[:4]:
            block[1].weight.add_(0.2 * torch.randn(4))
            block[1].bias.add_(0.2 * torch.randn(4))
    return model


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"batch_norm": "transductive"}, {"head": "per_way"}], ids=["support", "transductive", "per_way"]
)
def test_maml_and_its_outer_gradient_are_those_of_an_unrolled_loop(options, first_order):
    model = conv_maml(first_order=first_order, **options)
    features = torch.randn(2, 3, 2 + 2, 256, dtype=DOUBLE)
    _, _, labels = split_episode(features, 2)
    loss, terms = model.loss(features, 2, torch.zeros(2, 3), PROGRESS)
    answers = unrolled(model, features, 2, 3)
    expected = F.cross_entropy(answers.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=1e-8)
    assert float(terms["accuracy"]) == pytest.approx(float((answers.argmax(-1) == labels).double().mean()))
    mine, theirs = gradients(loss, model), gradients(expected, model)
    assert sum(float(g.norm()) for g in theirs.values()) > 0.1
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, atol=1e-9, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_first_order_leaves_the_second_derivatives_out_and_nothing_else():
    exact, approximate = conv_maml(), conv_maml(first_order=True)
    approximate.load_state_dict(exact.state_dict())
    features = torch.randn(2, 3, 2 + 2, 256, dtype=DOUBLE)
    results = [m.loss(features, 2, torch.zeros(2, 3), PROGRESS)[0] for m in (exact, approximate)]
    assert torch.equal(results[0], results[1])
    one, other = (gradients(loss, m) for loss, m in zip(results, (exact, approximate)))
    gap = sum(float((one[n] - other[n]).square().sum()) for n in one)
    assert gap > 0.01 * sum(float(g.square().sum()) for g in one.values())


@pytest.mark.parametrize("first_order", [False, True])
def test_compiled_adaptation_is_the_eager_one(first_order, monkeypatch):
    """Traced as one program with its inner gradients, but run without a code generator."""
    compiled = []
    real = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", lambda f, options, **settings: compiled.append(f) or real(f, **settings))
    model = conv_maml(first_order=first_order, inner_steps=2)
    features = torch.randn(2, 3, 1 + 2, 256, dtype=DOUBLE)
    expected = model.loss(features, 1, torch.zeros(2, 3), PROGRESS)[0]
    slopes = gradients(expected, model)
    model.encoder.compiled = True
    found = model.loss(features, 1, torch.zeros(2, 3), PROGRESS)[0]
    assert compiled == [model.adapt]
    torch.testing.assert_close(found, expected)
    for name, gradient in gradients(found, model).items():
        torch.testing.assert_close(gradient, slopes[name], atol=1e-9, rtol=1e-6)


def test_prediction_takes_the_steps_of_the_test_and_forgets_them():
    model = conv_maml(test_steps=5).eval()
    support, query, _ = split_episode(torch.randn(3, 3, 2 + 2, 256, dtype=DOUBLE), 2)
    before = copy.deepcopy(model.state_dict())
    found = model.predict(support, query)
    features = torch.cat([support, query.unflatten(1, (3, 2))], 2)
    torch.testing.assert_close(found, unrolled(model, features, 2, 5).softmax(-1), atol=1e-8, rtol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.inference_mode():
        torch.testing.assert_close(model.predict(support.clone(), query.clone()), found)


def test_tasks_are_adapted_to_one_at_a_time_and_in_parts_alike(monkeypatch):
    model = conv_maml().eval()
    support, query, _ = split_episode(torch.randn(5, 3, 1 + 2, 256, dtype=DOUBLE), 1)
    whole = model.predict(support, query)
    for images in (1, 20):
        monkeypatch.setitem(maml.IMAGES, "cpu", images)
        torch.testing.assert_close(model.predict(support, query), whole)
    torch.testing.assert_close(model.predict(support[1:2], query[1:2])[0], whole[1])


def test_a_query_is_answered_for_itself_unless_transductive():
    support, query, _ = split_episode(torch.randn(2, 3, 1 + 4, 256, dtype=DOUBLE), 1)
    model = conv_maml().eval()
    torch.testing.assert_close(model.predict(support, query[:, :1]), model.predict(support, query)[:, :1])
    told = conv_maml(batch_norm="transductive").eval()
    assert not torch.allclose(told.predict(support, query[:, :1]), told.predict(support, query)[:, :1], atol=1e-3)


def test_the_shared_head_knows_no_order_and_takes_any_number_of_classes():
    support, query, _ = split_episode(torch.randn(2, 5, 2 + 2, 256, dtype=DOUBLE), 2)
    order = torch.tensor([3, 0, 4, 2, 1])
    model = conv_maml().eval()
    assert model.head is None
    p = model.predict(support, query)
    torch.testing.assert_close(model.predict(support[:, order], query), p[..., order])
    assert p.amax(-1).mean() > 0.3  # and it tells them apart
    placed = conv_maml(5, head="per_way").eval()
    assert not torch.allclose(
        placed.predict(support[:, order], query), placed.predict(support, query)[..., order], atol=1e-3
    )
    assert placed.predict(support[:, :2], query).shape == (2, 10, 2)
    with pytest.raises(UserError, match="maml: 5 classes, but its head was trained for 3; give fewer"):
        conv_maml(3, head="per_way").predict(support, query)


def test_what_all_classes_have_in_common_cancels():
    """Why the shared start is zero: any other gives the same answers."""
    shared, placed = conv_maml().eval(), conv_maml(head="per_way").eval()
    placed.load_state_dict(shared.state_dict(), strict=False)
    support, query, _ = split_episode(torch.randn(2, 3, 1 + 2, 256, dtype=DOUBLE), 1)
    with torch.no_grad():
        placed.head.weight.copy_(torch.randn(1, 4).expand(3, -1))
        placed.head.bias.fill_(0.7)
    torch.testing.assert_close(placed.predict(support, query), shared.predict(support, query))


def test_the_rate_of_the_inner_steps_follows_the_dimension():
    for size, rate in ((84, 0.01), (28, 0.25)):
        model = MAML(Encoder(Conv4(3, size), [0.5] * 3, [0.2] * 3), MAMLConfig(), 5)
        assert model.inner_lr == pytest.approx(rate)
    assert conv_maml(inner_lr=0.3).inner_lr == 0.3


@pytest.mark.parametrize(
    "wrong", [{"inner_steps": -1}, {"inner_lr": -0.1}, {"head": "mine"}, {"batch_norm": "running"}]
)
def test_maml_refuses_what_it_cannot_do(wrong):
    with pytest.raises(UserError, match=r"maml[.:].*; give "):
        MAMLConfig(**wrong)


# --- VERSA --------------------------------------------------------------------------------------------------------


def versa(dim: int, samples: int = 10) -> Versa:
    model = Versa(Encoder(Flat(dim), [0.0], [1.0]), VersaConfig(hidden=5, samples=samples, log_sigma=0.3))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def test_versas_moments_are_those_of_sampled_classifiers():
    model, samples = versa(6), 40_000
    support, query = torch.randn(1, 3, 2, 6), torch.randn(1, 4, 6)
    with torch.no_grad():
        mean, variance = model.moments(support, query)
        s = support.mean(2)[0]
        draws = [
            centre(s) + (0.5 * log_variance(s)).exp() * torch.randn(samples, 3, width)
            for centre, log_variance, width in (
                (model.weight_mean, model.weight_log_variance, 6), (model.bias_mean, model.bias_log_variance, 1),
            )
        ]  # fmt: skip
        logits = torch.einsum("lnd,qd->lqn", draws[0], query[0]) / math.sqrt(6) + draws[1].mT
    statistics.agree(logits, mean[0], power=0.2, error=1e-4)
    statistics.agree((logits - mean[0]).square(), variance[0], power=0.2, error=1e-4)


def gaps(model: Versa, features: Tensor) -> tuple[Tensor, Tensor]:
    """For two classes: mean and standard deviation of the right class's logit minus the other's, ``[Q]``, float64."""
    support, query, labels = split_episode(features, 1)
    mean, variance = (m[0].double() for m in model.moments(support, query))
    sign = 1.0 - 2.0 * labels[0]
    return sign * (mean[:, 0] - mean[:, 1]), variance.sum(-1).sqrt()


@pytest.mark.parametrize("samples", [1, 2])
def test_versas_loss_is_the_monte_carlo_log_likelihood(samples):
    """``E log 1/L sum_l p(y|x,w_l)`` and its gradient, by quadrature over the logits of two classes."""
    model, copies = versa(3, samples), 4000
    features = torch.randn(1, 2, 1 + 2, 3)
    eps, weight = trapezoid(40, samples)  # [G, L], [G]
    centre, scale = gaps(model, features)
    log_p = F.logsigmoid(centre + scale * eps.unsqueeze(-1))  # [G, L, Q]
    exact = -(weight.unsqueeze(-1) * (log_p.logsumexp(1) - math.log(samples))).sum(0).mean()
    value = torch.cat([exact.detach().reshape(1), *(g.flatten().double() for g in gradients(exact, model).values())])
    rows = []
    for _ in range(25):
        loss, terms = model.loss(features.expand(copies, -1, -1, -1), 1, torch.zeros(copies, 2), PROGRESS)
        assert float(terms["log_likelihood"]) == -float(loss.detach())
        rows.append(torch.cat([loss.detach().reshape(1), *(g.flatten() for g in gradients(loss, model).values())]))
    statistics.agree(torch.stack(rows).double(), value, power=0.1, error=1e-5)


def test_versas_probabilities_are_averaged_over_classifiers():
    model = versa(3).eval()
    features = 4 * torch.randn(1, 2, 1 + 2, 3)
    support, query, labels = split_episode(features, 1)
    eps, weight = trapezoid(40, 1)
    with torch.no_grad():
        centre, scale = gaps(model, features)
        exact = (weight.unsqueeze(-1) * torch.sigmoid(centre + scale * eps)).sum(0)
        copies = model.predict(support.expand(200, -1, -1, -1), query.expand(200, -1, -1), 100)
        found = copies.gather(-1, labels.expand(200, -1).unsqueeze(-1)).squeeze(-1)
        assert (exact - torch.sigmoid(centre)).abs().max() > 0.02  # not what the mean classifier says
    statistics.agree(found.double(), exact, power=0.05, error=1e-6)


def test_versa_infers_a_class_from_its_own_examples_alone():
    model = versa(6).eval()
    support, query = torch.randn(1, 3, 2, 6), torch.randn(1, 4, 6)
    mean, variance = model.moments(support, query)
    fewer = model.moments(support[:, :2], query)
    torch.testing.assert_close(fewer, (mean[..., :2], variance[..., :2]))


def test_versas_variance_stays_finite_for_features_however_strange():
    model = versa(6)
    p = model.predict(1e4 * torch.randn(2, 3, 1, 6), torch.randn(2, 4, 6), 20)
    assert torch.isfinite(p).all()


# --- Gaussian processes -------------------------------------------------------------------------------------------


def test_gaussian_process_regression_is_scikit_learns():
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct

    x, y, query = torch.randn(2, 6, 4).double(), torch.randn(2, 6, 3).double(), torch.randn(2, 5, 4).double()
    mean, variance = regression(x, y, query, torch.tensor(0.7).double(), torch.tensor(0.2).double())
    for t in range(2):
        kernel = ConstantKernel(0.7) * DotProduct(sigma_0=1e-12)
        fitted = GaussianProcessRegressor(kernel, alpha=0.2, optimizer=None).fit(x[t].numpy(), y[t].numpy())
        expected, deviation = fitted.predict(query[t].numpy(), return_std=True)
        np.testing.assert_allclose(mean[t], expected, rtol=1e-6)
        np.testing.assert_allclose(variance[t].sqrt(), deviation[:, 0], rtol=1e-6)


def test_gradient_of_gaussian_process_regression():
    x, y, query = (torch.randn(1, n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 3, 2))
    a, noise = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.7, 0.2))
    assert torch.autograd.gradcheck(regression, (x, y, query, a, noise))


def test_gaussian_processes_average_the_softmax_over_their_functions():
    """MacKay's approximation, against 200 000 draws of the functions; and far from all examples nothing is known."""
    torch.manual_seed(0)
    model = GaussianProcess(Encoder(Conv4(1, 16, width=8), [0.5], [0.25]), noise=0.3, tau=2.0).double()
    support, query = torch.randn(1, 3, 2, 8).double(), torch.randn(1, 4, 8).double()
    with torch.no_grad():
        p = model.predict(support, query)
        x, of = F.normalize(support.flatten(1, 2), dim=-1), torch.eye(3).double().repeat_interleave(2, 0)
        unit = F.normalize(query, dim=-1)
        mean, variance = regression(x, (2 * of - 1)[None], unit, model.amplitude(), model.noise())
        f = mean + variance.sqrt().unsqueeze(-1) * torch.randn(200000, 1, 4, 3).double()
        torch.testing.assert_close(p, (2.0 * f).softmax(-1).mean(0), atol=0.02, rtol=0)
        assert (p[0].max(-1).values < mean.mul(2).softmax(-1)[0].max(-1).values).all()  # less sure than the mean is
        apart = torch.zeros(1, 1, 8).double()  # orthogonal to every example
        apart[..., 7] = 1
        support[..., 7] = 0
        torch.testing.assert_close(model.predict(support, apart), torch.full((1, 1, 3), 1 / 3).double())


def test_gaussian_processes_count_every_example():
    model = GaussianProcess(Encoder(Conv4(1, 16, width=8), [0.5], [0.25]))
    support, query = torch.randn(3, 2, 8), torch.randn(4, 8)
    with torch.no_grad():
        whole = model.predict(support[None], query[None])
        torch.testing.assert_close(model.predict_samples(list(support), query), whole)
        more = model.predict_samples([support[0], support[1], torch.cat([support[2], query[:1]])], query)
    assert more[0, 0, 2] > whole[0, 0, 2]


# --- RFS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ways", "shots", "c", "iterations"),
    [(2, 1, 1, 100), (2, 5, 10, 100), (3, 1, 0.01, 100), (5, 1, 1, 100), (5, 5, 1, 100), (5, 20, 1, 100),
     (20, 5, 1, 100), (5, 5, 10, 100), (5, 1, 100, 300), (5, 5, 100, 1000)],
)  # fmt: skip
def test_logistic_regression_is_that_of_scikit_learn(ways, shots, c, iterations):
    centre = torch.randn(3, ways, 1, 32, dtype=DOUBLE)
    x = F.normalize(torch.relu(centre + torch.randn(3, ways, shots, 32)).flatten(1, 2), dim=-1)
    query = F.normalize(torch.relu(centre.squeeze(2) + torch.randn(3, ways, 32)), dim=-1)
    labels = torch.arange(ways).repeat_interleave(shots)
    fitted = logistic_regression(x, F.one_hot(labels, ways).expand(3, -1, -1), c=c, iterations=iterations)
    found = fitted.logits(query).softmax(-1)
    for t in range(3):
        # with two classes scikit-learn has one weight vector, whose squared norm is twice that of a pair
        reference = LogisticRegression(C=2 * c if ways == 2 else c, tol=1e-10, max_iter=20_000)
        expected = reference.fit(x[t].numpy(), labels.numpy()).predict_proba(query[t].numpy())
        np.testing.assert_allclose(found[t].numpy(), expected, atol=1e-5, rtol=0)


def rfs(**options) -> RFS:
    return RFS(Encoder(Conv4(1, 16, width=8), [0.5], [0.25]), 6, ClassifierConfig(), RFSConfig(**options))


def test_rfs_regresses_on_normalised_features():
    model = rfs(c=3.0, iterations=200).eval()
    support, query = 5 * torch.randn(2, 4, 3, 8), torch.randn(2, 6, 8)
    p = model.predict(support, query)
    torch.testing.assert_close(model.predict(7 * support, 0.1 * query), p)  # lengths do not matter
    reference = LogisticRegression(C=3.0, tol=1e-10, max_iter=20_000)
    unit = F.normalize(support[1].flatten(0, 1), dim=-1).double().numpy()
    reference.fit(unit, np.repeat(np.arange(4), 3))
    expected = reference.predict_proba(F.normalize(query[1], dim=-1).double().numpy())
    np.testing.assert_allclose(p[1].numpy(), expected, atol=1e-5)


def test_rfs_counts_every_example_where_classes_differ_in_their_number():
    model = rfs(iterations=200).eval()
    support, query = [torch.randn(k, 8) for k in (1, 4, 2)], torch.randn(6, 8)
    (p,) = model.predict_samples(support, query)
    reference = LogisticRegression(tol=1e-10, max_iter=20_000)
    reference.fit(F.normalize(torch.cat(support), dim=-1).double().numpy(), np.repeat(np.arange(3), (1, 4, 2)))
    np.testing.assert_allclose(
        p.numpy(), reference.predict_proba(F.normalize(query, dim=-1).double().numpy()), atol=1e-5
    )


# --- self-distillation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("head", "number"), [("linear", 1), ("cosine", 1), ("linear", 2)])
def test_distillation_by_hand(head, number):
    """``(1 - w) CE(y) + w t^2 KL(teacher^(1/t) || student^(1/t))``, the rotation's cross-entropy apart.

    Of several teachers the mean of their tempered probabilities.
    """
    options = {"head": head, "distillation": 0.3, "temperature": 2.5, "smoothing": 0.1, "rotation_weight": 0.7}
    student, *teachers = (
        Classifier(Encoder(Conv4(1, 16, width=8), [0.5], [0.25]), 6, ClassifierConfig(**options))
        for _ in range(1 + number)
    )
    for teacher in teachers:
        student.learn_from(teacher, "teacher")
    images, labels = torch.rand(5, 1, 16, 16), torch.tensor([0, 3, 1, 5, 3])
    seen = []
    raw = student.encoder.raw
    student.encoder.raw = lambda x: seen.append(x.clone()) or raw(x)
    loss, terms = student.classify(images, labels, PROGRESS)
    copies = seen[0]
    assert len(copies) == 10  # each image and a turned one
    turns = [
        next(k for k in range(4) if torch.equal(copies[5 + i], torch.rot90(images[i], k, (1, 2)))) for i in range(5)
    ]
    assert torch.equal(copies[:5], images)
    assert min(turns) >= 1
    with torch.no_grad():
        student.encoder.raw = raw
        h = raw(copies)  # batch normalisation by the same batch
        mine = student.head(h).double().numpy()
        taught = [teacher.logits_of(copies)[0].double().numpy() for teacher in teachers]
        angles = student.rotation_head(h).double().numpy()

    def log_softmax(x):
        x = x - x.max(1, keepdims=True)
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    target = 0.9 * np.eye(6)[np.tile(labels.numpy(), 2)] + 0.1 / 6
    cross = -(target * log_softmax(mine)).sum(1).mean()
    t = np.log(np.mean([np.exp(log_softmax(logits / 2.5)) for logits in taught], 0))
    divergence = 2.5**2 * (np.exp(t) * (t - log_softmax(mine / 2.5))).sum(1).mean()
    rotation = -log_softmax(angles)[np.arange(10), [0] * 5 + turns].mean()
    assert float(terms["cross_entropy"]) == pytest.approx(cross, rel=1e-4)
    assert float(terms["distillation"]) == pytest.approx(divergence, rel=1e-4)
    assert float(terms["rotation"]) == pytest.approx(rotation, rel=1e-4)
    assert float(loss.detach()) == pytest.approx(0.7 * cross + 0.3 * divergence + 0.7 * rotation, rel=1e-4)
    assert all(g.abs().max() > 0 for n, g in gradients(loss, student).items() if not n.startswith("tau"))
    assert all(p.grad is None for teacher in teachers for p in teacher.parameters())


def test_rotation_told_from_the_logits():
    """As Rajasegaran et al. 2020 do; the cross-entropy of the angle from the classes' logits."""
    options = {"rotations": 3, "rotation_from": "logits", "rotation_weight": 0.7}
    model = Classifier(Encoder(Conv4(1, 16, width=8), [0.5], [0.25]), 6, ClassifierConfig(**options))
    assert model.rotation_head.weight.shape == (4, 6)
    images, labels = torch.rand(5, 1, 16, 16), torch.tensor([0, 3, 1, 5, 3])
    torch.manual_seed(0)
    copies, angles = rotated(images, 3)
    torch.manual_seed(0)
    loss, terms = model.classify(images, labels, PROGRESS)
    logits, _ = model.logits_of(copies)
    expected = F.cross_entropy(model.rotation_head(logits), angles)
    total = F.cross_entropy(logits, labels.repeat(4)) + 0.7 * expected
    assert len(copies) == 20
    assert float(terms["rotation"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    wanted = gradients(total, model)  # the angle teaches the classes' head, too
    for name, gradient in gradients(loss, model).items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotation_from": "pixels"}, "give features or logits"),
        ({"rotation_from": "logits", "rotations": 0}, "from 1 on"),
    ],
)
def test_rotation_that_nothing_can_tell(settings, message):
    with pytest.raises(UserError, match=message):
        ClassifierConfig(**settings)


def test_a_teacher_runs_as_its_student_does():
    """In bfloat16 and compiled, in evaluation mode, where other models are not; it answers the same all the same."""
    student = Classifier(Encoder(Conv4(1, 16, width=8), [0.5], [0.25], amp=True), 6, ClassifierConfig(rotations=0))
    teacher = Classifier(Encoder(Conv4(1, 16, width=8), [0.5], [0.25]), 6, ClassifierConfig())
    student.encoder.compiled = True
    student.learn_from(teacher, "teacher")
    calls = []
    for model in (student, teacher):
        network = model.encoder._output
        model.encoder.__dict__["_compiled_output"] = lambda x, m=model, n=network: calls.append(m) or n(x)
    images, labels = torch.rand(5, 1, 16, 16), torch.tensor([0, 3, 1, 5, 3])
    _, terms = student.classify(images, labels, PROGRESS)
    assert calls == [student, teacher]
    assert teacher.encoder.amp
    teacher.encoder.compiled = student.encoder.compiled = False
    assert torch.equal(student.classify(images, labels, PROGRESS)[1]["distillation"], terms["distillation"])


def test_teachers_of_images_are_not_asked_about_turned_copies():
    torch.manual_seed(0)
    teacher = Classifier(Encoder(Conv4(1, 16, width=8), [0.5], [0.25]), 6, ClassifierConfig(rotations=0))
    images, labels = torch.rand(5, 1, 16, 16), torch.tensor([0, 3, 1, 5, 3])
    found = {}
    for taught, copies in (("all", 0), ("images", 2), ("all", 2)):
        torch.manual_seed(1)
        options = ClassifierConfig(rotations=copies, taught=taught)
        student = Classifier(
            Encoder(Conv4(1, 16, width=8), [0.5], [0.25]), 6, options
        ).eval()  # as without the copies
        student.learn_from(teacher, "teacher")
        asked = []
        handle = teacher.encoder.backbone.register_forward_hook(
            lambda _, given, __, to=asked: to.append(len(given[0]))
        )
        found[taught, copies] = student.classify(images, labels, PROGRESS)[1]["distillation"], asked
        handle.remove()
    assert [asked for _, asked in found.values()] == [[5], [5], [15]]
    alone, images_only, everything = (value for value, _ in found.values())
    torch.testing.assert_close(images_only, alone)
    assert not torch.allclose(everything, alone)


def test_dropout_of_a_classifier_acts_while_training_alone():
    torch.manual_seed(0)
    options = ClassifierConfig(rotations=0, dropout=0.5)
    model = Classifier(Encoder(Conv4(1, 16, width=8), [0.5], [0.25]), 6, options)
    images = torch.rand(64, 1, 16, 16)
    h = model.train().logits_of(images)[1]
    whole = model.encoder.raw(images)
    kept = h != 0
    torch.testing.assert_close(h[kept], 2 * whole[kept])
    assert 0.4 < (~kept & (whole != 0)).sum() / (whole != 0).sum() < 0.6
    logits, h = model.eval().logits_of(images)
    torch.testing.assert_close(h, model.encoder.raw(images))
    torch.testing.assert_close(logits, model.head(h))


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_out_of_range(dropout):
    with pytest.raises(UserError, match=r"classifier: dropout=.*; give a rate in \[0, 1\)"):
        ClassifierConfig(dropout=dropout)
