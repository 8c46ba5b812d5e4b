"""How long the parts of a training step, of sampling and of scoring take here.

Every comparison runs its two sides alternately on the same inputs, in one process, so their ratio
means something even on a machine that is busy. Times are medians. The network, the batch and the
threads are those of an experiment file; weights are random, since they do not change the time.

    python benchmarks/bench.py [--repeats N] [--experiment FILE] [--output FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Read when torch is loaded: threads that spin while they wait would slow whatever runs next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from scipy import linalg

from ctm_core import ema, model_file, perceptual, randomness
from ctm_core.balance import adaptive_weight
from ctm_core.config import Experiment, load_experiment
from ctm_core.data import Dataset, prepare, to_float
from ctm_core.files import write_json
from ctm_core.generation import Generator
from ctm_core.metrics import Moments, frechet_distance
from ctm_core.objectives import Batch
from ctm_core.objectives.ctm import CtmObjective
from ctm_core.runs import environment
from ctm_core.solvers import heun_solve
from ctm_core.trajectory import Trajectory

ROOT = Path(__file__).resolve().parents[1]
MODEL = "ctm"
SAMPLES = 256  # images of one sampling batch
FEATURES = {64: 1024, 1280: 3072}  # dimensions of a feature network, and samples scored with it
SCALE_OF_GRADIENT = 1e-12  # added to norms that are divided by


class SeparatePasses(CtmObjective):
    """The step as it is usually written: a backward pass for each norm, and one for the sum."""

    def backward(self, batch: Batch, share: float) -> dict[str, float]:
        k, i, j = self.draw(batch)
        grid = self.grid.to(batch.images)
        t, s = grid[i], grid[j]
        x_t = batch.images + t.view(-1, 1, 1, 1) * batch.normal("noise")
        estimate = self.to_data(self.student.G(x_t, t, s, batch.labels), s, batch.labels)
        target = self.matching_target(x_t, grid, i, j, k, batch.labels)
        ctm = self.distance(estimate, target).mean()
        dsm, _ = self.denoising(batch)
        w = self.student.output_weight
        (at_ctm,) = torch.autograd.grad(ctm, w, retain_graph=True)
        (at_dsm,) = torch.autograd.grad(dsm, w, retain_graph=True)
        total = ctm + self.section.dsm.weight * adaptive_weight(at_ctm, at_dsm) * dsm
        (total * share).backward()
        return {"loss": float(total.detach())}


class EveryRow(CtmObjective):
    """The step with both maps evaluated on rows where they are the identity, too."""

    def to_data(self, x: torch.Tensor, s: torch.Tensor, labels: Any) -> torch.Tensor:
        self.evaluations["target"] += len(x)
        return self.target.G(x, s, torch.full_like(s, self.sigma_min), labels)

    @torch.no_grad()
    def matching_target(
        self, x_t: torch.Tensor, grid: torch.Tensor, i: Any, j: Any, k: int, labels: Any
    ) -> torch.Tensor:
        x_u = self.solve(x_t, grid, i, torch.full_like(i, k), labels)
        inner = self.student if self.section.inner == "model" else self.target
        self.evaluations["student" if inner is self.student else "target"] += len(x_u)
        return self.to_data(inner.G(x_u, grid[i + k], grid[j], labels), grid[j], labels)


class Bench:
    """Inputs that all measurements share, and the rows they have given so far."""

    def __init__(self, experiment: Experiment, dataset: Dataset, repeats: int) -> None:
        self.experiment = experiment
        self.dataset = dataset
        self.repeats = repeats
        self.rows: list[dict[str, Any]] = []
        self.section = experiment.student(MODEL)
        self.batch_size = self.section.training.batch_size
        self.teacher = self._network(time_s=False).eval().requires_grad_(False)
        self.student = self._network(time_s=True).train()
        self.target = ema.frozen_copy(self.student).train()

    def _network(self, *, time_s: bool) -> Trajectory:
        torch.manual_seed(0)
        model = model_file.build_model(
            network=self.experiment.network,
            diffusion=self.experiment.diffusion,
            resolution=self.dataset.resolution,
            channels=self.dataset.channels,
            label_dim=self.dataset.classes if self.experiment.conditional else 0,
            time_s=time_s,
        )
        with torch.no_grad():
            for parameter in model.parameters():  # zero-initialised ones would give zero gradients
                parameter.add_(0.05 * torch.randn_like(parameter))
        if self.section.training.channels_last:
            model.to(memory_format=torch.channels_last)
        return model

    def batch(self, step: int) -> Batch:
        """The training batch of a step."""
        images, labels = self.dataset.batch(list(range(self.batch_size)))
        data = to_float(images)
        if self.section.training.channels_last:
            data = data.contiguous(memory_format=torch.channels_last)
        return Batch(data, labels if self.experiment.conditional else None, seed=0, step=step)

    def row(
        self,
        part: str,
        case: str,
        seconds: list[float],
        note: str = "",
        *,
        against: list[float] | None = None,
        images: int | None = None,
    ) -> None:
        """Record one line; ``against`` holds the times of the same inputs done another way."""
        median = statistics.median(seconds)
        line: dict[str, Any] = {
            "part": part,
            "case": case,
            "milliseconds": 1e3 * median,
            "repeats": len(seconds),
            "images_per_second": images / median if images else None,
            "times_the_first": None,
            "note": note,
        }
        if against is not None:
            ratios = [one / other for one, other in zip(seconds, against, strict=True)]
            line["times_the_first"] = statistics.median(ratios)
        self.rows.append(line)
        print(_text(line), flush=True)

    # -- measurements ----------------------------------------------------------------------------

    def teacher_forward(self) -> None:
        batch = self.batch(0)
        t = torch.full((self.batch_size,), 1.0)
        with torch.no_grad():
            times = _timed(
                lambda: self.teacher.denoise(batch.images, t, batch.labels), 4 * self.repeats
            )
        self.row("teacher", "one forward", times, images=self.batch_size)

    def solve(self) -> None:
        n, most = self.section.grid_points, self.section.heun_steps
        grid = self.objective(CtmObjective).grid.float()
        for k in sorted({1, most // 2, most}):
            batch = self.batch(k)
            i = torch.arange(self.batch_size) % (n - k)
            x = batch.images + grid[i].view(-1, 1, 1, 1) * batch.normal("noise")

            def solve(
                k: int = k, i: torch.Tensor = i, x: torch.Tensor = x, y: Any = batch.labels
            ) -> None:
                heun_solve(lambda z, r: self.teacher.denoise(z, r, y), x, grid, i, k)

            with torch.no_grad():
                times = _timed(solve, self.repeats)
            self.row("teacher", f"solve, k = {k}", times, f"{2 * k} forwards")

    def objective(self, kind: type[CtmObjective]) -> CtmObjective:
        return kind(
            section=self.section,
            diffusion=self.experiment.diffusion,
            student=self.student,
            target=self.target,
            teacher=self.teacher,
            distance=perceptual.build_distance(self.section.distance),
        )

    def steps(self) -> None:
        """The student's step and its two slower forms, on the same batches in turn."""
        cases = {
            "as implemented": CtmObjective,
            "a backward pass for each norm": SeparatePasses,
            "identity rows evaluated": EveryRow,
        }
        objectives = {name: self.objective(kind) for name, kind in cases.items()}
        times: dict[str, list[float]] = {name: [] for name in cases}
        worst = dict.fromkeys(cases, 0.0)
        first = next(iter(cases))
        for step in range(-1, 2 * self.repeats):
            batch = self.batch(max(step, 0))
            gradients = {}
            for name, objective in objectives.items():
                self.student.zero_grad(set_to_none=True)
                began = time.perf_counter()
                objective.backward(batch, 1.0)
                seconds = time.perf_counter() - began
                found = [p.grad for p in self.student.parameters() if p.grad is not None]
                gradients[name] = torch.cat([g.flatten() for g in found])
                if step >= 0:  # the first round only warms up
                    times[name].append(seconds)
            for name, gradient in gradients.items():
                norm = gradients[first].norm() + SCALE_OF_GRADIENT
                error = float((gradient - gradients[first]).norm() / norm)
                worst[name] = max(worst[name], error)
        for name, objective in objectives.items():
            calls = sum(objective.evaluations.values()) / self.batch_size / (2 * self.repeats + 1)
            note = f"{calls:.1f} forwards"
            against = None if name == first else times[first]
            if against is not None:
                note += f", gradients differ by {worst[name]:.0e}"
            self.row("student step", name, times[name], note, against=against)

    def averages(self) -> None:
        values = list(self.student.parameters())

        @torch.no_grad()
        def loop() -> None:
            pairs = zip(self.target.parameters(), self.student.parameters(), strict=True)
            for mean, value in pairs:
                mean.lerp_(value, 0.01)
            for mean, value in zip(self.target.buffers(), self.student.buffers(), strict=True):
                mean.copy_(value)

        fused, looped = _alternated(
            lambda: ema.update(self.target, self.student, 0.99, 0), loop, 10 * self.repeats
        )
        count = sum(p.numel() for p in values)
        note = f"{len(values)} tensors, {count:,} numbers"
        self.row("EMA", "all tensors in one call", fused, note)
        self.row("EMA", "a loop over tensors", looped, against=fused)

    def sampling(self) -> None:
        record = {
            "channels": self.dataset.channels,
            "resolution": self.dataset.resolution,
            "label_dim": self.dataset.classes if self.experiment.conditional else 0,
            "diffusion": self.experiment.diffusion.model_dump(),
            "model": MODEL,
            "step": 0,
        }
        student = Generator(ema.frozen_copy(self.student).eval(), record)
        teacher = Generator(self.teacher, record)
        cells = {
            "ctm, NFE 1": (student, {"sampler": "gamma", "nfe": 1, "gamma": None}),
            "ctm, NFE 4, γ = 1": (student, {"sampler": "gamma", "nfe": 4, "gamma": 1.0}),
            "teacher, NFE 35": (teacher, {"sampler": "heun", "nfe": 35, "gamma": None}),
        }
        for name, (generator, options) in cells.items():
            draw = partial(generator.images, SAMPLES, seed=0, **options)
            short = options["nfe"] < 10
            times = _timed(draw, self.repeats if short else 2, warm_up=short)
            self.row("sampling", name, times, images=SAMPLES)

    def frechet(self) -> None:
        for dim, n in FEATURES.items():
            sets = [_features(dim, n, stream) for stream in ("one", "two")]
            a, b = (Moments.of(features) for features in sets)
            distances: dict[str, float] = {}

            def ours(a: Moments = a, b: Moments = b, found: Any = distances) -> None:
                found["ours"] = frechet_distance(a, b).value

            def scipys(a: Moments = a, b: Moments = b, found: Any = distances) -> None:
                found["scipy"] = _by_sqrtm(a, b)

            short, long = _alternated(ours, scipys, 5 * self.repeats if dim <= 64 else 2)
            traces = float(a.covariance().trace() + b.covariance().trace())
            error = abs(distances["ours"] - distances["scipy"]) / traces
            self.row("Fréchet distance", f"{dim} dimensions", short)
            note = f"values differ by {error:.0e} of the traces"
            self.row("Fréchet distance", f"{dim}, scipy's sqrtm", long, note, against=short)


