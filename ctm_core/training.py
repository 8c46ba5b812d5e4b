"""The training loop: draw, step, average, record, save, and survive.

Nothing here depends on when or how often the process was started: every random number is a
function of (seed, stream, step, sample index), and the state after step n is exactly what the
checkpoint of step n holds.
"""

from __future__ import annotations

import contextlib
import logging
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ctm_core import checkpoint, ema, randomness, scalars
from ctm_core.config import Training
from ctm_core.errors import Diverged, Interrupted
from ctm_core.objectives import Batch, Objective
from ctm_core.progress import Progress
from ctm_core.runs import RunFolder

if TYPE_CHECKING:
    from ctm_core.data import Dataset
    from ctm_core.trajectory import Trajectory

__all__ = ["Trainer", "resolve_precision"]

log = logging.getLogger(__name__)

Tensor = torch.Tensor


def resolve_precision(precision: str, device: torch.device | str = "cpu") -> str:
    """`auto` becomes bf16 where the device computes in it natively, else fp32."""
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = platform.processor()
    return "bf16" if "amx_bf16" in flags else "fp32"


class Trainer:
    """One run: a student, its averages, its optimiser, and the step they have reached.

    Parameters
    ----------
    section
        Length, batch, rates.
    objective
        Turns a batch into gradients.
    student
        The network that learns.
    averages
        EMAs by decay; the objective's target network is one of them.
    dataset
        Training images.
    labels
        Whether labels are given to the network.
    seed
        The run's seed.
    run
        The folder that is held.
    preview
        Called with the evaluated EMA every ``preview_every`` steps; returns uint8 images.
    """

    def __init__(
        self,
        *,
        title: str,
        section: Training,
        objective: Objective,
        student: Trajectory,
        averages: dict[float, Trajectory],
        dataset: Dataset,
        labels: bool,
        seed: int,
        run: RunFolder,
        device: torch.device,
        preview: Callable[[Trajectory], Tensor] | None = None,
    ) -> None:
        self.title = title
        self.section = section
        self.objective = objective
        self.student = student
        self.averages = averages
        self.dataset = dataset
        self.labels = labels
        self.seed = seed
        self.run = run
        self.device = device
        self.preview = preview
        self.step = 0
        self.seconds = 0.0
        self.optimizer = self._optimizer()
        self._order: tuple[int, Any] = (-1, None)
        self._stop: int | None = None

    def _optimizer(self) -> torch.optim.Optimizer:
        rate, parameters = self.section.learning_rate, self.student.parameters()
        if self.section.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=rate, foreach=True)
        return torch.optim.RAdam(parameters, lr=rate, foreach=True)

    # -- the loop ------------------------------------------------------------------------------

    def train(
        self, exports: Mapping[int, Path], export: Callable[[Path, Trajectory, int], None]
    ) -> None:
        """Train to the last step, exporting weights on the way.

        Parameters
        ----------
        exports
            Files in the run folder to write by step, the last step among them. One that is
            missing although its step has passed is made again from an earlier checkpoint.
        export
            Writes the evaluated EMA at a step.

        Raises
        ------
        Diverged
            At the first loss term or gradient that is not finite.
        Interrupted
            After a signal, with a checkpoint of the step reached.
        """
        missing = [step for step, path in exports.items() if not path.exists()]
        self._resume(before=min(missing, default=None))
        progress = Progress(self.title, self.section.steps, self.step)
        scalars_of_run = scalars.Scalars(self.run.path, self.step)
        with contextlib.closing(progress), self._signals(), scalars_of_run as curve:
            began = time.monotonic()
            while self.step < self.section.steps:
                terms = self._step()
                progress.advance(self.section.batch_size, terms)
                if self.step % self.section.log_every == 0 or self.step == self.section.steps:
                    speed = {"images_per_second": progress.images_per_second}
                    curve.write(self.step, terms | speed)
                if self._due(self.section.preview_every):
                    self._picture()
                if self.step in exports:
                    average = self.averages[self.section.final_ema]
                    export(exports[self.step], average, self.step)
                last = self.step == self.section.steps
                if last or self._stop or self._due(self.section.checkpoint_every):
                    now = time.monotonic()
                    self.seconds, began = self.seconds + now - began, now
                    self._save()
                if self._stop and not last:
                    name = signal.Signals(self._stop).name
                    raise Interrupted(
                        f"{self.title} stopped by {name} after step {self.step}; run the same "
                        "command again to continue"
                    )

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _step(self) -> dict[str, float]:
        """One optimiser step: gradients of every micro-batch, then student, then averages."""
        section, step = self.section, self.step
        self.optimizer.zero_grad(set_to_none=True)
        size = section.micro_batch or section.batch_size
        share = size / section.batch_size
        terms: dict[str, float] = {}
        for start in range(0, section.batch_size, size):
            batch = self._batch(start, size)
            torch.manual_seed(randomness.torch_seed(self.seed, "dropout", step, start))
            with self._autocast():
                parts = self.objective.backward(batch, share)
            for name, value in parts.items():
                terms[name] = terms.get(name, 0.0) + share * value
            # The sum last, so that the message names the term that spoilt it.
            for name in sorted(parts, key=lambda name: name == "loss"):
                self._guard(name, parts[name])
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        self._guard("gradient norm", float(norm))
        for group in self.optimizer.param_groups:
            group["lr"] = section.learning_rate * self._schedule(step)
        self.optimizer.step()
        for rate, average in self.averages.items():
            ema.update(average, self.student, rate, step, section.ema_rampup)
        self.step += 1
        return terms

    def _schedule(self, step: int) -> float:
        section, factor = self.section, 1.0
        if step < section.warmup_steps:
            factor = (step + 1) / section.warmup_steps
        if section.decay_steps:
            factor *= min(1.0, (section.steps - step) / section.decay_steps)
        return factor

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.section.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _guard(self, term: str, value: float) -> None:
        if not math.isfinite(value):
            kept = checkpoint.steps(self.run.checkpoints)
            kept_text = (
                f"the checkpoint of step {kept[-1]} is kept" if kept else "no checkpoint yet"
            )
            raise Diverged(
                f"{self.title}: the {term} became {value} at step {self.step + 1} ({kept_text}); "
                "lower the learning rate or change the precision"
            )

    # -- data ----------------------------------------------------------------------------------

    def _batch(self, start: int, size: int) -> Batch:
        """Samples start … start + size - 1 of this step's global batch."""
        count = len(self.dataset)
        first = self.step * self.section.batch_size + start
        indices = [self._index(first + offset, count) for offset in range(size)]
        images, labels = self.dataset.batch(indices)
        data = images.to(self.device).float() / 127.5 - 1.0
        if self.dataset.flip:
            coin = randomness.uniform(self.seed, "flip", self.step, start, size) < 0.5
            data = torch.where(coin.to(self.device).view(-1, 1, 1, 1), data.flip(-1), data)
        if self.section.channels_last:
            data = data.contiguous(memory_format=torch.channels_last)
        y = labels.to(self.device) if self.labels else None
        return Batch(data, y, seed=self.seed, step=self.step, start=start)

    def _index(self, position: int, count: int) -> int:
        epoch, place = divmod(position, count)
        if self._order[0] != epoch:
            self._order = (epoch, randomness.permutation(self.seed, "order", epoch, count))
        return int(self._order[1][place])

    # -- state ---------------------------------------------------------------------------------

    def _save(self) -> None:
        sections: dict[str, Mapping[str, Tensor]] = {
            "student": self.student.state_dict(),
            "optimizer": _flatten(self.optimizer),
            "discriminator": {},
        }
        for rate, average in self.averages.items():
            sections[f"ema_{rate}"] = average.state_dict()
        state = {
            "seed": self.seed,
            "seconds": self.seconds,
            "evaluations": self.objective.evaluations,
            "train_hash": self.run.config["train_hash"],
            "inputs": self.run.inputs,
            "ranks": {},
        }
        checkpoint.save(self.run.checkpoints, self.step, sections, state)
        checkpoint.prune(self.run.checkpoints, self.section.keep)

    def _resume(self, before: int | None) -> None:
        """Go back to the newest checkpoint from which every missing export is still to come.

        Whatever belongs to a later step goes, so that the folder always tells of one history.
        """
        found = checkpoint.newest(self.run.checkpoints, before)
        self.step = 0 if found is None else found.step
        checkpoint.discard_after(self.run.checkpoints, self.step)
        scalars.rewind(self.run.path, self.step)
        if found is None:
            return
        self.student.load_state_dict(found.sections["student"])
        for rate, average in self.averages.items():
            average.load_state_dict(found.sections[f"ema_{rate}"])
        _restore(self.optimizer, found.sections["optimizer"])
        self.objective.evaluations.update(found.state["evaluations"])
        self.seconds = float(found.state["seconds"])
        log.info("%s continues after step %d", self.title, self.step)

    # -- record --------------------------------------------------------------------------------

    def _picture(self) -> None:
        if self.preview is not None:
            from ctm_core.pictures import save_grid

            images = self.preview(self.averages[self.section.final_ema])
            save_grid(self.run.path / "previews" / f"step-{self.step:08d}.png", images)

    # -- signals -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM, SIGINT and SIGUSR1 end the run after the step in hand, with a checkpoint."""

        def remember(number: int, frame: object) -> None:
            self._stop = number

        names = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        try:
            old = {number: signal.signal(number, remember) for number in names}
        except ValueError:  # not the main thread: a caller embeds us and handles signals itself
            old = {}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as flat tensors named ``<parameter index>.<slot>``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{slot}": value for i, slots in state.items() for slot, value in slots.items()}


def _restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    groups = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, slot = name.split(".", 1)
        parameter = parameters[int(index)]
        # A copy, laid out as it was: a file holds neither strides nor memory of our own.
        same = value.shape == parameter.shape and value.ndim > 0
        copy = torch.empty_like(parameter, dtype=value.dtype) if same else torch.empty_like(value)
        state.setdefault(int(index), {})[slot] = copy.copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
