"""Parts by name, dotted path, mapping and object, and what is said when one is wrong."""

import sys
import types

import pytest
import torch

from pyro_vsm.errors import UserError
from pyro_vsm.priors import PRIORS_Z, MemoryPriorZ, PriorZ, StandardNormalPriorZ, standard_normal
from pyro_vsm.registry import Registry

from .small import vsm


class WidePriorZ(PriorZ):
    """A user's prior, with an argument by position and one by keyword."""

    def __init__(self, dim, width=2.0, *, shift=0.0):
        super().__init__(dim)
        self.width, self.shift = width, shift

    def forward(self, m, task):
        return standard_normal(m)


PATH = f"{__name__}.WidePriorZ"


def test_a_name():
    assert isinstance(PRIORS_Z.build("memory", 4), MemoryPriorZ)


def test_a_name_with_arguments():
    prior = PRIORS_Z.build({"class_path": "memory", "init_args": {"hidden": 7}}, 4)
    assert prior.net.trunk[0].out_features == 7


def test_arguments_beside_init_args_are_arguments_too():
    """The command line's way of changing one of a configuration file's."""
    spec = {"class_path": PATH, "init_args": {"width": 3.0, "shift": 1.0}, "shift": 2.0}
    prior = PRIORS_Z.build(spec, 4)
    assert (prior.width, prior.shift) == (3.0, 2.0)


def test_a_dotted_path():
    assert isinstance(PRIORS_Z.build(PATH, 4), WidePriorZ)
    prior = PRIORS_Z.build({"class_path": PATH, "init_args": {"width": 3.0, "shift": 1.0}}, 4)
    assert (prior.dim, prior.width, prior.shift) == (4, 3.0, 1.0)


def test_an_object():
    prior = WidePriorZ(8)
    assert PRIORS_Z.build(prior, 8) is prior
    assert vsm(8, prior_z=prior).program.prior_z is prior


def test_a_class_of_ones_own_by_name():
    registry: Registry = Registry("prior_z", PriorZ)
    assert registry.register("wide")(WidePriorZ) is WidePriorZ
    assert isinstance(registry.build("wide", 4), WidePriorZ)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("memry", "did you mean 'memory'"),
        ("zzz", "choose from"),
        ("", "choose from"),
        ("no_such_package.Prior", "cannot import"),
        ("pyro_vsm.priors.Missing", "cannot import"),
        ("..Prior", "cannot import"),
        ("a..Prior", "cannot import"),
        ("torch.nn.Linear", "is no PriorZ"),
        ("pyro_vsm.priors.standard_normal", "is no PriorZ"),
        ("pyro_vsm.priors.PriorZ", "is abstract"),
        (None, "describes no part"),
        (3, "describes no part"),
        ({"init_args": {}}, "describes no part"),
        ({"class_path": "memory", "args": {}}, "does not take these init_args"),
        ({"class_path": "memory", "init_args": {"hiden": 3}}, "it takes hidden"),
        ({"class_path": "standard_normal", "init_args": {"scale": 3}}, "it takes none"),
        ({"class_path": PATH, "init_args": {"widht": 3}}, "it takes width, shift"),
    ],
)
def test_a_wrong_specification_gets_one_sentence(spec, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        PRIORS_Z.build(spec, 4)
    assert str(caught.value).startswith("prior_z: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["prior_m", "prior_z", "posterior_m", "posterior_z", "likelihood", "memory_use", "memory_update"]
)
def test_an_untrusted_specification_imports_nothing(kind, monkeypatch, tmp_path):
    """Every kind of part: a checkpoint may name a module, but only what the user has imported is used."""
    (tmp_path / "trap.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="import trap first"):
        vsm(8, **{kind: "trap.Part"}, trusted=False)
    assert "trap" not in sys.modules


def test_an_untrusted_specification_may_use_what_is_imported(monkeypatch):
    module = types.ModuleType("already_there")
    module.Prior = StandardNormalPriorZ
    monkeypatch.setitem(sys.modules, "already_there", module)
    model = vsm(8, prior_z="already_there.Prior", trusted=False)
    assert model.predict(torch.randn(1, 2, 1, 8), torch.randn(1, 3, 8), 2).shape == (1, 3, 2)
