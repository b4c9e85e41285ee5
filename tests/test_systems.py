"""What holds for every system: one contract, and every registered system is on the list.

Trained for no more than a few steps on tiny images; whether a system learns anything is not asked here.
"""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from core import statistics
from safetensors.torch import load_file
from torch import Tensor

from pyro_vsm import calibration, jobs, metrics, plots
from pyro_vsm import data as data_sources
from pyro_vsm.classifier import Classifier
from pyro_vsm.cli import main
from pyro_vsm.config import Config
from pyro_vsm.data.episodes import fixed_episodes
from pyro_vsm.errors import UserError
from pyro_vsm.evaluation import evaluate_model, predict_probabilities
from pyro_vsm.fewshot import FewShotModel
from pyro_vsm.loading import load_model
from pyro_vsm.run import read_metrics
from pyro_vsm.systems import SYSTEMS, ImageSpec, build_model
from pyro_vsm.training import Trainer

GENERATIVE = {"prior_z": "empirical_bayes", "posterior_z": "conjugate", "likelihood": "generative", "within_rank": 2}
VARIANTS = {
    "classifier": {},
    "classifier cosine": {"classifier.head": "cosine"},
    "classifier cutmix": {"classifier.mix": "cutmix"},
    "gp": {},
    "maml": {},
    "maml transductive": {"maml.batch_norm": "transductive"},
    "maml per_way": {"maml.head": "per_way"},
    "maml_first_order": {},
    "pn": {},
    "rfs": {},
    "versa": {},
    "vpn": {},
    "vsm": {},
    **{f"vsm {use}": {"model.memory_use": use} for use in ("rote", "transformed", "moments", "off", "shuffled")},
    "vsm mean": {"model.memory_update": "mean"},
    "vsm generative": {f"model.{k}": v for k, v in GENERATIVE.items()},
}
"""Name of a system, with a word for other settings: these settings."""

SIZE, CLASSES = 16, 6
ORDERED = ("maml per_way",)  # its head has a place for each class
TOGETHER = ("maml transductive",)  # queries are normalised by the moments of all
UNTRAINED = {
    "classifier": ("tau",),
    "classifier cosine": ("tau",),
    "classifier cutmix": ("tau",),
    "rfs": ("tau",),
    "vsm off": ("program.prior_z.net.trunk.0.weight",),
}
"""Parameters without effect on the loss of the training: the temperature of the nearest mean, which is calibrated,
and what a memory of zeros is multiplied by."""
ALONE = [v for v in VARIANTS if " " not in v or v in ("vsm generative", "maml per_way")]
"""One variant a system, and those whose state has other tensors."""


def configured(variant: str, **more) -> Config:
    values: dict = {
        "episodes": {"way": 3, "shot": 1, "queries": 2, "tasks": 2},
        "model": {
            "backbone": {"class_path": "conv4", "init_args": {"width": 6}},
            "address_dim": 4,
            "particles": 2,
            "warmup": 0.0,
        },
        "classifier": {"batch": 8},
        "maml": {"inner_steps": 2, "test_steps": 3},
        "versa": {"hidden": 8},
        "evaluation": {"queries": 2, "episodes": 4, "samples": 5},
    }
    for name, value in {**VARIANTS[variant], **more}.items():
        section, _, key = name.partition(".")
        values.setdefault(section, {})[key] = value
    return Config.from_dict(values)


def built(variant: str) -> FewShotModel:
    """The system with a little noise on its parameters, so that no layer that starts at zero hides something."""
    images = ImageSpec(1, SIZE, [0.5], [0.25], CLASSES)
    model = build_model(variant.split()[0], configured(variant), images)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def episode(model: FewShotModel, ways: int = 3, shots: int = 2, queries: int = 4) -> tuple[Tensor, Tensor]:
    """Features of one task of random images, ``[1, N, K, D]`` and ``[1, Q, D]``; the memory knows some classes."""
    if hasattr(model, "memory"):
        with torch.no_grad():
            model.start(
                model.encode(torch.rand(CLASSES * 3, 1, SIZE, SIZE)), torch.arange(CLASSES).repeat_interleave(3)
            )
    with torch.no_grad():
        h = model.encode(torch.rand(ways * shots + queries, 1, SIZE, SIZE))
    return h[: ways * shots].reshape(1, ways, shots, -1), h[ways * shots :].unsqueeze(0)


