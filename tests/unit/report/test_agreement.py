"""`ctm compare`: runs that are the reference's, and mistakes, each by where it shows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fixtures.results_factory import CTM, MODELS, Results, digest

from ctm_core.cli.command import cli
from ctm_core.config import Cell
from ctm_core.report.agreement import Agreement, compared_in
from ctm_core.report.agreement.reference_runs import read_reference, write_reference
from ctm_core.report.agreement.side_by_side import pairs_of
from ctm_core.report.tables import write_tables
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import (
    read_json,
    read_record,
    sha256_file,
    write_json,
    write_record,
    write_text,
)

STEPS = 300
Edit = Callable[[str, Cell], float]


def made(
    root: Path,
    machine: str,
    seeds: Mapping[str, tuple[int, ...]],
    *,
    factor: Edit = lambda model, cell: 1.0,
    losses: Callable[[str, dict[str, float]], dict[str, float]] = lambda model, line: line,
    **changes: Any,
) -> Path:
    """Results of a machine: values scatter between trainings, and less between machines."""
    results = Results(root / machine)
    for model, cells in MODELS.items():
        for seed in seeds.get(model, ()):
            training = generator(model, seed)
            rounding = generator(model, seed, machine)
            own = {
                cell: value
                * factor(model, cell)
                * math.exp(0.05 * training.standard_normal() + 0.01 * rounding.standard_normal())
                for cell, value in cells.items()
            }
            results.evaluation(model, own, step=STEPS, train_seed=seed, previews=False, **changes)
            curve = results.training(model, seed=seed, steps=STEPS)
            lines = [json.loads(line) for line in curve.read_text().splitlines()]
            kept = [losses(model, line) for line in lines]
            noise = math.exp(0.002 * rounding.standard_normal())
            kept = [{k: v if k == "step" else v * noise for k, v in line.items()} for line in kept]
            write_text(curve, "\n".join(map(json.dumps, kept)) + "\n")
            record = curve.with_name("training.json")
            write_record(record, read_record(record) | {"curve_sha256": sha256_file(curve)})
    write_tables(results.evaluations, results.root)
    return results.root


def generator(*parts: object) -> np.random.Generator:
    return np.random.default_rng(int(digest(*parts)[:8], 16))


ALL = {"teacher": (0,), "ctm": (0, 1, 2), "ctm_nodsm": (0,)}
ONE = {"teacher": (0,), "ctm": (0,), "ctm_nodsm": (0,)}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference of three machines."""
    root = tmp_path_factory.mktemp("reference")
    runs = {"one": made(root, "one", ALL), "two": made(root, "two", ONE)}
    runs["bf16"] = made(root, "bf16", ONE, train_hash=digest("bf16"))
    path = root / "digits.json"
    write_reference(runs, "digits", {"threads": 1}, path)
    return path


def ctm(*arguments: object) -> tuple[int, str]:
    ended = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if isinstance(ended.exception, UserError):
        return 2, str(ended.exception)
    return ended.exit_code, ended.output


def differing(agreement: Agreement) -> set[tuple[str, str]]:
    return {
        (line.quantity.model, line.quantity.name)
        for line in agreement.cells
        if line.verdict == "differs"
    }


# -- runs that are the reference's ----------------------------------------------------------------


@pytest.mark.parametrize("seeds", [ALL, ONE, ONE | {"ctm": (7, 8)}])
def test_another_machine_agrees(
    reference: Path, tmp_path: Path, seeds: dict[str, tuple[int, ...]]
) -> None:
    code, text = ctm("compare", made(tmp_path, "four", seeds), "--reference", reference)
    assert code == 0
    assert text.splitlines()[-1] == (
        "digits: 19 cells, 19 agree: this run agrees with the reference"
    )
    line = next(line for line in text.splitlines() if "NFE 8, γ = 0.5" in line).split()
    assert line[:2] == ["ctm", "300"] and line[-1] == "agrees"
    assert "probability of at most 1%" in text


def test_the_reference_holds_every_value_and_what_made_it(reference: Path) -> None:
    record = read_json(reference)
    assert record["configuration"] == {"threads": 1}
    assert set(record["settings"]) == {"one", "two", "bf16"}
    assert record["settings"]["one"]["hardware"]["device"] == "Example CPU"
    hashes = {s["train_hashes"]["ctm"] for s in record["settings"].values()}
    assert hashes == {digest("digits", "ctm"), digest("bf16")}
    steps = {one["step"] for one in record["measured"] if one["model"] == "ctm"}
    assert steps == {75, 150, 300}
    (cell,) = (
        one
        for one in record["measured"]
        if (one["model"], one["nfe"], one["gamma"]) == ("ctm", 8, 0.5)
    )
    assert cell["sample_seeds"] == ["0", "1", "2"]
    assert {name: [*known] for name, known in cell["values"].items()} == {
        "one": ["0", "1", "2"],
        "two": ["0"],
        "bf16": ["0"],
    }


