"""Pairs of cells that differ in one thing."""

from pathlib import Path

from fixtures.results_factory import CTM, Results

from ctm_core.config import Cell
from ctm_core.report.headline import effects
from ctm_core.report.scores import Row, aggregate, read_evaluations


def rows_of(results: Results) -> list[Row]:
    return aggregate(read_evaluations(results.evaluations))


def test_effects_compare_cells_that_differ_in_one_thing(tmp_path: Path) -> None:
    found = effects(rows_of(Results(tmp_path).default()), "digits")
    outcomes = {(effect.first, effect.second): effect.outcome for effect in found}
    assert outcomes["ctm, NFE 8, γ = 0", "ctm, NFE 8, γ = 1"] == "lower"
    assert outcomes["ctm, NFE 4, γ = 0", "ctm, NFE 4, γ = 1"] == "lower"  # seed by seed
    assert outcomes["ctm, NFE 8, γ = 1", "ctm, NFE 4, γ = 1"] == "higher"
    assert outcomes["ctm, NFE 2, γ = 0", "ctm, NFE 1"] == "lower"
    assert outcomes["ctm, NFE 1", "ctm_nodsm, NFE 1"] == "lower"
    assert [effect.group for effect in found] == ["γ"] * 3 + ["NFE"] * 9 + ["student"] * 4
    assert effects(rows_of(Results(tmp_path / "none", experiment="x").default()), "digits") == []


def test_times_are_compared_with_the_grid(tmp_path: Path) -> None:
    results = Results(tmp_path)
    own = {Cell("gamma", 2, gamma, (0.8,)): 5.0 + gamma for gamma in (0.0, 1.0)}
    results.evaluation("ctm", CTM | own)
    results.evaluation("ctm_nodsm", {Cell("gamma", 2, 0.0): 8.0, Cell("gamma", 2, 0.0, (0.8,)): 6})
    made = effects(rows_of(results), "digits")
    assert [effect.group for effect in made].count("γ") == 4
    outcomes = {(effect.first, effect.second): effect.outcome for effect in made}
    assert outcomes["ctm, NFE 2, γ = 0 (σ = 0.8)", "ctm, NFE 2, γ = 0"] == "lower"
    assert outcomes["ctm, NFE 2, γ = 0 (σ = 0.8)", "ctm, NFE 2, γ = 1 (σ = 0.8)"] == "lower"
    assert outcomes["ctm, NFE 2, γ = 0 (σ = 0.8)", "ctm_nodsm, NFE 2, γ = 0 (σ = 0.8)"] == "lower"
    plain = [pair for effect in made if effect.group == "NFE" for pair in (effect.first,)]
    assert len(plain) == 9 and not any("σ" in name for name in plain)
