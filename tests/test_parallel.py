"""Two processes (gloo, CPU) train as one with the joint batch: same losses, memory, weights and answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pyro_vsm import parallel
from pyro_vsm.data.augment import AugmentConfig
from pyro_vsm.errors import UserError
from pyro_vsm.joint_norm import JointBatchNorm2d, join_batch_norm

TOLERANCE = 2e-5  # float32 sums in another order, three steps


def torchrun(*arguments: str, timeout: int = 200) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def report(tmp_path_factory, tiny_config):
    folder = tmp_path_factory.mktemp("parallel")
    config = tiny_config(
        systems=["vsm", "pn"],
        episodes={"tasks": 4},
        training={
            "steps": 3,
            "log_every": 1,
            "validate_every": 0,
            "checkpoint_every": 0,
            "validation_episodes": 70,  # three blocks, which the processes share unevenly
            "sync_batch_norm": True,
        },
        model={"beta_z": 0.1, "beta_m": 0.1, "warmup": 0.0},
    )
    config.augment = AugmentConfig(pad=2, flip=True, brightness=0.2)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    worker = Path(__file__).parent / "parallel_worker.py"
    done = torchrun(str(worker), str(folder / "config.json"), str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "report.json").read_text()), folder


@pytest.mark.parametrize("system", ["vsm", "pn"])
def test_two_processes_give_the_losses_memory_and_weights_of_one(report, system):
    """With posterior noise, augmentation, consolidation and batch normalisation of the joint batch."""
    found = report[0][system]
    two, one = found["losses"]
    assert len(two) == 3
    assert len(set(two)) == 3
    assert two == pytest.approx(one, abs=TOLERANCE)
    # Adam divides by the size of the gradient, so that rounding moves weights by a part of the rate, 2e-3
    assert max(found["state"].values()) < 1e-3
    assert max([v for k, v in found["state"].items() if "memory.entries" in k] or [0]) < 1e-3
    assert found["spread"] < 1e-6
    if system == "vsm":
        assert max(found["classes"]) >= 0


@pytest.mark.parametrize("system", ["vsm", "pn"])
def test_a_shared_evaluation_is_the_whole_one(report, system):
    """In the same order, with the same noise."""
    accuracy, alone = report[0][system]["accuracy"]
    assert len(accuracy) == 70
    assert accuracy == pytest.approx(alone, abs=0.2)  # of three classes and three queries, one answer may tip
    assert sum(a != b for a, b in zip(accuracy, alone)) <= 2
    assert report[0][system]["nll"][0] == pytest.approx(report[0][system]["nll"][1], abs=5e-3)


def test_the_first_process_alone_writes_one_checkpoint(report):
    for system in ("vsm", "pn"):
        files = sorted(p.name for p in (report[1] / "joint" / system).iterdir() if not p.name.startswith("events"))
        assert files == ["metrics.jsonl", "model.safetensors", "state.safetensors"]
        lines = (report[1] / "joint" / system / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 4  # three steps and a validation, each once
    assert report[0]["vsm"]["agreed"]


def test_one_process_needs_nothing_of_this():
    x = torch.randn(4, 2, requires_grad=True)
    assert parallel.size() == 1
    assert parallel.is_main()
    assert parallel.joined(x) is x
    assert parallel.share(x) is x
    assert parallel.average(x) is x
    assert parallel.gather_portions(x, 4) is x
    assert list(parallel.portion(5)) == [0, 1, 2, 3, 4]
    assert parallel.shared("a") == "a"
    assert not parallel.agree(False)


def test_portions_cover_everything_once_in_order(monkeypatch):
    for size in (2, 3, 5):
        monkeypatch.setattr(parallel, "size", lambda size=size: size)
        for number in (1, 5, 10, 33, 70, 100):
            for unit in (1, 4, 32):
                parts = []
                for rank in range(size):
                    monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
                    parts.append(list(parallel.portion(number, unit)))
                if -(-number // unit) < size:
                    assert all(p == list(range(number)) for p in parts)
                else:
                    assert [i for p in parts for i in p] == list(range(number))
                    assert all(p and p[0] % unit == 0 for p in parts)


def test_a_batch_that_cannot_be_split_is_refused(monkeypatch):
    monkeypatch.setattr(parallel, "size", lambda: 2)
    with pytest.raises(UserError, match="multiple of 2"):
        parallel.share(torch.zeros(3, 1))


def test_joint_batch_normalisation_in_one_process_is_the_plain_one(monkeypatch):
    """Also its own formula, where the average over the processes is that of one."""
    torch.manual_seed(0)
    plain, joint = nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3))
    join_batch_norm(joint)
    assert isinstance(joint[0], JointBatchNorm2d)
    for module in (plain, joint[0]):
        nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(1))
        nn.init.normal_(module.bias, generator=torch.Generator().manual_seed(2))
    assert joint.state_dict().keys() == {f"0.{k}" for k in plain.state_dict()}
    x = (10 + torch.randn(6, 3, 4, 4)).requires_grad_()
    torch.testing.assert_close(joint(x), plain(x))
    monkeypatch.setattr(parallel, "size", lambda: 2)
    monkeypatch.setattr("pyro_vsm.joint_norm.average", lambda value: value)
    weight = torch.randn(6, 3, 4, 4)
    grads = [torch.autograd.grad((m(x) * weight).sum(), x)[0] for m in (plain, joint)]
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-3)
