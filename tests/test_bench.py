"""The measurements run, count what they say they count, and write their tables and charts."""

import json

import pytest
import torch

from pyro_vsm.bench import processes
from pyro_vsm.bench.memory import MemoryConfig, filled
from pyro_vsm.bench.memory import run as memory_run
from pyro_vsm.bench.step import StepConfig, as_trained, make_trainer, random_splits
from pyro_vsm.bench.timing import peak_megabytes, rounds
from pyro_vsm.cli import main
from pyro_vsm.errors import UserError

SMALL = ["--tasks", "2", "--way", "2", "--queries", "2", "--image_size", "28", "--classes", "4", "--images", "4"]
SMALL += ["--seconds", "0.02", "--device", "cpu", "--model.particles", "2"]


def test_step_writes_floor_ratios_and_parts(tmp_path, capsys):
    assert main(["bench", "step", *SMALL, "--systems", '["pn","vsm"]', "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [r["step"] for r in rows] == ["backbone alone", "pn", "vsm"]
    assert rows[0]["ratio"] == 1
    for r in rows:
        assert r["ratio"] == pytest.approx(r["ms"] / rows[0]["ms"], rel=0.01)
        assert r["images_per_s"] == pytest.approx(1e3 * 2 * 2 * 3 / r["ms"], rel=0.01)
        assert r["episodes_per_s"] == pytest.approx(1e3 * 2 / r["ms"], rel=0.05)
        assert r["least_ms"] <= r["ms"] <= r["most_ms"]
    parts = {r["part, ms"]: r for r in json.loads((tmp_path / "parts.json").read_text())["rows"]}
    assert {"sampling", "augmentation", "backbone", "heads and objective"} <= parts.keys()
    assert parts["of which recall (forward)"]["pn"] is None
    assert parts["of which recall (forward)"]["vsm"] > 0
    for name in ("step.png", "step.md", "step.csv", "parts.md"):
        assert (tmp_path / name).stat().st_size > 0
    assert str(tmp_path) not in (tmp_path / "step.md").read_text()
    assert "heads and objective" in capsys.readouterr().out


def test_evaluation_and_memory(tmp_path, capsys):
    few = ["--image_size", "28", "--classes", "5", "--images", "6", "--queries", "3", "--device", "cpu"]
    few += ["--episodes", "40", "--samples", "2", "--repeats", "1", "--systems", '["vsm"]', "--amp", "true"]
    few += ["--out", str(tmp_path)]
    assert main(["bench", "evaluation", *few]) == 0
    (row,) = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert row["images"] == 30
    assert row["total_s"] == pytest.approx(row["encoding_s"] + row["answering_s"], abs=0.003)
    words = ["--entries", "[64,200]", "--dim", "8", "--seconds", "0.01", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["bench", "memory", *words]) == 0
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert [(r["entries"], r["recall"]) for r in rows] == [
        (64, "retrieved"),
        (64, "all"),
        (200, "retrieved"),
        (200, "all"),
    ]
    assert (tmp_path / "memory.png").stat().st_size > 0


def test_the_measured_memory_is_full_and_stays_so():
    c = MemoryConfig(entries=[30], dim=4, seconds=0.001, device="cpu", tasks=1, way=3, images=2)
    memory = filled(c, 30, torch.device("cpu"), 4)
    assert memory.filled.all()
    memory.store(memory.consolidate(torch.randn(1, 3, 2, 4), torch.tensor([[29, 100, 101]])))
    assert memory.filled.all()
    assert {29, 100, 101} <= set(memory.classes.tolist())
    assert not {0, 1} & set(memory.classes.tolist())  # those written longest ago made room
    assert len(memory_run(c, lambda _: None)) == 2


def test_rounds_count_calls():
    calls = []
    timing = rounds(lambda: calls.append(1), torch.device("cpu"), 0.001, 5)
    assert len(calls) >= 6
    assert timing.least <= timing.ms <= timing.most
    assert peak_megabytes(torch.device("cpu")) > 10


def test_parallel_wants_processes():
    with pytest.raises(UserError, match="torchrun"):
        processes.run(processes.ParallelConfig())


def test_loading_counts_decoding_and_the_cache(tiny_root, tmp_path):
    words = ["--data.name", "folder", "--data.root", str(tiny_root), "--data.image_size", "28", "--device", "cpu"]
    assert main(["bench", "loading", *words, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "loading.json").read_text())["rows"]
    assert [r["start"] for r in rows] == ["decoded", "from the cache", "from the cache again"]
    assert {r["images"] for r in rows} == {24 * 6}
    assert rows[0]["cache_MB"] > 0


@pytest.mark.cuda
def test_memory_of_the_device_does_not_grow():
    """Peak after 20 and after 200 steps, captured."""
    c = StepConfig(tasks=2, image_size=28, classes=8, images=20, cuda_graph=True, amp=True, device="cuda")
    device = torch.device("cuda")
    with as_trained():
        trainer = make_trainer(c, "vsm", random_splits(c, device))
        for _ in range(20):
            trainer._advance()
        before = peak_megabytes(device)
        for _ in range(180):
            trainer._advance()
        assert peak_megabytes(device) == before
