"""Results of evaluations: stored, summarised, compared."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pyro_vsm.data.episodes import EpisodeIndex
from pyro_vsm.errors import UserError
from pyro_vsm.results import EpisodeResults, compare, episodes_hash

TENSORS = ("accuracy", "nll", "brier", "confidence", "correct")


def make(seed: int = 0, episodes: int = 40, shift: float = 0.0, **changes) -> EpisodeResults:
    generator = torch.Generator().manual_seed(seed)
    correct = torch.rand(episodes, 15, generator=generator) < 0.6 + shift
    values = {
        "accuracy": correct.double().mean(1),
        "nll": torch.rand(episodes, generator=generator, dtype=torch.float64),
        "brier": torch.rand(episodes, generator=generator, dtype=torch.float64),
        "confidence": 0.2 + 0.8 * torch.rand(episodes * 15, generator=generator),
        "correct": correct.flatten(),
        "way": 5,
        "shot": 1,
        "queries": 3,
        "samples": 10,
        "seed": 0,
        "block": 32,
        "temperature": 1.0,
        "data": "8 classes",
        "episodes_hash": "ab",
    }
    return EpisodeResults(**{**values, **changes})


def index(*shape: int) -> EpisodeIndex:
    e, n, k, q = shape
    return EpisodeIndex(torch.randint(9, (e, n)), torch.randint(99, (e, n, k)), torch.randint(99, (e, n, q)))


def test_summary_is_plain_and_right():
    result = make()
    row = json.loads(json.dumps(result.summary(), allow_nan=False))
    values = result.accuracy.numpy()
    assert row["accuracy"] == pytest.approx(values.mean())
    assert row["accuracy_95"] == pytest.approx(1.96 * values.std(ddof=1) / math.sqrt(40))
    assert row["nll"] == pytest.approx(float(result.nll.mean()))
    assert row["ece"] == result.ece > 0
    assert (row["episodes"], row["way"], row["episodes_hash"]) == (40, 5, "ab")
    assert make(episodes=1).summary()["accuracy_95"] is None


def test_hash_sees_every_index_and_the_shape():
    episodes = index(4, 3, 2, 2)
    digest = episodes_hash(episodes)
    assert episodes_hash(episodes.to("cpu")) == digest
    strided = EpisodeIndex(*(t.mT.contiguous().mT for t in (episodes.classes, episodes.support, episodes.query)))
    assert episodes_hash(strided) == digest
    for name in ("classes", "support", "query"):
        changed = getattr(episodes, name).clone()
        changed.view(-1)[-1] += 1
        assert episodes_hash(dataclasses.replace(episodes, **{name: changed})) != digest
    flat = EpisodeIndex(episodes.classes, episodes.support.flatten(1).unflatten(1, (3, 2)), episodes.query)
    assert episodes_hash(flat) == digest
    one, other = index(2, 3, 4, 1), None
    other = EpisodeIndex(one.classes.view(3, 2), one.support.view(3, 2, 4), one.query.view(3, 2, 1))
    assert episodes_hash(one) != episodes_hash(other)


def test_save_and_load_keep_every_bit(tmp_path):
    result = make(temperature=1.25, data='größer\n"x"')
    path = result.save(tmp_path / "deep" / "r.safetensors")
    back = EpisodeResults.load(path)
    assert back.metadata() == result.metadata()
    for name in TENSORS:
        assert torch.equal(getattr(back, name), getattr(result, name))
        assert getattr(back, name).dtype == getattr(result, name).dtype
    assert [p.name for p in path.parent.iterdir()] == ["r.safetensors"]


@pytest.mark.parametrize("keep", [0, 4, 100, 1000, -1])
def test_truncated_results_are_refused(tmp_path, keep):
    path = make().save(tmp_path / "r.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"r\.safetensors holds no episode results"):
        EpisodeResults.load(path)


def write_foreign(path, metadata, **tensors):
    save_file(tensors or {"a": torch.zeros(2)}, path, metadata)


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.write_text("<html>not found</html>"),
        lambda p: p.write_bytes(b"\xff" * 4096),
        lambda p: torch.save({"a": 1}, p),
        lambda p: write_foreign(p, None),
        lambda p: write_foreign(p, {"format": "pt"}),
        lambda p: write_foreign(p, {"format": "pyro_vsm.EpisodeResults/1", "metadata": "{}"}),
        lambda p: write_foreign(
            p, {"format": "pyro_vsm.EpisodeResults/1"}, **{name: getattr(make(), name) for name in TENSORS}
        ),
    ],
)
def test_foreign_files_are_refused(tmp_path, write):
    path = tmp_path / "foreign.safetensors"
    write(path)
    with pytest.raises(UserError, match=r"foreign\.safetensors holds no episode results"):
        EpisodeResults.load(path)


@pytest.mark.parametrize(
    "metadata",
    [
        "[]",
        "null",
        "{",
        '{"way": 5}',
        json.dumps({**make().metadata(), "way": "5"}),
        json.dumps({**make().metadata(), "extra": 1}),
    ],
)
def test_damaged_metadata_is_refused(tmp_path, metadata):
    path = tmp_path / "r.safetensors"
    header = {"format": "pyro_vsm.EpisodeResults/1", "metadata": metadata}
    save_file({name: getattr(make(), name) for name in TENSORS}, path, header)
    with pytest.raises(UserError, match="holds no episode results"):
        EpisodeResults.load(path)


def test_sizes_that_do_not_fit_together_are_refused(tmp_path):
    path = tmp_path / "r.safetensors"
    header = {"format": "pyro_vsm.EpisodeResults/1", "metadata": json.dumps({**make().metadata(), "way": 7})}
    save_file({name: getattr(make(), name) for name in TENSORS}, path, header)
    with pytest.raises(UserError, match=r"r\.safetensors: episode results need 840 finite values of confidence"):
        EpisodeResults.load(path)
    with pytest.raises(UserError, match="finite values of nll"):
        make(nll=torch.full((40,), math.nan))
    with pytest.raises(UserError, match="need at least one finite values of accuracy"):
        make(accuracy=torch.zeros(0), nll=torch.zeros(0), brier=torch.zeros(0))


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            EpisodeResults.load(path)


def test_comparison_equals_manual_paired_differences():
    base, better = make(0), make(1, shift=0.2)
    rows = compare({"PN": base, "VSM": better}, reference="PN")
    assert [row["system"] for row in rows] == ["PN", "VSM"]
    assert rows[0]["accuracy_difference"] is None
    assert rows[0]["nll_difference"] is None
    d = (better.accuracy - base.accuracy).numpy()
    assert rows[1]["accuracy_difference"].mean == pytest.approx(d.mean())
    assert rows[1]["accuracy_difference"].half_width == pytest.approx(1.96 * d.std(ddof=1) / np.sqrt(40))
    assert rows[1]["nll_difference"].mean == pytest.approx(float((better.nll - base.nll).mean()))
    for row, result in zip(rows, (base, better)):
        assert row["accuracy"] == result.interval("accuracy")
        assert row["nll"] == result.interval("nll")
        assert row["brier"] == result.interval("brier")
        assert row["ece"] == result.ece


def test_comparison_refuses_other_episodes_other_images_and_no_reference():
    with pytest.raises(UserError, match="'VSM' and 'PN' were evaluated on different episodes"):
        compare({"PN": make(), "VSM": make(episodes_hash="cd")}, "PN")
    with pytest.raises(UserError, match="'VSM' and 'PN' were evaluated on different images"):
        compare({"PN": make(), "VSM": make(data="9 classes")}, "PN")
    with pytest.raises(UserError, match="the reference 'MAML' is none of 'PN'"):
        compare({"PN": make()}, "MAML")
    with pytest.raises(UserError, match="no results"):
        compare({}, "PN")
