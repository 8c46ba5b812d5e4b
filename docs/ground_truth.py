"""The experiment `gaussian`: the method where exact solutions are known. Takes half a minute.

    python docs/ground_truth.py [--output FOLDER]

Runs solvers, samplers, objectives and likelihood on a mixture of Gaussians, whose denoiser and
flow are exact, without training. Writes the figure and the numbers of docs/ground-truth.md (in
docs/ by default).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor

from ctm_core import config
from ctm_core.diffusion import randomness, schedule
from ctm_core.diffusion.gaussian import GaussianMixture, exact_model, three_modes
from ctm_core.diffusion.samplers.gamma import plan as gamma_jumps
from ctm_core.diffusion.sampling import sample, sample_jumps, sigmas
from ctm_core.diffusion.solvers import euler_step, heun_solve
from ctm_core.evaluation.likelihood import published_protocol
from ctm_core.evaluation.likelihood.ode import log_density
from ctm_core.report.figures.style import COLORS, style
from ctm_core.runtime.files import atomic_write, write_text
from ctm_core.training.batches import Batch
from ctm_core.training.denoising import dsm_loss
from ctm_core.training.distances import build_distance
from ctm_core.training.objectives.ctm import CtmObjective, Draw

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- numbers:begin -->", "<!-- numbers:end -->"
LOW, HIGH = 0.002, 80.0
GAMMAS, COUNTS = (0.0, 0.2, 0.5, 0.9, 1.0), (1, 2, 4, 8)
STEPS = (16, 32, 64, 128, 256, 512)
REFINEMENTS = (2, 4, 8, 16)
MIXTURE = three_modes()


def draws(count: int, t: float, seed: int = 0) -> Tensor:
    """Samples of p_t."""
    uniform = randomness.uniform(seed, "component", 0, 0, count)
    return MIXTURE.sample(uniform, noise("data", count, seed), t)


def noise(stream: str, count: int, seed: int = 0, step: int = 0) -> Tensor:
    return randomness.normal(seed, stream, step, 0, count, MIXTURE.shape).double()


def slope(x: tuple[int, ...], y: list[float]) -> float:
    """Order of convergence from the finer half."""
    half = len(x) // 2
    return -float(np.polyfit(np.log(x[half:]), np.log(y[half:]), 1)[0])


# -- measurements ------------------------------------------------------------------------------


def solver_errors() -> dict[str, list[float]]:
    """Root mean square error at sigma_min against the exact flow, per number of steps."""
    x = draws(64, HIGH)
    exact = MIXTURE.flow(x, HIGH, LOW)
    errors: dict[str, list[float]] = {"Euler": [], "Heun": []}
    for n in STEPS:
        grid = schedule.karras_grid(n + 1, LOW, HIGH)
        euler = x
        for t, t_next in pairwise(grid):
            euler = euler_step(MIXTURE.denoise, euler, t, t_next)
        heun = heun_solve(MIXTURE.denoise, x, grid, torch.zeros(64, dtype=torch.int64), n)
        for name, made in (("Euler", euler), ("Heun", heun)):
            errors[name].append(float((made - exact).square().mean().sqrt()))
    return errors


def marginals(count: int) -> dict[tuple[str, float], tuple[Tensor, float]]:
    """Samples of every cell and the smaller p-value of the two KS tests against p_sigma_min."""
    model = exact_model(MIXTURE, tolerance=1e-8)
    start = draws(count, HIGH)
    cells = {}
    for gamma in GAMMAS:
        for nfe in COUNTS:
            made = sample(
                model,
                sampler="gamma",
                nfe=nfe,
                gamma=gamma,
                latents=start / HIGH,
                noise=lambda k: noise("inject", count, step=k),
                clamp=False,
            )
            cells[f"NFE {nfe}", gamma] = made
        # For contrast, the same jumps with an Euler step in place of G.
        cells["wrong G", gamma] = sample_jumps(
            lambda x, t, s: x * (s / t) + (1 - s / t) * MIXTURE.denoise(x, t),
            start,
            gamma_jumps(sigmas(4), gamma),
            lambda k: noise("inject", count, step=k),
        )
    found = {}
    for key, made in cells.items():
        columns = MIXTURE.uniforms(made, LOW).T.numpy()
        found[key] = (made, min(float(stats.kstest(c, "uniform").pvalue) for c in columns))
    return found


class FixedTimes(CtmObjective):
    """The CTM objective at fixed t, u, s on refined grids, with Heun's or the exact solver."""

    refinement, exact = 1, False

    def draw(self, batch: Batch) -> Draw:
        i = torch.arange(len(batch)) % 8
        j = torch.maximum(torch.tensor([0, 9, 16, 24])[torch.arange(len(batch)) % 4], i + 4)
        return Draw(4 * self.refinement, i * self.refinement, j * self.refinement)

    def solve(
        self, x: Tensor, grid: Tensor, i: Tensor, steps: Tensor, labels: Tensor | None
    ) -> Tensor:
        if self.exact:
            return MIXTURE.flow(x, grid[i], grid[i + steps])
        return super().solve(x, grid, i, steps, labels)


