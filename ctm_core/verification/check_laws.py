r"""Time grids, and the laws of indices and noise levels.

A law is compared exactly: our functions map uniforms to draws and are piecewise constant (or
monotone), so feeding them the midpoint of every cell enumerates it. Our own draws, as training
makes them, are then tested against the closed form (:math:`\chi^2`, Kolmogorov–Smirnov). What the
reference implementation drew is random, so stored histograms and quantiles are only held to be
plausible.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from ctm_core import config
from ctm_core.diffusion import schedule
from ctm_core.diffusion.sampling import sigmas
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training.batches import Batch
from ctm_core.training.distances import build_distance
from ctm_core.training.objectives.ctm import CtmObjective
from ctm_core.verification import case
from ctm_core.verification.golden import (
    DOUBLE,
    FLOAT64_STORED64,
    SINGLE,
    Check,
    Golden,
    compare,
    exact,
    likely,
)

Array = NDArray[np.float64]

#: Total variation between a law and 1e6 stored draws of it; the steps are shared by 100 draws
#: each, which alone makes 0.016.
HISTOGRAM = 0.05
#: Distance in probability between a stored quantile of 1e6 draws and the law's.
QUANTILE = 0.005
#: Steps drawn to test our own laws.
STEPS = 5000


@case("grids_and_draws", on_device=False)
def grids(golden: Golden) -> Iterator[Check]:
    """Training grids of both dtypes, and sampling grids with the 0 that follows them."""
    suffix = "f32" if golden.precision == SINGLE else "f64"
    for key in golden.keys(rf"get_t/N\d+/{suffix}"):
        n = _numbers(key, r"N(\d+)")[0]
        yield golden.check(key, schedule.karras_grid(n, dtype=golden.precision))
    for key in golden.keys(r"sampling_sigmas/steps\d+/f64"):
        ours = torch.cat([sigmas(_numbers(key, r"steps(\d+)")[0]), torch.zeros(1, dtype=DOUBLE)])
        yield golden.check(key, ours.to(golden.precision))


@case("grids_and_draws", (DOUBLE,), on_device=False)
def index_laws(golden: Golden) -> Iterator[Check]:
    """P(h), and the joint law of the indices of t, u and s, for every grid that is stored."""
    for setting in sorted({key.split("/")[1] for key in golden.keys(r"index_hist/.+")}):
        n, max_steps = _numbers(setting, r"N(\d+)_H(\d+)")
        law = _index_law(n, max_steps)
        # P(h) lies on the diagonals u - t = h.
        of_h = np.array([law.sum(2).trace(offset=h) for h in range(n + 1)])
        of = {"h": of_h} | {
            name: law.sum(axis=tuple({0, 1, 2} - {axis})) for axis, name in enumerate("tus")
        }
        prefix = f"index_hist/{setting}"
        for key in golden.keys(rf"{prefix}/.+"):
            kind, _, name = key.rpartition("/")[2].partition("_")
            if kind == "exact":
                yield _same_law(key, law, golden)
            elif kind == "marginal" and name.startswith("prob_"):
                yield _same_law(key, of[name[-1]], golden)
            elif kind in ("marginal", "counts"):
                yield from _plausible(key, law if name == "t_u_s" else of[name[-1]], golden)
        yield from _own_index_draws(prefix, n, max_steps, law, of)


def _index_law(n: int, max_steps: int) -> Array:
    """P(i, i + h, j) of our draws, exactly: shape (n, n, n)."""
    law = np.zeros((n, n, n))
    k, i, j, probability = (column.numpy() for column in schedule.all_draws(n, max_steps))
    np.add.at(law, (i, i + k, j), probability)
    return law


def _same_law(key: str, ours: Array, golden: Golden) -> Check:
    return Check(key, float(np.abs(ours - golden[key].numpy()).max()), FLOAT64_STORED64)


def _plausible(key: str, law: Array, golden: Golden) -> Iterator[Check]:
    """Stored counts: nothing where the law has no mass, and near to it in total variation."""
    counts = golden[key].double().numpy()
    yield exact(f"{key} outside the law", float(counts[law == 0].sum()), 0.0)
    distance = float(np.abs(counts / counts.sum() - law).sum() / 2)
    yield Check(f"{key} (total variation)", distance, HISTOGRAM)


def _own_index_draws(
    prefix: str, n: int, max_steps: int, law: Array, of: dict[str, Array]
) -> Iterator[Check]:
    r"""One sample of each of many training steps, by :math:`\chi^2`."""
    objective = _objective(n, max_steps)
    drawn = []
    for step in range(STEPS):
        h, i, j = objective.draw(_batch(1, step))
        drawn.append((h, int(i), int(i) + h, int(j)))
    h, t, u, s = np.array(drawn).T
    for name, values in zip("htus", (h, t, u, s), strict=True):
        counts = np.bincount(values, minlength=len(of[name]))
        yield likely(f"{prefix}: our draws of {name}", _chi_squared(counts, of[name]))
    joint = np.zeros_like(law)
    np.add.at(joint, (t, u, s), 1)
    yield likely(f"{prefix}: our draws of (t, u, s)", _chi_squared(joint, law))


def _chi_squared(counts: NDArray[np.generic], law: Array) -> float:
    """p-value of counts under a law; cells that expect fewer than 5 are pooled."""
    observed, expected = counts.ravel().astype(float), law.ravel() * float(counts.sum())
    small = expected < 5
    if observed[law.ravel() == 0].any():
        return 0.0
    observed, expected = (
        np.append(v[~small], v[small].sum()) if expected[small].sum() >= 5 else v[~small]
        for v in (observed, expected)
    )
    # Without the small cells the sums may differ a little; the test wants them equal.
    return float(stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)


@case("grids_and_draws", (DOUBLE,), on_device=False)
def noise_level_law(golden: Golden) -> Iterator[Check]:
    """DSM's sigma: half log-normal, half on the grid's curve."""
    # Closed forms, from the README of the golden set.
    lognormal = stats.lognorm(s=1.2, scale=np.exp(-1.2))
    high, low, furthest = 80 ** (1 / 7), 0.002 ** (1 / 7), 0.7

    def fraction(sigma: Tensor) -> Tensor:
        """xi / 0.7 at a level of the grid half: uniform on [0, 1)."""
        xi: Tensor = (high - sigma ** (1 / 7)) / (high - low)
        return xi / furthest

    u = (torch.arange(1000, dtype=DOUBLE) + 0.5) / 1000
    index = torch.arange(len(u))
    closed = torch.from_numpy(lognormal.ppf(u.numpy()))
    ours = schedule.dsm_sigma(u, 2 * index)
    yield compare("log-normal half", ours, closed, DOUBLE)
    curve = schedule.dsm_sigma(u, 2 * index + 1)
    yield compare("grid half", fraction(curve), u, DOUBLE)

    objective = _objective(18, 17)
    group = objective.section.dsm.group
    drawn = objective.noise_levels(_batch(2 * STEPS, 0))
    halves = torch.arange(2 * STEPS) % group < group // 2
    p = stats.kstest(drawn[halves].numpy(), lognormal.cdf).pvalue
    yield likely("our draws of the log-normal half", p)
    p = stats.kstest(fraction(drawn[~halves]).numpy(), "uniform").pvalue
    yield likely("our draws of the grid half", p)

    q = golden["dsm_sigma/q"]
    laws: dict[str, Callable[[Tensor], Tensor]] = {
        "lognormal_half": lambda levels: torch.from_numpy(lognormal.cdf(levels)),
        "grid_half": lambda levels: 1 - fraction(levels),  # it falls in its uniform
    }
    for name, cdf in laws.items():
        probability = cdf(golden[f"dsm_sigma/{name}_quantiles"])
        far = float((probability - q).abs().max())
        yield Check(f"dsm_sigma/{name}_quantiles (probability)", far, QUANTILE)
        beyond = float((probability - probability.clamp(0, 1)).abs().max())
        yield Check(f"dsm_sigma/{name}_quantiles beyond the law", beyond, 1e-6)
    moments = [v for half in (ours, curve) for v in (half.log().mean(), half.log().std())]
    stored = golden["dsm_sigma/log_mean_std"]
    far = float((torch.stack(moments) - stored).abs().max())
    yield Check("dsm_sigma/log_mean_std (difference)", far, 0.01)

    # The released code gives floor(B/2) samples of a micro-batch the log-normal law; so does a
    # group of the micro-batch's size. At u = 0.5 that law has 0.301, the other 10.5.
    stored_count = int(golden["dsm_sigma/odd_batch_n_lognormal"])
    size = 2 * stored_count + 1
    middle = torch.full((size,), 0.5, dtype=DOUBLE)
    sigma = schedule.dsm_sigma(middle, torch.arange(size), group=size)
    yield exact("dsm_sigma/odd_batch_n_lognormal", int((sigma < 0.318).sum()), stored_count)


def _numbers(name: str, pattern: str) -> list[int]:
    match = re.search(pattern, name)
    assert match is not None, name
    return [int(number) for number in match.groups()]


def _batch(size: int, step: int) -> Batch:
    return Batch(torch.zeros(size, 1, 1, 1), None, seed=0, step=step)


def _objective(n: int, max_steps: int) -> CtmObjective:
    """CTM's objective with released settings, for its draws alone: its networks are idle."""
    sizes = {"grid_points": n, "max_heun_steps": max_steps}
    section = config.Student.model_validate(sizes | {"training": {"steps": 1, "batch_size": 1}})
    idle = Trajectory(torch.nn.Identity())
    return CtmObjective(
        section=section,
        diffusion=config.Diffusion(),
        student=idle,
        target=idle,
        teacher=idle,
        distance=build_distance("l2"),
    )
