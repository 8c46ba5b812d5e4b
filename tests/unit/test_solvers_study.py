"""The page of studies/solvers is made of its results."""

import importlib.util
from pathlib import Path

import pytest
from fixtures.results_factory import Results

from ctm_core.config import Cell, load_experiment
from ctm_core.report.scores import aggregate, read_evaluations
from ctm_core.runtime.errors import UserError

STUDY = Path(__file__).parents[2] / "studies" / "solvers"


def test_the_page_says_what_the_values_say(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("solvers_summary", STUDY / "summary.py")
    assert spec is not None and spec.loader is not None
    summary = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(summary)
    experiment = load_experiment(STUDY / "digits-solvers.yaml")
    results = Results(tmp_path, experiment="digits-solvers", sample_seeds=(0,))
    cells = [Cell.of("gamma", nfe, 0.0) for nfe in (1, 2, 4)]
    for model in experiment.models:
        for seed in experiment.seeds:
            # Steady differences on the fine grids, and differences that change sign elsewhere.
            value = 5 + seed + (0.5 + seed / 100 if "fine" in model else 0)
            value += (seed - 1) / 10 if model in ("ctm_ab2", "ctm_dpmpp_2m", "ctm_coarse") else 0
            rows = [
                results.score(cell, value, metric=metric)
                for metric in summary.METRICS
                for cell in cells
            ]
            results.evaluation(model, dict.fromkeys(cells, 1.0), train_seed=seed, rows=rows)
    rows = aggregate(read_evaluations(results.evaluations))
    page = summary.page(experiment, rows, dict.fromkeys(experiment.models, 0.01))
    assert "* Equal evaluations, twice the steps, FD: 6 worse." in page
    assert "* Heun at fewer steps, trajectory error: 3 undecided." in page
    assert "| `ctm_ab2_fine` | `ab2` | 19 | 13.3 | 0.0100 | 6.5 [" in page
    assert "| `ctm` | `heun` | 10 | 12.7 | 0.0100 | 6.0 [" in page
    with pytest.raises(UserError, match="no ctm_coarse at NFE 4 of three training seeds"):
        summary.row_of([row for row in rows if row.model != "ctm_coarse"], "ctm_coarse", 4)