def ctm_loss(refinement: int, exact: bool = False) -> float:
    """The l2 loss of the exact model on 24 ``refinement`` + 1 grid points."""
    section = config.Student.model_validate(
        {
            "grid_points": 24 * refinement + 1,
            "distance": "l2",
            "dsm": {"enabled": False},
            "training": {"steps": 1, "batch_size": 32},
        }
    )
    objective = FixedTimes(
        section=section,
        diffusion=config.Diffusion(),
        student=exact_model(MIXTURE),
        target=exact_model(MIXTURE).requires_grad_(False),
        teacher=exact_model(MIXTURE).requires_grad_(False),
        distance=build_distance("l2"),
    )
    objective.refinement, objective.exact = refinement, exact
    return float(objective.backward(Batch(draws(32, 0.0), None, seed=0, step=0), 1.0)["ctm"])


def dsm_minimiser(count: int) -> tuple[Tensor, Tensor]:
    """The (a, b) of raw outputs (1 + a) F + b that minimise DSM, and their standard errors."""
    model = exact_model(MIXTURE)
    weight = model.output_weight
    sigma = schedule.dsm_sigma(randomness.uniform(0, "sigma", 0, 0, count), torch.arange(count))
    ends = {}
    with torch.no_grad():  # the loss is quadratic in (a, b): differences are exact
        for a in (-0.5, 0.0, 0.5):
            for b in (-0.5, 0.0, 0.5):
                weight.copy_(torch.tensor([a, b]))
                ends[a, b] = dsm_loss(model, draws(count, 0.0), sigma, noise("dsm", count), None)[
                    0
                ]
    h = 0.5
    slopes = torch.stack([ends[h, 0] - ends[-h, 0], ends[0, h] - ends[0, -h]], 1) / (2 * h)
    second = [ends[h, 0] + ends[-h, 0] - 2 * ends[0, 0], ends[0, h] + ends[0, -h] - 2 * ends[0, 0]]
    mixed = (ends[h, h] - ends[h, -h] - ends[-h, h] + ends[-h, -h]) / 4
    hessian = torch.stack([second[0], mixed, mixed, second[1]], 1).mean(0).view(2, 2) / h**2
    best = -torch.linalg.solve(hessian, slopes.mean(0))
    inverse = torch.linalg.inv(hessian)
    covariance = inverse @ torch.cov(slopes.T) @ inverse / count
    return best, covariance.diagonal().sqrt()


def likelihood_errors() -> dict[float, tuple[float, float, int]]:
    """Per tolerance: mean and largest error in bits/dim against p_sigma_min, and the NFE."""
    x = draws(64, LOW)
    exact = MIXTURE.log_density(x, LOW)
    found = {}
    for tolerance in (1e-3, 1e-5, 1e-7):
        made = log_density(
            exact_model(MIXTURE).denoise,
            x,
            tolerance=tolerance,
            prior=lambda z: MIXTURE.log_density(z, HIGH),
        )
        error = (exact - made.log_density) / (2 * math.log(2))
        found[tolerance] = (float(error.mean()), float(error.abs().max()), made.evaluations)
    return found


