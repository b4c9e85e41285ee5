"""experiments/estimators: the measurement runs, its reference and its statistics are right where that is known."""

import importlib.util
from pathlib import Path

import pytest
import torch

from . import statistics
from .small import DEFAULTS, narrow

FILE = Path(__file__).parents[2] / "experiments" / "estimators" / "measure.py"


@pytest.fixture(scope="module")
def measure():
    spec = importlib.util.spec_from_file_location("measure", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_runs(measure, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "BATCHES", 4)
    options = {
        "entries": 6,
        "features": 8,
        "particles": 2,
        "steps": 4,
        "training": 2,
        "output": tmp_path / "results.md",
    }
    report = measure.main([word for name, value in options.items() for word in (f"--{name}", str(value))])
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == report
    assert report.count("| mixture, leave-one-out baseline") == 2
    assert "nan" not in report


def test_squared_length_is_unbiased(measure):
    """Of noise with mean (1, 2), whose squared length is 5."""
    values = [measure.squared_length(torch.tensor([1.0, 2.0]) + torch.randn(20, 2)) for _ in range(400)]
    estimates, errors = torch.tensor(values).T
    statistics.agree(estimates, torch.tensor(5.0), power=0.2)
    assert 0.7 < errors.mean() / estimates.std() < 1.4


def test_reference_and_mixture_agree(measure):
    """Two unbiased estimates of the same gradient, one of them without a score function."""
    torch.manual_seed(2)
    features = measure.world(8 + measure.WAYS, 20, 6)
    parts = {kind: narrow(kind, DEFAULTS[kind]) for kind in ("prior_m", "prior_z", "posterior_m", "posterior_z")}
    problem = measure.Problem(measure.trained(features[:8], 5, **parts), features[8:, :16])
    problem.program.beta_m = problem.program.beta_z = 1.0
    reference = torch.stack([problem.reference(40)[0] for _ in range(40)])
    mixture = torch.stack([problem.estimate(measure.objectives.EpisodeELBO(100))[0] for _ in range(40)])
    scale = reference.mean(0).abs().max()
    statistics.agree(mixture - reference, torch.zeros_like(scale).expand(mixture.shape[1]), power=0.6, scale=scale)