def sampled(model: FewShotModel, support: Tensor, query: Tensor) -> bool:
    with torch.no_grad():
        return not torch.equal(*(model.predict(support, query, 2) for _ in range(2)))


@torch.no_grad()
def same(model: FewShotModel, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], undo=lambda p: p) -> None:
    """Assert that ``undo(predict(*other))`` is ``predict(*one)``: exactly, or over many posterior samples."""
    if not sampled(model, *one):
        torch.testing.assert_close(undo(model.predict(*other)), model.predict(*one), atol=2e-5, rtol=1e-4)
        return
    a, b = (model.predict(s.expand(100, -1, -1, -1), q.expand(100, -1, -1), 20) for s, q in (one, other))
    gap = undo(b) - a
    statistics.agree(gap, torch.zeros_like(gap[0]), power=0.15, scale=torch.ones(()), error=1e-5)


def test_every_system_is_on_the_list():
    assert {v.split()[0] for v in VARIANTS} == set(SYSTEMS)


@pytest.mark.parametrize("variant", VARIANTS)
class TestSystem:
    @pytest.mark.parametrize(("tasks", "ways", "shots", "queries"), [(1, 2, 1, 1), (3, 3, 2, 4)])
    def test_probabilities(self, variant, tasks, ways, shots, queries):
        model = built(variant).eval()
        support, query = episode(model, ways, shots, queries)
        support, query = support.expand(tasks, -1, -1, -1), query.expand(tasks, -1, -1)
        with torch.no_grad():
            p = model.predict(support, query, 4)
        assert p.shape == (tasks, queries, ways)
        assert p.dtype == torch.float32
        assert (p >= 0).all()
        torch.testing.assert_close(p.sum(-1), torch.ones(tasks, queries), atol=1e-5, rtol=0)

    def test_classes_and_queries_are_exchangeable(self, variant):
        model = built(variant).eval()
        support, query = episode(model)
        order, turn = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
        same(model, (support, query), (support, query[:, turn]), lambda p: p[:, turn.argsort()])
        same(model, (support, query), (support.flip(2), query))  # nor does the order of the examples matter
        if variant not in ORDERED:
            same(model, (support, query), (support[:, order], query), lambda p: p[..., order.argsort()])

    def test_a_query_is_answered_for_itself(self, variant):
        model = built(variant).eval()
        support, query = episode(model)
        alone = query[:, :1]
        if variant not in TOGETHER:
            same(model, (support, alone), (support, query), lambda p: p[:, :1])

    def test_classes_may_differ_in_their_examples(self, variant):
        model = built(variant).eval()
        support, query = episode(model, shots=3)
        with torch.no_grad():
            p = model.predict_samples([support[0, 0], support[0, 1, :1], support[0, 2, :2]], query[0], 6)
        assert p.shape[1:] == (4, 3)
        assert torch.isfinite(p).all()
        torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:2]), atol=1e-5, rtol=0)
        if not sampled(model, support, query):
            with torch.no_grad():
                equal = model.predict_samples(list(support[0]), query[0], 6)
                torch.testing.assert_close(equal.mean(0), model.predict(support, query)[0], atol=1e-5, rtol=1e-4)

    def test_a_training_step_gives_every_parameter_a_gradient(self, variant, tiny_data):
        name, config = variant.split()[0], configured(variant)
        torch.manual_seed(1)
        model = build_model(name, config, ImageSpec.of(tiny_data)).train()
        feed = model.feed(tiny_data.train, config)
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(4):  # layers behind one that starts at zero, and the memory's update, learn later
            optimiser.zero_grad()
            loss, terms = feed.loss(model, torch.tensor(0.5))
            loss.backward()
            optimiser.step()
            model.after_step()
            model.refresh()
        assert all(v.dim() == 0 and not v.requires_grad and torch.isfinite(v) for v in terms.values())
        for parameter, p in model.named_parameters():
            if not p.requires_grad or parameter.startswith(UNTRAINED.get(variant, ("-",))):
                continue
            assert p.grad is not None, parameter
            assert torch.isfinite(p.grad).all(), parameter
            assert (p.grad.abs() > 1e-12).any(), parameter

    def test_evaluation_leaves_everything_as_it_was(self, variant, tiny_data):
        model = build_model(variant.split()[0], configured(variant), ImageSpec.of(tiny_data)).train()
        if hasattr(model, "memory"):
            model.memory.eval()
        before = copy.deepcopy(model.state_dict())
        modes = [m.training for m in model.modules()]
        state = torch.random.get_rng_state()
        episodes = fixed_episodes(tiny_data.test, way=3, shot=1, queries=2, episodes=3, seed=0)
        first = evaluate_model(model, tiny_data.test, episodes, samples=3, device=torch.device("cpu"))
        again = evaluate_model(model, tiny_data.test, episodes, samples=3, device=torch.device("cpu"))
        assert torch.equal(first.nll, again.nll)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert [m.training for m in model.modules()] == modes
        after = model.state_dict()
        assert [k for k in after if not torch.equal(after[k], before[k])] == []
        assert getattr(model, "pending", None) is None

    def test_constant_images_and_examples_all_alike_are_no_nan(self, variant):
        model = built(variant).eval()
        episode(model)  # fills a memory
        flat = torch.cat([torch.full((6, 1, SIZE, SIZE), v) for v in (0.0, 1.0)])
        with torch.no_grad():
            h = model.encode(flat)
            alike, query = h[:6].reshape(1, 3, 2, -1), h[4:8].unsqueeze(0)
            p = model.predict(alike, query, 3)
            assert torch.isfinite(p).all()
            if variant not in ORDERED and not sampled(model, alike, query):
                torch.testing.assert_close(p, torch.full_like(p, 1 / 3), atol=1e-4, rtol=0)
        model.train()
        for p in model.parameters():
            p.grad = None
        classes = torch.tensor([[0, 1, 2], [3, 4, 5]])
        loss, _ = model(torch.full((2, 3, 3, 1, SIZE, SIZE), 0.5), 1, classes, torch.tensor(0.5))
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.fixture
def stop_after(monkeypatch):
    """``stop_after(n)``: training is interrupted after n further steps."""
    advance, left = Trainer._advance, [0]

    class Stop:
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        requested = property(lambda self: left[0] <= 0)

    def counted(self):
        advance(self)
        left[0] -= 1

    def stop(steps: int) -> None:
        left[0] = steps
        monkeypatch.setattr(jobs, "Interrupt", Stop)
        monkeypatch.setattr(Trainer, "_advance", counted)

    return stop


