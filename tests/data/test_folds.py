"""Folds of the training classes."""

from dataclasses import replace

import pytest
import torch
import yaml

from pyro_vsm.cli import main
from pyro_vsm.data import DataConfig, Splits, load
from pyro_vsm.data.folds import leave_out
from pyro_vsm.errors import UserError


@pytest.fixture
def splits(make_set):
    return Splits("made", make_set([2, 3, 1, 2, 4], prefix="a"), make_set([2], prefix="b"), make_set([3], prefix="c"))


def test_every_training_class_is_left_out_once(splits):
    parts = [leave_out(splits, fold, 2) for fold in range(2)]
    assert sorted(n for p in parts for n in p.validation.names) == sorted(splits.train.names)
    assert {p.validation.n_classes for p in parts} == {2, 3}
    for part in parts:
        assert sorted(part.train.names + part.validation.names) == sorted(splits.train.names)
        for half in (part.train, part.validation):
            there = splits.train.subset([splits.train.names.index(n) for n in half.names])
            assert half.identity() == there.identity()
        assert part.test is splits.validation


def test_the_order_is_that_of_the_seed(splits):
    torch.manual_seed(1)
    first = leave_out(splits, 0, 5)
    torch.manual_seed(2)
    assert leave_out(splits, 0, 5).validation.names == first.validation.names
    assert len({leave_out(splits, 0, 5, seed).validation.names for seed in range(20)}) > 1


@pytest.mark.parametrize(("fold", "folds"), [(2, 2), (-1, 2), (0, 1), (0, 6)])
def test_folds_that_are_not_there(splits, fold, folds):
    with pytest.raises(UserError, match=f"fold {fold} of {folds} of 5 training classes: give 2 to 5 folds"):
        leave_out(splits, fold, folds)


def test_a_data_set_by_its_fold(tiny_root):
    config = DataConfig("folder", str(tiny_root), 28, seed=3, threads=1)
    whole = load(config, lambda _: None)
    lines = []
    part = load(replace(config, fold=1, folds=3), lines.append)
    assert part.identity == leave_out(whole, 1, 3, 3).identity
    assert "fold 1 of 3" in lines[0]


def test_results_of_a_fold_say_so(tiny_config, tmp_path):
    config = tmp_path / "fold.yaml"
    values = tiny_config(systems=["pn"], training={"steps": 1}, data={"fold": 1, "folds": 3}).to_dict()
    config.write_text(yaml.safe_dump(values))
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "run")]) == 0
    assert "Trained without fold 1 of 3" in (tmp_path / "run" / "table.md").read_text()
    assert main(["train", "--config", str(config), "--data.fold", "3", "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()
