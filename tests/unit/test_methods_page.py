"""docs/methods_page.py: the page of the methods is made of the results of digits-methods."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.project import ROOT
from fixtures.results_factory import Results

from ctm_core.runtime.errors import Diverged, UserError
from ctm_core.runtime.files import write_json


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        yield importlib.import_module("methods_page")


@pytest.fixture
def made(page: Any, tmp_path: Path) -> Any:
    """Results in which the n-th method is n times as far as the first, and one run diverged."""
    experiment = page.load_experiment(page.CONFIG)
    results = Results(tmp_path / "results", "digits-methods", sample_seeds=(0,))
    read = page.Results(tmp_path / "results", experiment)
    for place, model in enumerate(("teacher", *read.methods)):
        for seed in read.seeds(model):
            if (model, seed) == ("ayf", 2):
                continue
            for step in experiment.exported_steps(model):
                cells = experiment.cells(model, step)
                values = {cell: (place + 1.0) * (1 + 0.01 * seed) for cell in cells}
                results.evaluation(model, values, train_seed=seed, step=step, previews=False)
        benchmark = tmp_path / f"results/benchmarks/train/digits-methods/{model}/seed-0.tsv"
        benchmark.parent.mkdir(parents=True)
        benchmark.write_text("s\th:m:s\tmax_rss\n60.0\t0:01:00\t512.0\n")
    failed = tmp_path / "runs/digits-methods/ayf/seed-2/0123456789ab/failed.json"
    failed.parent.mkdir(parents=True)
    write_json(failed, {"exit_code": Diverged.exit_code, "message": "the loss became nan"})
    return read


def test_values_ranks_and_runs_that_diverged(page: Any, made: Any) -> None:
    assert page.ranked(made)[0] == page.BASE and page.ranked(made)[-1] == "ayf"
    assert len(made.methods) == 14 and made.diverged == {"ayf": [2]}
    table = page.table(made)
    (ayf,) = (line for line in table.splitlines() if "`ayf`" in line)
    assert "| 1 of 3 | 0.51 |" in ayf and "15" in ayf
    (tcm,) = (line for line in page.comparisons(made).splitlines() if "`tcm`" in line)
    assert tcm.count(": worse") == 3
    assert page.verdict(made).count("worse: `ctm_ab2`") == 3


def test_stages_before_a_method_are_paid(page: Any, made: Any) -> None:
    last = made.experiment.last_step
    budget = made.spent("ctm", last("ctm"))
    for model in made.methods:
        assert made.spent(model, last(model)) == pytest.approx(budget, rel=0.015), model
    assert made.spent("tcm", 0) > 0.4 * budget and made.spent("ect", 0) == 0


def test_the_page_and_the_readme_are_filled(page: Any, made: Any, tmp_path: Path) -> None:
    (tmp_path / "docs/images").mkdir(parents=True)
    for name in ("docs/methods.md", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    page.update(made, tmp_path)
    text = (tmp_path / "docs/methods.md").read_text(encoding="utf-8")
    assert text.startswith("# Few-step methods at equal cost\n") and "## The search" in text
    assert "NFE 1, against `ctm`: worse:" in (tmp_path / "README.md").read_text(encoding="utf-8")
    first = {path: path.read_bytes() for path in (tmp_path / "docs/images").iterdir()}
    assert {path.name for path in first} == {"digits-methods.png", "digits-methods-cost.png"}
    page.update(made, tmp_path)
    assert all(path.read_bytes() == content for path, content in first.items())


def test_an_unfinished_training_is_named(page: Any, made: Any) -> None:
    shutil.rmtree(made.folder / "digits-methods/imm/seed-1")
    with pytest.raises(UserError, match="imm seed 1 has neither ended nor diverged; run"):
        _ = made.rows
