"""Trajectory errors of models against the exact model of a mixture."""

from itertools import pairwise

import pytest
import torch

from ctm_core.config import Cell
from ctm_core.diffusion.gaussian import exact_model, three_modes
from ctm_core.diffusion.sampling import sample
from ctm_core.evaluation.distillation import Noises, errors, jumps, steps
from ctm_core.runtime.errors import UserError

DIFFUSION = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
JUMP = Cell("gamma", 1, None)


def noises(count=24, **keys):
    given = {"seeds": (0,), "batch_size": 16, "points": 48} | keys
    return Noises(count, shape=(1, 1, 2), classes=0, diffusion=DIFFUSION, **given)


def cell_errors(model, teacher, cells, given):
    return errors(model, teacher, cells, (), given)[0][0]


@pytest.fixture(scope="module")
def teacher():
    return exact_model(three_modes(), tolerance=1e-6)


def bent(by):
    """The exact model with its raw output moved."""
    model = exact_model(three_modes(), tolerance=1e-6)
    with torch.no_grad():
        model.model.output_weight += by
    return model


def test_steps_are_those_of_the_samplers():
    assert steps(JUMP, DIFFUSION) == [(80.0, 0.002)]
    assert steps(Cell("euler", 1, None), DIFFUSION) == [(80.0, 0.0)]
    four = steps(Cell("gamma", 4, 0.0), DIFFUSION)
    assert len(four) == 4 and four[0][0] == 80.0 and four[-1][1] == 0.002
    assert all(one[1] == pytest.approx(two[0]) for one, two in pairwise(four))
    fresh = steps(Cell("gamma", 4, 1.0), DIFFUSION)
    assert {s for _, s in fresh} == {0.002} and [t for t, _ in fresh] == [t for t, _ in four]
    # 2n - 1 evaluations on n points: n - 1 steps between them, the one to 0 left out.
    assert len(steps(Cell("heun", 9, None), DIFFUSION)) == 4
    assert len(steps(Cell("euler", 9, None), DIFFUSION)) == 8


def test_the_exact_model_makes_no_error_beyond_that_of_the_solve(teacher):
    cells = [JUMP, Cell("gamma", 4, 0.5), Cell("gamma_paper", 3, 1.0)]
    coarse, fine = (
        cell_errors(teacher, teacher, cells, noises(points=points)) for points in (32, 128)
    )
    for cell in cells:
        assert fine[cell].value < 1e-3
        assert fine[cell].value < coarse[cell].value / 6


def test_solvers_err_by_their_order(teacher):
    # A single step of length h, from the exact state, errs by h² or by h³.
    cells = [Cell("euler", n, None) for n in (41, 81)] + [Cell("heun", n, None) for n in (81, 161)]
    found = cell_errors(teacher, teacher, cells, noises(points=512))
    euler, euler_finer, heun, heun_finer = (found[cell].value for cell in cells)
    assert euler / euler_finer == pytest.approx(4, rel=0.25)
    assert heun / heun_finer == pytest.approx(8, rel=0.25)


def test_one_step_from_noise_is_the_samplers_own(teacher):
    # With one step there is no other way to land: the error is that of samples against the path.
    model, given = bent(0.1), noises(batch_size=24)
    found = cell_errors(model, teacher, [JUMP], given)[JUMP].value
    ((latents, _, _),) = given.batches()
    options = {"sampler": "gamma", "nfe": 1, "latents": latents, "clamp": False}
    exact = three_modes().flow(latents.double() * 80.0, 80.0, 0.002, 1e-9)
    drawn = sample(model, **options).double()
    assert found == pytest.approx(float((drawn - exact).square().mean().sqrt()), rel=1e-2)


def test_a_worse_model_has_larger_errors_and_every_jump_is_listed(teacher):
    pairs = jumps(4, DIFFUSION)
    assert len(pairs) == 6
    assert [s for _, s in jumps(4, DIFFUSION, end=0.0)] == [0.0] * 3
    little, much = (errors(bent(by), teacher, (), pairs, noises())[1] for by in (0.05, 0.2))
    assert [(one["t"], one["s"]) for one in little] == pairs
    assert all(one["error"] < two["error"] for one, two in zip(little, much, strict=True))


@pytest.mark.parametrize("batch_size", [5, 24, 40])
def test_batches_do_not_matter(teacher, batch_size):
    usual = cell_errors(bent(0.1), teacher, [JUMP], noises())[JUMP]
    found = cell_errors(bent(0.1), teacher, [JUMP], noises(batch_size=batch_size))[JUMP]
    assert found == pytest.approx(usual, rel=1e-4) and found.freedom == 23


def test_seeds_share_batches_and_each_has_its_own_error(teacher):
    alone = [
        cell_errors(bent(0.1), teacher, [JUMP], noises(seeds=(seed,)))[JUMP] for seed in (0, 3)
    ]
    both = noises(seeds=(0, 3), batch_size=32)
    assert [used for *_, used in both.batches()] == [32, 16]
    found, _ = errors(bent(0.1), teacher, [JUMP], (), both)
    assert [own[JUMP] for own in found] == [pytest.approx(each, rel=1e-4) for each in alone]
    assert alone[0].value != pytest.approx(alone[1].value, rel=1e-3)


def test_broken_weights_are_named(teacher):
    with pytest.raises(UserError, match="NaN or infinity"):
        cell_errors(bent(torch.nan), teacher, [JUMP], noises())
