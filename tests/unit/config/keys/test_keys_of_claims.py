"""What the keys of config/claims.yaml change: what is compared, the verdict, what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.results_factory import Results
from fixtures.sections import shows

from ctm_core.config import Cell, Claims, Literature
from ctm_core.report.scores import aggregate, read_evaluations
from ctm_core.report.verdicts import Finding, findings
from ctm_core.report.verdicts.sentences import markdown
from ctm_core.runtime.files import read_json, write_record

ONE, TWO, FULL = Cell("gamma", 1, None), Cell("gamma", 2, 0.0), Cell("gamma", 2, 1.0)
#: Values of three sampling seeds by model and cell; at the teacher's it is clearly worse.
VALUES = {
    ("ctm", ONE): (1.0, 1.1, 1.2),
    ("ctm", TWO): (5.0, 5.1, 5.2),
    ("ctm", FULL): (7.0, 7.1, 7.2),
    ("ctm", FULL._replace(times=(0.8,))): (6.0, 6.1, 6.2),
    ("other", ONE): (9.0, 9.1, 9.2),
}
COMPARISON: dict[str, Any] = {
    "first": {"model": "ctm", "nfe": 1},
    "second": {"model": "ctm", "nfe": 2, "gamma": 0},
    "direction": "lower",
}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    made = Results(tmp_path)
    for model in ("ctm", "other"):
        cells = {cell: seeds for (name, cell), seeds in VALUES.items() if name == model}
        path = made.evaluation(model, dict.fromkeys(cells, 1.0))
        rows = [
            made.score(cell, value, sample_seed=seed)
            for cell, seeds in cells.items()
            for seed, value in enumerate(seeds)
        ]
        write_record(path, read_json(path) | {"rows": rows})
    return made


def asked(*comparisons: dict[str, Any], test: Any = None, **keys: Any) -> Claims:
    tests = [{"experiments": ["digits"], "comparisons": list(comparisons)} | (test or {})]
    claim = {"id": "it", "claim": "It works.", "paper": "table 1", "tests": tests} | keys
    return Claims.model_validate({"claims": [claim]})


def verdict(
    results: Results, claims: Claims | None = None, listed: Literature | None = None, **keys: Any
) -> Finding:
    """The only finding, by default of one comparison with these keys."""
    claims = claims or asked(COMPARISON | keys)
    rows = aggregate(read_evaluations(results.evaluations))
    (finding,) = findings(rows, claims, listed or Literature(groups=()))
    return finding


@shows("Comparison.first", "Comparison.second", "Comparison.direction", "Comparison.factor")
@shows("Comparison.margin")
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "reproduced"),
        ({"direction": "higher"}, "contradicted"),
        ({"direction": "within", "margin": 9.0}, "reproduced"),
        ({"direction": "within", "margin": 0.5}, "contradicted"),
        ({"margin": 4.5}, "contradicted"),
        ({"factor": 0.1}, "contradicted"),
        ({"first": COMPARISON["second"], "second": COMPARISON["first"]}, "contradicted"),
    ],
)
def test_comparison(results: Results, keys: dict[str, Any], expected: str) -> None:
    assert verdict(results, **keys).verdict == expected


@shows("ClaimedCell.times")
@shows("ClaimedCell.model", "ClaimedCell.nfe", "ClaimedCell.gamma", "ClaimedCell.sampler")
@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ({"model": "ctm", "nfe": 1}, 1.1),
        ({"model": "other", "nfe": 1}, 9.1),
        ({"model": "ctm", "nfe": 2, "gamma": 0}, 5.1),
        ({"model": "ctm", "nfe": 2, "gamma": 1}, 7.1),
        ({"model": "ctm", "nfe": 2, "gamma": 1, "times": [0.8]}, 6.1),
        ({"model": "ctm", "sampler": "heun", "nfe": 1}, None),
    ],
)
def test_cell(results: Results, cell: dict[str, Any], value: float | None) -> None:
    made = verdict(results, first=cell, second={"model": "ctm", "nfe": 1})
    if value is None:
        assert (made.verdict, "Heun" in made.why) == ("not testable", True)
    else:
        assert made.compared[0].mean == pytest.approx(value - 1.1)


@shows("Comparison.metric")
def test_metric(results: Results) -> None:
    assert verdict(results, metric="recall").why == "the table has no recall under desk-digits"


@shows("PublishedValue.published")
@pytest.mark.parametrize(("key", "expected"), [("low", "contradicted"), ("high", "reproduced")])
def test_published(results: Results, key: str, expected: str) -> None:
    rows = [
        {"key": name, "method": "M", "values": {"fd": value}, "cost_class": "data"}
        for name, value in (("low", 0.1), ("high", 9.0))
    ]
    group = {
        "source": "S", "dataset": "digits", "protocol": "desk-digits", "confidence": "read",
        "rows": rows,
    }  # fmt: skip
    listed = Literature.model_validate({"groups": [group]})
    claims = asked(COMPARISON | {"second": {"published": key}})
    assert verdict(results, claims, listed).verdict == expected


@shows("Test.experiments", "Claim.needs", "Claim.tests", "Test.comparisons")
def test_experiments(results: Results) -> None:
    assert verdict(results).experiment == "digits"
    assert len(verdict(results, asked(COMPARISON, COMPARISON)).compared) == 2
    elsewhere = asked(COMPARISON, test={"experiments": ["far"]}, needs="a GPU")
    made = verdict(results, elsewhere)
    assert (made.experiment, made.verdict) == ("", "not testable")
    assert made.why == ("it is tested on far, which this table does not have; that needs a GPU")


@shows("Test.protocol")
def test_protocol(results: Results) -> None:
    assert verdict(results).compared[0].protocol == "desk-digits"
    other = asked(COMPARISON, test={"protocol": "desk-digits-lite0"})
    assert verdict(results, other).why.endswith("under desk-digits-lite0")


@shows("Test.note", "Claim.id", "Claim.claim", "Claim.paper", "Claim.kind", "Claims.claims")
def test_what_is_printed(results: Results) -> None:
    plain = markdown([verdict(results)])
    assert "It works. *table 1*" in plain and "a choice" not in plain and "Note" not in plain
    told = asked(
        COMPARISON, test={"note": "Mind this"}, kind="choice", claim="It is.", paper="table 9",
        id="that",
    )  # fmt: skip
    made = verdict(results, told)
    assert made.id == "that"
    text = markdown([made])
    assert "It is. *table 9* (a choice, without an ablation in the paper)" in text
    assert "Note: Mind this." in text
    assert len(findings([], Claims(claims=told.claims + asked(COMPARISON).claims),
                        Literature(groups=()))) == 2  # fmt: skip


@shows("Claim.not_testable")
def test_not_testable(results: Results) -> None:
    claim = {"id": "it", "claim": "C", "paper": "P", "not_testable": "Nobody can"}
    made = verdict(results, Claims.model_validate({"claims": [claim]}))
    assert (made.verdict, made.why) == ("not testable", "Nobody can")
