"""The evaluation protocol: against closed forms, without side effects, and refusing what it must."""

import math

import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor, nn

from pyro_vsm import metrics
from pyro_vsm.answering import answer
from pyro_vsm.backbones import Conv4
from pyro_vsm.baselines import PrototypicalNetwork
from pyro_vsm.data.episodes import EpisodeIndex, fixed_episodes
from pyro_vsm.data.images import ClassImages
from pyro_vsm.encoder import Encoder
from pyro_vsm.errors import UserError
from pyro_vsm.evaluation import (
    BLOCK,
    detect_unknown,
    encode_all,
    evaluate,
    evaluate_model,
    evaluate_tempered,
    predict_probabilities,
)
from pyro_vsm.feature_map import FeatureMap


class NearestMean(nn.Module):
    """softmax(-tau ||h - s||^2) with elementwise operations only, so that rounding ignores the batch."""

    def __init__(self, tau: float = 0.5) -> None:
        super().__init__()
        self.tau = tau
        self.norm = nn.BatchNorm2d(1)
        self.frozen = nn.Dropout()
        self.frozen.eval()

    def encode(self, images: Tensor) -> Tensor:
        return self.frozen(self.norm(images.float() / 255)).flatten(1)

    def logits(self, prototypes: Tensor, query: Tensor) -> Tensor:
        return -self.tau * (query.unsqueeze(-2) - prototypes.unsqueeze(-3)).square().sum(-1)

    def predict(self, support: Tensor, query: Tensor, samples: int) -> Tensor:
        return self.logits(support.mean(2), query).softmax(-1)


class Sampling(NearestMean):
    """The same with noise on the prototypes."""

    def predict(self, support: Tensor, query: Tensor, samples: int) -> Tensor:
        mean = support.mean(2)
        noise = 0.5 * torch.randn(samples, *mean.shape, device=mean.device)
        return self.logits(mean + noise, query).softmax(-1).mean(0)


class FirstClass(NearestMean):
    """Says 0.6 for class 0 and shares the rest equally."""

    def predict(self, support: Tensor, query: Tensor, samples: int) -> Tensor:
        tasks, way = support.shape[:2]
        probs = torch.full((tasks, query.shape[1], way), 0.4 / (way - 1))
        probs[..., 0] = 0.6
        return probs


def images(classes: int = 8, each: int = 12, size: int = 4) -> ClassImages:
    levels = torch.linspace(20, 235, classes).repeat_interleave(each).view(-1, 1, 1, 1)
    pixels = (levels + 25 * torch.randn(classes * each, 1, size, size)).clamp(0, 255).to(torch.uint8)
    counts = torch.full((classes,), each)
    return ClassImages(pixels, counts, tuple(f"class {c}" for c in range(classes)))


@pytest.fixture
def data() -> ClassImages:
    return images()


@pytest.fixture
def episodes(data) -> EpisodeIndex:
    return fixed_episodes(data, way=3, shot=2, queries=4, episodes=100, seed=1)


@pytest.fixture
def features(data) -> Tensor:
    return encode_all(NearestMean(), data.images)


def same(a, b) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("accuracy", "nll", "brier", "confidence", "correct")
    )


# --- encoding


def test_encoding_in_batches_equals_encoding_at_once(data):
    model = NearestMean()
    whole = encode_all(model, data.images)
    assert whole.shape == (96, 16)
    assert whole.dtype == torch.float32
    for batch in (1, 7, 96):
        torch.testing.assert_close(encode_all(model, data.images, batch=batch), whole)
    with torch.inference_mode():
        torch.testing.assert_close(whole, model.eval().encode(data.images))


def test_features_may_enter_a_graph_of_gradients(features):
    assert not features.is_inference()
    weight = torch.zeros(16, requires_grad=True)
    (features @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, features.sum(0))


