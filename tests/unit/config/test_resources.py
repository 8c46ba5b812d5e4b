"""Resources of jobs, by the names that Snakemake knows."""

from __future__ import annotations

from fixtures import tiny


def test_resources_have_the_names_that_snakemake_knows() -> None:
    made = tiny.experiment(
        {"resources": {"training": {"processes": 4, "gpus": 4, "memory_gb": 64, "hours": 1.5}}}
    )
    assert made.resources.training.limits == {"gpu": 4, "mem_mb": 64000, "runtime": 90}
    assert made.resources.evaluation.limits == {"mem_mb": 4000, "runtime": 240}
    assert made.train_hash("ctm") == tiny.experiment().train_hash("ctm")