def residual_bits(count: int) -> dict[str, float]:
    """Bits/dim that the published residual term subtracts, per reading, for N(0, 0.25) data."""
    one = GaussianMixture(torch.ones(1), torch.zeros(1, 1, 4, 4), torch.full((1,), 0.25))
    x = one.sample(
        torch.full((count,), 0.5), randomness.normal(0, "residual data", 0, 0, count, one.shape)
    )
    second = randomness.normal(0, "residual noise", 0, 0, count, one.shape).double()
    return {
        reading: float(
            published_protocol.published_residual(
                exact_model(one).denoise, x, second, reading=reading
            ).mean()
        )
        / (16 * math.log(2))
        for reading in published_protocol.READINGS
    }


@dataclass(frozen=True)
class Measured:
    """All measurements."""

    solvers: Mapping[str, list[float]]
    cells: Mapping[tuple[str, float], tuple[Tensor, float]]
    count: int
    ctm_exact: float
    ctm_roots: list[float]
    dsm: tuple[Tensor, Tensor]
    likelihood: Mapping[float, tuple[float, float, int]]
    residuals: Mapping[str, float]


def measure(count: int = 2000) -> Measured:
    return Measured(
        solver_errors(),
        marginals(count),
        count,
        ctm_loss(2, exact=True),
        [math.sqrt(ctm_loss(r)) for r in REFINEMENTS],
        dsm_minimiser(10 * count),
        likelihood_errors(),
        residual_bits(count),
    )


# -- output -------------------------------------------------------------------------------------


def numbers(made: Measured) -> str:
    """The page's tables."""
    lines = ["| what | known answer | measured |", "|---|---|---|"]
    for name, order in (("Euler", 1), ("Heun", 2)):
        value = slope(STEPS, made.solvers[name])
        last = made.solvers[name][-1]
        lines.append(
            f"| order of {name}, to σ_min | {order} | {value:.2f} (error {last:.1e} "
            f"at {STEPS[-1]} steps) |"
        )
    lines.append(f"| CTM loss (l2) of the exact model, exact solver | 0 | {made.ctm_exact:.0e} |")
    value = slope(REFINEMENTS, made.ctm_roots)
    lines.append(f"| order of its square root with Heun's solver | 2 | {value:.2f} |")
    for name, best, error in zip(("a", "b"), *map(Tensor.tolist, made.dsm), strict=True):
        lines.append(
            f"| {name} of the best (1 + a) F + b by DSM | 0 | {best:+.4f} ± {error:.4f} |"
        )
    for tolerance, (mean, most, evaluations) in made.likelihood.items():
        lines.append(
            f"| likelihood at tolerance {tolerance:.0e}: error in bits/dim | 0 | {mean:+.1e} in "
            f"the mean, {most:.0e} at most, {evaluations} evaluations |"
        )
    lines += [
        "",
        f"The smaller p-value of two KS tests of {made.count} samples against p_σmin:",
        "",
        "| | " + " | ".join(f"γ = {gamma:g}" for gamma in GAMMAS) + " |",
        "|---|" + "---|" * len(GAMMAS),
    ]
    for row in dict.fromkeys(name for name, _ in made.cells):
        values = " | ".join(_p(made.cells[row, gamma][1]) for gamma in GAMMAS)
        lines.append(f"| {row} | {values} |")
    lines += [
        "",
        "What the residual term of the published likelihood subtracts for data N(0, 0.25 I), for "
        "each reading of its description:",
        "",
        "| reading | bits/dim |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {value:.3f} |" for name, value in made.residuals.items()]
    return "\n".join(lines)


def _p(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}"


def draw(made: Measured, path: Path) -> None:
    """The figure: convergence orders on top, marginals of gamma × NFE below."""
    rows = list(dict.fromkeys(name for name, _ in made.cells))
    with style():
        figure = plt.figure(figsize=(10, 9.5), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=[1, 2.1])
        _orders(above.subplots(1, 3), made)
        panels = below.subplots(len(rows), len(GAMMAS), sharex=True, sharey="row")
        below.suptitle(
            "First pixel of samples (bars) and p_σmin (line), with the p-value",
            fontsize=10,
            x=0.02,
            ha="left",
        )
        for r, row in enumerate(rows):
            for c, gamma in enumerate(GAMMAS):
                _marginal(panels[r, c], *made.cells[row, gamma])
                if r == 0:
                    panels[r, c].set_title(f"γ = {gamma:g}")
            panels[r, 0].set_ylabel(row)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
        plt.close(figure)