def test_mixed_precision_gives_float32_features_close_to_full_ones(data):
    class Linear(NearestMean):
        def encode(self, images: Tensor) -> Tensor:
            return torch.nn.functional.linear(images.float().flatten(1) / 255, torch.eye(16)[:5])

    full, mixed = (encode_all(Linear(), data.images, amp=amp) for amp in (False, True))
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(full, mixed, rtol=0.01, atol=0.01)
    assert not torch.equal(full, mixed)


def test_a_model_encodes_in_bfloat16_where_it_is_asked_to():
    """Features are float32, and the feature map keeps their digits."""
    torch.manual_seed(0)
    kinds = []
    encoder = Encoder(Conv4(1, 16, width=8), [0.5], [0.25], feature_map=FeatureMap(8, components=4))
    encoder.feature_map.register_forward_hook(lambda _, given, h: kinds.append((given[0].dtype, h.dtype)))
    encoder.feature_map.fit(torch.randn(20, 8))
    model, images = PrototypicalNetwork(encoder).eval(), torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8)
    full, low = (encode_all(model, images, amp=amp) for amp in (False, True))
    assert kinds == 2 * [(torch.float32, torch.float32)]
    torch.testing.assert_close(full, low, rtol=0.05, atol=0.05)
    assert not torch.equal(full, low)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(4, 1, 2, 2), "uint8 images"),
        (torch.zeros(4, 2, 2, dtype=torch.uint8), "uint8 images"),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), "uint8 images"),
    ],
)
def test_encoding_refuses_what_are_no_images(pixels, message):
    with pytest.raises(UserError, match=message):
        encode_all(NearestMean(), pixels)


def test_encoding_refuses_bad_features(data):
    class Wide(NearestMean):
        def encode(self, images: Tensor) -> Tensor:
            return images.float()

    class Poisoned(NearestMean):
        def encode(self, images: Tensor) -> Tensor:
            return torch.where(torch.arange(len(images)).view(-1, 1) == 7, math.nan, super().encode(images))

    with pytest.raises(UserError, match=r"Wide\.encode must return \[images, features\]"):
        encode_all(Wide(), data.images)
    with pytest.raises(UserError, match=r"Poisoned\.encode gave NaN or infinity for image 7"):
        encode_all(Poisoned(), data.images)


# --- what evaluation computes


def two_gaussians(distance: float, count: int, queries: int = 15) -> tuple[Tensor, EpisodeIndex]:
    """Episodes of N(0, 1) against N(distance, 1); every query is fresh, every support image a mean."""
    noise = torch.randn(count, 2, queries) + torch.tensor([0.0, distance]).view(1, 2, 1)
    features = torch.cat([torch.tensor([0.0, distance]), noise.flatten()]).view(-1, 1)
    query = torch.arange(noise.numel()).view(noise.shape) + 2
    classes = torch.arange(2).expand(count, 2)
    return features, EpisodeIndex(classes, classes.unsqueeze(-1), query)


def test_accuracy_likelihood_and_calibration_of_the_exact_posterior():
    features, episodes = two_gaussians(1.5, 2000)
    # tau = 1/2 makes the softmax the exact posterior: right with Phi(d/2), calibrated, the nll an integral
    result = evaluate(NearestMean(0.5), features, episodes)
    accuracy = result.interval("accuracy")
    assert abs(accuracy.mean - scipy.stats.norm.cdf(0.75)) < 2 * accuracy.half_width
    expected, _ = scipy.integrate.quad(
        lambda x: scipy.stats.norm.pdf(x) * math.log1p(math.exp(1.5 * x - 1.5**2 / 2)), -9, 9
    )
    nll = result.interval("nll")
    assert abs(nll.mean - expected) < 2 * nll.half_width
    assert result.ece < 0.01
    # half the temperature: the same answers, overconfident
    sharp = evaluate(NearestMean(1.5), features, episodes)
    assert torch.equal(sharp.accuracy, result.accuracy)
    assert sharp.ece > 0.05
    assert sharp.nll.mean() > result.nll.mean()


