"""Different numbers of examples a class, and the choice among pretrained models."""

import shutil

import pytest
import torch
from core import statistics

from pyro_vsm import choosing, pretrained
from pyro_vsm.cli import main
from pyro_vsm.errors import UserError
from pyro_vsm.systems import ImageSpec, build_model

PARTS = {
    "conjugate": {
        "prior_z": "empirical_bayes",
        "posterior_z": "conjugate",
        "likelihood": "gaussian",
        "within_rank": 4,
    },
    "amortised": {},
}


@pytest.fixture(params=PARTS)
def model(request, tiny_config, tiny_data):
    model = build_model("vsm", tiny_config(model=PARTS[request.param]), ImageSpec.of(tiny_data))
    features = torch.randn(60, model.dim)
    model.start(features, torch.arange(12).repeat_interleave(5))
    return model.eval()


@torch.no_grad()
def test_equal_numbers_given_singly_are_answered_as_an_episode(model):
    support, query = torch.randn(3, 2, model.dim), torch.randn(5, model.dim)
    together = model.predict(support.unsqueeze(0), query.unsqueeze(0), 40_000)[0]
    singly = model.predict_samples(list(support), query, 8000)
    assert singly.shape == (8000, 5, 3)
    statistics.agree(singly.double(), together.double(), power=0.1, error=0.01)


@torch.no_grad()
def test_each_class_gets_the_posterior_of_its_own_number(model):
    counts = [1, 4, 2]
    support, query = [torch.randn(k, model.dim) for k in counts], torch.randn(1, 5, model.dim)
    means = torch.stack([s.mean(0) for s in support]).view(1, 3, 1, -1)
    mixed = model.task(means, query, counts=torch.tensor([counts]).float())
    m = torch.randn(1, 3, model.dim)

    def q(task):
        return model.program.posterior_z(m, task, model.program.prior_z(m, task))

    found = q(mixed)
    for n, k in enumerate(counts):
        alone = q(model.task(means.expand(-1, -1, k, -1), query))  # k examples whose mean is the class's
        torch.testing.assert_close(found.mean[0, n], alone.mean[0, n], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            found.variance.expand(1, 3, -1)[0, n], alone.variance.expand(1, 3, -1)[0, n], rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
def test_more_examples_make_the_conjugate_posterior_narrower(tiny_config, tiny_data):
    model = build_model("vsm", tiny_config(model=PARTS["conjugate"]), ImageSpec.of(tiny_data))
    model.start(torch.randn(60, model.dim), torch.arange(12).repeat_interleave(5))
    one = torch.randn(1, model.dim)
    task = model.task(one.expand(1, 2, 1, -1), one.unsqueeze(0), counts=torch.tensor([[1.0, 20.0]]))
    m = torch.zeros(1, 2, model.dim)
    variance = model.program.posterior_z(m, task, model.program.prior_z(m, task)).variance.expand(1, 2, -1)
    assert (variance[0, 1] < variance[0, 0]).all()


def test_features_without_classes_are_told_by_chance():
    """Of 4 classes with 3 examples each, whatever the number of dimensions."""
    shares = torch.tensor([choosing.leave_one_out([torch.randn(3, 1600) for _ in range(4)]) for _ in range(200)])
    assert float(shares.mean()) == pytest.approx(0.25, abs=0.05)


def test_left_out_examples_are_compared_with_the_others_alone():
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[10.0], [11.0]])
    assert choosing.leave_one_out([a, b]) == 1
    assert (
        choosing.leave_one_out([a, torch.tensor([[0.5]])]) == 0
    )  # the single one is nearer than the other of its own
    assert choosing.leave_one_out([torch.tensor([[0.0]]), torch.tensor([[1.0]])]) == 0  # nothing to ask


def test_of_each_kind_the_nearest_number_of_shots_is_tried(monkeypatch, tiny_data):
    known = [
        "glyphs-conv4-vsm-1shot",
        "glyphs-conv4-vsm-5shot",
        "glyphs-conv4-vpn-1shot",
        "colour-glyphs-conv4-vsm-5shot",
    ]
    monkeypatch.setattr(pretrained, "names", lambda: known)
    assert choosing.candidates(1) == ["colour-glyphs-conv4-vsm-5shot", "glyphs-conv4-vsm-1shot"]
    assert choosing.candidates(6) == ["colour-glyphs-conv4-vsm-5shot", "glyphs-conv4-vsm-5shot"]
    monkeypatch.setattr(pretrained, "names", list)
    with pytest.raises(UserError, match="no pretrained model is installed"):
        choosing.choose(lambda size, channels: tiny_data.test)


def test_without_a_checkpoint_a_pretrained_model_is_chosen_by_the_examples(tiny_root, tmp_path, capsys, monkeypatch):
    kinds = ("colour-glyphs-conv4", "glyphs-conv4")
    monkeypatch.setattr(choosing, "PREFERRED", kinds)  # the small ones
    for name in ("test 0", "test 1"):
        (tmp_path / name).mkdir()
        for i in range(3):
            shutil.copy(tiny_root / "test" / name / f"{i}.png", tmp_path / name)
    query = str(tiny_root / "test" / "test 1")
    assert main(["predict", "--support", str(tmp_path), "--query", query, "--samples", "4", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("Model: ")
    assert "examples left out one by one" in captured.err
    for name in ("test 0", "test 1"):
        for i in (1, 2):
            (tmp_path / name / f"{i}.png").unlink()
    assert main(["predict", "--support", str(tmp_path), "--query", query, "--samples", "4", "--device", "cpu"]) == 0
    assert "a single example a class does not tell" in capsys.readouterr().err


def test_a_pretrained_name_serves_as_checkpoint(tiny_root, tmp_path, capsys):
    name = pretrained.names()[0]
    arguments = ["--support", str(tiny_root / "val"), "--query", str(tiny_root / "val" / "val 0" / "0.png")]
    assert main(["predict", "--checkpoint", name, *arguments, "--samples", "4", "--device", "cpu"]) == 0
    assert "val 0" in capsys.readouterr().out
