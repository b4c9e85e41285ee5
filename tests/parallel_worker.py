"""One of two processes of tests/test_parallel.py: trains on its share; then the first one trains alone."""

import json
import sys
from pathlib import Path

import pyro
import torch

from pyro_vsm import data as data_sources
from pyro_vsm import parallel
from pyro_vsm.config import Config
from pyro_vsm.evaluation import evaluate_model
from pyro_vsm.run import Run
from pyro_vsm.systems import ImageSpec, build_model
from pyro_vsm.training import Trainer


def trained(config: Config, data, folder: Path, system: str):
    """Losses of three steps, the model's state, and the validation results."""
    pyro.set_rng_seed(0)
    model = build_model(system, config, ImageSpec.of(data))
    trainer = Trainer(model, data, config, Run(folder, {"system": system, "config": {}, "data": {}}), system)
    trainer.fit()
    losses = [r["train/loss"] for r in trainer.run.metrics() if "train/loss" in r]
    results = evaluate_model(model, data.validation, trainer.validation_episodes, samples=3)
    state = {k: v.double() for k, v in model.state_dict().items()}
    return losses, state, results


def main(settings: str, out: str) -> None:
    torch.set_num_threads(1)
    config = Config.from_dict(json.loads(Path(settings).read_text()))
    data = data_sources.load(config.data, lambda _: None)
    parallel.start()
    report = {}
    for system in config.systems:
        losses, state, results = trained(config, data, Path(out) / "joint" / system, system)
        # every process holds the same memory and heads
        mine = torch.cat(
            [v.flatten() for k, v in state.items() if "memory" in k or "program" in k] or [torch.ones(1)]
        )
        spread = (parallel.average(mine) - mine).abs().max().item()
        stopped = parallel.agree(parallel.rank() == 1)
        with parallel.alone():
            if torch.distributed.get_rank() == 0:
                one, other, single = trained(config, data, Path(out) / "alone" / system, system)
                report[system] = {
                    "losses": [losses, one],
                    "state": {k: (state[k] - other[k]).abs().max().item() for k in state},
                    "classes": state.get("memory.classes", torch.ones(1)).tolist(),
                    "accuracy": [results.accuracy.tolist(), single.accuracy.tolist()],
                    "nll": [results.nll.tolist(), single.nll.tolist()],
                    "spread": spread,
                    "agreed": stopped,
                }
        parallel.barrier()
    if parallel.is_main():
        (Path(out) / "report.json").write_text(json.dumps(report))
    parallel.finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
