"""The recorded and compiled loss is the eager one: value, gradients, terms, memory, and what it leaves behind."""

import copy
import subprocess
import sys
import warnings

import pyro
import pytest
import torch

from pyro_vsm.compiled import CompiledLoss, compile_loss
from pyro_vsm.data.augment import AugmentConfig, distort, draws
from pyro_vsm.systems import ImageSpec, build_model
from pyro_vsm.training import Trainer

PARTS = [
    ("pn", {}),
    ("vpn", {}),
    ("vsm", {}),
    ("vsm", {"prior_z": "empirical_bayes", "posterior_z": "conjugate", "likelihood": "gaussian", "within_rank": 3}),
    ("vsm", {"objective": "importance_weighted", "posterior_m": "relaxed", "memory_use": "shuffled"}),
]


@pytest.fixture(autouse=True)
def no_validation():
    with pyro.validation_enabled(False):
        yield


def make(tiny_config, system, parts):
    settings = {"beta_z": 0.1, "beta_m": 0.1, **parts}
    if "posterior_z" not in parts:
        settings["posterior_z"] = {"class_path": "amortised", "init_args": {"hidden": 16}}
    model = build_model(system, tiny_config(model=settings), ImageSpec(3, 28, [0.5] * 3, [0.25] * 3, 12))
    return model.train()


def run(model, steps=2):
    """Loss, terms, gradients and memory of a few steps of plain gradient descent from one seed."""
    seen = []
    parameters = [p for n, p in model.named_parameters() if not n.startswith("encoder")]
    optimiser = torch.optim.SGD(parameters, 0.1)
    torch.manual_seed(5)
    for step in range(steps):
        features = torch.randn(2, 3, 3, model.dim, requires_grad=True)
        classes = torch.stack([torch.randperm(12)[:3] for _ in range(2)])
        optimiser.zero_grad()
        loss, terms = model.loss(features, 1, classes, torch.tensor(step / steps))
        loss.backward()
        gradients = [features.grad, *(p.grad for p in parameters)]
        seen.append((loss.detach(), terms, [None if g is None else g.clone() for g in gradients]))
        optimiser.step()
        model.after_step()
    return seen, {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize(("system", "parts"), PARTS)
def test_the_record_is_the_eager_loss(tiny_config, system, parts):
    model = make(tiny_config, system, parts)
    recorded = copy.deepcopy(model)
    compile_loss(recorded, lambda graph: graph)
    assert isinstance(recorded.loss, CompiledLoss)
    (eager, state), (replayed, other) = run(model), run(recorded)
    torch.testing.assert_close(replayed, eager, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(other, state, atol=1e-6, rtol=1e-5)
    if system == "vsm":
        assert (other["memory.classes"] >= 0).any()
    assert len(recorded.loss._recorded) == 1  # progress and contents change, the record stays


def test_a_recorded_model_is_left_fit_for_use(tiny_config):
    """Nothing of the recording (tensors without data) stays in the model: it predicts, and trains eagerly."""
    model = make(tiny_config, "vsm", {})
    compile_loss(model, lambda graph: graph)
    run(model, 2)
    torch.manual_seed(0)
    p = model.eval().predict(torch.randn(1, 3, 1, model.dim), torch.randn(1, 4, model.dim), 3)
    torch.testing.assert_close(p.sum(-1), torch.ones(1, 4))
    del model.__dict__["loss"]
    run(model, 1)


def test_the_gradient_of_a_multiple_is_the_multiple(tiny_config):
    model = make(tiny_config, "pn", {})
    compile_loss(model, lambda graph: graph)
    features = torch.randn(2, 3, 3, model.dim, requires_grad=True)
    grads = []
    for factor in (1.0, 3.0):
        loss, _ = model.loss(features, 1, torch.arange(6).view(2, 3), torch.tensor(0.5))
        grads.append(torch.autograd.grad(factor * loss, features)[0])
    torch.testing.assert_close(grads[1], 3 * grads[0])


def test_a_system_that_cannot_be_recorded_is_left_alone(tiny_config):
    model = make(tiny_config, "pn", {})
    model.traceable = False
    compile_loss(model)
    assert "loss" not in model.__dict__


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("system", "parts"), [("pn", {}), ("vsm", {"memory_use": "rote", "posterior_z": "deterministic"})]
)
def test_the_compiled_loss_is_the_eager_one(tiny_config, system, parts):
    """Through the real compiler, without noise: compiled code draws it from another stream than eager code."""
    model = make(tiny_config, system, parts).cuda()
    compiled = copy.deepcopy(model)
    with torch.device("cuda"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compile_loss(compiled)
        (eager, state), (fast, other) = run(model), run(compiled)
    torch.testing.assert_close(fast, eager, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other, state, atol=1e-5, rtol=1e-4)


def test_the_compiled_augmentation_is_the_eager_one():
    images = torch.randint(0, 256, (20, 3, 28, 28), dtype=torch.uint8)
    config = AugmentConfig(pad=3, flip=True, brightness=0.2, contrast=0.2, saturation=0.2)
    positions, u = torch.randint(20, (12,)), draws(12, torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = torch.compile(distort, dynamic=False)(images, positions, config, u)
    torch.testing.assert_close(fast, distort(images, positions, config, u), atol=1e-6, rtol=0)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("system", "parts"), [("pn", {}), ("vsm", {"memory_use": "rote", "posterior_z": "deterministic"}), ("vsm", {})]
)
def test_captured_and_compiled_steps_train_as_eager_ones(tiny_config, tiny_data, system, parts):
    """Whole steps, the first five of which precede the capture; with noise only what draws the same noise.

    By SGD: Adam divides by the size of the gradient, and would blow up the rounding where that is next to nothing.
    """
    switches = [{}, {"cuda_graph": True}]
    if system == "pn" or parts:
        switches.append({"cuda_graph": True, "compile": True, "compile_heads": True})
    seen = []
    training = {"device": "cuda", "steps": 10, "clip": 5.0, "optimizer": "sgd"}
    for some in switches:
        config = tiny_config(model=parts, training={**training, **some})
        torch.manual_seed(0)
        model = build_model(system, config, ImageSpec.of(tiny_data), compiled=config.training.compile)
        trainer = Trainer(model, tiny_data, config, None, system)
        losses = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(10):
                before = trainer.sums["loss"].item() if trainer.sums else 0.0
                trainer._advance()
                losses.append(trainer.sums["loss"].item() - before)
        seen.append(losses)
    for losses in seen[1:]:
        assert losses == pytest.approx(seen[0], abs=5e-3)


def test_the_compiler_is_loaded_for_those_who_compile():
    """It takes as long as PyTorch itself."""
    look = "print('torch._dynamo' in sys.modules)"
    program = f"import sys, torch; {look}; import pyro_vsm; {look}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert before == after
