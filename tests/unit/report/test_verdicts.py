"""Verdicts on the paper's claims: decided by paired differences, and by nothing else."""

from pathlib import Path
from typing import Any

import pytest
from fixtures.results_factory import CTM, Results

from ctm_core.config import Cell, Claims, Literature, load_experiment
from ctm_core.config.claims import ClaimedCell
from ctm_core.report.literature import load_literature
from ctm_core.report.scores import aggregate, read_evaluations
from ctm_core.report.verdicts import Finding, findings, load_claims, read_findings, record
from ctm_core.report.verdicts.sentences import in_one_sentence, markdown, tally
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json, write_record

ROOT = Path(__file__).resolve().parents[3]
NOTHING = Literature(groups=())
ONE, TWO = Cell("gamma", 1, None), Cell("gamma", 2, 0.0)
HEUN = {"model": "teacher", "sampler": "heun", "nfe": 35}


def comparison(**changes: Any) -> dict[str, Any]:
    return {"first": {"model": "ctm", "nfe": 1}, "second": HEUN, "direction": "lower"} | changes


def claims(*comparisons: dict[str, Any], **changes: Any) -> Claims:
    tests = [{"experiments": ["digits"], "comparisons": list(comparisons)}]
    claim = {"id": "it", "claim": "It works.", "paper": "table 1", "tests": tests} | changes
    return Claims.model_validate({"claims": [claim]})


def verdicts(results: Results, asked: Claims, literature: Literature = NOTHING) -> list[Finding]:
    return findings(aggregate(read_evaluations(results.evaluations)), asked, literature)


def values(results: Results, model: str, cell: Cell, *scores: float, step: int = 500) -> None:
    """An evaluation with exactly these values of the sampling seeds 0, 1, ..."""
    path = results.evaluation(model, {cell: 1.0}, step=step)
    rows = [results.score(cell, v, sample_seed=seed) for seed, v in enumerate(scores)]
    write_record(path, read_json(path) | {"rows": rows})


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path)


def test_an_experiment_that_no_claim_names_has_the_verdicts_its_cells_allow(
    results: Results,
) -> None:
    values(results, "ctm", ONE, 1.0, 1.1, 0.9)
    values(results, "teacher", Cell("heun", 35, None), 9.0, 9.1, 8.9)
    made = [comparison(), comparison(first={"model": "cd", "nfe": 1})]
    for experiments, verdict in (
        (["other", "others"], ["reproduced"]),
        (["other"], ["not testable"]),
        (["digits", "others"], ["reproduced", "not testable"]),
    ):
        asked = Claims.model_validate(
            {
                "claims": [
                    {"id": f"c{n}", "claim": "It works.", "paper": "table 1", "tests": [
                        {"experiments": experiments, "comparisons": [one]}
                    ]}
                    for n, one in enumerate(made)
                ]
            }
        )  # fmt: skip
        shown = verdicts(results, asked)
        assert [each.verdict for each in shown][: len(verdict)] == verdict
        assert "others" not in shown[-1].why


# -- the committed claims ------------------------------------------------------------------------


def committed() -> tuple[Claims, Literature]:
    literature = load_literature(ROOT / "config/published.yaml")
    return load_claims(ROOT / "config/claims.yaml", literature), literature


def test_every_committed_claim_says_where_the_paper_makes_it_and_can_be_asked() -> None:
    asked, _ = committed()
    files = {path.stem: path for path in (ROOT / "config/experiments").glob("*.yaml")}
    experiments = {name: load_experiment(path) for name, path in files.items()}
    wanted, lacking = 0, []
    for claim in asked.claims:
        for test in claim.tests:
            for name in test.experiments:
                # digits-full trains every student that a claim names.
                assert name in experiments or name in ("digits-full", "others"), (claim.id, name)
            for name in set(test.experiments) & set(experiments):
                experiment = experiments[name]
                for one in test.comparisons:
                    for cell in (one.first, one.second):
                        known = {*experiment.models, "teacher"}
                        if not isinstance(cell, ClaimedCell) or cell.model not in known:
                            continue
                        wanted += 1
                        fits = [c for c in experiment.cells(cell.model) if cell.fits(c)]
                        if cell.sampler != "ode" and len(fits) != 1:
                            lacking.append((claim.id, name, cell))
    assert wanted > 60 and not lacking


def test_the_default_experiment_is_asked_what_it_can_show() -> None:
    asked, _ = committed()
    ids = {c.id for c in asked.claims if any("digits" in test.experiments for test in c.tests)}
    assert {
        "few-steps-beat-coarse-solver",
        "second-step-improves",
        "gamma0-improves-with-steps",
        "gamma0-beats-gamma1",
        "dsm-helps-many-steps",
        "gan-helps-one-step",
        "beats-cd",
        "trains-without-teacher",
        "likelihood-beats-teacher",
    } <= ids
    untestable = {claim.id for claim in asked.claims if claim.not_testable}
    assert {"fewer-training-steps", "classifier-rejection"} <= untestable


