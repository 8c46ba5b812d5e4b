"""Sentences that follow from the table and change with it."""

from pathlib import Path

import pytest
from fixtures.results_factory import CTM, TEACHER, Results

from ctm_core.config import Cell
from ctm_core.headline import answer, effects, findings
from ctm_core.scores import Row, aggregate, read_evaluations


def rows_of(results: Results) -> list[Row]:
    return aggregate(read_evaluations(results.evaluations))


def test_claims_about_the_default_experiment(tmp_path: Path) -> None:
    found = findings(rows_of(Results(tmp_path).default()), "digits")
    assert [(finding.claim, finding.verdict, finding.required) for finding in found] == [
        ("ctm at NFE 1 has less than half the teacher's FD at NFE 3", "yes", True),
        ("ctm at NFE 1 has less than half the teacher's FD at NFE 5", "yes", True),
        ("ctm at NFE 1 has a lower FD than the teacher at NFE 9", "yes", True),
        ("ctm at NFE 1 has a lower FD than the teacher at NFE 35", "no", False),
        ("ctm at NFE 2, γ = 0 has less than half the teacher's FD at NFE 3", "yes", True),
        ("ctm at NFE 2, γ = 0 has less than half the teacher's FD at NFE 5", "yes", True),
        ("ctm at NFE 2, γ = 0 has a lower FD than the teacher at NFE 9", "yes", True),
        ("ctm at NFE 2, γ = 0 has a lower FD than the teacher at NFE 35", "no", False),
        (
            "ctm at its best (NFE 8, γ = 0.5) is within 3 times the teacher's FD at NFE 35",
            "yes",
            True,
        ),
    ]
    assert found[2].evidence == "9.40 [9.15, 9.65] against 27.00 [26.75, 27.25]: 2.9 times lower"
    assert found[3].evidence.endswith("2.5 times higher")
    assert answer(found) == "yes"


@pytest.mark.parametrize(
    ("one_step", "verdicts", "expected"),
    [
        (57.0, ("yes", "yes", "no"), "partly"),
        (57.5, ("yes", "undecided", "no"), "partly"),
        (27.0, ("yes", "yes", "undecided"), "undecided"),
        (500.0, ("no", "no", "no"), "partly"),
    ],
)
def test_verdicts_follow_the_intervals(
    tmp_path: Path, one_step: float, verdicts: tuple[str, ...], expected: str
) -> None:
    results = Results(tmp_path)
    results.evaluation("teacher")
    results.evaluation("ctm", CTM | {Cell("gamma", 1, None): one_step})
    found = findings(rows_of(results), "digits")
    assert tuple(finding.verdict for finding in found[:3]) == verdicts
    assert answer(found) == expected


def test_a_method_that_fails_everywhere_is_answered_no(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.evaluation("teacher")
    results.evaluation("ctm", dict.fromkeys(CTM, 500.0))
    found = findings(rows_of(results), "digits")
    assert {finding.verdict for finding in found} == {"no"}
    assert answer(found) == "no"


def test_without_intervals_nothing_is_decided(tmp_path: Path) -> None:
    results = Results(tmp_path, sample_seeds=(0,))
    results.evaluation("teacher")
    results.evaluation("ctm")
    found = findings(rows_of(results), "digits")
    assert {finding.verdict for finding in found} == {"undecided"}
    assert answer(found) == "undecided"
    assert "without intervals" in found[0].evidence


def test_only_cells_of_the_table_are_compared(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.evaluation("teacher", {Cell("heun", 3, None): TEACHER[Cell("heun", 3, None)]})
    results.evaluation("ctm", {Cell("gamma", 1, None): 9.4})
    rows = rows_of(results)
    assert [finding.claim for finding in findings(rows, "digits")] == [
        "ctm at NFE 1 has less than half the teacher's FD at NFE 3"
    ]
    assert findings(rows, "other") == []
    assert answer([]) == "nothing"


def test_the_last_step_is_the_one_that_speaks(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.evaluation("teacher")
    results.evaluation("ctm", step=100, shift=1000.0)
    results.evaluation("ctm", step=500)
    assert answer(findings(rows_of(results), "digits")) == "yes"


def test_effects_compare_cells_that_differ_in_one_thing(tmp_path: Path) -> None:
    found = effects(rows_of(Results(tmp_path).default()), "digits")
    told = {(effect.first, effect.second): effect.outcome for effect in found}
    assert told["ctm, NFE 8, γ = 0", "ctm, NFE 8, γ = 1"] == "lower"
    assert told["ctm, NFE 4, γ = 0", "ctm, NFE 4, γ = 1"] == "lower"  # seed by seed
    assert told["ctm, NFE 8, γ = 1", "ctm, NFE 4, γ = 1"] == "higher"
    assert told["ctm, NFE 2, γ = 0", "ctm, NFE 1"] == "lower"
    assert told["ctm, NFE 1", "ctm_nodsm, NFE 1"] == "lower"
    assert [effect.group for effect in found] == ["γ"] * 3 + ["NFE"] * 9 + ["student"] * 4
    assert effects(rows_of(Results(tmp_path / "none", experiment="x").default()), "digits") == []
