"""studies/methods/methods.py: every method trains at the cost of the default's ctm."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from ctm_core.config import Experiment, validated

FILE = Path(__file__).parents[2] / "studies" / "methods" / "methods.py"


@pytest.fixture(scope="module")
def methods() -> Any:
    spec = importlib.util.spec_from_file_location("methods_study", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_search_is_of_equal_budgets(methods: Any) -> None:
    held = yaml.safe_load(methods.SEARCH.read_text(encoding="utf-8"))
    assert held == yaml.safe_load(yaml.safe_dump(methods.searched()))
    experiment, costing = validated(Experiment, held, methods.SEARCH), methods.Costing()
    for name, *_ in methods.candidates():
        spent = costing.operations(experiment, name)
        fork = experiment.student(name).init_from
        if fork is not None:
            spent += costing.operations(experiment, fork.model)
        assert spent == pytest.approx(costing.budget, rel=0.015), name


def test_the_search_has_at_most_six_candidates_and_a_seed_of_its_own(methods: Any) -> None:
    by_method = [method for _, method, *_ in methods.candidates()]
    assert all(by_method.count(method) <= 6 for method in methods.METHODS)
    assert methods.SEARCH_SEED not in (0, 1, 2)