# -- mistakes -------------------------------------------------------------------------------------


def test_a_learning_rate_shows_on_the_way(reference: Path, tmp_path: Path) -> None:
    def losses(model: str, line: dict[str, float]) -> dict[str, float]:
        return line | ({"ctm": 1.3 * line["ctm"]} if model == "ctm" else {})

    def factor(model: str, cell: Cell) -> float:
        return 1.6 if model == "ctm" else 1.0

    run = made(tmp_path, "four", ONE, losses=losses, factor=factor)
    code, text = ctm("compare", run, "--reference", reference)
    assert code == 1
    assert "10 differ (ctm since step 75)" in text.splitlines()[-1]
    assert "On the way there:" in text and "loss term ctm" in text


def test_a_mistake_that_comes_later_is_dated(reference: Path, tmp_path: Path) -> None:
    def losses(model: str, line: dict[str, float]) -> dict[str, float]:
        late = model == "ctm_nodsm" and line["step"] > 75
        return line | ({"ctm": 1.3 * line["ctm"]} if late else {})

    (agreement,) = compared_in(made(tmp_path, "four", ONE, losses=losses), reference)
    assert agreement.since("ctm_nodsm") == "since step 150"
    assert not agreement.agrees and not differing(agreement)


def test_a_dropped_loss_term_shows_by_its_absence(reference: Path, tmp_path: Path) -> None:
    def losses(model: str, line: dict[str, float]) -> dict[str, float]:
        return {term: value for term, value in line.items() if "dsm" not in term}

    (agreement,) = compared_in(made(tmp_path, "four", ONE, losses=losses), reference)
    assert agreement.since("ctm") == "since step 75"
    missing = [line for line in agreement.lines if line.why == "this run logs no such term"]
    assert {line.quantity.metric for line in missing} == {"dsm", "lambda_dsm"}


def test_another_gamma_shows_in_its_cells_alone(reference: Path, tmp_path: Path) -> None:
    def factor(model: str, cell: Cell) -> float:
        return 0.7 if cell.gamma else 1.0

    (agreement,) = compared_in(made(tmp_path, "four", ONE, factor=factor), reference)
    assert agreement.since("ctm") == "in the final scores alone"
    spreads = {(line.quantity.model, line.trainings is None) for line in agreement.cells}
    assert spreads == {("teacher", True), ("ctm", False), ("ctm_nodsm", True)}
    expected = {("ctm", f"NFE {nfe}, γ = {gamma}") for nfe in (2, 4, 8) for gamma in ("0.5", "1")}
    assert differing(agreement) == expected | {("ctm_nodsm", "NFE 4, γ = 1")}


def test_another_reference_split_shows_in_every_model(reference: Path, tmp_path: Path) -> None:
    run = made(tmp_path, "four", ONE, factor=lambda model, cell: 1.5)
    (agreement,) = compared_in(run, reference)
    assert len(differing(agreement)) == 19
    for model in MODELS:
        assert agreement.since(model) == "in the final scores alone"


# -- what cannot be compared ----------------------------------------------------------------------


def test_another_configuration_is_one_sentence(reference: Path, tmp_path: Path) -> None:
    run = made(tmp_path, "four", ONE, train_hash=digest("another"))
    code, text = ctm("compare", run, "--reference", reference)
    assert code == 2
    assert text == (
        f"nothing of digits can be compared with {reference}: config: another train_hash of "
        "teacher; name the reference of this configuration by --reference"
    )


def test_another_protocol_is_named(reference: Path, tmp_path: Path) -> None:
    run = made(tmp_path, "four", ONE)
    for path in run.glob("digits/ctm/*/*/evaluation.json"):
        record = read_record(path)
        record["protocols"]["desk-digits"]["rounding"] = "round"
        write_record(path, record)
    with pytest.raises(UserError, match="mean different things by the protocol desk-digits"):
        compared_in(run, reference)
    for path in run.glob("digits/*/*/*/evaluation.json"):
        record = read_record(path)
        record["protocols"]["desk-digits"]["rounding"] = "round"
        write_record(path, record)
    (agreement,) = compared_in(run, reference)
    assert {line.why for line in agreement.cells} == {"protocol: another rounding"}
    assert "19 are not comparable" in agreement.sentence and not agreement.agrees