def _features(dim: int, n: int, stream: str) -> torch.Tensor:
    """Correlated features (n, dim) with a spectrum that falls as those of networks do."""
    noise = randomness.normal(0, f"features/{stream}", 0, 0, n, (dim,)).double()
    mixing = randomness.normal(0, f"mixing/{stream}", 0, 0, dim, (dim,)).double() / dim**0.5
    return noise * torch.logspace(0, -2, dim, dtype=torch.float64) @ mixing + 0.1 * noise


def _by_sqrtm(a: Moments, b: Moments) -> float:
    """The distance as it is usually computed."""
    one, two = a.covariance().numpy(), b.covariance().numpy()
    root = linalg.sqrtm(one @ two)
    shift = float((a.mean - b.mean).square().sum())
    return shift + float((one + two - 2 * root.real).trace())


def _timed(work: Callable[[], object], repeats: int, *, warm_up: bool = True) -> list[float]:
    """Seconds of each repeat, after one that is not counted."""
    if warm_up:
        work()
    return [_once(work) for _ in range(repeats)]


def _alternated(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of both, taken in turn, after one round that is not counted."""
    first(), second()
    pairs = [(_once(first), _once(second)) for _ in range(repeats)]
    return [one for one, _ in pairs], [two for _, two in pairs]


def _once(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _text(row: dict[str, Any]) -> str:
    speed = f"{row['images_per_second']:,.0f} images/s" if row["images_per_second"] else ""
    ratio = f"{row['times_the_first']:.2f} ×" if row["times_the_first"] else ""
    line = f"{row['part']:<17} {row['case']:<30} {row['milliseconds']:>10.2f} ms {ratio:>8} "
    return (line + f"{speed:>18}  {row['note']}").rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="of a slow measurement")
    parser.add_argument("--experiment", type=Path, default=ROOT / "config/experiments/digits.yaml")
    parser.add_argument("--output", type=Path, default=Path("results/bench.json"))
    arguments = parser.parse_args()
    experiment = load_experiment(arguments.experiment)
    torch.set_num_threads(experiment.threads)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        name, source = experiment.dataset.name, experiment.dataset.source
        dataset = prepare(name, "train", source, Path(folder) / "train")
        bench = Bench(experiment, dataset, arguments.repeats)
        parameters = sum(p.numel() for p in bench.student.parameters())
        hardware = environment()
        print(
            f"{experiment.experiment}: {parameters:,} parameters, batch {bench.batch_size}; "
            f"{hardware['device']}, {hardware['threads']} threads, torch {hardware['torch']}"
        )
        for measure in (
            bench.teacher_forward,
            bench.solve,
            bench.steps,
            bench.averages,
            bench.sampling,
            bench.frechet,
        ):
            measure()
    result = {
        "experiment": experiment.experiment,
        "parameters": parameters,
        "batch_size": bench.batch_size,
        "hardware": hardware,
        "seconds": round(time.perf_counter() - began, 1),
        "rows": bench.rows,
    }
    write_json(arguments.output, result)
    print(f"{arguments.output} written after {result['seconds']} s")


if __name__ == "__main__":
    main()