def _orders(panels: list[Axes], made: Measured) -> None:
    plane, solvers, loss = panels
    _plane(plane)
    # There are more colours than solvers.
    for (name, errors), color, marker in zip(made.solvers.items(), COLORS, "os", strict=False):
        label = f"{name}, order {slope(STEPS, errors):.2f}"
        solvers.loglog(STEPS, errors, color=color, marker=marker, label=label)
    solvers.set(title="Error at σ_min", xlabel="steps from 80 to 0.002")
    _ticks(solvers, STEPS)
    points = [24 * r + 1 for r in REFINEMENTS]
    label = f"Heun, order {slope(REFINEMENTS, made.ctm_roots):.2f}"
    loss.loglog(points, made.ctm_roots, color=COLORS[1], marker="s", label=label)
    loss.axhline(math.sqrt(made.ctm_exact), color=COLORS[2], linestyle="--", label="exact solver")
    loss.set(title="√ CTM loss of the exact G", xlabel="grid points, t, u and s fixed")
    _ticks(loss, points)
    for axes in (solvers, loss):
        axes.legend()


def _ticks(axes: Axes, values: Sequence[int]) -> None:
    axes.set_xticks(values, [str(value) for value in values])
    axes.set_xticks([], minor=True)


def _plane(axes: Axes) -> None:
    """The density, and trajectories of the exact flow, scaled to unit spread at every time."""
    side = torch.linspace(-1.5, 1.5, 150, dtype=torch.float64)
    x, y = torch.meshgrid(side, side, indexing="xy")
    density = MIXTURE.log_density(torch.stack([x, y], -1).view(-1, 1, 1, 2), 0.05).exp()
    axes.contourf(side, side, density.view(150, 150).sqrt(), levels=12, cmap="Blues")
    points, spread = draws(24, HIGH, seed=3), 0.6
    times = schedule.karras_grid(40, LOW, HIGH)
    walk = [points]
    for t, t_next in pairwise(times.tolist()):
        walk.append(MIXTURE.flow(walk[-1], t, t_next, 1e-8))
    path = torch.stack(walk).flatten(2) / (times.view(-1, 1, 1) ** 2 / spread**2 + 1).sqrt()
    for k in range(path.shape[1]):
        axes.plot(path[:, k, 0], path[:, k, 1], color="black", linewidth=0.6, alpha=0.7)
    axes.plot(path[-1, :, 0], path[-1, :, 1], "o", color=COLORS[3], markersize=3)
    axes.set(title="The density and its flow, x/√(1 + t²/σ²)", aspect="equal")
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), xlabel="first pixel", ylabel="second pixel")


def _marginal(axes: Axes, samples: Tensor, p: float) -> None:
    edges = np.linspace(-1.3, 1.3, 53)
    first = samples.flatten(1)[:, 0].numpy()
    axes.hist(first, bins=edges, density=True, color=COLORS[5] if p > 1e-4 else COLORS[3])
    side = torch.linspace(-1.3, 1.3, 400, dtype=torch.float64)
    line = GaussianMixture(MIXTURE.weights, MIXTURE.means[..., :1], MIXTURE.variances[..., :1])
    axes.plot(
        side, line.log_density(side.view(-1, 1, 1, 1), LOW).exp(), color="black", linewidth=0.9
    )
    axes.set(yticks=[])
    axes.grid(visible=False)
    axes.text(0.03, 0.88, f"p {_p(p)}", transform=axes.transAxes, fontsize=8)


def write(output: Path, made: Measured) -> None:
    """Write the figure, and the page with its numbers updated."""
    page = (DOCS / "ground-truth.md").read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    draw(made, output / "images" / "ground-truth.png")
    write_text(output / "ground-truth.md", f"{before}{BEGIN}\n{numbers(made)}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=DOCS, help="folder  [default: docs]")
    output = parser.parse_args().output
    torch.set_num_threads(1)
    write(output, measure())
    print(f"{output / 'ground-truth.md'} and {output / 'images' / 'ground-truth.png'}")


if __name__ == "__main__":
    main()