def test_every_committed_claim_gets_a_verdict(tmp_path: Path) -> None:
    asked, literature = committed()
    found = verdicts(Results(tmp_path).default(), asked, literature)
    assert {finding.id for finding in found} == {claim.id for claim in asked.claims}
    by_id = {finding.id: finding for finding in found}
    assert by_id["few-steps-beat-coarse-solver"].verdict == "reproduced"
    assert by_id["gamma1-degrades-with-steps"].verdict == "contradicted"  # 8.8 after 9.4
    assert by_id["beats-cd"].verdict == "not testable"
    assert "no FD of cd at NFE 1" in by_id["beats-cd"].why
    released = by_id["released-cifar10-cond"]
    assert (released.verdict, released.experiment) == ("not testable", "")
    assert "the authors' weights" in released.why


# -- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "first", "second", "verdict"),
    [
        ({}, (1.0, 11.0, 21.0), (2.0, 12.1, 22.2), "reproduced"),  # the seeds' part cancels
        ({}, (2.0, 12.1, 22.2), (1.0, 11.0, 21.0), "contradicted"),
        ({}, (1.0, 3.0, 2.0), (2.0, 2.0, 2.1), "undecided"),
        ({}, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), "undecided"),
        ({"factor": 0.5}, (0.9, 1.0, 1.1), (2.3, 2.4, 2.6), "reproduced"),
        ({"factor": 0.5}, (1.3, 1.4, 1.5), (2.3, 2.4, 2.6), "contradicted"),
        ({"margin": 0.5}, (1.0, 1.1, 1.2), (1.4, 1.5, 1.6), "contradicted"),
        ({"direction": "higher"}, (2.0, 2.1, 2.2), (1.0, 1.0, 1.1), "reproduced"),
        ({"direction": "higher", "margin": 2.0}, (2.0, 2.1, 2.2), (1.0, 1.0, 1.1), "contradicted"),
        ({"direction": "within", "margin": 0.5}, (2.0, 2.1, 2.2), (1.9, 2.1, 2.3), "reproduced"),
        (
            {"direction": "within", "margin": 0.05},
            (2.0, 2.1, 2.2),
            (1.0, 1.1, 1.3),
            "contradicted",
        ),
        ({"direction": "within", "margin": 0.05}, (2.0, 2.1, 2.2), (1.9, 2.1, 2.3), "undecided"),
        ({}, (1.0,), (9.0,), "undecided"),
    ],
)
def test_the_paired_interval_decides(
    results: Results,
    changes: dict[str, Any],
    first: tuple[float, ...],
    second: tuple[float, ...],
    verdict: str,
) -> None:
    values(results, "ctm", ONE, *first)
    values(results, "teacher", Cell("heun", 35, None), *second)
    (finding,) = verdicts(results, claims(comparison(**changes)))
    assert finding.verdict == verdict
    (one,) = finding.compared
    factor = changes.get("factor", 1.0)
    expected = sum(first) / len(first) - factor * sum(second) / len(second)
    assert one.mean == pytest.approx(expected)
    assert one.method == ("sampling_seeds" if len(first) > 1 else "")
    assert bool(one.why) == (len(first) == 1)


@pytest.mark.parametrize(
    ("last", "verdict"), [(8.0, "reproduced"), (9.4, "undecided"), (9.9, "contradicted")]
)
def test_a_claim_holds_if_all_its_comparisons_do(
    results: Results, last: float, verdict: str
) -> None:
    results.evaluation("ctm", CTM | {Cell("gamma", 4, 0.0): last})
    results.evaluation("teacher", {Cell("heun", 35, None): 99.0})
    asked = claims(
        comparison(),
        comparison(
            first={"model": "ctm", "nfe": 4, "gamma": 0}, second={"model": "ctm", "nfe": 1}
        ),
    )
    (finding,) = verdicts(results, asked)
    assert [one.verdict for one in finding.compared] == ["reproduced", verdict]
    assert finding.verdict == verdict


def test_seeds_that_do_not_match_decide_nothing(results: Results) -> None:
    values(results, "ctm", ONE, 1.0, 1.1, 1.2)
    results.sample_seeds = (7, 8, 9)
    results.evaluation("teacher", {Cell("heun", 35, None): 99.0})
    (finding,) = verdicts(results, claims(comparison()))
    assert finding.verdict == "undecided"
    assert "no sampling seed in common" in finding.compared[0].why
    assert "no sampling seed in common" in markdown([finding])


def test_the_last_step_and_the_main_protocol_speak(results: Results) -> None:
    results.evaluation("ctm", {ONE: 500.0}, step=100)
    results.evaluation("ctm", pooled=[ONE])
    results.evaluation("teacher", pooled=[Cell("heun", 35, None)])
    (finding,) = verdicts(results, claims(comparison(factor=3.0)))
    assert finding.verdict == "reproduced"
    assert finding.compared[0].protocol == "desk-digits"
    assert finding.compared[0].metric == results.metric
    pooled = claims(comparison())
    test = pooled.claims[0].tests[0].model_copy(update={"protocol": "desk-digits-lite0"})
    claim = pooled.claims[0].model_copy(update={"tests": (test,)})
    (finding,) = verdicts(results, Claims(claims=(claim,)))
    assert finding.compared[0].metric == "fd_efficientnet_lite0_3072"


