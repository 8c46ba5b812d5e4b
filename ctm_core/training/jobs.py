"""Whole training jobs: from a config, a data set and a teacher's file to exported weights."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctm_core.config import Experiment, Student, Training
from ctm_core.data.dataset import Dataset
from ctm_core.diffusion import randomness
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import weight_file
from ctm_core.models.foreign.fit import copy_shared
from ctm_core.models.networks.raw import RawNetwork
from ctm_core.runtime import checkpoint, cuda, devices, distributed
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import atomic_write, sha256_file, write_record
from ctm_core.runtime.provenance import code_version
from ctm_core.runtime.runs import RunFolder, environment
from ctm_core.training import (
    acceleration,
    assembly,
    compilation,
    distances,
    ema,
    micro_batch,
    objectives,
)
from ctm_core.training.adversary import build as build_adversary
from ctm_core.training.denoising import DsmObjective
from ctm_core.training.loop import Trainer
from ctm_core.training.objective import Objective

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a training lives and how it was started."""

    output: Path  #: folder that receives the weights and the record
    runs: Path = Path("runs")  #: parent of the run folders
    run: Path | None = None  #: the very run folder
    attempt: int = 1  #: of the workflow: from the second on, a recorded failure ends at once
    #: Whether a run may go on with another number of processes; it is then no longer exact.
    allow_world_size: bool = False


def train_teacher(
    experiment: Experiment, dataset: Dataset, *, seed: int | None = None, **place: Any
) -> Path:
    """Train an EDM denoiser from nothing and export its EMA to ``teacher.safetensors``.

    ``place`` holds keywords of :class:`Place`, ``output`` at least, which receives the record too:
    ``training.jsonl`` and ``training.json``.
    """
    training, section = experiment.training("teacher"), experiment.teacher
    assert section is not None
    seed = section.seed if seed is None else seed
    with distributed.session() as device:
        asked, experiment = experiment, experiment.resolved(devices.native_precision(device))
        assembly.check_dataset(experiment, dataset)
        student = assembly.fresh(experiment, dataset, seed, time_s=False).to(device)
        job = _Job(experiment, asked, "teacher", "dsm", dataset, seed, Place(**place), student)
        averages = {rate: ema.frozen_copy(student).train() for rate in training.ema}
        inputs = {"dataset": dataset.fingerprint}
        return job.run(averages, DsmObjective(section, student, flip=dataset.flip), inputs)


def train_student(
    experiment: Experiment,
    model: str,
    dataset: Dataset,
    teacher: Path | None,
    *,
    seed: int,
    weak_teacher: Path | None = None,
    init: Path | None = None,
    init_average: Path | None = None,
    **place: Any,
) -> Path:
    """Train a student by its objective and export its EMA.

    Parameters
    ----------
    teacher
        Weight file of the denoiser; None for an objective that uses none and starts at random.
    weak_teacher
        For a model with ``weak_teacher``: the teacher's weights at that step.
    init, init_average
        For a model with ``init_from``: the live weights and the EMA that the other exported.
    place
        Keywords of :class:`Place`; ``output`` is needed.

    Returns
    -------
    ``student.safetensors``, with snapshots and the record beside it.
    """
    with distributed.session() as device:
        asked, experiment = experiment, experiment.resolved(devices.native_precision(device))
        section = experiment.student(model)
        traits, kind = section.traits, objectives.find(section.objective)
        assembly.check_dataset(experiment, dataset)
        files = {
            "weak_teacher": weak_teacher,
            "init": init,
            "init_average": init_average,
        }
        assembly.check_inputs(section, model, teacher=teacher, **files)

        def denoiser_of(path: Path | None) -> Trajectory | None:
            if path is None:
                return None
            denoiser, record = weight_file.load_weights(path)
            assembly.check_teacher(experiment, dataset, record, path)
            return denoiser.to(device)

        denoiser, second = denoiser_of(teacher), denoiser_of(weak_teacher)
        student = assembly.fresh(
            experiment,
            dataset,
            seed,
            time_s=traits.time_s,
            inner=traits.inner,
            end=traits.only_end(experiment.diffusion.sigma_min),
        )
        if section.initial == "teacher" and denoiser is not None:
            copy_shared(denoiser, student)
        if traits.zero_s:
            assert isinstance(student.model, RawNetwork)
            student.model.zero_target_time()
        if init is not None:
            assembly.load_into(student, init)
        student.to(device)
        own = (section.target_ema,) if traits.ctm_loss else ()
        rates = tuple(dict.fromkeys((*own, *section.training.ema)))
        averages = {rate: ema.frozen_copy(student).train() for rate in rates}
        if init_average is not None:
            for average in averages.values():
                assembly.load_into(average, init_average)
            if traits.second == "init":
                second = ema.frozen_copy(averages[section.training.final_ema]).eval()
        distance = distances.build_distance(section.distance, section.perceptual).to(device)
        adversary = build_adversary(section, seed, device)
        torch.manual_seed(randomness.torch_seed(seed, "objective's modules", 0))
        objective = kind(
            section=section,
            diffusion=experiment.diffusion,
            student=student,
            target=averages[section.target_ema] if traits.ctm_loss else None,
            teacher=denoiser if traits.teacher else None,
            distance=distance,
            adversary=adversary,
            second=second,
        )
        named = (model, section.objective)
        job = _Job(experiment, asked, *named, dataset, seed, Place(**place), student)
        inputs = {
            "dataset": dataset.fingerprint,
            "teacher": None if teacher is None else sha256_file(teacher),
            "distance": distance.weights_sha256,
        }
        inputs |= {name: sha256_file(path) for name, path in files.items() if path is not None}
        if adversary is not None:
            inputs |= adversary.hashes()
        return job.run(averages, objective, inputs)


