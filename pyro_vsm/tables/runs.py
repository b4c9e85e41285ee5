"""The trainings behind a table: ``OUT/runs/ROW/seed-S``, each a run folder with a record of how it came about."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from pyro_vsm import checkpoint, jobs, parallel
from pyro_vsm.config import Config
from pyro_vsm.data import Splits
from pyro_vsm.data.folds import leave_out
from pyro_vsm.errors import UserError
from pyro_vsm.files import write_atomic
from pyro_vsm.loading import find_model
from pyro_vsm.locking import only_trainer
from pyro_vsm.run import differing
from pyro_vsm.tables.rows import Row, Table
from pyro_vsm.training import pick_device

RECORD = "record.json"
_WITHOUT_EFFECT = {
    "data": ("root", "cache", "threads"),  # what the images are is compared by their hash
    "training": ("init", "device"),  # what the model started from is compared by its hash
    "classifier": ("teacher",),
    "evaluation": ("episodes", "way", "shot", "samples", "seed", "split", "amp"),
}


class TableRuns:
    """Trains what a table needs and keeps what is there.

    Args:
        table: its definition.
        out: folder of the tables; several tables may share it, and rows of the same name and settings with it.
        data: the images.
        force: go on with runs, and use them, although their settings or data differ.
        log: receives what a user should read.
    """

    def __init__(self, table: Table, out: Path, data: Splits, *, force: bool = False, log: jobs.Log = print):
        self.table, self.out, self.force, self.log = table, out, force, log
        self._whole = data
        self._folds: dict[int, Splits] = {}
        self._identities: dict[int | None, dict[str, Any]] = {}
        self.forced: list[str] = []

    def data(self, seed: int) -> Splits:
        """The images of the trainings with this seed: all, or those of a fold (only the last one is kept)."""
        row = self.table.rows[0]
        fold = row.fold(seed)
        if fold is None:
            return self._whole
        if fold not in self._folds:
            self._folds = {fold: leave_out(self._whole, fold, row.folds, row.settings["data"]["seed"])}
        return self._folds[fold]

    def identity(self, seed: int) -> dict[str, Any]:
        """What `data` is, a split."""
        fold = self.table.rows[0].fold(seed)
        if fold not in self._identities:
            self._identities[fold] = {split: i.to_dict() for split, i in self.data(seed).identity.items()}
        return self._identities[fold]

    def folder(self, name: str, seed: int) -> Path:
        """The run folder of a row and a seed."""
        return self.out / "runs" / name / f"seed-{seed}"

    def model(self, row: Row, seed: int) -> Path:
        """The trained model."""
        return self.folder(row.name, seed) / row.system / "model.safetensors"

    def config(self, row: Row, seed: int) -> Config:
        """The configuration of a training."""
        return row.config(seed, lambda name: self.folder(name, seed))

    def record(self, row: Row, seed: int) -> dict[str, Any] | None:
        """What is known of a training; None if it has not begun.

        Raises:
            UserError: the record is damaged.
        """
        path = self.folder(row.name, seed) / RECORD
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_bytes())
            return {key: values[key] for key in ("finished", "config", "data", "inputs", "code")} | values
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); restore it, or remove the run folder") from error

    def finished(self, row: Row, seed: int) -> bool:
        """Whether a training is over and what lies there is what the table asks for.

        Raises:
            UserError: there is a run of other settings, data or starting point (unless forced).
        """
        record = self.record(row, seed)
        if record is None:
            return False
        folder = self.folder(row.name, seed)
        found = self._differences(record, row, seed)
        if found and not self.force:
            raise UserError(
                f"{folder} holds another run than row {row.name!r} asks for: {'; '.join(found[:5])}; remove that "
                "folder to train anew, give another --out, or --force to use it as it is"
            )
        note = f"{row.name}, seed {seed}: {'; '.join(found)}"
        if found and note not in self.forced:
            self.forced.append(note)
        return bool(record["finished"]) and self.model(row, seed).is_file()

    def _differences(self, record: dict[str, Any], row: Row, seed: int) -> list[str]:
        try:  # settings that are newer than the record have their defaults
            old = Config.from_dict(record["config"]).to_dict()
        except UserError:
            old = record["config"]
        found = differing({"system": record.get("system")}, {"system": row.system}, "row")
        found += differing(_relevant(old), _relevant(self.config(row, seed).to_dict()), "config")
        found += differing(record["data"], self.identity(seed), "data")
        inputs = {name: sha256(path) for name, path in self._inputs(row, seed).items() if path.is_file()}
        return found + differing({k: record["inputs"].get(k) for k in inputs}, inputs, "inputs")

    def _inputs(self, row: Row, seed: int) -> dict[str, Path]:
        """The trained models that a training starts from or learns from."""
        config = self.config(row, seed)
        paths = {"training.init": config.training.init}
        for i, path in enumerate(config.classifier.teachers):
            paths["classifier.teacher" + (f" {i + 1}" if i else "")] = path
        return {name: _model_file(path) for name, path in paths.items() if path}

    def check(self, rows: list[Row]) -> None:
        """Find before any training what would stop one: models that cannot be built, runs that differ.

        Raises:
            UserError: what it is.
        """
        for row in rows:
            jobs.check_run(self.config(row, self.table.seeds[0]), self.data(self.table.seeds[0]))
            for seed in self.table.seeds:
                self.finished(row, seed)
        self.forced.clear()

    def train(self, row: Row, seed: int) -> bool:
        """Train what is missing; False if that was interrupted.

        Raises:
            UserError: bad settings, or a run of others.
        """
        if parallel.shared(self.finished(row, seed)):
            return True
        folder = self.folder(row.name, seed)
        with only_trainer(
            folder, lambda: self.log(f"{row.name}, seed {seed}: waiting for another process that trains it")
        ):
            if parallel.shared(self.finished(row, seed)):  # by then
                return True
            return self._train(row, seed, folder)

    def _train(self, row: Row, seed: int, folder: Path) -> bool:
        config = self.config(row, seed)
        record = self.record(row, seed)
        code = [*(record["code"] if record else []), source_digest()]
        values = {
            "finished": False,
            "system": row.system,
            "config": config.to_dict(),
            "data": self.identity(seed),
            "inputs": {name: sha256(path) for name, path in self._inputs(row, seed).items()},
            "code": sorted(set(code)),
            "hardware": jobs.hardware(pick_device(config.training.device)),
            "versions": checkpoint.versions(),
        }
        self.log(f"{row.name}, seed {seed}: {'going on' if record else 'training'} in {folder}")
        self._write(folder, values)
        # the record has been compared already, without what has no effect on the training
        force = self.force or record is not None
        outcome = jobs.train_system(
            row.system, config, self.data(seed), folder, resume=True, force=force, log=self.log
        )
        if outcome is None:
            return False
        values |= {
            "finished": True,
            "seconds": outcome.seconds,
            "steps": outcome.step,
            "best_step": outcome.best_step,
            "validation_accuracy": outcome.best_accuracy,
        }
        self._write(folder, values)
        return True

    def _write(self, folder: Path, values: dict[str, Any]) -> None:
        write_atomic(folder / RECORD, (json.dumps(values, indent=2) + "\n").encode())


def _model_file(path: str) -> Path:
    """The model that a path means; itself where nothing lies there yet."""
    there = any((Path(path) / name).exists() for name in ("config.yaml", "model.safetensors"))
    return find_model(Path(path)) if there else Path(path)


def _relevant(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what has no effect on the trained model."""
    kept = {k: v for k, v in config.items() if k != "systems"}
    for section, names in _WITHOUT_EFFECT.items():
        kept[section] = {k: v for k, v in kept[section].items() if k not in names}
    return kept


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); train it, or mend the setting") from error


@cache
def source_digest() -> str:
    """SHA-256 over the source files of this package: tells whether two numbers come from the same program."""
    root = Path(__file__).parent.parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return total.hexdigest()
