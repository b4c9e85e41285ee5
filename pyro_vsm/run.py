"""A run folder: configuration, metrics as JSON lines, TensorBoard events, checkpoints.

RUN/config.yaml                 the resolved configuration
RUN/<system>/metrics.jsonl      one JSON object a line
RUN/<system>/events.*           TensorBoard
RUN/<system>/model.safetensors  the best model by validation, averaged weights: for evaluate and predict
RUN/<system>/state.safetensors  everything that resuming needs
RUN/<system>/state-previous.safetensors  the state saved before that one
"""

from __future__ import annotations

import json
import math
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_vsm import checkpoint, parallel
from pyro_vsm.config import Config
from pyro_vsm.errors import UserError
from pyro_vsm.files import flush, sweep, write_atomic

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

    @property
    def previous_path(self) -> Path:
        """The state before that one, for the case that it gets damaged."""
        return self.folder / "state-previous.safetensors"

    @property
    def begun(self) -> bool:
        """Whether there is a state to resume from."""
        return self.state_path.exists() or self.previous_path.exists()

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
        """Write everything that :meth:`restore` needs; the state before it is kept as well."""
        if not parallel.is_main():
            return
        random_tensors, random_meta = checkpoint.random_state(trainer.device)
        tensors = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
        tensors |= {f"average.{i}": v for i, v in enumerate(trainer.average.values)}
        tensors |= {f"sum.{k}": v for k, v in trainer.sums.items()}
        guard, terms = trainer.guard.state()
        tensors |= guard
        for index, state in trainer.optimizer.state_dict()["state"].items():
            # numbered as the parameters are, whatever order the optimiser has them in
            tensors |= {f"optimizer.{trainer.order[index]}.{k}": v for k, v in state.items()}
        meta = {
            "step": trainer.step,
            "best_accuracy": trainer.best_accuracy if trainer.best_step else None,
            "best_step": trainer.best_step,
            "seconds": trainer.seconds,
            "sums": list(trainer.sums),  # in the order of the log
            "guard": terms,
            "random": random_meta,
        }
        tensors |= random_tensors
        flush(self.metrics_path)  # the log goes at least as far as the state
        checkpoint.write(self.state_path, tensors, {**self.meta, **meta}, previous=self.previous_path)

    def restore(self, trainer: Trainer, *, force: bool = False) -> list[str]:
        """Continue where :meth:`save_state` left off; the log is cut back to that step.

        Where the newest state is missing or damaged, the one before it is taken, and a damaged one put aside.

        Returns:
            What a user should know, one sentence each.

        Raises:
            UserError: damaged states, or one of another configuration or other data (unless forced).
        """
        path, tensors, meta, notes = self._newest()
        if meta.get("system") != self.meta["system"] or "step" not in meta:
            raise UserError(f"{path} is no state of training {self.meta['system']!r}; restore the right file")
        differences = self._differences(meta)
        if differences and not force:
            raise UserError(
                f"{path} is of another run: {'; '.join(differences[:5])}; use the same settings and data, or --force"
            )
        try:
            self._restore(trainer, tensors, meta, path)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path} does not fit this training ({type(error).__name__}: {error}); restore the right "
                "file, or train anew in another folder"
            ) from error
        if path != self.state_path and self.state_path.exists() and parallel.is_main():
            os.replace(self.state_path, self.folder / "state-damaged.safetensors")
        changed = differing(meta.get("versions", {}), checkpoint.versions(), "versions")
        if changed:
            notes.append(f"{path} was saved by other versions ({'; '.join(changed)}): last digits may differ")
        if trainer.best_step and not self._model_is_whole():
            notes.append(f"{self.model_path} is missing or damaged: the best of the validations to come replaces it")
            trainer.best_accuracy, trainer.best_step = -math.inf, 0
        sweep(self.folder)
        return notes

    def restore_weights(self, model: nn.Module) -> None:
        """The weights of the state alone, for a frozen encoder whose features the trainer computes at its start.

        Raises:
            UserError: damaged states, or one of another model.
        """
        path, tensors, _, _ = self._newest()
        _load_model(model, tensors, path)

    def _newest(self) -> tuple[Path, dict[str, Tensor], dict[str, Any], list[str]]:
        """The newest state that is whole: its path, tensors and meta, and what is to be said of it."""
        try:
            return self.state_path, *checkpoint.read(self.state_path), []
        except UserError as error:
            try:
                tensors, meta = checkpoint.read(self.previous_path)
            except UserError as other:
                if not self.previous_path.exists():
                    raise error from None
                raise UserError(f"{error}; and {other}") from error
            note = f"{error}: going on from {self.previous_path.name}, saved at step {meta.get('step')}"
            return self.previous_path, tensors, meta, [note]

    def _differences(self, meta: dict[str, Any]) -> list[str]:
        """Where configuration and data of a state differ from those of this training, if that changes the numbers."""
        data = differing(meta.get("data", {}), self.meta["data"], "data")
        old, new = meta.get("config", {}), self.meta["config"]
        with suppress(UserError):  # settings that are newer than the state have their defaults
            old = Config.from_dict(old).to_dict()
        without_effect = {"config.data.threads", "config.data.cache"}
        if not data:  # the same images, wherever they lie
            without_effect.add("config.data.root")
        settings = differing(old, new, "config")
        return [line for line in settings if line.partition(": ")[0] not in without_effect] + data

    def _model_is_whole(self) -> bool:
        try:
            checkpoint.read(self.model_path)
        except UserError:
            return False
        return True

    def forget(self) -> None:
        """Cut back the log of a training that ended before its first state was saved."""
        try:
            self.metrics_path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove {self.metrics_path} ({error.strerror}); choose another --out") from error
        sweep(self.folder)

    def _restore(self, trainer: Trainer, tensors: dict[str, Tensor], meta: dict[str, Any], path: Path) -> None:
        _load_model(trainer.model, tensors, path)
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
                state["state"].setdefault(trainer.order.index(int(index)), {})[name] = value
        trainer.optimizer.load_state_dict(state)
        trainer.step, trainer.best_step, trainer.seconds = meta["step"], meta["best_step"], meta["seconds"]
        if meta["best_accuracy"] is not None:
            trainer.best_accuracy = meta["best_accuracy"]
        kept = [r for r in self.metrics() if r["step"] <= trainer.step]
        self._started_at = trainer.step
        write_atomic(self.metrics_path, "".join(json.dumps(r) + "\n" for r in kept).encode())
        checkpoint.restore_random_state(tensors, meta["random"], trainer.device)


def _load_model(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    part = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    checkpoint.load_into(model, part, str(path))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``, none if it is not there; a last line cut off by a crash is left out.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
        records = [json.loads(line) for line in lines[:-1]]
        if not all(isinstance(r, dict) and isinstance(r.get("step"), int) for r in records):
            raise ValueError("a line that is no record of a step")
        return records
    except (OSError, ValueError, RecursionError) as error:
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