def test_what_the_table_lacks_is_told_and_not_guessed(results: Results) -> None:
    results.evaluation("ctm")
    (finding,) = verdicts(results, claims(comparison()))
    assert finding.verdict == "not testable"
    assert finding.why == "the table has no FD of teacher at NFE 35"
    likelihood = comparison(
        metric="bpd",
        first={"model": "ctm", "sampler": "ode"},
        second={"model": "teacher", "sampler": "ode"},
    )
    (finding,) = verdicts(results, claims(likelihood))
    assert finding.why == "the table has no bpd under desk-digits"
    other = claims(comparison())
    results.experiment = "other"
    results.evaluations.clear()
    results.evaluation("ctm")
    (finding,) = verdicts(results, other)
    assert (finding.verdict, finding.experiment) == ("not testable", "")
    assert "it is tested on digits, which this table does not have" in finding.why


def test_bits_per_dimension_are_found_at_whatever_evaluations_it_took(results: Results) -> None:
    results.metric = "bpd_32"
    values(results, "ctm", Cell("ode", 57, None), 3.0, 3.1, 3.2)
    values(results, "teacher", Cell("ode", 63, None), 3.3, 3.4, 3.6)
    likelihood = comparison(
        metric="bpd",
        first={"model": "ctm", "sampler": "ode"},
        second={"model": "teacher", "sampler": "ode"},
    )
    (finding,) = verdicts(results, claims(likelihood))
    assert finding.verdict == "reproduced"
    assert finding.compared[0].text == "bpd of ctm lower than teacher"


# -- published values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "protocol", "verdict"),
    [
        (1.74, "edm-cifar10", "reproduced"),
        (1.99, "edm-cifar10", "contradicted"),
        (1.78, "edm-cifar10", "undecided"),
        (1.74, "clean-cifar10", "not testable"),
    ],
)
def test_a_printed_value_is_met_within_its_margin_under_its_protocol(
    tmp_path: Path, value: float, protocol: str, verdict: str
) -> None:
    asked, literature = committed()
    results = Results(
        tmp_path, experiment="cifar10-cond-released", metric="fid", protocol=protocol, spread=0.01
    )
    results.evaluation("ctm_gan", {ONE: value, TWO: 1.63}, dataset="cifar10")
    found = verdicts(results, asked, literature)
    (finding,) = [finding for finding in found if finding.id == "released-cifar10-cond"]
    assert finding.verdict == verdict
    if verdict == "not testable":
        assert finding.why == "the published value is not a FID under clean-cifar10"


# -- files ---------------------------------------------------------------------------------------


def test_claims_survive_their_file_and_are_told(tmp_path: Path) -> None:
    asked, literature = committed()
    found = verdicts(Results(tmp_path).default(), asked, literature)
    write_record(tmp_path / "claims.json", record(found))
    assert read_findings(tmp_path / "claims.json") == found
    (tmp_path / "claims.json").write_text('{"claims": [{"id": "a"}]}')
    with pytest.raises(UserError, match=r"claims\.json: the key .* is missing"):
        read_findings(tmp_path / "claims.json")
    count = tally(found)
    assert sum(count.values()) == len(found) and count["reproduced"] == 7
    own = [finding for finding in found if finding.experiment == "digits"]
    assert in_one_sentence(own) == (
        "Of 8 claims tested here, 7 are reproduced, 1 is contradicted and 0 are undecided."
    )
    assert in_one_sentence([]) == "None of the paper's claims can be tested with this table."
    text = markdown(found)
    assert all(finding.claim in text for finding in found)
    line = next(line for line in text.splitlines() if line.startswith("| With one or two"))
    assert "**reproduced**" in line and "| -104.10 [-104.22, -103.98] ‡ |" in line


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"not_testable": "why"}, "it needs either tests or not_testable, and not both"),
        ({"tests": []}, "it needs either tests or not_testable, and not both"),
        ({"where": "table 1"}, "where"),
        ({"tests": [{"experiments": ["a"], "comparisons": []}]}, "comparisons"),
    ],
)
def test_mistakes_in_claims_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        claims(comparison(), **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"direction": "within"}, "`within` needs a margin above 0"),
        ({"first": {"model": "ctm", "nfe": 2}}, "needs a gamma"),
        ({"first": {"model": "ctm", "nfe": 1, "gamma": 0}}, "has no gamma here"),
        ({"first": {"model": "ctm"}}, "nfe is left out for the sampler ode"),
        ({"factor": 0}, "greater than 0"),
        ({"metric": "memorisation"}, "metric"),
    ],
)
def test_mistakes_in_comparisons_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        claims(comparison(**changes))


def test_a_claim_that_names_no_published_value_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(
        "claims: [{id: a, claim: b, paper: c, tests: [{experiments: [digits], comparisons: ["
        "{first: {model: ctm, nfe: 1}, second: {published: nobody}, direction: lower}]}]}]\n"
    )
    with pytest.raises(UserError, match="a compares with the published value nobody, which"):
        load_claims(path, NOTHING)
