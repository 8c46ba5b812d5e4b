"""Every metric from one pass, and what an evaluation needs beside weights and references."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures import tiny
from fixtures.tiny import Trained

from ctm_core.config import Cell, Experiment
from ctm_core.config.protocols import Protocol, load_protocol
from ctm_core.data.dataset import Dataset
from ctm_core.evaluation import cells, evaluate, flow
from ctm_core.evaluation.distillation import Noises, errors
from ctm_core.evaluation.likelihood import LikelihoodProtocol, measure
from ctm_core.evaluation.metrics.names import parse
from ctm_core.evaluation.metrics.reference import write_reference
from ctm_core.models.features import build_features
from ctm_core.models.generation import Generator
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, save_tensors, write_record

EVERY = [
    "fd", "kid", "is", "precision_recall", "density_coverage", "trajectory", "memorisation",
]  # fmt: skip
FAMILIES = {
    "fd", "kid", "is", "precision", "recall", "density", "coverage", "trajectory_error",
    "memorisation", "memorisation_ratio",
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "neighbours": {"precision_recall": 2, "density_coverage": 3, "rows": 20},
    "trajectory": {"noises": 5, "points": 6},
    "memorisation": {"held_out": "others", "images": 40},
}
LIKELIHOOD = {"models": ["ctm"], "images": 3, "tolerance": 1e-2}
CELLS = [Cell("gamma", 1, None), Cell("gamma", 2, 0.0), Cell("gamma", 2, 1.0)]


class Bench:
    """Evaluations of the tiny student under protocols of a test's own, samplings counted."""

    def __init__(self, folder: Path, digits: Dataset, student: Trained, teacher: Trained) -> None:
        self.folder, self.digits, self.student, self.teacher = folder, digits, student, teacher
        self.sampled: list[dict[str, Any]] = []

    def reference(self, **changes: Any) -> Path:
        """Reference statistics of a protocol `p`."""
        described = tiny.PROTOCOL | {"name": "p", "metrics": EVERY} | SETTINGS | changes
        file = self.folder / "p.yaml"
        file.write_text(yaml.safe_dump(described), encoding="utf-8")
        made = self.folder / "p.safetensors"
        write_reference(made, load_protocol(file), self.digits)
        return made

    def experiment(self, changes: tiny.Changes | None = None) -> Experiment:
        fixed = {"evaluation.protocols": {"p": "all"}, "evaluation.likelihood": LIKELIHOOD}
        return tiny.experiment(fixed | dict(changes or {}))

    def evaluate(
        self, reference: Path, changes: tiny.Changes | None = None, **options: Any
    ) -> dict[str, Any]:
        given: dict[str, Any] = {
            "model": "ctm",
            "weights": self.student.weights,
            "references": [reference],
            "seed": 0,
            "output": self.folder / "out",
            "runs": self.folder / "runs",
            "teacher": self.teacher.weights,
            "data": [self.digits.path],
        }
        evaluate.evaluate(self.experiment(changes), **(given | options))
        record = json.loads((self.folder / "out" / "evaluation.json").read_text())
        assert isinstance(record, dict)
        return record


