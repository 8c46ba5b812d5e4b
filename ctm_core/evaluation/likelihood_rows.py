"""Bits per dimension as rows of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctm_core.config.sampling_grid import ADAPTIVE
from ctm_core.evaluation.inputs import Inputs
from ctm_core.evaluation.kept import kept
from ctm_core.evaluation.likelihood import LikelihoodProtocol, measure
from ctm_core.evaluation.metrics.names import MetricName
from ctm_core.models.generation import Generator

PROTOCOL = "likelihood"


def likelihood_rows(
    inputs: Inputs, generator: Generator, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The row of a model whose likelihood is asked for, and the protocol that it is measured by.

    Only a training's last weights are measured. ``nfe`` of the row is the solver's mean number of
    evaluations; its standard error is over images.
    """
    section = inputs.experiment.likelihood(inputs.model, inputs.step)
    if section is None:
        return [], {}
    dataset = inputs.dataset(section.split, "likelihood")
    protocol = LikelihoodProtocol(
        probes=section.probes, tolerance=section.tolerance, seed=section.seed
    )
    described = protocol.describe() | {
        "images": section.images,
        "seed": section.seed,
        "reference": {
            "dataset": dataset.name,
            "split": dataset.split,
            "fingerprint": dataset.fingerprint,
        },
    }
    # A converted file does not know what it has learned; the experiment says it.
    known = Generator(generator.model, generator.record | {"dataset": dataset.name})
    measured = kept(
        folder / "likelihood",
        {"weights": inputs.digest, "protocol": described},
        lambda: measure(known, dataset, count=section.images, protocol=protocol).to_json(),
    )
    evaluations = measured["evaluations_by_batch"]
    row = {
        "sample_seed": section.seed,
        "sampler": ADAPTIVE,
        "gamma": None,
        "nfe": round(sum(evaluations) / len(evaluations)),
        "protocol": PROTOCOL,
        "metric": str(MetricName("bpd", n=measured["n"])),
        "n": measured["n"],
        "value": measured["bits_per_dim"],
        "rank_deficient": False,
        "standard_error": measured["standard_error"],
        "freedom": measured["n"] - 1 if measured["standard_error"] is not None else None,
    }
    return [row], {PROTOCOL: described}
