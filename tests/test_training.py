"""The training loop: what a step does, what is kept, and that nothing disturbs the training stream."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from pyro_vsm.baselines import PrototypicalNetwork
from pyro_vsm.config import ClassifierConfig, EvaluationConfig, MAMLConfig, TrainingConfig
from pyro_vsm.data import DataConfig
from pyro_vsm.errors import UserError
from pyro_vsm.fewshot import FewShotModel
from pyro_vsm.likelihood import LIKELIHOODS
from pyro_vsm.memory_updates import MEMORY_UPDATES
from pyro_vsm.memory_uses import MEMORY_USES
from pyro_vsm.objectives import OBJECTIVES
from pyro_vsm.posteriors import POSTERIORS_M, POSTERIORS_Z
from pyro_vsm.priors import PRIORS_M, PRIORS_Z
from pyro_vsm.training import Average, pick_device


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [k for k in a if not torch.equal(a[k], b[k])]


# --- one step -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["vsm", "vpn", "pn"])
def test_three_steps_change_every_trainable_parameter(make_trainer, system):
    # heads that start at zero pass no gradient to what lies before them in the first step; warm-up starts at 0
    trainer = make_trainer(system, model={"warmup": 0.0, "beta_z": 0.1, "beta_m": 0.1}, training={"clip": 0.0})
    trainable = [n for n, p in trainer.model.named_parameters() if p.requires_grad]
    before = weights(trainer.model)
    for _ in range(3):
        trainer._advance()
    after = trainer.model.state_dict()
    assert [n for n in trainable if torch.equal(before[n], after[n])] == []


def test_every_trainable_parameter_is_optimised_and_averaged_once(make_trainer):
    trainer = make_trainer()
    wanted = {id(p) for p in trainer.model.parameters() if p.requires_grad}
    optimised = [id(p) for g in trainer.optimizer.param_groups for p in g["params"]]
    assert len(optimised) == len(set(optimised))
    assert set(optimised) == wanted
    assert {id(p) for p in trainer.average.parameters} == wanted


@pytest.mark.parametrize("system", ["vsm", "vpn", "pn"])
def test_loss_falls_and_unseen_classes_are_recognised(make_trainer, system):
    trainer = make_trainer(
        system,
        training={"steps": 80, "log_every": 10, "validate_every": 0, "checkpoint_every": 0, "lr": 5e-3},
        model={"backbone": {"class_path": "conv4", "init_args": {"width": 16}}},
    )
    trainer.fit()
    losses = [r["train/loss"] for r in trainer.run.metrics() if "train/loss" in r]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
    results = trainer.evaluate(trainer.validation_data, trainer.validation_episodes)
    assert results.interval("accuracy").mean > 0.6  # of three classes, by chance 1/3


VARIANTS = [
    (section, name)
    for section, registry in {
        "prior_m": PRIORS_M.classes,
        "prior_z": PRIORS_Z.classes,
        "posterior_m": POSTERIORS_M.classes,
        "posterior_z": POSTERIORS_Z.classes,
        "likelihood": LIKELIHOODS.classes,
        "memory_use": MEMORY_USES.classes,
        "memory_update": MEMORY_UPDATES.classes,
        "objective": OBJECTIVES,
    }.items()
    for name in registry
]


@pytest.mark.parametrize(("part", "name"), VARIANTS)
def test_vsm_trains_with_every_named_variant(make_trainer, part, name):
    with_conjugate = {"posterior_z": "conjugate"} if name in ("empirical_bayes", "conditional") else {}
    trainer = make_trainer(model={**with_conjugate, part: name}, training={"steps": 3, "log_every": 1})
    outcome = trainer.fit()
    assert outcome.finished
    assert outcome.step == 3
    records = trainer.run.metrics()
    assert all(math.isfinite(v) for r in records for v in r.values())
    assert {r["step"] for r in records if "train/loss" in r} == {1, 2, 3}


# --- average and schedule ---------------------------------------------------------------------------------------


def test_average_follows_the_formula():
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    average = Average([p], 0.9)
    by_hand = [1.0, -2.0]
    for step in range(200):
        with torch.no_grad():
            p += torch.tensor([0.5, 0.25])
        average.rate.fill_(average.rate_at(step))
        average.update()
        d = min(0.9, (1 + step) / (10 + step))
        by_hand = [d * e + (1 - d) * v for e, v in zip(by_hand, p.tolist())]
    torch.testing.assert_close(average.values[0], torch.tensor(by_hand), rtol=1e-5, atol=1e-5)
    assert (1 + 80) / (10 + 80) == 0.9  # from here on the decay is the constant one


def test_average_stands_in_for_the_parameters_and_gives_them_back_even_after_an_error():
    p = torch.nn.Parameter(torch.tensor([1.0]))
    average = Average([p], 0.5)
    average.values[0].fill_(7.0)

    def fail():
        with average.applied():
            assert p.item() == 7.0
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert p.item() == 1.0


def test_no_average_follows_the_parameters(make_trainer):
    trainer = make_trainer(training={"ema": 0.0})
    trainer._advance()
    for value, parameter in zip(trainer.average.values, trainer.average.parameters):
        torch.testing.assert_close(value, parameter.detach())


def test_cosine_schedule_and_progress(make_trainer):
    trainer = make_trainer(training={"steps": 8, "lr": 0.4, "head_lr": 0.2})
    seen = []
    for step in (0, 2, 4, 6):
        trainer.step = step
        trainer._schedule()
        seen.append([g["lr"] for g in trainer.optimizer.param_groups] + [trainer.progress.item()])
    half = math.sqrt(0.5)
    wanted = [
        [0.4, 0.2, 0.0],
        [0.2 * (1 + half), 0.1 * (1 + half), 0.25],
        [0.2, 0.1, 0.5],
        [0.2 * (1 - half), 0.1 * (1 - half), 0.75],
    ]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(wanted))


def test_constant_schedule(make_trainer):
    trainer = make_trainer(training={"schedule": "constant", "lr": 0.4, "head_lr": 0.2})
    trainer.step = 7
    trainer._schedule()
    assert [g["lr"] for g in trainer.optimizer.param_groups] == [0.4, 0.2]


def test_schedule_in_steps(make_trainer):
    trainer = make_trainer(
        training={"schedule": "steps", "milestones": [0.5, 0.75], "steps": 8, "lr": 0.4, "head_lr": 0.2}
    )
    seen = []
    for trainer.step in range(8):
        trainer._schedule()
        seen.append([g["lr"] for g in trainer.optimizer.param_groups])
    wanted = [[0.4, 0.2]] * 4 + [[0.04, 0.02]] * 2 + [[0.004, 0.002]] * 2
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(wanted))


@pytest.mark.parametrize("milestones", [[0.8, 0.6], [0.0], [1.0], [0.5, 0.5]])
def test_milestones_that_cannot_be(milestones):
    with pytest.raises(UserError, match=r"training\.milestones are .*give rising fractions between 0 and 1"):
        TrainingConfig(schedule="steps", milestones=milestones)


WORDS = [
    (lambda: TrainingConfig(schedule="cosin"), "training.schedule is 'cosin'; give cosine, constant or steps"),
    (lambda: TrainingConfig(optimizer="adam"), "training.optimizer is 'adam'; give adamw or sgd"),
    (lambda: EvaluationConfig(split="train"), "evaluation.split is 'train'; give test or validation"),
    (lambda: DataConfig(rotations="some"), "data.rotations is 'some'; give none, train, all or None"),
    (lambda: ClassifierConfig(head="square"), "classifier.head is 'square'; give linear or cosine"),
    (lambda: MAMLConfig(batch_norm="none"), "maml.batch_norm is 'none'; give support or transductive"),
]


@pytest.mark.parametrize(("made", "message"), WORDS)
def test_a_word_that_is_none_of_a_settings_is_refused_in_python_too(made, message):
    with pytest.raises(UserError) as error:
        made()
    assert str(error.value) == message


@pytest.mark.parametrize("settings", [{"schedule": "steps"}, {"milestones": [0.5]}])
def test_milestones_without_effect_are_refused(settings):
    with pytest.raises(UserError, match="rates fall at milestones, one or more, under schedule steps alone"):
        TrainingConfig(**settings)


def test_warmup_of_the_kl_weights(make_trainer):
    model = make_trainer(model={"beta_z": 0.5, "beta_m": 0.25, "warmup": 0.2}).model
    features, classes = torch.randn(1, 3, 3, model.dim), torch.tensor([[0, 1, 2]])
    seen = []
    for progress in (0.0, 0.1, 0.2, 0.9):
        model.loss(features, 1, classes, torch.tensor(progress))
        seen.append([float(model.program.beta_z), float(model.program.beta_m)])
    torch.testing.assert_close(
        torch.tensor(seen), torch.tensor([[0, 0], [0.25, 0.125], [0.5, 0.25], [0.5, 0.25]]), atol=1e-5, rtol=0
    )


# --- what is kept -------------------------------------------------------------------------------------------------


def test_best_model_by_validation_is_kept_with_averaged_weights(make_trainer, monkeypatch):
    trainer = make_trainer("pn", training={"steps": 8, "validate_every": 2})
    accuracies = iter([0.4, 0.7, 0.7, 0.5])
    averages = []
    evaluate = trainer.evaluate

    class Scripted:
        def __init__(self, results, accuracy):
            self.ece, self.accuracy, self.results = results.ece, accuracy, results

        def interval(self, metric):
            found = self.results.interval(metric)
            return type(found)(self.accuracy, found.half_width, found.n) if metric == "accuracy" else found

    def scripted(*args, **kwargs):
        averages.append([v.clone() for v in trainer.average.values])
        return Scripted(evaluate(*args, **kwargs), next(accuracies))

    monkeypatch.setattr(trainer, "evaluate", scripted)
    outcome = trainer.fit()
    assert (outcome.best_accuracy, outcome.best_step) == (0.7, 4)  # the earlier of two equal ones
    kept = load_file(trainer.run.model_path)
    names = [n for n, _ in trainer.model.named_parameters()]
    for name, value in zip(names, averages[1]):
        assert torch.equal(kept[name], value.contiguous())
    logged = [r["validation/accuracy"] for r in trainer.run.metrics() if "validation/accuracy" in r]
    assert logged == [0.4, 0.7, 0.7, 0.5]


@pytest.mark.parametrize("system", ["vsm", "pn"])
def test_validation_does_not_disturb_the_training_stream(make_trainer, system):
    seen = []
    for every in (0, 1):
        trainer = make_trainer(system, str(every), training={"validate_every": every, "steps": 5})
        trainer.fit()
        seen.append(trainer)
    assert_equal(weights(seen[0].model), weights(seen[1].model))
    assert all(torch.equal(a, b) for a, b in zip(seen[0].average.values, seen[1].average.values))
    training = [[r for r in t.run.metrics() if "train/loss" in r] for t in seen]
    assert training[0] == training[1]


def test_saving_and_logging_do_not_disturb_the_training_stream(make_trainer):
    seen = []
    for every in (1, 0):
        trainer = make_trainer(
            "vsm", str(every), training={"checkpoint_every": every, "log_every": every or 5, "steps": 5}
        )
        trainer.fit()
        seen.append(weights(trainer.model))
    assert_equal(*seen)


def test_same_seed_same_weights_another_seed_others(make_trainer):
    seen = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        trainer = make_trainer("vsm", name, training={"seed": seed, "steps": 4})
        trainer.fit()
        seen.append(weights(trainer.model))
    assert_equal(seen[0], seen[1])
    key = "encoder.backbone.blocks.0.0.weight"
    assert not torch.equal(seen[0][key], seen[2][key])


def test_logged_means_are_of_the_steps_since_the_last_line(make_trainer, monkeypatch):
    trainer = make_trainer("pn", training={"steps": 8, "log_every": 3, "validate_every": 0})
    losses = []
    forward = trainer.model.forward

    def watched(*args):
        loss, terms = forward(*args)
        losses.append(loss.item())
        return loss, terms

    monkeypatch.setattr(trainer.model, "forward", watched)
    trainer.fit()
    records = [r for r in trainer.run.metrics() if "train/loss" in r]
    assert [r["step"] for r in records] == [3, 6, 8]
    wanted = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, sum(losses[6:]) / 2]
    assert [r["train/loss"] for r in records] == pytest.approx(wanted, rel=1e-5)


# --- when it goes wrong -----------------------------------------------------------------------------------------


def _meta(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_weights_that_are_no_longer_finite_are_not_saved(make_trainer, monkeypatch):
    trainer = make_trainer("pn", training={"steps": 8, "checkpoint_every": 2, "log_every": 2, "clip": 0.0})
    after = FewShotModel.after_step

    def spoil(model):
        after(model)
        if trainer.step == 3:  # the fourth step, the last before a line of the log
            model.encoder.backbone.blocks[0][0].weight.data.fill_(math.inf)

    monkeypatch.setattr(PrototypicalNetwork, "after_step", spoil)
    with pytest.raises(UserError, match=r"encoder\.backbone\.blocks\.0\.0\.weight stopped being finite by step 4"):
        trainer.fit()
    assert json.loads(_meta(trainer.run.state_path)["pyro_vsm"])["step"] == 2


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cud a"])
def test_devices_that_are_not_there(name):
    with pytest.raises(UserError, match="device"):
        pick_device(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": {"way": 13}}, "13-way episodes need 13 classes"),
        ({"episodes": {"way": 7}}, "7-way episodes need 7 classes, but the split has 6"),
        ({"episodes": {"shot": 5}}, "lower shot or queries"),
    ],
)
def test_episodes_that_do_not_fit_the_data(make_trainer, changes, message):
    with pytest.raises(UserError, match=message):
        make_trainer("pn", **changes)


def test_augmented_features_of_cropped_images_are_refused(make_trainer):
    with pytest.raises(UserError, match=r"training.views is 3 and features.crop 0.8: .*leave one of the two at 1"):
        make_trainer("pn", training={"freeze": True, "init": "start", "views": 3}, features={"crop": 0.8})


@pytest.mark.parametrize("clip", [0.0, 0.05, 1e3])
def test_clipping_inside_of_the_optimiser_is_clipping_before_it(make_trainer, clip):
    """By SGD, as Adam does not mind the length of a gradient."""
    seen = []
    for folder in ("inside", "before"):
        trainer = make_trainer("pn", folder, training={"clip": clip, "optimizer": "sgd", "lr": 0.1, "head_lr": 0.1})
        if folder == "before":
            trainer._limit = lambda norms, divisor, most, t=trainer: torch.nn.utils.clip_grad_norm_(
                t.parameters, most or float("inf")
            )
        torch.manual_seed(3)
        for _ in range(3):
            trainer._advance()
        seen.append((weights(trainer.model), trainer.sums["gradient_norm"].item() / 3))
    torch.testing.assert_close(seen[0], seen[1], atol=1e-6, rtol=1e-4)
    assert seen[0][1] > 0.05  # so the second of the limits is felt, and the third is not


def test_two_rates_that_are_one_are_one_group_with_the_large_tensors_first(make_trainer):
    one, two = (make_trainer("vsm", str(r), training={"lr": 1e-3, "head_lr": r}) for r in (1e-3, 1e-2))
    assert [len(t.optimizer.param_groups) for t in (one, two)] == [1, 2]
    for trainer in (one, two):
        for group in trainer.optimizer.param_groups:
            sizes = [p.numel() for p in group["params"]]
            assert sizes == sorted(sizes, reverse=True)
        flat = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        assert [trainer.parameters[i] is p for i, p in zip(trainer.order, flat)] == [True] * len(flat)