@dataclass(frozen=True)
class _Job:
    """One training: its folder, its record, its exports."""

    experiment: Experiment
    asked: Experiment  #: with every ``auto`` that the configuration has
    model: str
    objective: str
    dataset: Dataset
    seed: int
    place: Place
    student: Trajectory

    @property
    def section(self) -> Training:
        return self.experiment.training(self.model)

    @property
    def student_section(self) -> Student | None:
        return self.experiment.students.get(self.model)

    @property
    def identity(self) -> dict[str, Any]:
        """What every record says first."""
        return {
            "experiment": self.experiment.experiment,
            "model": self.model,
            "seed": self.seed,
            "train_hash": self.experiment.train_hash(self.model),
        }

    @property
    def folder(self) -> Path:
        if self.place.run is not None:
            return self.place.run
        return self._folder_of(self.experiment)

    def _folder_of(self, experiment: Experiment) -> Path:
        name = f"{experiment.experiment}/{self.model}/seed-{self.seed}"
        return self.place.runs / name / experiment.train_hash(self.model)[:12]

    def decided(self) -> dict[str, Any]:
        """What each ``auto`` of the configuration has become on this machine, and why.

        A run that was begun where it became something else is another run; it is named.
        """
        asked = self.asked.training(self.model).model_dump()
        keys = [key for key, value in asked.items() if value == "auto" and key != "micro_batch"]
        if self.experiment == self.asked:
            return {}
        units = devices.bf16_units(self.student.output_weight.device)
        other = "fp32" if self.section.precision == "bf16" else "bf16"
        elsewhere = self._folder_of(self.asked.resolved(other))
        if elsewhere != self.folder and checkpoint.steps(elsewhere / "checkpoints"):
            log.warning(
                "`auto` means %s on this machine (bf16 instructions: %s); %s was begun in %s, and "
                "goes on if the config says so",
                self.section.precision, units or "none", elsewhere, other,
            )  # fmt: skip
        resolved = {key: getattr(self.section, key) for key in keys}
        return {"auto": resolved | {"bf16_units": units}}

    def record(self, inputs: Mapping[str, str | None]) -> dict[str, Any]:
        """The record that a weight file carries."""
        end = self.student.end
        ends = {} if end in (None, self.student.sigma_min) else {"end": end}
        return self.identity | {
            "objective": self.objective,
            "ema": self.section.final_ema,
            "dataset": self.experiment.dataset.name,
            **assembly.fit(self.experiment, self.dataset),
            "inputs": dict(inputs),
            "class_names": self.dataset.class_names,
            "time_s": self.student.time_s,
            "inner": self.student.parametrisation,
            "final_only": end is not None,
            **ends,
        }

    def run(
        self,
        averages: dict[float, Trajectory],
        objective: Objective,
        inputs: Mapping[str, str | None],
    ) -> Path:
        """Train in the run folder, then deliver."""
        section, place = self.section, self.place
        device = next(self.student.parameters()).device
        for key in ("precision", "frozen_precision"):
            cuda.check_precision(getattr(section, key), device, key)
        acceleration.apply(section, [self.student, *averages.values()], objective.frozen())
        if section.compile:
            compilation.apply(section.compile_mode, objective)
        config = self.identity | {"configuration": self.experiment.model_dump(mode="json")}
        config |= self.decided()
        run = RunFolder(self.folder, config=config, inputs=inputs, attempt=place.attempt)
        with contextlib.ExitStack() as stack:
            distributed.on_main(lambda: stack.enter_context(run))
            processes = distributed.count()
            threads = max(1, self.experiment.threads // processes)
            distributed.on_main(
                lambda: run.restore_environment(threads, processes, place.allow_world_size)
            )
            torch.set_num_threads(distributed.shared(torch.get_num_threads()))
            if section.micro_batch == "auto":
                given = (objective, self.dataset, section, self.experiment.conditional, self.seed)
                size = distributed.on_main(lambda: micro_batch.of_run(run.path, *given))
                section = section.model_copy(update={"micro_batch": distributed.shared(size)})
            student = self.student_section
            trainer = Trainer(
                title=f"{self.experiment.experiment} {self.model} seed {self.seed}",
                section=section,
                objective=objective,
                student=self.student.train(),
                averages=averages,
                dataset=self.dataset,
                labels=self.experiment.conditional,
                seed=self.seed,
                run=run,
                device=device,
                lambda_scope="microbatch" if student is None else student.lambda_scope,
                preview=assembly.preview(self.experiment, self.dataset, self.model),
            )
            exports = self.exports(run.path / "exports")
            distributed.on_main(lambda: _check_exports(exports))
            record = self.record(inputs)

            def export(path: Path, trainer: Trainer) -> None:
                live = path.name.startswith("live-")
                network = trainer.student if live else trainer.averages[section.final_ema]
                weight_file.export(path, network, record | {"step": trainer.step})

            trainer.train(exports, export)
            evaluations = trainer.evaluations()
            distributed.on_main(lambda: self.deliver(trainer, exports, evaluations))
        return place.output / self.final

    @property
    def final(self) -> str:
        return "teacher.safetensors" if self.model == "teacher" else "student.safetensors"

    def exports(self, folder: Path) -> dict[Path, int]:
        """Files to write during training, and the step of each."""
        section = self.section
        forks = self.experiment.fork_steps(self.model)
        steps = {*section.snapshots, *forks} - {section.steps}
        files = {folder / f"snapshot-{step:08d}.safetensors": step for step in sorted(steps)}
        files |= {folder / f"live-{step:08d}.safetensors": step for step in forks}
        return files | {folder / self.final: section.steps}

    def deliver(
        self, trainer: Trainer, exports: Mapping[Path, int], evaluations: dict[str, int]
    ) -> None:
        """Copy the results of the run to the declared outputs, the weights last."""
        run, folder = trainer.run, self.place.output
        _check_exports(exports)
        last = next(path for path in exports if path.name == self.final)
        fork = None if self.student_section is None else self.student_section.init_from
        summary = self.identity | {
            "objective": self.objective,
            "steps": self.section.steps,
            "init_from": None if fork is None else fork.model_dump(mode="json"),
            "parameters": sum(p.numel() for p in self.student.parameters()),
            "exact": run.exact,
            "forward_passes": evaluations,
            "processes": distributed.count(),
            "precision": self.section.precision,
            **{key: True for key in ("compile", "tf32") if getattr(self.section, key)},
            **micro_batch.recorded(run.path),
            "weights_sha256": sha256_file(last),
            "curve_sha256": sha256_file(run.path / "training.jsonl"),
            "dataset_fingerprint": self.dataset.fingerprint,
            "teacher_sha256": run.inputs.get("teacher"),
            "code_version": code_version(),
        }
        # Apart from the record: other jobs read that, and equal trainings leave equal bytes there.
        speed = {"seconds": round(trainer.seconds, 3), "hardware": environment()}
        run.confirm()
        folder.mkdir(parents=True, exist_ok=True)
        for place in (run.path, folder):
            write_record(place / "speed.json", speed)
            write_record(place / "training.json", summary)
        others = sorted(path for path in exports if path != last)
        for source in (run.path / "training.jsonl", *others, last):
            with atomic_write(folder / source.name) as temporary:
                shutil.copyfile(source, temporary)


def _check_exports(exports: Mapping[Path, int]) -> None:
    """Raise UserError if an export of the run is no longer what was written."""
    for path, step in exports.items():
        try:
            intact = not path.exists() or weight_file.read_record(path)["step"] == step
        except UserError:
            intact = False
        if not intact:
            raise UserError(
                f"{path} is corrupt: it is not what was exported at step {step}; replace it by a "
                "copy, or delete it, and training goes back to the newest checkpoint before that "
                "step"
            )
