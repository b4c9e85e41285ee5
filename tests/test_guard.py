"""Steps that are not finite are skipped whole, counted, and end the training with a diagnosis."""

import math

import pyro
import pytest
import torch
from safetensors.torch import load_file

from pyro_vsm import checkpoint
from pyro_vsm.errors import UserError
from pyro_vsm.guard import BUFFERS, Findings
from pyro_vsm.systems import SYSTEMS
from pyro_vsm.training import Trainer


@pytest.fixture(autouse=True)
def no_validation():
    """As in :meth:`Trainer.fit`; it would warn of the poison."""
    with pyro.validation_enabled(False):
        yield


def poison(trainer: Trainer, steps, term: str | None = "kl_z", value: float = math.nan):
    """The term (None: only the gradient) takes this value in the steps with these numbers, from 1."""
    healthy = trainer.feed.loss

    def loss(model, progress):
        loss, terms = healthy(model, progress)
        terms = terms if term is None else {term: loss.detach(), **terms}
        if trainer.step + 1 not in steps:
            return loss, terms
        if term is None:  # sqrt has an infinite slope at 0
            return loss + (loss - loss).sqrt().nan_to_num(), terms
        return loss * value, {**terms, term: torch.tensor(value), "loss": loss.detach() * value}

    trainer.feed.loss = loss


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    found = {f"model.{k}": v.clone() for k, v in trainer.model.state_dict().items()}
    found |= {f"average.{i}": v.clone() for i, v in enumerate(trainer.average.values)}
    for i, state in trainer.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{i}.{k}": v.clone() for k, v in state.items()}
    return found


def different(a, b) -> list[str]:
    assert a.keys() == b.keys()
    return [k for k in a if not torch.equal(a[k], b[k])]


