"""Golden files, comparison, and the verdict of ``ctm verify`` on small sets of our own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fixtures.pretended import DEVICE, pretended

from ctm_core import verification
from ctm_core.cli import main
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import save_tensors, write_json
from ctm_core.verification.golden import (
    DOUBLE,
    FLOAT32_CALL,
    FLOAT32_SOLVE,
    SINGLE,
    Check,
    Folder,
    Golden,
    compare,
    error,
    exact,
    likely,
    lowered_check,
)

GOLDEN = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)


def test_error_measure() -> None:
    ours = GOLDEN.clone()
    ours[0, 0] += 0.05
    assert error(ours, GOLDEN) == pytest.approx(0.01)
    assert error(ours, GOLDEN, per_sample=False) == pytest.approx(0.01)
    ours[1, 1] = 1e-8  # a zero sample is measured against 1e-8 a component
    assert error(ours, GOLDEN) == pytest.approx(2**-0.5)
    ours[0, 0] = float("nan")
    assert error(ours, GOLDEN) == float("inf")
    assert error(GOLDEN[0], GOLDEN) == float("inf")


@pytest.mark.parametrize(
    ("precision", "stored", "solve", "tolerance"),
    [
        (SINGLE, SINGLE, False, 1e-5),
        (SINGLE, DOUBLE, True, 1e-4),
        (DOUBLE, SINGLE, True, 1e-6),
        (DOUBLE, DOUBLE, True, 1e-9),
    ],
)
def test_tolerances(
    precision: torch.dtype, stored: torch.dtype, solve: bool, tolerance: float
) -> None:
    golden = torch.ones(3, dtype=stored)
    for factor, passed in ((0.9, True), (1.1, False)):
        ours = torch.ones(3, dtype=DOUBLE) * (1 + factor * tolerance)
        check = compare("x", ours, golden, precision, solve=solve)
        assert check.tolerance == tolerance
        assert check.passed is passed


def test_checks_that_allow_nothing() -> None:
    assert exact("n", 3, 3).passed
    assert not exact("n", 3, 4).passed
    assert exact("t", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])).passed
    assert not exact("t", torch.tensor([1.0, 2.0]), torch.tensor([1.0])).passed
    assert not Check("nan", float("nan"), 1.0).passed


def test_likely() -> None:
    assert likely("p", 2e-4).passed
    assert not likely("p", 0.9e-4).passed
    assert not likely("p", 0.0).passed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of two files, one of them JSON."""
    path = tmp_path / "set"
    tensors = {
        "in/x": torch.tensor([1.0, 2.0]),
        "out32/y": torch.tensor([2.0, 4.0]),
        "out64/y": torch.tensor([2.0, 4.0], dtype=DOUBLE),
        "z": torch.tensor([3.0], dtype=DOUBLE),
        "a/in/labels_onehot": torch.eye(2),
        "net/w": torch.ones(2, dtype=torch.float16),
    }
    save_tensors(path / "one.safetensors", tensors, {"kwargs": '{"n": 2}', "case": "one"})
    write_json(path / "two.json", {"count": {"a": 1, "b": 2}})
    return path