@pytest.fixture
def bench(
    tmp_path: Path,
    digits: Dataset,
    student: Trained,
    teacher: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> Bench:
    made = Bench(tmp_path, digits, student, teacher)
    batches = Generator.batches

    def counted(generator: Generator, count: int, **options: Any) -> Any:
        if count == tiny.PROTOCOL["samples"]:
            made.sampled.append(options)
        return batches(generator, count, **options)

    monkeypatch.setattr(Generator, "batches", counted)
    return made


def values(record: dict[str, Any], family: str) -> list[float]:
    return [row["value"] for row in record["rows"] if parse(row["metric"]).family == family]


def test_one_pass_feeds_every_metric(bench: Bench) -> None:
    record = bench.evaluate(bench.reference())
    assert len(bench.sampled) == len(CELLS) * 2
    scored = [row for row in record["rows"] if row["protocol"] == "p"]
    assert {parse(row["metric"]).family for row in scored} == FAMILIES
    for family in FAMILIES:
        assert len(values(record, family)) == len(CELLS) * 2
    counts = {parse(row["metric"]).family: row["n"] for row in scored}
    assert (counts["fd"], counts["is"], counts["memorisation"]) == (24, 24, 24)
    assert (counts["kid"], counts["density"], counts["trajectory_error"]) == (20, 20, 5)
    assert all(row["standard_error"] is None for row in scored if row["metric"].startswith("fd"))


def test_nothing_is_computed_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = bench.reference()
    first = bench.evaluate(reference)
    bench.sampled.clear()
    monkeypatch.setattr(flow.distillation, "errors", None)
    monkeypatch.setattr("ctm_core.evaluation.likelihood_rows.measure", None)
    assert bench.evaluate(reference) == first
    assert not bench.sampled


def test_a_further_metric_samples_only_where_it_has_to(bench: Bench) -> None:
    few = bench.evaluate(bench.reference(metrics=["fd", "precision_recall"]))
    assert len(bench.sampled) == len(CELLS) * 2
    bench.sampled.clear()
    more = bench.evaluate(bench.reference(metrics=["fd", "precision_recall", "density_coverage"]))
    assert not bench.sampled
    assert values(more, "fd") == values(few, "fd")
    assert len(values(more, "coverage")) == len(CELLS) * 2
    everything = bench.evaluate(bench.reference())
    assert len(bench.sampled) == len(CELLS) * 2
    assert values(everything, "recall") == values(few, "recall")


def test_one_sampling_seed_brings_an_error_of_its_own(bench: Bench) -> None:
    record = bench.evaluate(bench.reference(), {"evaluation.sample_seeds": [0]})
    [one, *_] = [row for row in record["rows"] if row["metric"] == "fd_classifier_digits_24"]
    assert one["standard_error"] > 0 and one["freedom"] == cells.BLOCKS - 1


def test_trajectory_errors_are_the_librarys(bench: Bench) -> None:
    record = bench.evaluate(bench.reference())
    student, teacher = (
        Generator.from_file(path.weights) for path in (bench.student, bench.teacher)
    )
    noises = Noises(
        count=5, seeds=(0, 1), shape=(1, 8, 8), classes=10, diffusion=student.record["diffusion"],
        batch_size=10, points=6,
    )  # fmt: skip
    (_, expected), _ = errors(student.model, teacher.model, CELLS, (), noises)
    rows = [row for row in record["rows"] if row["metric"] == "trajectory_error_5"]
    found = {
        Cell(row["sampler"], row["nfe"], row["gamma"]): (row["value"], row["standard_error"])
        for row in rows
        if row["sample_seed"] == 1
    }
    assert found == {cell: (e.value, e.standard_error) for cell, e in expected.items()}
    jumps = record["trajectory"]
    _, again = errors(
        student.model,
        teacher.model,
        (),
        [(jump["t"], jump["s"]) for jump in jumps],
        noises,
    )
    assert [jump["error"] for jump in jumps] == pytest.approx([j["error"] for j in again])
    assert len(jumps) == 36 and all(jump["t"] > jump["s"] for jump in jumps)


def test_the_teacher_is_its_own(bench: Bench) -> None:
    record = bench.evaluate(
        bench.reference(), model="teacher", weights=bench.teacher.weights, teacher=None
    )
    errors = values(record, "trajectory_error")
    assert len(errors) == 2 and min(errors) > 0  # two Heun steps, where the fine solve has five
    assert record["trajectory"] == []
    assert not values(record, "bpd")


def test_bits_per_dimension_are_the_librarys(bench: Bench) -> None:
    record = bench.evaluate(bench.reference())
    expected = measure(
        Generator.from_file(bench.student.weights),
        bench.digits,
        count=3,
        protocol=LikelihoodProtocol(tolerance=1e-2),
    )
    [row] = [row for row in record["rows"] if row["protocol"] == "likelihood"]
    assert row == {
        "sample_seed": 0,
        "sampler": "ode",
        "gamma": None,
        "nfe": expected.evaluations[0],
        "protocol": "likelihood",
        "metric": "bpd_3",
        "n": 3,
        "value": expected.mean,
        "rank_deficient": False,
        "standard_error": expected.standard_error,
        "freedom": 2,
    }
    facts = record["protocols"]["likelihood"]
    assert facts["reference"]["fingerprint"] == bench.digits.fingerprint
    snapshot = bench.student.folder / "snapshot-00000006.safetensors"
    assert not values(bench.evaluate(bench.reference(), weights=snapshot, step=6), "bpd")


def test_memorisation_sees_copies(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = bench.reference(metrics=["memorisation"])
    before = values(bench.evaluate(reference), "memorisation")
    copies = bench.digits.batch(range(24))[0]
    monkeypatch.setattr(Generator, "batches", lambda *_, **__: iter([copies]))
    monkeypatch.setattr(Generator, "images", lambda *_, **__: copies.clone())
    after = bench.evaluate(reference, runs=bench.folder / "others")
    assert set(values(after, "memorisation")) == {1.0}
    assert set(values(after, "memorisation_ratio")) == {0.0}
    assert max(before) < 1.0


def test_labels_as_often_as_in_training(bench: Bench) -> None:
    bench.evaluate(bench.reference(labels="training", metrics=["fd"]))
    drawn = torch.cat([options["labels"] for options in bench.sampled[:2]])
    assert len(drawn) == 48 and 0 <= int(drawn.min()) <= int(drawn.max()) <= 9
    assert len(set(drawn.tolist())) > 5
    assert torch.equal(bench.sampled[0]["labels"], bench.sampled[2]["labels"])  # by seed, not cell


def test_what_a_metric_lacks_is_said_before_any_work(bench: Bench, tmp_path: Path) -> None:
    reference = bench.reference()
    with pytest.raises(UserError, match="trajectory in the protocol p of tiny compares with the "):
        bench.evaluate(reference, teacher=None)
    with pytest.raises(UserError, match="needs the images of digits/train; give their folder as"):
        bench.evaluate(reference, data=[])
    with pytest.raises(UserError, match="is of model ctm, not teacher"):
        bench.evaluate(reference, teacher=bench.student.weights)
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for file in bench.digits.path.iterdir():
        (wrong / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((wrong / "manifest.json").read_text())
    write_record(wrong / "manifest.json", manifest | {"fingerprint": "f" * 64})
    with pytest.raises(UserError, match="other images of digits than ctm has learned"):
        bench.evaluate(reference, data=[wrong])
    write_record(wrong / "manifest.json", manifest | {"name": "cifar10"})
    with pytest.raises(UserError, match="holds cifar10, but tiny is about digits"):
        bench.evaluate(reference, data=[wrong])
    with pytest.raises(UserError, match="two references are of the protocol p"):
        bench.evaluate(reference, references=[reference, reference])
    tensors, metadata = load_tensors(reference)
    del tensors["features"]
    save_tensors(reference, tensors, metadata)
    with pytest.raises(UserError, match="lacks features, which the metrics of p need"):
        bench.evaluate(reference)
    assert not bench.sampled and not (tmp_path / "runs").exists()


def test_the_command_takes_teacher_and_data(
    bench: Bench, ctm: Callable[..., tiny.Ended], tmp_path: Path
) -> None:
    changes = {"evaluation.protocols": {"p": "all"}, "evaluation.likelihood": LIKELIHOOD}
    config = tiny.write_experiment(tmp_path / "tiny.yaml", changes)
    reference = bench.reference()
    ended = ctm(
        "evaluate", "--config", config, "--model", "ctm", "--weights", bench.student.weights,
        "--teacher", bench.teacher.weights, "--data", bench.digits.path, "--output",
        tmp_path / "by-command", "--runs", tmp_path / "runs", reference,
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    by_command = json.loads((tmp_path / "by-command" / "evaluation.json").read_text())
    assert by_command["rows"] == bench.evaluate(reference)["rows"]


def test_features_are_asked_for_once_a_batch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, tuple[str, ...]]] = []
    extractor = build_features(Protocol.model_validate(tiny.PROTOCOL))
    extract = type(extractor).extract

    def counted(self: Any, images: torch.Tensor, names: tuple[str, ...]) -> Any:
        asked.append((len(images), tuple(names)))
        return extract(self, images, names)

    reference = bench.reference()
    monkeypatch.setattr(type(extractor), "extract", counted)
    bench.evaluate(reference)
    batches = [(16, ("features", "probabilities")), (8, ("features", "probabilities"))]
    assert asked == batches * len(CELLS) * 2
