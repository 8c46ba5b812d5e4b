"""What the keys of `evaluation` change: cells, samples, rows, likelihood."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.one_step import Lab
from fixtures.sections import shows

from ctm_core.config import Cell, dag
from ctm_core.evaluation import likelihood_rows
from ctm_core.evaluation.likelihood.measurement import Measurement, measure
from ctm_core.models.generation import Generator
from ctm_core.runtime.errors import UserError

GRID = {"sampler": "gamma", "nfe": [1], "gamma": [0]}


def of_ctm(*grids: dict[str, Any]) -> dict[str, Any]:
    return {"evaluation.samplers.ctm": [*grids], "evaluation.protocols": {"tiny": "all"}}


def cells(*grids: dict[str, Any], step: int | None = None) -> list[Cell]:
    return tiny.experiment(of_ctm(*grids)).cells("ctm", step)


def rows(made: list[dict[str, Any]]) -> set[tuple[str, int, float | None]]:
    return {(row["sampler"], row["nfe"], row["gamma"]) for row in made}


@shows("Evaluation.samplers", "SamplerGrid.sampler", "SamplerGrid.nfe", "SamplerGrid.gamma")
def test_cells(lab: Lab) -> None:
    made = lab.evaluate(of_ctm(GRID | {"nfe": [1, 3], "gamma": [0.2, 1]}))
    assert rows(made) == {("gamma", 1, None), ("gamma", 3, 0.2), ("gamma", 3, 1.0)}
    assert len({row["value"] for row in made}) == 3
    made = lab.evaluate(of_ctm({"sampler": "euler", "nfe": [3]}))
    assert rows(made) == {("euler", 3, None)}


def test_sampled_bytes_follow_the_cell(lab: Lab) -> None:
    made = Generator.from_file(lab.student.folder / "student.safetensors")
    cells = (
        Cell("gamma", 1, None), Cell("gamma", 3, 0.0), Cell("gamma", 3, 1.0),
        Cell("euler", 3, None), Cell("heun", 3, None),
    )  # fmt: skip
    pictures = {made.images(4, **cell._asdict(), seed=0).numpy().tobytes() for cell in cells}
    assert len(pictures) == len(cells)


@shows("SamplerGrid.times")
def test_times(lab: Lab) -> None:
    grid = GRID | {"nfe": [2], "gamma": [1]}
    given = [grid | {"times": times} for times in ([], [0.8], [5.0])]
    assert cells(*given)[1:] == [Cell("gamma", 2, 1.0, (0.8,)), Cell("gamma", 2, 1.0, (5.0,))]
    made = lab.evaluate(of_ctm(*given))
    assert [row.get("times") for row in made] == [None, [0.8], [5.0]]
    assert len({row["value"] for row in made}) == 3
    assert made[:1] == lab.evaluate(of_ctm(grid))
    for wrong in ({"times": [90.0]}, {"times": [0.8], "nfe": [2, 4]}):
        with pytest.raises(ValueError, match=r"evaluation\.samplers\.ctm: .*times"):
            cells(grid | wrong)


@shows("SamplerGrid.steps")
def test_steps() -> None:
    last = GRID | {"nfe": [2], "steps": "last"}
    assert cells(GRID, last, step=6) == [Cell("gamma", 1, None)]
    assert cells(GRID, GRID | {"nfe": [2]}, step=6) == cells(GRID, last, step=12)


@shows("Evaluation.sample_seeds")
def test_sample_seeds(lab: Lab) -> None:
    made = lab.evaluate({**of_ctm(GRID), "evaluation.sample_seeds": [4, 7]})
    values = {row["sample_seed"]: row["value"] for row in made}
    assert set(values) == {4, 7} and values[4] != values[7]
    (only,) = lab.evaluate({**of_ctm(GRID), "evaluation.sample_seeds": [7]})
    assert only["value"] == values[7]


@shows("Evaluation.batch_size")
@pytest.mark.parametrize("size", [8, 24])
def test_batch_size(lab: Lab, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    draw = Generator.draw

    def watched(self: Generator, start: int, count: int, *rest: Any, **options: Any) -> Any:
        seen.append((start, count))
        return draw(self, start, count, *rest, **options)

    monkeypatch.setattr(Generator, "draw", watched)
    lab.evaluate({**of_ctm(GRID), "evaluation.batch_size": size})
    passes = [(start, size) for start in range(0, 24, size)]
    assert seen[: len(passes)] == passes


@shows("Evaluation.protocols", "ProtocolCell.sampler", "ProtocolCell.nfe", "ProtocolCell.gamma")
@shows("ProtocolCell.model", "ProtocolCell.times")
@pytest.mark.parametrize(
    ("cell", "scored"),
    [
        ({"model": "ctm", "sampler": "gamma", "nfe": 2, "gamma": 0}, ("gamma", 2, 0.0)),
        ({"model": "ctm", "sampler": "gamma", "nfe": 2, "gamma": 1}, ("gamma", 2, 1.0)),
        ({"model": "ctm", "sampler": "gamma", "nfe": 1}, ("gamma", 1, None)),
        ({"model": "ctm", "sampler": "euler", "nfe": 2}, ("euler", 2, None)),
        (
            {"model": "ctm", "sampler": "gamma", "nfe": 2, "gamma": 1, "times": [0.8]},
            ("gamma", 2, 1.0, (0.8,)),
        ),
        ({"model": "teacher", "sampler": "heun", "nfe": 3}, None),
    ],
)
def test_protocols(cell: dict[str, Any], scored: tuple[Any, ...] | None) -> None:
    grids = [GRID | {"nfe": [1, 2], "gamma": [0, 1]}, {"sampler": "euler", "nfe": [2]}]
    grids += [GRID | {"nfe": [2], "gamma": [1], "times": [0.8]}]
    made = tiny.experiment({**of_ctm(*grids), "evaluation.protocols": {"other": [cell]}})
    of_student = made.protocols("ctm")
    assert of_student == ({} if scored is None else {"other": [Cell(*scored)]})
    assert made.protocols("teacher") == ({} if scored else {"other": [Cell("heun", 3, None)]})


def test_a_protocol_scores_its_cells_alone(lab: Lab) -> None:
    both = (tiny.PROTOCOL, tiny.PROTOCOL | {"name": "other"})
    named = [{"model": "ctm", "sampler": "gamma", "nfe": 2, "gamma": 0}]
    made = lab.evaluate({"evaluation.protocols": {"tiny": "all", "other": named}}, both)
    assert rows([row for row in made if row["protocol"] == "other"]) == {("gamma", 2, 0.0)}
    assert len(rows([row for row in made if row["protocol"] == "tiny"])) == 2


# -- likelihood -----------------------------------------------------------------------------------

LOOSE = {"models": ["ctm"], "images": 4, "tolerance": 0.5}


def likelihood(lab: Lab, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> Measurement:
    """The measurement that an evaluation makes."""
    made: list[Measurement] = []

    def watched(*arguments: Any, **options: Any) -> Measurement:
        made.append(measure(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(likelihood_rows, "measure", watched)
    changes = {**of_ctm(GRID), "evaluation.likelihood": LOOSE | keys}
    (row,) = [r for r in lab.evaluate(changes) if r["metric"].startswith("bpd")]
    assert row["value"] == made[0].mean
    return made[0]


@shows("Evaluation.likelihood", "Likelihood.images", "Likelihood.seed")
def test_likelihood(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(row["metric"].startswith("bpd") for row in lab.evaluate(of_ctm(GRID)))
    four = likelihood(lab, monkeypatch)
    assert len(four.bits) == 4
    assert len(likelihood(lab, monkeypatch, images=2).bits) == 2
    other = likelihood(lab, monkeypatch, seed=1)
    assert not torch.equal(other.indices, four.indices)


@shows("Likelihood.tolerance")
def test_tolerance(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    loose, strict = (
        likelihood(lab, monkeypatch, images=1, tolerance=tolerance).evaluations[0]
        for tolerance in (0.5, 1e-3)
    )
    assert strict > loose


@shows("Likelihood.probes")
@pytest.mark.parametrize("probes", [0, 1, 3])
def test_probes(lab: Lab, probes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = likelihood(lab, monkeypatch, images=1, probes=probes)
    assert made.protocol.probes == probes
    values = {likelihood(lab, monkeypatch, images=1, probes=p).mean for p in {probes, 1}}
    assert len(values) == (1 if probes == 1 else 2)


@shows("Likelihood.models", "Likelihood.split")
def test_whose_likelihood_on_which_images(lab: Lab) -> None:
    keys = LOOSE | {"models": ["teacher"]}
    made = tiny.experiment({"evaluation.likelihood": keys})
    assert made.likelihood("teacher") is not None and made.likelihood("ctm") is None
    with pytest.raises(UserError, match="likelihood needs the images of digits/test"):
        lab.evaluate({**of_ctm(GRID), "evaluation.likelihood": LOOSE | {"split": "test"}})


@shows("Released.weights", "Released.objective", "Released.step")
def test_released_models() -> None:
    released = {"weights": "ctm-cifar10-uncond", "objective": "cd", "step": 7}
    grids = of_ctm(GRID | {"gamma": [1]})
    made = tiny.experiment({**grids, "models.ctm": released})
    assert made.imported("ctm") == "ctm-cifar10-uncond"
    assert made.exported_steps("ctm") == [7]
    with pytest.raises(ValueError, match="sampled with gamma 1, not gamma 0"):
        tiny.experiment({**of_ctm(GRID | {"nfe": [2]}), "models.ctm": released})
    whole = released | {"objective": "ctm"}
    tiny.experiment({**of_ctm(GRID | {"nfe": [2]}), "models.ctm": whole})
    assert dag.layout.weights(made, "ctm") == (
        "results/released/ctm-cifar10-uncond/weights.safetensors"
    )