@pytest.mark.parametrize("system", sorted(SYSTEMS))
@pytest.mark.parametrize("term", ["kl_z", None])
def test_a_skipped_step_changes_nothing(make_trainer, system, term):
    trainer = make_trainer(system)
    poison(trainer, {3}, term)
    for _ in range(2):
        trainer._advance()
    before = everything(trainer)
    trainer._advance()
    assert different(before, everything(trainer)) == []
    trainer._advance()
    after = everything(trainer)
    assert "average.0" in different(before, after)
    assert all(v.isfinite().all() for v in after.values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_any_value_that_is_not_finite_is_skipped_even_in_the_first_step(make_trainer, optimizer, value):
    trainer = make_trainer("vsm", training={"optimizer": optimizer, "weight_decay": 0.1})
    poison(trainer, {1}, value=value)
    model = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer._advance()
    assert different(model, trainer.model.state_dict()) == []
    state = trainer.optimizer.state_dict()["state"]
    assert all(not v.any() for one in state.values() for v in one.values())  # moments and counts of steps
    trainer._advance()
    assert different(model, trainer.model.state_dict()) != []


def test_a_memory_that_would_not_be_finite_is_put_back(make_trainer, monkeypatch):
    trainer = make_trainer("vsm", training={"steps": 20, "log_every": 2, "bad_steps": 2})
    trainer._advance()
    entries = trainer.model.memory.entries.clone()
    store = type(trainer.model.memory).store

    def spoilt(memory, write):
        write.entries.data[0, 0] = math.inf
        store(memory, write)

    monkeypatch.setattr(type(trainer.model.memory), "store", spoilt)
    trainer._advance()
    assert torch.equal(entries, trainer.model.memory.entries)
    with pytest.raises(UserError, match=rf"from step 2 on \d steps in a row were not finite: {BUFFERS}"):
        trainer.fit()


@pytest.mark.parametrize(
    "training", [{"log_every": 2}, {"log_every": 100, "validate_every": 0}, {"clip": 0.0}, {"checkpoint_every": 0}]
)
def test_too_many_in_a_row_stop_the_training_with_a_diagnosis_and_a_good_state(make_trainer, training):
    settings = {"steps": 20, "checkpoint_every": 2, "validate_every": 2, "bad_steps": 3, **training}
    reference = make_trainer("vsm", "reference", training={**settings, "steps": 20})
    for _ in range(4):
        reference._advance()
    trainer = make_trainer("vsm", training=settings)
    poison(trainer, range(5, 100), "kl_m")
    wanted = r"vsm: from step 5 on \d+ steps in a row were not finite: kl_m \(and with that loss, gradient_norm\); .*"
    with pytest.raises(UserError, match=wanted + r"after 3 such steps .* are saved in .*run"):
        trainer.fit()
    state = load_file(trainer.run.state_path)
    assert all(v.isfinite().all() for v in state.values())
    for name, value in reference.model.state_dict().items():
        assert torch.equal(state[f"model.{name}"], value), name


def test_the_gradient_alone_is_named(make_trainer):
    trainer = make_trainer("pn", training={"bad_steps": 1, "log_every": 1})
    poison(trainer, {2}, None)
    with pytest.raises(UserError, match=r"from step 2 on 1 steps in a row were not finite: gradient_norm; "):
        trainer.fit()


def test_single_bad_steps_are_counted_and_left_out_of_the_means(make_trainer):
    trainer = make_trainer("pn", training={"steps": 8, "log_every": 4, "bad_steps": 2})
    poison(trainer, {2, 4, 6, 8}, "accuracy")
    healthy, losses = trainer.feed.loss, []

    def watched(*args):
        loss, terms = healthy(*args)
        losses.append(loss.item())
        return loss, terms

    trainer.feed.loss = watched
    assert trainer.fit().finished
    records = [r for r in trainer.run.metrics() if "train/loss" in r]
    assert [r["train/skipped"] for r in records] == [2, 2]
    wanted = [(losses[0] + losses[2]) / 2, (losses[4] + losses[6]) / 2]
    assert [r["train/loss"] for r in records] == pytest.approx(wanted, rel=1e-5)


def test_a_log_line_of_skipped_steps_alone(make_trainer):
    trainer = make_trainer("pn", training={"steps": 8, "log_every": 2, "bad_steps": 5})
    poison(trainer, {3, 4})
    assert trainer.fit().finished
    records = [r for r in trainer.run.metrics() if "validation/nll" not in r]
    assert records[1] == {"step": 4, "train/skipped": 2}
    assert "train/skipped" not in records[2]


def test_a_row_goes_on_after_resuming(make_trainer):
    settings = {"steps": 20, "log_every": 7, "checkpoint_every": 5, "validate_every": 0, "bad_steps": 4}
    sentences = []
    for folder, stop in (("whole", None), ("stopped", 5)):
        trainer = make_trainer("pn", folder, training=settings)
        poison(trainer, range(4, 50))
        if stop:
            for _ in range(stop):
                trainer._advance()
            trainer.run.save_state(trainer)
            trainer = make_trainer("pn", folder, training=settings)
            trainer.run.restore(trainer)
            poison(trainer, range(4, 50))
        with pytest.raises(UserError) as caught:
            trainer.fit()
        sentences.append(str(caught.value).replace(folder, "RUN"))
    assert "from step 4 on 4 steps" in sentences[0]
    assert sentences[0] == sentences[1]
    # what was saved on stopping is given as many steps again
    assert checkpoint.read(trainer.run.state_path)[0]["guard.counts"][2] == 0


def test_findings_name_factors_before_what_follows_from_them():
    assert Findings(0, 3, 3, 7, ["loss", "kl_m", "elbo"]).sentence() == (
        "from step 7 on 3 steps in a row were not finite: kl_m (and with that loss, elbo)"
    )
    assert Findings(0, 3, 3, 7, ["loss"]).sentence().endswith("were not finite: loss")


def test_at_least_one_step_is_allowed(tiny_config):
    with pytest.raises(UserError, match=r"training\.bad_steps is 0; give at least 1"):
        tiny_config(training={"bad_steps": 0})


@pytest.mark.cuda
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_skipping_on_cuda_captured_or_not(make_trainer, graph, optimizer):
    """The poison is a tensor on the device, so that a captured step sees it change."""
    training = {"device": "cuda", "cuda_graph": graph, "optimizer": optimizer, "steps": 40}
    trainer = make_trainer("vsm", training=training)
    factor, healthy = torch.ones((), device="cuda"), trainer.feed.loss

    def loss(model, progress):
        loss, terms = healthy(model, progress)
        return loss * factor, {**terms, "kl_z": terms["kl_z"] * factor, "loss": loss.detach() * factor}

    trainer.feed.loss = loss
    for _ in range(10):
        trainer._advance()
    before = everything(trainer)
    factor.fill_(math.nan)
    for _ in range(3):
        trainer._advance()
    assert different(before, everything(trainer)) == []
    found = trainer.guard.findings()
    assert (found.row, found.began, found.good, found.skipped) == (3, 11, 10, 3)
    assert "kl_z" in found.odd
    factor.fill_(1.0)
    trainer._advance()
    assert different(before, everything(trainer)) != []
    assert trainer.guard.findings().row == 0