def test_a_constant_answer_gives_exact_figures(features, episodes):
    result = evaluate(FirstClass(), features, episodes)
    torch.testing.assert_close(result.accuracy, torch.full((100,), 1 / 3, dtype=torch.float64))
    nll = -(math.log(0.6) + 2 * math.log(0.2)) / 3
    torch.testing.assert_close(result.nll, torch.full((100,), nll, dtype=torch.float64))
    # right: 0.4^2 + 2 * 0.2^2; wrong: 0.6^2 + 0.8^2 + 0.2^2
    torch.testing.assert_close(result.brier, torch.full((100,), (0.24 + 2 * 1.04) / 3, dtype=torch.float64))
    assert result.ece == pytest.approx(0.6 - 1 / 3, abs=1e-6)


def test_per_episode_results_equal_a_plain_loop(features, episodes):
    result = evaluate(NearestMean(), features, episodes)
    labels = torch.arange(3).repeat_interleave(4)
    for e in range(0, 100, 9):
        prototypes = features[episodes.support[e]].mean(1)
        query = features[episodes.query[e]].flatten(0, 1)
        probs = (-0.5 * torch.cdist(query, prototypes) ** 2).softmax(-1).double()
        assert float(result.accuracy[e]) == pytest.approx(float((probs.argmax(-1) == labels).double().mean()))
        expected = torch.nn.functional.nll_loss(probs.log(), labels)
        assert float(result.nll[e]) == pytest.approx(float(expected), rel=1e-4)
        row = slice(e * 12, (e + 1) * 12)
        torch.testing.assert_close(result.confidence[row], probs.amax(-1).float(), rtol=1e-4, atol=1e-6)
        assert torch.equal(result.correct[row], probs.argmax(-1) == labels)
    torch.testing.assert_close(result.correct.view(100, -1).double().mean(-1), result.accuracy)
    assert result.confidence.dtype == torch.float32
    assert result.nll.dtype == torch.float64


def test_evaluating_images_equals_evaluating_their_features(data, episodes):
    model = NearestMean()
    result = evaluate_model(model, data, episodes, batch=10)
    assert same(result, evaluate(model, encode_all(model, data.images, batch=10), episodes))
    assert result.data == str(data.identity())
    assert (result.way, result.shot, result.queries, len(result)) == (3, 2, 4, 100)


def test_temperature_is_fitted_on_probabilities_and_applied(features, episodes):
    model = NearestMean(20.0)
    probs, labels = predict_probabilities(model, features, episodes)
    assert probs.shape == (100, 12, 3)
    plain = evaluate(model, features, episodes)
    torch.testing.assert_close(metrics.negative_log_likelihood(probs, labels), plain.nll)
    temperature = metrics.fit_temperature(probs, labels)
    tempered = evaluate(model, features, episodes, temperature=temperature)
    assert tempered.temperature == temperature != 1
    torch.testing.assert_close(
        tempered.nll, metrics.negative_log_likelihood(metrics.apply_temperature(probs, temperature), labels)
    )
    assert tempered.nll.mean() < plain.nll.mean()
    assert torch.equal(tempered.accuracy, plain.accuracy)


def test_unknown_classes_are_detected_as_well_as_a_plain_loop_says(features, data):
    episodes = fixed_episodes(data, way=5, shot=2, queries=4, episodes=50, seed=3)
    model = NearestMean()
    area = detect_unknown(model, features, episodes, known=3)
    assert area.shape == (50,)
    for e in (0, 20, 49):
        probs = model.predict(
            features[episodes.support[e, :3]][None], features[episodes.query[e]].flatten(0, 1)[None], 1
        )[0]
        expected = metrics.auroc(1 - probs.amax(-1), torch.arange(5).repeat_interleave(4) >= 3)
        assert float(area[e]) == pytest.approx(expected, abs=1e-6)
    constant = detect_unknown(FirstClass(), features, episodes, known=3)
    torch.testing.assert_close(constant, torch.full((50,), 0.5, dtype=torch.float64))
    for known in (1, 5):
        with pytest.raises(UserError, match=f"{known} known classes of 5-way episodes"):
            detect_unknown(model, features, episodes, known)


