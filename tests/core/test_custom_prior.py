"""The worked example of docs/your_own_prior.md: it is what the document shows, and it runs in each way it says."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pyro_vsm.cli import main
from pyro_vsm.errors import UserError
from pyro_vsm.loading import load

from .contract import PriorZContract
from .small import vsm

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "experiments" / "custom_prior"
MODULE = "experiments.custom_prior.my_prior"
PATH = f"{MODULE}.LaplacePriorZ"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


@pytest.mark.parametrize("spec", [PATH])
class TestLaplacePriorZ(PriorZContract):
    pass


def test_the_document_shows_the_file():
    text = (ROOT / "docs" / "your_own_prior.md").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1).strip()
    code = (EXAMPLE / "my_prior.py").read_text(encoding="utf-8")
    assert code.strip().endswith(shown)
    assert len([line for line in shown.splitlines() if line.strip()]) <= 15
    fragment = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1))
    config = yaml.safe_load((EXAMPLE / "laplace.yaml").read_text(encoding="utf-8"))
    assert fragment["model"] == config["model"]
    for target in re.findall(r"\]\(\.\./(.*?)\)", text):
        assert (ROOT / target).exists(), target


def test_from_a_configuration_file(tmp_path, monkeypatch, tiny_settings, capsys):
    """The example's file, on tiny images: trained by the command line, loaded again once its module is imported."""
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load((EXAMPLE / "laplace.yaml").read_text(encoding="utf-8"))
    settings = {**tiny_settings, **settings, "model": {**tiny_settings["model"], **settings["model"]}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", "--config", "run.yaml", "--out", "run", "--training.steps", "2", "--systems", "[vsm]"]) == 0
    assert "LaplacePriorZ" in (tmp_path / "run" / "config.yaml").read_text()
    model = load(tmp_path / "run")
    assert type(model.program.prior_z).__name__ == "LaplacePriorZ"
    monkeypatch.delitem(sys.modules, MODULE)
    with pytest.raises(UserError, match=MODULE):  # a checkpoint imports nothing by itself
        load(tmp_path / "run")


def test_as_an_object():
    from experiments.custom_prior.my_prior import LaplacePriorZ

    model = vsm(8, prior_z=LaplacePriorZ(8, scale=1.0))
    assert isinstance(model.program.prior_z, LaplacePriorZ)
    assert torch.isfinite(model.predict(torch.randn(1, 3, 1, 8), torch.randn(1, 4, 8), 5)).all()


def test_the_conjugate_posterior_refuses_it_in_a_sentence():
    model = vsm(8, prior_z=PATH, posterior_z="conjugate")
    with pytest.raises(UserError, match="needs a Gaussian p"):
        model.predict(torch.randn(1, 3, 1, 8), torch.randn(1, 4, 8), 5)
