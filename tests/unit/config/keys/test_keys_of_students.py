"""What the keys of a student change: its objective, its networks, its loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.one_step import Lab, Run
from fixtures.sections import shows
from torch import nn

from ctm_core import config
from ctm_core.config import dag
from ctm_core.config.objective_traits import objectives
from ctm_core.diffusion import randomness, schedule, solvers
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors
from ctm_core.training import distances
from ctm_core.training.batches import Batch
from ctm_core.training.objectives.ctm import CtmObjective

SCRATCH = {"objective": "ctm_scratch", "dsm": {"adaptive": False}}


def student(**keys: Any) -> dict[str, Any]:
    return {f"models.ctm.{key}": value for key, value in keys.items()}


def objective(run: Run) -> CtmObjective:
    assert isinstance(run.trainer.objective, CtmObjective)
    return run.trainer.objective


def passes(run: Run) -> dict[str, int]:
    return dict(run.record["forward_passes"])


def draws(run: Run) -> list[Any]:
    return [objective(run).draw(batch) for batch in run.batches]


@shows("Student.objective", "Experiment.models")
@pytest.mark.parametrize("name", objectives())
def test_objective(lab: Lab, name: str) -> None:
    changes = tiny.of_objective(name) | {"models.ctm.training.steps": 1}
    forks = "models.ctm.init_from" in changes
    names = ("init", "init_average") if forks else ()
    files = dict.fromkeys(names, lab.plain.folder / "teacher.safetensors")
    made = lab.train("ctm", changes, **files)
    assert made.record["objective"] == name
    known = made.trainer.objective.section.traits  # type: ignore[attr-defined]
    assert (passes(made).get("teacher", 0) > 0) == known.teacher
    assert made.trainer.student.time_s == known.time_s
    assert ("dsm" in made.curve[0]) == (known.dsm and known.ctm_loss)


@shows("Student.matching")
@pytest.mark.parametrize("matching", ["local", "soft", "global"])
def test_matching(lab: Lab, matching: str) -> None:
    made = lab.train("ctm", student(matching=matching, grid_points=6))
    solved = {
        "local": lambda d: 2 * len(d.i),
        "soft": lambda d: 2 * d.k * len(d.i),
        "global": lambda d: int(2 * (d.j - d.i).sum()),
    }[matching]
    assert passes(made)["teacher"] == sum(map(solved, draws(made)))
    images = torch.zeros(1, 1, 8, 8)
    drawn = [objective(made).draw(Batch(images, None, seed=0, step=step)).k for step in range(60)]
    assert set(drawn) == ({1} if matching == "local" else {1, 2, 3, 4, 5})


@shows("Student.grid_points")
@pytest.mark.parametrize("points", [4, 7])
def test_grid_points(lab: Lab, points: int) -> None:
    made = objective(lab.train("ctm", student(grid_points=points)))
    assert torch.equal(made.grid, schedule.karras_grid(points))


@shows("Student.max_heun_steps")
@pytest.mark.parametrize("most", [1, 3, None])
def test_max_heun_steps(lab: Lab, most: int | None) -> None:
    made = objective(lab.train("ctm", student(grid_points=9, max_heun_steps=most or 8)))
    images = torch.zeros(1, 1, 8, 8)
    drawn = [made.draw(Batch(images, None, seed=0, step=step)).k for step in range(60)]
    assert max(drawn) == (most or 8)


@shows("Student.solver")
@pytest.mark.parametrize("solver", ["ab2", "dpmpp_2m"])
@pytest.mark.parametrize("matching", ["soft", "global"])
def test_solver(lab: Lab, solver: str, matching: str) -> None:
    made = lab.train("ctm", student(solver=solver, matching=matching, grid_points=6))
    steps = [torch.full_like(d.i, d.k) if matching == "soft" else d.j - d.i for d in draws(made)]
    assert passes(made)["teacher"] == sum(int((k + (k > 0)).sum()) for k in steps)
    one = objective(made)
    grid = one.grid.float()
    assert one.teacher is not None
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    i, k = torch.tensor([0, 2, 1, 4]), torch.tensor([5, 0, 3, 1])
    labels = torch.arange(4) if made.trainer.student.label_dim else None
    together = one.solve(x, grid, i, k, labels)
    for row in range(4):
        y = None if labels is None else labels[row : row + 1]
        alone, before = x[row : row + 1], None
        for n in range(int(i[row]), int(i[row] + k[row])):
            denoise = partial(one.teacher.denoise, y=y)
            t, t_next = grid[n : n + 1], grid[n + 1 : n + 2]
            alone, kept = solvers.multistep(solver, denoise, alone, t, t_next, before)
            before = kept, t
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@shows("Student.target_inner", "Student.variant", "Experiment.variant")
@pytest.mark.parametrize(
    ("changes", "live"),
    [
        (student(target_inner="model"), True),
        (student(target_inner="ema"), False),
        (student(variant="released"), True),
        (student(variant="printed"), False),
        ({"variant": "printed"}, False),
    ],
)
def test_target_inner(lab: Lab, changes: dict[str, Any], live: bool) -> None:
    made = lab.train("ctm", {**changes, **student(grid_points=6)})
    inner = sum(int((d.j > d.i + d.k).sum()) for d in draws(made))
    outer = sum(int((d.j < 5).sum()) for d in draws(made))
    assert inner > 0
    # Twice for the denoising loss; the outer map of the estimate and of the target.
    assert passes(made)["student"] == 2 * 16 + (inner if live else 0)
    assert passes(made)["target"] == 2 * outer + (0 if live else inner)


@shows("Student.target_ema")
@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_target_ema(lab: Lab, decay: float) -> None:
    made = lab.train("ctm", {**student(target_ema=decay), "models.ctm.training.steps": 1})
    target = dict(objective(made).target.named_parameters())
    for name, value in target.items():
        expected = decay * made.before[name] + (1 - decay) * made.after[0][name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


@shows("Student.scratch_solver")
@pytest.mark.parametrize("solver", ["jump", "heun"])
def test_scratch_solver(lab: Lab, solver: str) -> None:
    made = lab.train("ctm", student(**SCRATCH, scratch_solver=solver, grid_points=6))
    outer = sum(int((d.j < 5).sum()) for d in draws(made))
    solved = sum(len(d.i) * (2 * d.k if solver == "heun" else 1) for d in draws(made))
    assert passes(made)["target"] == 2 * outer + solved
    assert passes(made)["teacher"] == 0


@shows("Student.distance")
@pytest.mark.parametrize("name", ["l2", "pseudo_huber"])
def test_distance(lab: Lab, name: str) -> None:
    made = objective(lab.train("ctm", student(distance=name)))
    assert type(made.distance).__module__.endswith(f".distances.{name}")
    a, b = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    c = 0.00054 * 64**0.5
    expected = 1.0 if name == "l2" else (64 + c**2) ** 0.5 - c
    assert made.distance(a, b).item() == pytest.approx(expected, rel=1e-4)


@shows("Student.perceptual", "Perceptual.resize", "Perceptual.pooling")
@pytest.mark.parametrize(("resize", "pooling"), [(32, "average"), (64, "max")])
def test_perceptual(resize: int, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctm_core.training.distances.lpips_vgg import LpipsVgg

    monkeypatch.setattr(LpipsVgg, "read_weights", lambda self: None)
    section = config.Perceptual.model_validate({"resize": resize, "pooling": pooling})
    made = distances.build_distance("lpips_vgg", section)
    pools = {type(m) for m in made.modules() if isinstance(m, nn.AvgPool2d | nn.MaxPool2d)}
    assert pools == {nn.AvgPool2d if pooling == "average" else nn.MaxPool2d}
    features = made.features(torch.zeros(1, 3, 16, 16))
    assert [f.shape[-1] for f in features] == [resize // 2**stage for stage in range(5)]


# -- denoising ------------------------------------------------------------------------------------


@shows("Student.dsm", "Dsm.enabled")
@pytest.mark.parametrize("enabled", [True, False])
def test_dsm_enabled(lab: Lab, enabled: bool) -> None:
    (line, *_) = lab.train("ctm", student(dsm={"enabled": enabled})).curve
    assert ("dsm" in line) == enabled
    added = line["lambda_dsm"] * line["dsm"] if enabled else 0.0
    assert line["loss"] == pytest.approx(line["ctm"] + added, rel=1e-5)


@shows("Dsm.adaptive", "Dsm.weight")
def test_dsm_weight(lab: Lab) -> None:
    for weight in (0.5, 2.0):
        fixed = lab.train("ctm", student(dsm={"adaptive": False, "weight": weight})).curve[0]
        assert fixed["lambda_dsm"] == weight
        assert fixed["loss"] == pytest.approx(fixed["ctm"] + weight * fixed["dsm"], rel=1e-5)
    one, three = (
        lab.train("ctm", student(dsm={"weight": weight})).curve[0]["lambda_dsm"]
        for weight in (1.0, 3.0)
    )
    assert one != 1.0 and three == pytest.approx(3 * one, rel=1e-5)


@shows("Dsm.p_mean", "Dsm.p_std", "Dsm.uniform_max", "Dsm.group")
@pytest.mark.parametrize(
    "keys", [{}, {"p_mean": 0.5}, {"p_std": 0.3}, {"uniform_max": 0.2}, {"group": 4}]
)
def test_noise_levels_of_dsm(lab: Lab, keys: dict[str, Any]) -> None:
    made = lab.train("ctm", {**student(dsm=keys), "models.ctm.training.steps": 1})
    dsm = {"p_mean": -1.2, "p_std": 1.2, "uniform_max": 0.7, "group": 2} | keys
    u = randomness.uniform(0, "dsm_sigma", 0, 0, 8)
    law = (dsm["p_mean"] + dsm["p_std"] * torch.special.ndtri(u)).exp()
    a, b = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    curve = (a + u * dsm["uniform_max"] * (b - a)) ** 7
    first = torch.tensor([i % dsm["group"] < dsm["group"] // 2 for i in range(8)])
    levels = objective(made).noise_levels(made.batches[0])
    torch.testing.assert_close(levels, torch.where(first, law, curve))


@shows("Student.lambda_scope")
@pytest.mark.parametrize(("scope", "weights"), [("microbatch", 2), ("global", 1)])
def test_lambda_scope(lab: Lab, scope: str, weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lambdas = []
    backward = CtmObjective.backward

    def watched(self: CtmObjective, *arguments: Any) -> dict[str, float]:
        terms = backward(self, *arguments)
        lambdas.append(terms["lambda_dsm"])
        return terms

    monkeypatch.setattr(CtmObjective, "backward", watched)
    short = {"models.ctm.training.steps": 1, "models.ctm.training.micro_batch": 4}
    lab.train("ctm", {**student(lambda_scope=scope), **short})
    assert len(lambdas) == 2 and len(set(lambdas)) == weights


# -- where it starts ------------------------------------------------------------------------------


@shows("Student.initial")
def test_initial(lab: Lab) -> None:
    theirs = load_tensors(lab.plain.folder / "teacher.safetensors")[0]
    shared = [name for name in theirs if "map_" not in name]
    for initial, same in (("teacher", True), ("random", False)):
        made = lab.train("ctm", {**student(initial=initial), "models.ctm.training.steps": 1})
        assert (
            all(torch.equal(made.before[n], theirs[n]) for n in shared if n in made.before) == same
        )


@shows("Student.init_from", "Fork.model", "Fork.step")
def test_init_from(lab: Lab) -> None:
    fork = tiny.describe()["models"]["ctm"] | {"init_from": {"model": "ctm", "step": 1}}
    changes = {
        "models.gan": fork,
        "models.ctm.training.snapshots": [1],
        "evaluation.samplers.gan": [{"sampler": "gamma", "nfe": [1]}],
    }
    parent = lab.train("ctm", changes)
    live, average = (parent.folder / f"{n}-00000001.safetensors" for n in ("live", "snapshot"))
    with pytest.raises(UserError, match="gan needs --init FILE, because of init_from"):
        lab.train("gan", changes)
    made = lab.train("gan", changes, init=live, init_average=average)
    for name, value in made.before.items():
        assert torch.equal(value, parent.after[0][name])
    for model, step in (("ctm", 1), ("other", 2)):
        more = changes | {
            "models.other": tiny.describe()["models"]["ctm"]
            | {"training": tiny.TRAINING | {"steps": 2}},
            "evaluation.samplers.other": [{"sampler": "gamma", "nfe": [1]}],
        }
        more["models.gan"] = fork | {"init_from": {"model": model, "step": step}}
        job = dag.training(tiny.experiment(more | {"models.ctm.training.steps": 2}), "gan", 0)
        assert job.reads["init"] == f"results/tiny/{model}/seed-0/live-{step:08d}.safetensors"
