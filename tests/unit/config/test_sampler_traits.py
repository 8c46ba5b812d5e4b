"""What a sampler's file says of it, and which models it can sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctm_core.config import sampler_traits as registry
from ctm_core.runtime.errors import UserError


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Add a sampler ``toy`` to a registry of its own, with these traits."""
    for name in registry.samplers():
        file = f"{name}.py"
        (tmp_path / file).write_bytes((registry.SAMPLERS.folder / file).read_bytes())
    monkeypatch.setattr(registry.SAMPLERS, "folder", tmp_path)

    def add(text: str) -> None:
        (tmp_path / "toy.py").write_text(f"raise SystemExit\n{text}\n", encoding="utf-8")

    return add


def test_samplers() -> None:
    assert registry.samplers() == ["gamma", "heun", "euler", "gamma_paper"]
    assert registry.samplers(jumps=True) == ["gamma", "gamma_paper"]
    assert registry.samplers(jumps=False) == ["heun", "euler"]
    labels = [registry.sampler_label(name) for name in registry.samplers()]
    assert labels == ["", "Heun", "Euler", "as printed"]
    assert registry.sampler_label("removed") == "removed"


def test_a_file_is_enough(toy: Callable[[str], None]) -> None:
    toy('TRAITS = {"jumps": False, "evaluations_per_step": 3}')
    assert registry.samplers() == ["gamma", "heun", "euler", "gamma_paper", "toy"]
    assert registry.sampler_label("toy") == "toy"
    assert registry.sampling_problem("toy", 4, None) is None
    assert "must be 1, 4, 7, …, not 5" in str(registry.sampling_problem("toy", 5, None))
    assert str(registry.sampling_problem("gamma", 1, None, jumps=False)).endswith(
        "use heun or euler or toy"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('TRAITS = {"jumps": bool(1)}', r"TRAITS\['jumps'\] must be a literal"),
        ('TRAITS = {"jumps": 1}', r"TRAITS\['jumps'\] is 1"),
        ('TRAITS = {"jumps": True, "gammas": True}', "unknown; there are jumps, gamma, "),
        ("", r"TRAITS\['jumps'\]"),
    ],
)
def test_traits_that_cannot_be_read(toy: Callable[[str], None], text: str, expected: str) -> None:
    toy(text)
    with pytest.raises(UserError, match=rf"toy\.py: .*{expected}"):
        registry.sampler_traits("toy")


def test_an_unknown_name() -> None:
    sentence = "unknown sampler 'ddim'; allowed: gamma, heun, euler, gamma_paper"
    assert registry.sampling_problem("ddim", 1, None) == sentence
    with pytest.raises(UserError, match=sentence):
        registry.sampler_traits("ddim")


@pytest.mark.parametrize(
    ("model", "possible"),
    [
        ({}, {("gamma", 1, None), ("gamma", 2, 0.5), ("heun", 3, None), ("gamma", 2, 1.0)}),
        ({"jumps": False}, {("heun", 3, None)}),
        ({"final_only": True}, {("gamma", 1, None), ("gamma", 2, 1.0)}),
        ({"jumps": False, "final_only": True}, {("gamma", 1, None), ("gamma", 2, 1.0)}),
    ],
)
def test_who_may_take_which_gamma(model: dict[str, Any], possible: set[Any]) -> None:
    cells = [
        ("gamma", 1, None), ("gamma", 2, None), ("gamma", 2, 0.5), ("gamma", 2, 1.0),
        ("gamma", 2, 1.5), ("heun", 3, None), ("heun", 2, None), ("heun", 3, 0.0),
    ]  # fmt: skip
    assert {c for c in cells if registry.sampling_problem(*c, **model) is None} == possible


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (("gamma", 3, 1.0, (2.5, 0.8)), None),
        (("gamma_paper", 2, 0.5, (0.8,)), None),
        (("gamma", 2, 1.0, (2.5, 0.8)), "nfe = 2 needs 1 times between its jumps, but got 2"),
        (("gamma", 1, None, (0.8,)), "nfe = 1 needs 0 times between its jumps, but got 1"),
        (("gamma", 3, 1.0, (0.8, 2.5)), "times must decrease and lie between 80 and 0.002, but"),
        (("gamma", 3, 1.0, (0.8, 0.8)), "but got 0.8, 0.8"),
        (("gamma", 2, 1.0, (80.0,)), "times must decrease and lie between 80 and 0.002, but"),
        (("gamma", 2, 1.0, (0.002,)), "but got 0.002"),
        (("heun", 3, None, (2.5, 0.8)), "sampler heun follows the ODE on the grid; leave times"),
    ],
)
def test_times_between_the_jumps(cell: Any, sentence: str | None) -> None:
    problem = registry.sampling_problem(*cell, span=(0.002, 80.0))
    assert problem is None if sentence is None else sentence in str(problem)
