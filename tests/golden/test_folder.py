"""The golden suite itself: complete, and able to fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from . import reference, test_networks, test_sampling
from .reference import compare, error, load


def test_every_file_is_present() -> None:
    missing = [name for name in reference.CASES if not (reference.folder() / name).is_file()]
    assert not missing, f"golden folder {reference.folder()} lacks {', '.join(missing)}"


@pytest.mark.parametrize("state", ["absent", "empty"])
def test_absent_or_empty_folder_fails(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "golden"
    if state == "empty":
        folder.mkdir()
    monkeypatch.setenv("CTM_GOLDEN", str(folder))
    for check in (test_every_file_is_present, test_sampling.test_ctm_variants_in_double):
        with pytest.raises(AssertionError, match="golden"):
            check()
    with pytest.raises(AssertionError, match="golden"):
        test_networks.test_student(torch.float64)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("case", "check", "tensors"),
    [
        ("ctm_student_cifar", test_networks.test_student, ("G", "g", "F")),
        ("edm_ddpmpp", test_networks.test_teacher, ("D", "F")),
    ],
)
def test_a_damaged_value_fails(
    case: str,
    check: Callable[[torch.dtype], None],
    tensors: tuple[str, ...],
    precision: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = load(case)
    check(precision)
    for name in tensors:
        key = f"out{32 if precision == torch.float32 else 64}/{name}"
        damaged = {k: v.clone() for k, v in original.tensors.items()}
        sample = damaged[key][-1]
        # One pixel, by 1e-3 of its image's norm: 100 times the float32 tolerance.
        sample.view(-1)[0] += 1e-3 * sample.norm()
        text = {k: v if isinstance(v, str) else _json(v) for k, v in original.meta.items()}
        save_file(damaged, tmp_path / f"{case}.safetensors", metadata=text)
        monkeypatch.setenv("CTM_GOLDEN", str(tmp_path))
        with pytest.raises(AssertionError, match="relative error"):
            check(precision)


def test_error_measure() -> None:
    golden = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    ours = golden.clone()
    ours[0, 0] += 0.05
    assert error(ours, golden) == pytest.approx(0.01)
    assert error(ours, golden, per_sample=False) == pytest.approx(0.01)
    ours[1, 1] = 1e-8  # a zero sample is measured against 1e-8 a component
    assert error(ours, golden) == pytest.approx(2**-0.5)
    ours[0, 0] = float("nan")
    assert error(ours, golden) == float("inf")
    with pytest.raises(AssertionError, match="shape"):
        error(golden[0], golden)
    with pytest.raises(AssertionError, match="spoiled"):
        compare("spoiled", ours, golden, torch.float32, solve=True)


def _json(value: object) -> str:
    import json

    return json.dumps(value)