# --- determinism and memory


def test_max_elements_changes_nothing_for_a_deterministic_model(features, episodes):
    whole = evaluate(NearestMean(), features, episodes)
    assert whole.block == BLOCK
    # the largest tensor of an episode holds 100 samples x 12 queries x 3 ways
    for blocks in (1, 4, 16):
        small = evaluate(NearestMean(), features, episodes, max_elements=blocks * 100 * 3 * 16)
        assert small.block == blocks
        assert same(small, whole)


def test_sampling_depends_on_the_seed_alone_while_a_block_fits(features, episodes):
    first = evaluate(Sampling(), features, episodes, samples=10, seed=5)
    torch.manual_seed(99)
    assert same(first, evaluate(Sampling(), features, episodes, samples=10, seed=5, max_elements=2**20))
    assert not torch.equal(first.nll, evaluate(Sampling(), features, episodes, samples=10, seed=6).nll)
    # the blocks do not know of each other
    head = evaluate(Sampling(), features, episodes[: 2 * BLOCK], samples=10, seed=5)
    assert torch.equal(head.nll, first.nll[: 2 * BLOCK])


def test_smaller_blocks_draw_other_noise_of_the_same_distribution(features, episodes):
    whole = evaluate(Sampling(), features, episodes, samples=100)
    small = evaluate(Sampling(), features, episodes, samples=100, max_elements=2 * 100 * 3 * 16)
    assert small.block == 2
    assert not torch.equal(small.nll, whole.nll)
    difference = metrics.paired(small.nll, whole.nll)
    assert abs(difference.mean) < 2 * difference.half_width
    assert difference.half_width < 0.1 * metrics.mean_interval(whole.nll).half_width


def test_blocks_bound_the_largest_tensor(features, episodes):
    shapes = []

    class Spy(NearestMean):
        def predict(self, support: Tensor, query: Tensor, samples: int) -> Tensor:
            shapes.append((len(support), samples))
            return super().predict(support, query, samples)

    evaluate(Spy(), features, episodes, samples=50, max_elements=20_000)
    assert max(tasks for tasks, _ in shapes) == 8
    assert all(tasks * samples * 3 * 16 <= 20_000 for tasks, samples in shapes)
    assert sum(tasks for tasks, _ in shapes) == 100


def test_evaluation_leaves_model_modes_and_generators_as_they_were(data, episodes):
    model = Sampling().train()
    model.frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    evaluate_model(model, data, episodes, samples=3)
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training
    assert model.norm.training
    assert not model.frozen.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_modes_and_generators_are_restored_after_an_error(features, episodes):
    class Failing(NearestMean):
        def predict(self, support: Tensor, query: Tensor, samples: int) -> Tensor:
            assert not self.training
            raise ZeroDivisionError

    model, generator = Failing().train(), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        evaluate(model, features, episodes)
    assert model.training
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_model_may_fit_a_classifier_inside(features, episodes):
    class Fitted(NearestMean):
        def predict(self, support: Tensor, query: Tensor, samples: int) -> Tensor:
            with torch.enable_grad():
                prototypes = support.mean(2).requires_grad_()
                (gradient,) = torch.autograd.grad(self.logits(prototypes, query).logsumexp(-1).sum(), prototypes)
            return self.logits(prototypes - 0 * gradient, query).softmax(-1)

    assert same(evaluate(Fitted(), features, episodes), evaluate(NearestMean(), features, episodes))


def test_a_model_need_not_be_a_module(features, episodes):
    class Plain:
        encode = staticmethod(torch.flatten)
        predict = staticmethod(lambda support, query, samples: NearestMean().predict(support, query, samples))

    assert same(evaluate(Plain(), features, episodes), evaluate(NearestMean(), features, episodes))