def test_half_a_run_says_what_is_missing(reference: Path, tmp_path: Path) -> None:
    code, text = ctm(
        "compare", made(tmp_path, "four", {"teacher": (0,)}), "--reference", reference
    )
    assert code == 1
    assert text.splitlines()[-1] == (
        "digits: 19 cells, 5 agree, 14 are missing: what there is agrees, but this run is not all "
        "of the reference"
    )
    assert ctm("compare", tmp_path / "none", "--reference", reference)[0] == 2


def test_a_cell_beyond_the_reference_is_named(reference: Path, tmp_path: Path) -> None:
    run = made(tmp_path, "four", ONE)
    more = Results(run)
    cells = CTM | {Cell("gamma", 16, 0.0): 6.0}
    more.evaluation("ctm", cells, step=STEPS, previews=False)
    write_tables([*run.glob("digits/*/*/*/evaluation.json")], run)
    (agreement,) = compared_in(run, reference)
    (line,) = (line for line in agreement.cells if line.quantity.cell.nfe == 16)
    assert (line.verdict, line.why) == ("not comparable", "the reference has no such cell")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 2}, "is a reference of format 2, but this version reads format 1"),
        ({"measured": [{"model": "ctm"}]}, "measured.0.step"),
        ({"experiment": "other"}, "is the reference of other, but"),
        ({"settings": {}}, "measured names the setting"),
        ({"last_steps": {"teacher": 300}}, "measured goes beyond last_steps of ctm"),
    ],
)
def test_a_reference_that_does_not_fit(
    reference: Path, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    other = tmp_path / "other.json"
    write_record(other, read_record(reference) | change)
    with pytest.raises(UserError, match=sentence):
        compared_in(made(tmp_path, "four", {"teacher": (0,)}), other)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sample_seeds": ["0"]}, "a value for each of sample_seeds"),
        ({"values": {}}, "a value for each of sample_seeds"),
        ({"step": 301}, "measured goes beyond last_steps"),
        ({"step": 0, "sampler": "", "nfe": 0, "gamma": None}, "before its first step"),
    ],
)
def test_values_of_a_reference_that_cannot_be(
    reference: Path, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    record = read_record(reference)
    record["measured"][-1] |= change
    write_record(tmp_path / "other.json", record)
    with pytest.raises(UserError, match=sentence):
        read_reference(tmp_path / "other.json")


def test_an_edited_or_unknown_reference(reference: Path, tmp_path: Path) -> None:
    run = made(tmp_path, "four", {"teacher": (0,)})
    edited = tmp_path / "edited.json"
    write_json(edited, read_json(reference) | {"experiment": "x"})
    with pytest.raises(UserError, match="make it again"):
        compared_in(run, edited)
    other = Results(tmp_path / "other", experiment="nowhere")
    other.evaluation("ctm", previews=False)
    write_tables(other.evaluations, other.root)
    with pytest.raises(UserError, match="there is no reference of nowhere in config/reference"):
        compared_in(other.root)


def test_runs_of_two_configurations_make_no_reference(tmp_path: Path) -> None:
    one, two = made(tmp_path, "one", ONE), made(tmp_path, "two", {"teacher": (0,)})
    with pytest.raises(UserError, match="differ in their last steps; a reference is of one"):
        write_reference({"a": one, "b": two}, "digits", {}, tmp_path / "digits.json")


# -- two folders ----------------------------------------------------------------------------------


def test_two_folders_are_paired_seed_by_seed(tmp_path: Path) -> None:
    one, again = made(tmp_path, "one", ALL), made(tmp_path, "again", ALL)
    assert ctm("compare", one, one)[0] == 0
    pairs = {(pair.key.model, pair.key.cell): pair for pair in pairs_of(one, again)}
    assert pairs["ctm", Cell("gamma", 1, None)].over == "3 trainings"
    assert pairs["teacher", Cell("heun", 3, None)].over == "3 samplings alone"
    off = made(tmp_path, "off", ALL, factor=lambda model, cell: 2.0 if cell.nfe == 8 else 1.0)
    code, text = ctm("compare", one, off)
    assert code == 1
    assert text.splitlines()[-1].endswith("A is not B")
    wrong = [pair.key.cell.nfe for pair in pairs_of(one, off) if pair.verdict == "differs"]
    assert {8} <= {*wrong}
    half = made(tmp_path, "half", {"teacher": (0,)})
    assert {pair.why for pair in pairs_of(half, one) if pair.verdict == "missing"} == {
        "A has no such cell"
    }
    with pytest.raises(UserError, match="have no cell in common"):
        pairs_of(half, made(tmp_path, "other", {"ctm_nodsm": (0,)}))
    assert ctm("compare", one, off, "--reference", "x.json")[0] == 2
