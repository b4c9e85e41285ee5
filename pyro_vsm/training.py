"""Episodic training: sample, augment, step, validate, checkpoint. Knows no system's inside."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vsm import parallel
from pyro_vsm.averaging import Average
from pyro_vsm.beside import Beside
from pyro_vsm.compiled import compile_loss
from pyro_vsm.config import Config
from pyro_vsm.data import Splits
from pyro_vsm.data.episodes import fixed_episodes
from pyro_vsm.errors import UserError
from pyro_vsm.evaluation import evaluate_model
from pyro_vsm.fewshot import FewShotModel
from pyro_vsm.fused import fused
from pyro_vsm.guard import StepGuard
from pyro_vsm.optimizers import build_optimizer, limit, share_of_rate
from pyro_vsm.results import EpisodeResults
from pyro_vsm.run import Run
from pyro_vsm.signals import Interrupt

VALIDATION_SEED = 1
"""Of the validation episodes; every training of one data set is validated on the same ones."""


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one.

    Raises:
        UserError: a device that is not there, or no device at all.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"training.device={name!r} is no device; give auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"training.device={name!r}, but {torch.cuda.device_count()} CUDA devices are here; give cpu")
    return device


@dataclass
class Outcome:
    """What a training gave.

    Attributes:
        step: last step done.
        finished: False if it was interrupted.
        best_accuracy, best_step: of validation.
        seconds: of training in all, interruptions left out.
    """

    step: int
    finished: bool
    best_accuracy: float
    best_step: int
    seconds: float


class Trainer:
    """Trains one system on one data set.

    Args:
        model: the system, on any device; it is moved.
        data: the images.
        config: the run.
        run: where logs and checkpoints go.
        name: shown by the progress bar.

    Raises:
        UserError: the episodes do not fit the data.
    """

    def __init__(self, model: FewShotModel, data: Splits, config: Config, run: Run, name: str = "training"):
        t = config.training
        self.config, self.run, self.name = config, run, name
        self.device = pick_device(t.device)
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.heads_in_bfloat16 = t.amp_heads
        if t.sync_batch_norm:
            from pyro_vsm.joint_norm import join_batch_norm

            join_batch_norm(model.encoder)
        if t.compile_heads:
            compile_loss(model, root=True)
        self.train_data = data.train.to(self.device)
        self.validation_data = data.validation.to(self.device)
        e = config.episodes
        self.feed = self.model.feed(self.train_data, config)
        self.validation_episodes = fixed_episodes(
            data.validation,
            way=e.way,
            shot=e.shot,
            queries=config.evaluation.queries,
            episodes=t.validation_episodes,
            seed=VALIDATION_SEED,
        )
        backbone = [p for p in model.encoder.parameters() if p.requires_grad]
        inside = {id(p) for p in backbone}
        heads = [p for p in model.parameters() if id(p) not in inside and p.requires_grad]
        self.parameters = backbone + heads
        self.optimizer, self.rates = build_optimizer(backbone, heads, t, self.device)
        number = {id(p): i for i, p in enumerate(self.parameters)}
        self.order = [number[id(p)] for group in self.optimizer.param_groups for p in group["params"]]
        self.guard = StepGuard(self.model, self.optimizer, self.device, compiled=t.compile_heads)
        # divides the gradient, inside of the optimiser's one pass
        self.divisor = torch.ones((), device=self.device)
        vars(self.optimizer)["grad_scale"] = self.divisor
        # heads of the joint batch are the same in every process: nothing to average
        self.split_parameters = backbone if model.joint else self.parameters
        self.average = Average(self.parameters, t.ema, compiled=t.compile_heads)
        self.beside = Beside(self.device)
        self.progress = torch.zeros((), device=self.device)
        self.sums: dict[str, Tensor] = {}
        self._tally = fused(_tally) if t.compile_heads else _tally
        self._limit = fused(limit) if t.compile_heads else limit
        self.count = 0
        self.step = 0
        self.best_accuracy, self.best_step = -math.inf, 0
        self.seconds = 0.0
        self._graph: torch.cuda.CUDAGraph | None = None

    # --- one step ---------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Learning rates, averaging rate and progress for the step to come."""
        t = self.config.training
        done = self.step / max(t.steps, 1)
        factor = share_of_rate(t, done)
        now = [(self.progress, done), (self.guard.number, self.step + 1.0)]
        now.append((self.average.rate, self.average.rate_at(self.step)))
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            if isinstance(group["lr"], Tensor):
                now.append((group["lr"], rate * factor))
            else:
                group["lr"] = rate * factor
        places = [place for place, _ in now]
        torch._foreach_zero_(places)  # two kernels, whatever their number
        torch._foreach_add_(places, [number for _, number in now])

    def _step(self) -> None:
        """One optimiser step, without waiting for the device (and so fit for capture); skipped if not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.before()
        loss, terms = self.feed.loss(self.model, self.progress)
        loss.backward()
        parallel.average_gradients(self.split_parameters)
        values = {"loss": loss.detach(), **terms, "gradient_norm": self._clip()}
        good = self.guard.judge(values)
        self.beside.start()
        self.optimizer.step()
        self.average.rate.mul_(good)
        self.average.update()
        with self.beside:  # touches buffers, counts and sums; the optimiser and the average parameters and gradients
            self.model.after_step()
            good = self.guard.after()
            for key in [k for k in values if k not in self.sums]:  # in the order of the log
                self.sums[key] = torch.zeros((), device=self.device)
            self._tally([self.sums[key] for key in values], list(values.values()), good)
        self.beside.join()

    def _clip(self) -> Tensor:
        """Have the optimiser clip the gradient to the norm asked for; its norm before."""
        with torch.no_grad():
            norms = torch._foreach_norm([p.grad for p in self.parameters if p.grad is not None])
        return self._limit(norms, self.divisor, self.config.training.clip)

    def _advance(self) -> None:
        """The next step, eagerly or by replaying the captured graph."""
        self._schedule()
        if not (self.config.training.cuda_graph and self.device.type == "cuda"):
            self._step()
        elif self._graph is not None:
            self._graph.replay()
        elif self.count < 5:  # real steps that let libraries choose their kernels before the capture
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._step()
            torch.cuda.current_stream().wait_stream(stream)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            self._graph = torch.cuda.CUDAGraph()
            # NCCL's watchdog asks the device from a thread of its own, which only this mode allows
            mode = "thread_local" if parallel.size() > 1 else "global"
            with torch.cuda.graph(self._graph, capture_error_mode=mode):
                self._step()
            self._graph.replay()
        self.step += 1
        self.count += 1

    # --- the whole training -----------------------------------------------------------------------------------

    def fit(self, interrupt: Interrupt | None = None) -> Outcome:
        """Train until the last step, or until interrupted.

        Raises:
            UserError: too many steps in a row were not finite; the last good state is saved.
        """
        t = self.config.training
        started = time.perf_counter()
        self.model.train()
        look = {"unit": "step", "dynamic_ncols": True, "mininterval": 0.5, "disable": not parallel.is_main()}
        bar = tqdm(total=t.steps, initial=self.step, desc=self.name, **look)  # type: ignore[call-overload]
        with bar, pyro.validation_enabled(False):
            while self.step < t.steps and not self._interrupted(interrupt):
                self._advance()
                bar.update()
                last = self.step == t.steps
                if self.step % t.log_every == 0 or last:
                    bar.set_postfix(self._log(started))
                    self.model.refresh()
                if last or (t.validate_every and self.step % t.validate_every == 0):
                    self._validate(bar)
                if last or (t.checkpoint_every and self.step % t.checkpoint_every == 0):
                    self._save(started)
                    started = time.perf_counter()
            if self.step >= t.steps and not self.best_step:  # nothing to train, or the best model was lost
                self._validate(bar)
        if self.step < t.steps or t.steps == 0:
            self._save(started)
        parallel.barrier()  # what the first process has written may now be read
        return Outcome(self.step, self.step >= t.steps, self.best_accuracy, self.best_step, self.seconds)

    def _interrupted(self, interrupt: Interrupt | None) -> bool:
        """Whether to stop; several processes agree on it every tenth step."""
        requested = interrupt is not None and interrupt.requested
        if parallel.size() == 1:
            return requested
        return self.step % 10 == 0 and parallel.agree(requested)

    def _log(self, started: float) -> dict[str, str]:
        """Write the means since the last line; the one place where training waits for the device."""
        keys = list(self.sums)
        parallel.level([*self.model.parameters(), *self.model.buffers()])
        totals = parallel.average(torch.stack([self.sums[k] for k in keys])).tolist()
        found = self.guard.findings()
        for value in self.sums.values():
            value.zero_()
        self.guard.next_line()
        record = {k: total / found.good for k, total in zip(keys, totals)} if found.good else {}
        if found.skipped:
            record["skipped"] = found.skipped
        self.run.log(self.step, "train", record)
        limit = self.config.training.bad_steps
        if found.row >= limit:
            self.guard.forgive()
            self._save(started)
            raise UserError(
                f"{self.name}: {found.sentence()}; they were skipped, and after {limit} such steps training stops "
                f"(training.bad_steps); the weights before them are saved in {self.run.folder}: lower training.lr or "
                "the KL weights, or look at the data"
            )
        shown = {"loss": f"{record['loss']:.3f}" if found.good else "none"}
        return {**shown, "skipped": str(found.skipped)} if found.skipped else shown

    def _check(self) -> None:
        """Refuse to validate or to save weights that are no longer finite."""
        values = self.model.state_dict()
        floats = [k for k, v in values.items() if v.is_floating_point()]
        finite = torch.stack([torch.isfinite(values[k]).all() for k in floats]).tolist()
        odd = [k for k, ok in zip(floats, finite) if not ok]
        if odd:
            more = f" (and {len(odd) - 5} more)" if len(odd) > 5 else ""
            raise UserError(
                f"{self.name}: {', '.join(odd[:5])}{more} stopped being finite by step {self.step}; what was saved "
                f"before is kept in {self.run.folder}: lower training.lr or the KL weights"
            )

    def _validate(self, bar: tqdm) -> None:
        self._check()
        try:
            results = self.evaluate(self.validation_data, self.validation_episodes)
        except (UserError, RuntimeError, ValueError) as error:
            found = self.guard.findings()
            if not found.row:
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.name}: the weights of step {self.step} cannot be validated ({reason}), and {found.sentence()}"
                f"; what was saved before is kept in {self.run.folder}: lower training.lr or the KL weights"
            ) from error
        accuracy = results.interval("accuracy").mean
        self.run.log(
            self.step, "validation", {"accuracy": accuracy, "nll": results.interval("nll").mean, "ece": results.ece}
        )
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_step = accuracy, self.step
            with self.average.applied():
                self.run.save_model(self.model, {"step": self.step, "validation_accuracy": accuracy})
        bar.set_description(f"{self.name} (validation {100 * self.best_accuracy:.1f} %)")

    def evaluate(self, data, episodes, samples: int = 10) -> EpisodeResults:
        """Results of the averaged weights."""
        with self.average.applied():
            return evaluate_model(self.model, data, episodes, samples=samples, device=self.device)

    def _save(self, started: float) -> None:
        self._check()
        self.seconds += time.perf_counter() - started
        self.run.save_state(self)


@torch.no_grad()
def _tally(sums: list[Tensor], values: list[Tensor], good: Tensor) -> None:
    """Adds values to their sums, in place, where the step was good."""
    summands = torch.stack([v.detach().float() for v in values]).masked_fill(~good, 0.0)
    torch._foreach_add_(sums, list(summands.unbind()))