@pytest.mark.cuda
def test_on_a_cuda_device_too(data, episodes):
    model = Sampling().cuda()
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    result = evaluate_model(model, data, episodes, samples=100, device="cuda")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.get_rng_state(), states[1])
    assert same(result, evaluate_model(model, data, episodes, samples=100, device="cuda"))
    on_cpu = evaluate_model(model.cpu(), data, episodes, samples=100)
    difference = metrics.paired(result.nll, on_cpu.nll)
    assert abs(difference.mean) < 2 * difference.half_width


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_blocks_do_not_synchronise_the_device(data, episodes):
    class Strict(NearestMean):
        def predict(self, support: Tensor, query: Tensor, samples: int) -> Tensor:
            torch.cuda.set_sync_debug_mode("error")  # from the first block on
            return super().predict(support, query, samples)

    model, blocks = Strict().cuda(), []
    features = encode_all(model, data.images.cuda())

    def score(probs: Tensor) -> tuple[Tensor, ...]:
        blocks.append(len(probs))
        return (probs.argmax(-1),)

    try:
        with pytest.raises(RuntimeError, match="synchronizing"):  # fetching the results, after all blocks
            answer(model, features, episodes, score, samples=1, seed=0, max_elements=2**27)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum(blocks) == len(episodes)


# --- refusals


def test_what_a_model_returns_is_checked(features, episodes):
    class Broken(NearestMean):
        def predict(self, support: Tensor, query: Tensor, samples: int) -> Tensor:
            probs = super().predict(support, query, samples)
            marked = (query == features[episodes.query[70]].flatten(0, 1)).all((1, 2))
            return torch.where(marked.view(-1, 1, 1), math.nan, probs)

    class Logits(NearestMean):
        def predict(self, support: Tensor, query: Tensor, samples: int) -> Tensor:
            return self.logits(support.mean(2), query)

    class Transposed(NearestMean):
        def predict(self, support: Tensor, query: Tensor, samples: int) -> Tensor:
            return super().predict(support, query, samples).mT

    with pytest.raises(UserError, match=r"Broken returned NaN in 1 of 100 episodes, first in episode 70"):
        evaluate(Broken(), features, episodes)
    with pytest.raises(UserError, match=r"Logits returned values that are no probabilities \(logits\?\)"):
        evaluate(Logits(), features, episodes)
    with pytest.raises(UserError, match=r"Transposed.predict must return \[32, 12, 3\]"):
        evaluate(Transposed(), features, episodes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "at least one episode, one sample and a seed from 0 on"),
        ({"seed": -1}, "at least one episode, one sample and a seed from 0 on"),
        ({"max_elements": 10}, "lower samples or raise max_elements"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(features, episodes, change, message):
    with pytest.raises(UserError, match=message):
        evaluate(NearestMean(), features, episodes, **change)


def test_features_that_do_not_fit_the_episodes_are_refused(features, episodes):
    with pytest.raises(UserError, match="there are features of 40: evaluate on the split"):
        evaluate(NearestMean(), features[:40], episodes)
    with pytest.raises(UserError, match="features must be floating-point"):
        evaluate(NearestMean(), features.view(-1, 4, 4), episodes)
    with pytest.raises(UserError, match="got 0 episodes"):
        evaluate(NearestMean(), features, episodes[:0])


def test_several_temperatures_from_one_pass_equal_passes_of_their_own(features, episodes):
    model = Sampling()
    at_one, at_two = evaluate_tempered(model, features, episodes, (1.0, 2.0), samples=7, seed=3, data="d")
    assert same(at_one, evaluate(model, features, episodes, samples=7, seed=3))
    assert same(at_two, evaluate(model, features, episodes, samples=7, seed=3, temperature=2.0))
    assert (at_two.temperature, at_two.data) == (2.0, "d")
    assert torch.equal(at_one.accuracy, at_two.accuracy)
    assert not torch.equal(at_one.nll, at_two.nll)