def test_golden_files(folder: Path) -> None:
    golden = Folder(folder)
    assert golden.names() == ["one", "two"]
    one = golden.load("one")
    assert one.meta == {"kwargs": {"n": 2}, "case": "one"}
    assert golden.load("one") is one
    double = one.at(DOUBLE)
    assert double.input("x").dtype == DOUBLE
    assert one.expected("y").dtype == SINGLE
    assert double.expected("y").dtype == DOUBLE
    assert torch.equal(one.expected("z"), double.expected("z"))
    assert one.expects("z") and not one.expects("w")
    assert double.labels() is None
    assert double.labels("a/").dtype == DOUBLE
    assert one.unused() == ["net/w"]
    assert one.weights("net")["w"].dtype == SINGLE
    assert one.unused() == []
    with pytest.raises(UserError, match=r"one.safetensors lacks nothing"):
        one["nothing"]
    assert golden.load("two")["count/b"] == 2
    assert verification.uncovered(golden) == {"two": ["count/a"]}


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("in/y", torch.tensor([1, 0]), torch.int64),
        ("in/y", torch.tensor([1.0, 0.0]), torch.int64),
        ("in/y_onehot", torch.eye(2), DOUBLE),
        ("in/class_labels", torch.eye(2, dtype=torch.int64), DOUBLE),
        ("in/labels", torch.tensor([1, 0], dtype=torch.int32), torch.int64),
    ],
)
def test_labels(key: str, value: torch.Tensor, kind: torch.dtype, tmp_path: Path) -> None:
    tensors = {"in/augment_labels": torch.zeros(2, 9), key: value}
    save_tensors(tmp_path / "one.safetensors", tensors)
    labels = Folder(tmp_path).load("one").at(DOUBLE).labels()
    assert labels is not None
    assert labels.dtype == kind
    assert torch.equal(labels, value.to(kind))


Cases = Callable[..., None]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Cases:
    """Let some functions be the only cases, each of the file ``one`` or as registered."""

    def register(*functions: Callable[[Golden], Iterator[Check]]) -> None:
        found = [verification.Case("one", function, (SINGLE, DOUBLE)) for function in functions]
        monkeypatch.setattr(verification, "cases", lambda _: found)

    return register


def doubled(golden: Golden) -> Iterator[Check]:
    yield golden.check("y", 2 * golden.input("x"))
    yield exact("z", golden["z"], torch.tensor([3.0], dtype=DOUBLE))
    yield exact("labels", int(golden.labels("a/").sum()), 2)
    yield exact("w", len(golden.weights("net")), 1)
    counts = golden.folder.load("two")
    yield exact("counts", [counts["count/a"], counts["count/b"]], [1, 2])


def wrong(golden: Golden) -> Iterator[Check]:
    for factor in (2.1, 3.0, 2.0):
        yield golden.check("y", factor * golden.input("x"), name=f"times {factor}")


def stopped(golden: Golden) -> Iterator[Check]:
    yield exact("first", 1, 1)
    raise RuntimeError("shapes\n\tdiffer")


