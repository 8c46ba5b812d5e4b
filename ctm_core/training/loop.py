"""The training loop: draw, step, average, record, save, and survive.

One generator step, beside the paper's algorithm (docs/training.md has it line by line)::

    for each micro-batch of this process:   x_0, labels              batch
        objective.backward                  the losses' gradients    objectives/, balance
    distributed.average(gradients)          mean over processes
    optimizer.step, ema.update              θ, then every EMA of θ

With an adversary, even steps update the generator in this way and odd ones the discriminator.

Nothing here depends on when or how often the process was started: every random number is a
function of (seed, stream, step, sample index), and the state after step n is exactly what the
checkpoint of step n holds. With several processes each computes its part of the global batch and
takes every decision on the same reduced numbers; process 0 alone writes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ctm_core.config import Training
from ctm_core.data.dataset import Dataset
from ctm_core.diffusion import randomness
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.runtime import checkpoint, distributed, interrupts, scalars
from ctm_core.runtime.errors import Diverged, Interrupted
from ctm_core.runtime.progress import Progress
from ctm_core.runtime.runs import RunFolder
from ctm_core.training import acceleration, balance, ema, micro_batch, optimizers
from ctm_core.training.batches import Batch, Batches
from ctm_core.training.learned import Learned
from ctm_core.training.objective import Objective
from ctm_core.training.stop_signal import StopSignal
from ctm_core.training.terms import Term, Terms

log = logging.getLogger(__name__)


class _Abandoned(Exception):
    """A signal arrived during a step; nothing of the step is kept."""


@dataclass(kw_only=True, eq=False)
class Trainer:
    """One run: a student, its averages, its optimisers, and the step they have reached."""

    title: str
    section: Training
    #: Turns a batch into gradients; brings the adversary, if there is one.
    objective: Objective
    student: Trajectory
    #: EMAs by decay; the objective's target network is one of them.
    averages: dict[float, Trajectory]
    dataset: Dataset
    #: Whether labels are given to the network.
    labels: bool
    seed: int
    #: The folder that process 0 holds.
    run: RunFolder
    device: torch.device
    #: What adaptive weights are measured on: each ``microbatch``, or the ``global`` batch.
    lambda_scope: str = "microbatch"
    #: uint8 images of the evaluated EMA, for a picture every ``preview_every`` steps.
    preview: Callable[[Trajectory], Tensor] | None = None

    def __post_init__(self) -> None:
        self.step = 0
        self.seconds = 0.0
        modules = nn.ModuleDict(self.objective.modules)
        learned = [*self.student.parameters(), *modules.parameters()]
        self.optimizer = optimizers.build(self.section, learned)
        self.adversary = self.objective.adversary
        changed = (self.student, self.optimizer, self.averages, self.adversary, modules)
        self._learned = Learned(*changed)
        #: Steps from one generator update to the next.
        self.period = 1 if self.adversary is None else self.adversary.section.period
        sources = (self.title, self.dataset, self.section, self.labels, self.seed, self.device)
        flip, group = not self.objective.flips, self.objective.group
        self.batches = Batches(*sources, flip=flip, period=self.period, group=group)
        self._stop = StopSignal()

    # -- the loop ------------------------------------------------------------------------------

    def train(self, exports: Mapping[Path, int], export: Callable[[Path, Trainer], None]) -> None:
        """Train to the last step, calling ``export`` for each of ``exports`` at its step.

        A file that is missing although its step has passed is made again from an earlier
        checkpoint. Raises Diverged at the first loss term or gradient that is not finite, and
        Interrupted after a signal, with a checkpoint of the last whole step.
        """
        self._resume(exports)
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(self.batches))
            stack.enter_context(interrupts.caught(self._stop.remember))
            progress = curve = None
            if distributed.main():
                progress = Progress(self.title, self.section.steps, self.step)
                stack.enter_context(contextlib.closing(progress))
                curve = stack.enter_context(scalars.Scalars(self.run.path, self.step))
            began = time.monotonic()
            while self.step < self.section.steps:
                terms = None
                try:
                    terms = self._step()
                except torch.OutOfMemoryError:
                    pass  # said below, once what the failed step held is freed
                except _Abandoned:
                    self.seconds += time.monotonic() - began
                    self._save()
                    raise Interrupted(
                        f"{self.title} stopped by {self._stop.name()} after step {self.step}; run "
                        "the same command again to continue"
                    ) from None
                if terms is None:
                    raise micro_batch.too_large(self.title, self.batches, self._attempt)
                last = self.step == self.section.steps
                if progress is not None and curve is not None:
                    progress.advance(self.section.batch_size, terms)
                    if last or self._due(self.section.log_every):
                        speed = progress.images_per_second
                        curve.write(self.step, terms, images_per_second=speed)
                    if self._due(self.section.preview_every):
                        self._picture()
                    for path in (path for path, step in exports.items() if step == self.step):
                        export(path, self)
                if last or self._due(self.section.checkpoint_every):
                    now = time.monotonic()
                    self.seconds, began = self.seconds + now - began, now
                    self._save()

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    # -- one step ------------------------------------------------------------------------------

    def _step(self) -> dict[str, float]:
        before = dict(self.objective.evaluations)
        statistics = None if self.adversary is None else self.adversary.statistics()
        self._stop.begin_step()
        try:
            odd = self.step % self.period
            terms = self._discriminator_step() if odd else self._generator_step()
            means = self._read(terms)
        except _Abandoned:
            self.objective.evaluations.update(before)
            if self.adversary is not None and statistics is not None:
                self.adversary.restore_statistics(statistics)
            raise
        self.step += 1
        return means

    def _generator_step(self) -> Terms:
        """Gradients of every micro-batch, then student, then averages."""
        section = self.section
        self.optimizer.zero_grad(set_to_none=True)
        weights = self._global_weights()
        shared = self.lambda_scope == "global" and weights is None
        average = distributed.average if shared else None
        terms = self._accumulate(
            lambda batch, share: self.objective.backward(batch, share, weights, average)
        )
        self._apply(self.optimizer, optimizers.learning_rate(section, self.step), terms)
        updates, foreach = self.step // self.period, section.kernel != "loop"
        for rate, mean in self.averages.items():
            ema.update(mean, self.student, rate, updates, section.ema_rampup, foreach=foreach)
        return terms

    def _discriminator_step(self) -> Terms:
        """Real images against the student's; the student stays as it is."""
        adversary = self.adversary
        assert adversary is not None
        adversary.optimizer.zero_grad(set_to_none=True)

        def backward(batch: Batch, share: float) -> dict[str, Tensor]:
            fake = self.objective.generated(batch)
            loss, terms = adversary.discriminator_loss(batch.images, fake, batch)
            (loss * share).backward()  # type: ignore[no-untyped-call]
            return terms

        terms = self._accumulate(backward)
        self._apply(adversary.optimizer, adversary.section.learning_rate, terms)
        adversary.advance()
        return terms

    def _accumulate(self, backward: Callable[[Batch, float], Mapping[str, Term]]) -> Terms:
        """Run every micro-batch; its loss terms stay on the device."""
        # Released: means of micro-batches are summed; the mean does not depend on their number.
        share = 1.0 if self.section.accumulation == "sum" else 1 / len(self.batches.starts)
        terms = Terms()
        for batch in self._batches():
            with self._autocast():
                terms.add(backward(batch, share))
        return terms

    def _read(self, terms: Terms) -> dict[str, float]:
        """Means over micro-batches and processes, once all are finite, of a step's terms."""
        means, (norm,) = terms.read()
        values = torch.tensor([*means.values(), norm, *self._stop.report()], dtype=torch.float64)
        distributed.average([values])
        *numbers, norm, pace, received = values.tolist()
        self._stop.hear(pace, received)
        means = dict(zip(means, numbers, strict=True))
        # The sum last, so that the message names the term that is not finite.
        for name in sorted(means, key=lambda name: name == "loss"):
            self._guard(name, means[name])
        self._guard("gradient norm", norm)
        return means

    def _global_weights(self) -> dict[str, Tensor | float] | None:
        """Loss weights of the whole batch, by a pass of their own where micro-batches need one."""
        pieces = len(self.batches.starts)
        if self.lambda_scope != "global" or pieces == 1:
            return None
        rules = self.objective.rules()
        if not any(rule.adaptive for rule in rules.values()):
            return None
        sums: dict[str, Tensor] = {}
        for batch in self._batches():
            with self._autocast():
                gradients = self.objective.gradients_at_w(batch)
            for name, gradient in gradients.items():
                sums[name] = sums.get(name, 0.0) + gradient / pieces
        distributed.average(list(sums.values()))
        # The reference is the one loss without a rule.
        reference = next((g for name, g in sums.items() if name not in rules), None)
        return balance.weigh(rules, sums, reference)

    def _apply(self, optimizer: torch.optim.Optimizer, rate: float, terms: Terms) -> None:
        """Average the gradients, send the terms and the norm on their way, and move the weights.

        Weights moved by what is not finite are never saved: see :meth:`_read`.
        """
        (group,) = optimizer.param_groups
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        distributed.average(gradients)
        terms.send(torch.nn.utils.get_total_norm(gradients, foreach=True))
        group["lr"] = rate
        optimizer.step()

    def _attempt(self, size: int) -> None:
        """What a step needs memory for, with one micro-batch of a size; the state is lost."""
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.batches.draw(self.step, self.batches.starts[0], size)
        with self._autocast():
            self.objective.backward(batch, 1.0, None, None)
            if self.adversary is not None:
                fake = self.objective.generated(batch)
                loss, _ = self.adversary.discriminator_loss(batch.images, fake, batch)
                loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return acceleration.autocast(self.section, self.device)

    def _guard(self, term: str, value: float, step: int | None = None) -> None:
        """Raise Diverged if a value is not finite; ``step``: by default the current one."""
        if not math.isfinite(value):
            step = self.step + 1 if step is None else step
            kept = checkpoint.steps(self.run.checkpoints)
            text = f"the checkpoint of step {kept[-1]} is kept" if kept else "no checkpoint yet"
            raise Diverged(
                f"{self.title}: the {term} became {value} at step {step} ({text}); "
                "lower the learning rate or change the precision"
            )

    # -- data ----------------------------------------------------------------------------------

    def _batches(self) -> Iterator[Batch]:
        """This process's micro-batches of the step; torch's generator is reseeded before each."""
        for start in self.batches.starts:
            if self._stop.requested():
                raise _Abandoned
            batch = self.batches.next(self.step, start)
            torch.manual_seed(randomness.torch_seed(self.seed, "dropout", self.step, start))
            yield batch

    # -- state ---------------------------------------------------------------------------------

    def evaluations(self) -> dict[str, int]:
        """Network evaluations so far by all processes; called by all of them."""
        names = sorted(self.objective.evaluations)
        counts = torch.tensor([self.objective.evaluations[name] for name in names])
        distributed.total([counts])
        return dict(zip(names, counts.tolist(), strict=True))

    def _save(self) -> None:
        # A step with finite losses and gradients may still end in weights that are not.
        self._guard("norm of the weights", float(self._learned.norm()), self.step)
        evaluations = self.evaluations()
        distributed.on_main(lambda: self._write(evaluations))

    def _write(self, evaluations: Mapping[str, int]) -> None:
        self.run.confirm()
        state = {
            "seed": self.seed,
            "seconds": self.seconds,
            "evaluations": evaluations,
            "train_hash": self.run.config["train_hash"],
            "inputs": self.run.inputs,
            "ranks": {"count": distributed.count()},
        }
        checkpoint.save(self.run.checkpoints, self.step, self._learned.sections(), state)
        checkpoint.prune(self.run.checkpoints, self.section.keep)

    def _resume(self, exports: Mapping[Path, int]) -> None:
        """Go back to the newest checkpoint from which every missing export is still to come."""

        def find() -> int:
            missing = [step for path, step in exports.items() if not path.exists()]
            newest = checkpoint.newest(self.run.checkpoints, min(missing, default=None))
            step = 0 if newest is None else newest.step
            # Nothing of a later step stays, so that the folder holds a single history.
            checkpoint.discard_after(self.run.checkpoints, step)
            scalars.rewind(self.run.path, step)
            return step

        self.step = distributed.shared(distributed.on_main(find))
        if self.step == 0:
            return
        saved = checkpoint.read(self.run.checkpoints, self.step)
        self._learned.load(saved.sections)
        if distributed.main():
            self.objective.evaluations.update(saved.state["evaluations"])
            log.info("%s continues after step %d", self.title, self.step)
        self.seconds = float(saved.state["seconds"])

    def _picture(self) -> None:
        if self.preview is not None:
            from ctm_core.data.pictures import save_grid

            images = self.preview(self.averages[self.section.final_ema])
            save_grid(self.run.path / "previews" / f"step-{self.step:08d}.png", images)
