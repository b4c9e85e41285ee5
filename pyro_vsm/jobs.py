"""The jobs behind the command line: train, evaluate, compare."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyro
import torch
import yaml

from pyro_vsm import data as data_sources
from pyro_vsm import parallel, report
from pyro_vsm.calibration import calibrate
from pyro_vsm.classifier import Classifier
from pyro_vsm.config import Config, EvaluationConfig
from pyro_vsm.cross_domain import DataChoice, evaluation_images, fitted
from pyro_vsm.data import Splits
from pyro_vsm.data.episodes import EpisodeIndex, EpisodeSampler, fixed_episodes
from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError
from pyro_vsm.evaluation import evaluate_model
from pyro_vsm.files import is_temporary, sweep, write_atomic
from pyro_vsm.loading import checkpoint_meta, load_model
from pyro_vsm.locking import only_trainer
from pyro_vsm.results import EpisodeResults, compare
from pyro_vsm.run import Run
from pyro_vsm.signals import Interrupt, stopping
from pyro_vsm.systems import SYSTEMS, ImageSpec, build_model
from pyro_vsm.training import Outcome, Trainer, pick_device
from pyro_vsm.warm_start import warm_start

Log = Callable[[str], None]


def free_folder(stem: str) -> Path:
    """``runs/STEM``, or the first of ``runs/STEM-2``, ``runs/STEM-3``, ... that is not there yet."""
    path, number = Path("runs") / stem, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{stem}-{number}"
    return path


def train(
    config: Config, out: Path | str | None = None, *, resume: bool = False, force: bool = False, log: Log = print
) -> Path | None:
    """Train the configured systems under one recipe and compare them on the same test episodes.

    Args:
        config: the run.
        out: the run folder; by default a new one under ``runs/``.
        resume: continue in ``out`` where it was interrupted.
        force: resume although configuration or data differ.
        log: receives what a user should read.

    Returns:
        The run folder; None if the training was interrupted (it can be resumed).

    Raises:
        UserError: bad configuration, data or folder.
    """
    unknown = [s for s in config.systems if s not in SYSTEMS]
    if unknown or not config.systems or len(set(config.systems)) < len(config.systems):
        raise UserError(
            f"systems: {config.systems} must name at least one of {', '.join(sorted(SYSTEMS))}, each once, "
            "and nothing else"
        )
    e = config.episodes
    folder = Path(out) if out else free_folder(f"{config.data.name}-{e.way}way-{e.shot}shot")
    folder = parallel.shared(folder)
    with only_trainer(folder):
        return _train(config, folder, resume=resume, force=force, log=log)


def _train(config: Config, folder: Path, *, resume: bool, force: bool, log: Log) -> Path | None:
    if not resume and occupied(folder):
        raise UserError(f"{folder} is not empty; choose another --out, or continue it with --resume {folder}")
    with parallel.main_first():
        data = data_sources.load(config.data, log)
    check_run(config, data)
    sweep(folder)
    models: dict[str, Path] = {}
    seconds: dict[str, float] = {}
    for number, name in enumerate(config.systems):
        outcome = train_system(name, config, data, folder, resume=resume, force=force, first=number == 0, log=log)
        if outcome is None:
            log(f"Go on with: pyro-vsm train --resume {shlex.quote(str(folder))}")
            return None
        models[name] = folder / name
        seconds[name] = outcome.seconds
    log("")
    parallel.barrier()
    try:
        with stopping():
            compare_systems(models, getattr(data, config.evaluation.split), config, folder, seconds=seconds, log=log)
            if parallel.is_main():
                draw_run(folder)
    except KeyboardInterrupt:
        log(f"Stopped after the training.\nGo on with: pyro-vsm train --resume {shlex.quote(str(folder))}")
        return None
    log(f"\nRun folder: {folder}")
    return folder


def train_system(
    name: str,
    config: Config,
    data: Splits,
    folder: Path,
    *,
    resume: bool = False,
    force: bool = False,
    first: bool = True,
    log: Log = print,
) -> Outcome | None:
    """Train one system; its model ends in ``folder/name``.

    Args:
        name: of the system.
        config: the run; its list of systems is without effect.
        data: the images that it names.
        folder: of the run.
        resume: go on from the state that lies there, if one does.
        force: resume although configuration or data differ.
        first: write the configuration to ``folder/config.yaml``.
        log: receives what a user should read.

    Returns:
        What the training gave; None if it was interrupted.

    Raises:
        UserError: bad configuration, data or folder.
    """
    t = config.training
    pyro.set_rng_seed(t.seed)  # PyTorch, NumPy and Python, whatever a part of yours may use
    images = ImageSpec.of(data)
    model = build_model(name, config, images, amp=t.amp, compiled=t.compile)
    run = Run(folder / name, checkpoint_meta(name, config, images, data))
    restoring = resume and run.begun
    if t.init and not restoring:
        warm_start(model, t.init, data.train, pick_device(t.device))
    if isinstance(model, Classifier):
        with torch.random.fork_rng(devices=[]):  # what a training draws does not depend on how many teach it
            for path in config.classifier.teachers:
                model.learn_from(load_model(path, device=t.device)[0], path)
    if t.freeze:
        if restoring:
            run.restore_weights(model)
        model.encoder.requires_grad_(False)
    trainer = Trainer(model, data, config, run, name)
    if restoring:
        for note in run.restore(trainer, force=force):
            log(f"Note: {note}.")
    else:
        run.forget()
    if first:  # not before a state of other settings could be refused
        write_atomic(folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False).encode())
    with Interrupt() as interrupt:
        outcome = trainer.fit(interrupt)
        run.close()
    if not outcome.finished or interrupt.requested:
        log(f"Stopped {name} at step {outcome.step} of {t.steps}.")
        return None
    if t.calibrate:
        fitted, meta = load_model(run.model_path, device=str(trainer.device))
        if not meta.get("calibrated"):  # by a run that was stopped after this
            calibrate(fitted, data.validation, config)
            kept = {"step": outcome.step, "validation_accuracy": outcome.best_accuracy, "calibrated": True}
            run.save_model(fitted, kept)
    return outcome


def occupied(folder: Path) -> bool:
    """Whether something lies in the folder; empty folders and unfinished files of a run that was killed do not count.

    Raises:
        UserError: it is no folder, or cannot be read.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(20, "Not a directory")
        return any(not p.is_dir() and not is_temporary(p) for p in folder.rglob("*"))
    except OSError as error:
        raise UserError(f"cannot use {folder} as run folder ({error.strerror}); choose another --out") from error


