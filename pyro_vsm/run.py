"""A run folder: configuration, metrics as JSON lines, TensorBoard events, checkpoints.

RUN/config.yaml                 the resolved configuration
RUN/<system>/metrics.jsonl      one JSON object a line
RUN/<system>/events.*           TensorBoard
RUN/<system>/model.safetensors  the best model by validation, averaged weights: for evaluate and predict
RUN/<system>/state.safetensors  everything that resuming needs
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_vsm import checkpoint, parallel
from pyro_vsm.errors import UserError
from pyro_vsm.files import write_atomic

if TYPE_CHECKING:
    from pyro_vsm.training import Trainer


class Run:
    """The folder of one system's training.

    Args:
        folder: made if it is not there.
        meta: what every checkpoint carries: system, configuration, image spec, data identity.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path | str, meta: dict[str, Any]):
        self.folder = Path(folder)
        self.meta = meta
        self._board: Any = None
        self._started_at = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self.folder} ({error.strerror}); choose another --out") from error

    @property
    def metrics_path(self) -> Path:
        """JSON lines of the run."""
        return self.folder / "metrics.jsonl"

    @property
    def model_path(self) -> Path:
        """The best model."""
        return self.folder / "model.safetensors"

    @property
    def state_path(self) -> Path:
        """The state to resume from."""
        return self.folder / "state.safetensors"

    def log(self, step: int, split: str, values: dict[str, float]) -> None:
        """Append one record ``{"step": ..., "split/name": value, ...}`` and its TensorBoard scalars."""
        if not parallel.is_main():
            return
        record = {"step": step, **{f"{split}/{k}": v for k, v in values.items()}}
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.metrics_path} ({error.strerror}); free some space") from error
        board = self._tensorboard()
        for key, value in values.items():
            board.add_scalar(f"{split}/{key}", value, step)

    def metrics(self) -> list[dict[str, Any]]:
        """The records so far."""
        return read_metrics(self.metrics_path)

    def _tensorboard(self) -> Any:
        if self._board is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TensorBoard's own imports
                from torch.utils.tensorboard import SummaryWriter
            # events of steps that were cut off by an interruption are hidden
            purge = self._started_at + 1 if self._started_at else None
            self._board = SummaryWriter(str(self.folder), flush_secs=30, purge_step=purge)
        return self._board

    def close(self) -> None:
        """Flush the TensorBoard events."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def save_model(self, model: nn.Module, extra: dict[str, Any]) -> None:
        """Write the model that evaluate and predict will use."""
        checkpoint.write(self.model_path, dict(model.state_dict()), {**self.meta, **extra})

    def save_state(self, trainer: Trainer) -> None:
        """Write everything that :meth:`restore` needs; the previous state stays until this one is whole."""
        if not parallel.is_main():
            return
        random_tensors, random_meta = checkpoint.random_state(trainer.device)
        tensors = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
        tensors |= {f"average.{i}": v for i, v in enumerate(trainer.average.values)}
        tensors |= {f"sum.{k}": v for k, v in trainer.sums.items()}
        guard, terms = trainer.guard.state()
        tensors |= guard
        for index, state in trainer.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        meta = {
            "step": trainer.step,
            "best_accuracy": trainer.best_accuracy if trainer.best_step else None,
            "best_step": trainer.best_step,
            "seconds": trainer.seconds,
            "sums": list(trainer.sums),  # in the order of the log
            "guard": terms,
            "random": random_meta,
        }
        checkpoint.write(self.state_path, tensors | random_tensors, {**self.meta, **meta})

    def restore(self, trainer: Trainer, *, force: bool = False) -> None:
        """Continue where :meth:`save_state` left off; the log is cut back to that step.

        Raises:
            UserError: damaged state, or one of another configuration or other data (unless forced).
        """
        tensors, meta = checkpoint.read(self.state_path)
        if meta.get("system") != self.meta["system"] or "step" not in meta:
            raise UserError(
                f"{self.state_path} is no state of training {self.meta['system']!r}; restore the right file"
            )
        differences = differing(meta.get("config", {}), self.meta["config"], "config")
        differences += differing(meta.get("data", {}), self.meta["data"], "data")
        if differences and not force:
            raise UserError(
                f"{self.state_path} is of another run: {'; '.join(differences[:5])}; "
                "use the same settings and data, or --force"
            )
        try:
            self._restore(trainer, tensors, meta)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.state_path} does not fit this training ({type(error).__name__}: {error}); restore the right "
                "file, or train anew in another folder"
            ) from error

    def forget(self) -> None:
        """Cut back the log of a training that ended before its first state was saved."""
        self.metrics_path.unlink(missing_ok=True)

    def _restore(self, trainer: Trainer, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        part = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        checkpoint.load_into(trainer.model, part, str(self.state_path))
        for i, value in enumerate(trainer.average.values):
            value.copy_(tensors[f"average.{i}"])
        trainer.sums = {k: tensors[f"sum.{k}"].to(trainer.device) for k in meta["sums"]}
        trainer.guard.restore(tensors, meta.get("guard", []), meta["step"] % trainer.config.training.log_every)
        state = trainer.optimizer.state_dict()
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                parameter = trainer.parameters[int(index)]
                if value.shape == parameter.shape:  # keeps the memory format, which fused updates need alike
                    value = torch.empty_like(parameter, requires_grad=False).copy_(value)
                state["state"].setdefault(int(index), {})[name] = value
        trainer.optimizer.load_state_dict(state)
        trainer.step, trainer.best_step, trainer.seconds = meta["step"], meta["best_step"], meta["seconds"]
        if meta["best_accuracy"] is not None:
            trainer.best_accuracy = meta["best_accuracy"]
        kept = [r for r in self.metrics() if r["step"] <= trainer.step]
        self._started_at = trainer.step
        write_atomic(self.metrics_path, "".join(json.dumps(r) + "\n" for r in kept).encode())
        checkpoint.restore_random_state(tensors, meta["random"], trainer.device)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``, none if it is not there; a last line cut off by a crash is left out.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or train anew in another folder") from error


def differing(old: Any, new: Any, where: str) -> list[str]:
    """Where two nested settings differ, as ``name: old -> new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(set(old) | set(new)):
            found += differing(old.get(key), new.get(key), f"{where}.{key}")
        return found
    old, new = (list(v) if isinstance(v, tuple) else v for v in (old, new))  # JSON knows no tuples
    return [] if old == new else [f"{where}: {old} -> {new}"]