def idle(golden: Golden) -> Iterator[Check]:
    return iter(())


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str, str]:
    """Exit code, output and error text of ``ctm verify``."""
    monkeypatch.setattr("sys.argv", ["ctm", "verify", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_verify_passes(
    folder: Path,
    only: Cases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only(doubled)
    document = tmp_path / "verify.json"
    code, out, err = run(monkeypatch, capsys, folder, "--json", document)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["file", "case", "precision", "checks", "error/tol", "verdict"]
    assert lines[1].split() == ["one", "doubled", "float32", "5", "0", "pass"]
    assert lines[2].split() == ["one", "doubled", "float64", "5", "0", "pass"]
    assert "Tensors that no case reads: there are none." in lines
    assert lines[-1].endswith("all 10 checks of 2 runs are within their tolerances")
    found = json.loads(document.read_text())
    assert found["passed"] is True
    assert found["uncovered"] == {}
    assert [r["precision"] for r in found["results"]] == ["float32", "float64"]
    assert found["results"][0]["checks"][0] == {
        "name": "y",
        "error": 0.0,
        "tolerance": 1e-5,
        "passed": True,
    }


def test_verify_names_what_failed(
    folder: Path,
    only: Cases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only(doubled, wrong)
    document = tmp_path / "verify.json"
    code, out, err = run(monkeypatch, capsys, folder, "--json", document)
    assert code == 2
    assert out.count("FAIL") == 2
    assert "times 3.0: relative error 0.5 exceeds 1e-05" in out
    assert err == (
        f"ctm: {folder}: 2 of 4 runs failed, worst one:wrong in float64 "
        "(times 3.0: relative error 0.5 exceeds 1e-09)\n"
    )
    found = json.loads(document.read_text())
    assert [r["passed"] for r in found["results"]] == [True, True, False, False]


@pytest.mark.parametrize(
    ("case", "reason"),
    [(stopped, "RuntimeError: shapes differ"), (idle, "nothing was checked")],
)
def test_verify_fails_where_a_case_does_not_run(
    case: Callable[[Golden], Iterator[Check]],
    reason: str,
    folder: Path,
    only: Cases,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only(doubled, case)
    code, out, err = run(monkeypatch, capsys, folder)
    assert code == 2
    assert reason in out
    assert f"2 of 4 runs failed, worst one:{case.__name__} in float32 ({reason})" in err
    assert err.count("\n") == 1


def test_verify_names_what_was_not_read(
    folder: Path,
    only: Cases,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only(doubled)
    golden = Folder(folder).load("one")
    save_tensors(folder / "one.safetensors", golden.tensors | {"new/tensor": torch.zeros(1)})
    save_tensors(folder / "foreign.safetensors", {"a": torch.zeros(1), "b": torch.zeros(1)})
    write_json(folder / "hollow.json", {})
    code, out, err = run(monkeypatch, capsys, folder)
    assert code == 2
    lines = out.splitlines()
    assert "  foreign: the whole file" in lines
    assert "  hollow: the whole file" in lines
    assert lines[lines.index("  one:") + 1] == "    new/tensor"
    assert err == (f"ctm: {folder}: no case reads 3 tensors of the set, the first foreign: a\n")


def test_verify_refuses_what_it_cannot_read(
    folder: Path,
    only: Cases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only(doubled)
    empty = tmp_path / "empty"
    empty.mkdir()
    for place in (empty, tmp_path / "absent"):
        code, out, err = run(monkeypatch, capsys, place)
        assert (code, out) == (2, "")
        assert f"the golden folder {place} is absent or holds no golden file" in err
    code, out, err = run(monkeypatch, capsys, folder / "two.json")
    assert code == 2
    write_json(folder / "one.json", {})
    code, out, err = run(monkeypatch, capsys, folder)
    assert (code, out) == (2, "")
    assert "holds one.safetensors and one.json" in err
    (folder / "one.json").unlink()
    whole = (folder / "one.safetensors").read_bytes()
    (folder / "one.safetensors").write_bytes(whole[: len(whole) // 2])
    code, out, err = run(monkeypatch, capsys, folder)
    assert (code, out) == (2, "")
    assert "one.safetensors is corrupt" in err
    assert err.count("\n") == 1


# -- another device, another precision ----------------------------------------------------------

DATA = Path(__file__).resolve().parents[2] / "golden/data"
QUICK = {"jumps", "blocks", "openai_solve"}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_cases_run_where_and_how_they_are_told(precision: torch.dtype) -> None:
    folder = Folder(DATA)
    cases = [case for case in verification.cases() if case.function.__name__ in QUICK]
    assert len(cases) == len(QUICK)
    usual = {case.name: verification.check(case, folder, torch.float32) for case in cases}
    for case in cases:
        if precision == torch.float32:
            with pretended():
                result = verification.check(case, folder, precision, torch.device(DEVICE))
            # It computes as the CPU does.
            assert result.problem is None and len(result.checks) == len(usual[case.name].checks)
            errors = [check.error for check in usual[case.name].checks]
            assert [check.error for check in result.checks] == pytest.approx(errors, abs=1e-6)
        else:
            result = verification.check(case, folder, precision)
            assert max(check.error for check in result.checks) > FLOAT32_SOLVE
        assert result.passed, result.reason


def test_bf16_has_tolerances_of_its_own() -> None:
    for known, own in ((FLOAT32_CALL, 0.05), (FLOAT32_SOLVE, 0.2), (0.0, 0.0), (4.0, 4.0)):
        lowered = lowered_check(Check("D", 0.03, known))
        assert lowered is not None and lowered.tolerance == own
    assert lowered_check(Check("l2_plain/consistency_loss", 1.7, FLOAT32_SOLVE)) is None


def test_a_gpu_that_is_not_there_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run(monkeypatch, capsys, DATA, "--device", "cuda")
    assert code == 2 and "torch finds no GPU" in err