@pytest.mark.parametrize("variant", ALONE)
def test_trains_by_the_command_line_and_resumes_bit_for_bit(variant, tiny_data, tmp_path, stop_after, monkeypatch):
    monkeypatch.setattr(jobs, "draw_run", lambda folder: [])
    monkeypatch.setattr(data_sources, "load", lambda *_: tiny_data)
    name = variant.split()[0]
    values = configured(variant, **{"training.steps": 4, "training.validate_every": 0}).to_dict()
    values["systems"] = [name]
    values["training"] |= {"validation_episodes": 3, "device": "cpu", "log_every": 3}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    command = ["train", "--config", str(tmp_path / "run.yaml"), "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    stop_after(2)
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "parts")])
    stop_after(100)
    assert main(["train", "--resume", str(tmp_path / "parts")]) == 0
    for file in ("model.safetensors", "state.safetensors"):
        whole, parts = (load_file(tmp_path / run / name / file) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert [k for k in whole if not torch.equal(whole[k], parts[k])] == []
    check_round_trip(tmp_path / "whole" / name / "model.safetensors")


def check_round_trip(path: Path) -> None:
    """A loaded model answers like another one that was given its weights."""
    model, meta = load_model(path)
    assert not model.training
    config, images = Config.from_dict(meta["config"]), ImageSpec(**meta["images"])
    twin = build_model(meta["system"], config, images).eval()
    twin.load_state_dict(model.state_dict())
    h = torch.rand(6, images.channels, images.size, images.size)
    answers = []
    for m in (model, twin):
        torch.manual_seed(3)
        with torch.no_grad():
            f = m.encode(h)
            answers.append(m.predict(f[:3].reshape(1, 3, 1, -1), f[3:].unsqueeze(0), 4))
    assert torch.equal(*answers)


# --- settings that cannot work are refused before anything is trained ---------------------------------------------


@pytest.mark.parametrize(
    ("variant", "settings", "message"),
    [
        ("maml", {"training.freeze": True, "training.init": "x"}, "maml adapts its encoder"),
        (
            "maml",
            {"features.enlarge": 1.5, "model.backbone": {"class_path": "conv4", "init_args": {"pool": "average"}}},
            "leave features.flip, shift, enlarge, pieces and crop off",
        ),
        ("maml", {"features.flip": True}, "leave features.flip, shift, enlarge, pieces and crop off"),
        ("rfs", {"training.freeze": True, "training.init": "x"}, "rfs trains its encoder; leave training.freeze off"),
        ("classifier", {"training.freeze": True, "training.init": "x"}, "classifier trains its encoder"),
        ("vsm", {"model.likelihood": "generative", "model.posterior_z": "deterministic"}, "not Delta; choose"),
        (
            "vsm",
            {"model.likelihood": "generative", "model.posterior_z": "conjugate", "model.prior_z": "vamp"},
            "vamp",
        ),
    ],
)
def test_refused(variant, settings, message):
    with pytest.raises(UserError, match=message):
        build_model(variant, configured(variant, **settings), ImageSpec(1, SIZE, [0.5], [0.25], CLASSES))


def test_the_check_for_closed_forms_draws_no_random_numbers():
    models = []
    for likelihood in ("gaussian", "generative"):
        torch.manual_seed(0)
        config = configured("vsm", **{"model.likelihood": likelihood})
        models.append(build_model("vsm", config, ImageSpec(1, SIZE, [0.5], [0.25], CLASSES)))
        models.append(torch.rand(1))
    assert torch.equal(models[1], models[3])
    for a, b in zip(models[0].parameters(), models[2].parameters()):
        assert torch.equal(a, b)


def test_systems_that_differ_by_a_setting_have_it():
    images = ImageSpec(1, SIZE, [0.5], [0.25], CLASSES)
    found = {name: build_model(name, configured(name), images) for name in ("maml", "maml_first_order", "vpn", "vsm")}
    assert found["maml_first_order"].config == replace(found["maml"].config, first_order=True)
    assert not found["maml"].config.first_order
    parts = {k: type(v).__name__ for k, v in found["vpn"].program.named_children()}
    assert parts == {
        "memory_use": "Off",
        "prior_z": "StandardNormalPriorZ",
        "posterior_z": "AmortisedPosteriorZ",
        "likelihood": "EuclideanLikelihood",
    }
    assert found["vsm"].program.memory_use.latent


# --- calibration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.5, 5.0, 50.0])
def test_calibration_reaches_the_optimum_however_far_it_is(tiny_data, monkeypatch, start):
    """A prototypical network's temperature: the same as by searching for it on the same episodes."""
    model = build_model("pn", configured("pn"), ImageSpec.of(tiny_data)).eval()
    with torch.no_grad():
        model.tau.raw.fill_(start).expm1_().log_()
    classes = tiny_data.validation.n_classes
    features = torch.randn(classes, 1, 6) + 1.2 * torch.randn(classes, 6, 6)  # such that the best is about 2
    monkeypatch.setattr(calibration, "split_features", lambda *_, **__: features.flatten(0, 1))
    before = copy.deepcopy(model.encoder.state_dict())
    calibration.calibrate(model, tiny_data.validation, configured("pn", **{"evaluation.queries": 4}))
    episodes = fixed_episodes(tiny_data.validation, way=3, shot=1, queries=4, episodes=1600, seed=calibration.SEED)
    answers = predict_probabilities(model, features.flatten(0, 1), episodes)
    assert metrics.fit_temperature(*answers) == pytest.approx(1, abs=0.05)
    assert all(torch.equal(v, before[k]) for k, v in model.encoder.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


# --- on the features of a frozen encoder --------------------------------------------------------------------------

FROZEN = {
    "gp": {},
    "pn": {},
    "versa": {},
    "rfs": {"training.steps": 0},
    "classifier": {"training.steps": 0},
    "vpn": {},
    "vsm": {},
    "vsm generative": {},
}


def test_every_system_that_can_be_works_on_cached_features(tiny_settings, tmp_path, monkeypatch):
    """A table from one pretrained classifier a seed: power, components, calibration, the closed form among them.

    And from the classifier as a teacher.
    """
    from pyro_vsm.tables import make_table

    monkeypatch.setattr(plots, "save", lambda fig, path: path)
    monkeypatch.setattr(jobs, "calibrate", partial(calibration.calibrate, steps=3, tasks=2))
    base = configured("pn").to_dict()
    base |= {"data": tiny_settings["data"], "evaluation": base["evaluation"] | {"queries": 3}}
    base["features"] |= {"components": 5, "power": 0.5}
    base["training"] |= {"steps": 3, "validation_episodes": 3, "validate_every": 0, "device": "cpu"}
    start = {"init": "run:start", "freeze": True, "calibrate": True, "views": 2}
    rows: list[dict] = [{"name": "start", "system": "classifier", "shown": False}]
    for variant, settings in FROZEN.items():
        own = {**VARIANTS[variant], **settings, **{f"training.{k}": v for k, v in start.items()}}
        rows.append({"name": variant.replace(" ", "-"), "system": variant.split()[0], "set": own})
    taught = {"classifier.teacher": "run:start", "classifier.distillation": 0.5}
    rows.append({"name": "rfs-distilled", "system": "rfs", "set": taught})
    twice = {"classifier.teacher": ["run:start", "run:start"], "classifier.distillation": 0.5}
    rows.append({"name": "rfs-twice", "system": "rfs", "set": twice})
    table = {"base": base, "seeds": [0, 1], "reference": "pn", "temperature_episodes": 4, "rows": rows}
    (tmp_path / "frozen.yaml").write_text(yaml.safe_dump(table))
    data = data_sources.load(Config.from_dict(base).data, lambda _: None)
    monkeypatch.setattr(data_sources, "load", lambda *_: data)
    taught_by = []
    learn = Classifier.learn_from
    monkeypatch.setattr(Classifier, "learn_from", lambda s, t, name: taught_by.append(name) or learn(s, t, name))
    assert make_table(tmp_path / "frozen.yaml", tmp_path / "out", log=lambda _: None)
    starts = [str(tmp_path / "out" / "runs" / "start" / f"seed-{seed}") for seed in (0, 1)]
    assert taught_by == [starts[0]] * 3 + [starts[1]] * 3  # once by itself, once by itself twice
    for seed in (0, 1):
        runs = [tmp_path / "out" / "runs" / row["name"] / f"seed-{seed}" / row["system"] for row in rows]
        first, *frozen, distilled, _ = (load_model(run)[0].encoder.backbone.state_dict() for run in runs)
        for state in frozen:
            assert all(torch.equal(v, first[k]) for k, v in state.items())
        assert not all(torch.equal(v, first[k]) for k, v in distilled.items())
        for run in runs[-2:]:
            assert any(r.get("train/distillation", 0) > 0 for r in read_metrics(run / "metrics.jsonl"))