def check_run(config: Config, data: Splits) -> None:
    """Find what would stop a later system, or the test after all training, before anything is written."""
    images = ImageSpec.of(data)
    for name in config.systems:
        build_model(name, config, images)
    e, v = config.episodes, config.evaluation
    EpisodeSampler(data.train, way=e.way, shot=e.shot, queries=e.queries)
    fixed_episodes(data.validation, way=e.way, shot=e.shot, queries=v.queries, episodes=1, seed=0)
    protocol_episodes(getattr(data, v.split), v, e.way, e.shot)
    pick_device(config.training.device)


def protocol_episodes(data: ClassImages, e: EvaluationConfig, way: int, shot: int) -> EpisodeIndex:
    """The fixed episodes of a protocol; ``way`` and ``shot`` stand in for its zeros."""
    return fixed_episodes(
        data, way=e.way or way, shot=e.shot or shot, queries=e.queries, episodes=e.episodes, seed=e.seed
    )


def evaluate(
    paths: list[str],
    e: EvaluationConfig,
    *,
    choice: DataChoice | None = None,
    out: str = "evaluation",
    device: str = "auto",
    log: Log = print,
) -> dict[str, EpisodeResults]:
    """Evaluate trained models on the same episodes of the data they were trained on, or of another data set.

    Args:
        paths: checkpoints; the first is the reference of the paired differences.
        e: the protocol; way and shot 0 mean those of the first model's training.
        choice: of the data set.
        out: folder for tables and per-episode results.
        device: where to compute.
        log: receives what a user should read.

    Raises:
        UserError: damaged checkpoints, or missing data.
    """
    metas = [load_model(p)[1] for p in paths]  # so that a damaged one is found before the others are evaluated
    config = Config.from_dict(metas[0]["config"])
    config.evaluation = e
    config.training.device = device
    data, about = evaluation_images(paths, metas, e.split, choice or DataChoice(), log)
    names = [meta["system"] for meta in metas]
    labels = names if len(set(names)) == len(names) else [str(p) for p in paths]
    models = {label: Path(path) for label, path in zip(labels, paths)}
    return compare_systems(models, data, config, Path(out), log=log, reference=labels[0], about=about)


def compare_systems(
    models: Mapping[str, Path],
    data: ClassImages,
    config: Config,
    folder: Path,
    *,
    seconds: dict[str, float] | None = None,
    log: Log = print,
    reference: str | None = None,
    about: Sequence[str] = (),
) -> dict[str, EpisodeResults]:
    """Evaluate models on the same episodes, print the table, and keep results and table in ``folder``.

    Args:
        models: checkpoints by the name of the row; one at a time is held in memory.
        data: the split.
        config: its ``evaluation``; ``episodes`` where that leaves way or shot open.
        folder: where to.
        seconds: of training, by the name of the row.
        log: receives what a user should read.
        reference: of the paired differences; by default pn, or the first.
        about: further lines under the table.
    """
    e = config.evaluation
    device = pick_device(config.training.device)
    episodes = protocol_episodes(data, e, config.episodes.way, config.episodes.shot)
    results: dict[str, EpisodeResults] = {}
    started = time.perf_counter()
    for name, path in models.items():
        model = load_model(path)[0].to(device)
        results[name] = evaluate_model(
            model,
            fitted(data, model),
            episodes,
            samples=e.samples,
            seed=e.seed,
            device=device,
            progress=False,
            amp=e.amp,
        )
        results[name].save(folder / f"episodes-{_file_name(name)}.safetensors")
        del model  # before the next is loaded
    took = time.perf_counter() - started
    rows = compare(results, reference or ("pn" if "pn" in results else next(iter(results))))
    for row in rows:
        if seconds and row["system"] in seconds:
            row["training_seconds"] = float(f"{seconds[row['system']]:.3g}")
    title = (
        f"{episodes.way}-way {episodes.shot}-shot, {len(episodes)} {e.split} episodes "
        f"of {episodes.queries} queries a class"
    )
    notes = [
        *about,
        f"Data: {data.identity()}. Seed of the episodes {e.seed}, of training {config.training.seed}.",
        f"{e.samples} posterior samples. ± is the 95 % interval over episodes; differences are paired.",
        f"Hardware: {hardware(device)}; evaluated in {took:.1f} s.",
        *config.data.remarks,
    ]
    report.write_report(rows, folder, "table", title, notes)
    log("\n".join([title, "", report.to_text(rows), "", *notes]))
    return results


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in label)


def draw_run(folder: Path) -> list[Path]:
    """See :func:`pyro_vsm.figures.draw_run`; Matplotlib is loaded for those who draw."""
    from pyro_vsm.figures import draw_run

    return draw_run(folder)


def hardware(device: torch.device) -> str:
    """What the numbers were measured on."""
    if device.type == "cuda":
        number = parallel.size()
        return (f"{number} x " if number > 1 else "") + torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
