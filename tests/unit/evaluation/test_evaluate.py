"""Cells are computed once, whatever happens in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.sections import shows
from fixtures.tiny import Trained
from safetensors.torch import save_file

from ctm_core.evaluation import evaluate
from ctm_core.evaluation.metrics.frechet import frechet_distance
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.state import State
from ctm_core.models.generation import Generator
from ctm_core.models.weight_file import read_record
from ctm_core.runtime.errors import Interrupted, UserError
from ctm_core.runtime.files import load_tensors, save_tensors
from ctm_core.runtime.runs import RunFolder

CELLS = 3  # NFE 1, and NFE 2 with gamma 0 and 1
SEEDS = 2


class Bench:
    """An evaluation of the tiny student in a folder of its own, with its samplings counted."""

    def __init__(
        self, folder: Path, student: Trained, references: list[Path], patch: pytest.MonkeyPatch
    ) -> None:
        self.folder, self.student, self.references = folder, student, references
        self.sampled: list[tuple[str, int, float | None, int]] = []
        self.stop_after: int | None = None
        batches = Generator.batches

        def counted(generator: Generator, count: int, **options: Any) -> Any:
            if count == tiny.PROTOCOL["samples"]:
                if len(self.sampled) == self.stop_after:
                    raise KeyboardInterrupt
                names = ("sampler", "nfe", "gamma", "seed")
                self.sampled.append(tuple(options[name] for name in names))  # type: ignore[arg-type]
            return batches(generator, count, **options)

        patch.setattr(Generator, "batches", counted)

    def evaluate(
        self, changes: tiny.Changes | None = None, output: str = "out", **options: Any
    ) -> dict[str, Any]:
        """Run it and return the record without what differs between runs."""
        given = {"model": "ctm", "weights": self.student.weights, "references": self.references}
        given |= {"seed": 0, "output": self.folder / output, "runs": self.folder / "runs"}
        evaluate.evaluate(tiny.experiment(changes), **(given | options))
        record = json.loads((self.folder / output / "evaluation.json").read_text())
        assert isinstance(record, dict)
        return record


@pytest.fixture
def bench(
    tmp_path: Path, student: Trained, references: list[Path], monkeypatch: pytest.MonkeyPatch
) -> Bench:
    return Bench(tmp_path, student, references, monkeypatch)


def test_every_cell_is_sampled_once_for_all_protocols(bench: Bench) -> None:
    record = bench.evaluate()
    assert len(bench.sampled) == len(set(bench.sampled)) == CELLS * SEEDS
    rows = [(r["protocol"], r["nfe"], r["gamma"], r["sample_seed"]) for r in record["rows"]]
    expected = [
        ("tiny", nfe, gamma, seed)
        for nfe, gamma in ((1, None), (2, 0.0), (2, 1.0))
        for seed in (0, 1)
    ]
    assert sorted(rows, key=str) == sorted([*expected, ("tiny-pooled", 2, 1.0, "0+1")], key=str)
    names = {(r["protocol"], r["metric"], r["n"]) for r in record["rows"]}
    assert names == {
        ("tiny", "fd_classifier_digits_24", 24),
        ("tiny-pooled", "fd_classifier_digits_48", 48),
    }
    assert all(r["rank_deficient"] for r in record["rows"])  # 24 and 48 samples, 64 dimensions
    assert record["checkpoint_sha256"] != record["train_hash"]


def test_a_pooled_row_is_that_of_all_samples_together(bench: Bench) -> None:
    from ctm_core.config.protocols import Protocol
    from ctm_core.models.features import build_features

    record = bench.evaluate()
    [pooled] = [r for r in record["rows"] if r["protocol"] == "tiny-pooled"]
    extract = build_features(Protocol.model_validate(tiny.POOLED))
    generator = Generator.from_file(bench.student.weights)
    moments = Moments.of(torch.zeros(0, extract.dim))
    for seed in (0, 1):
        images = generator.images(24, sampler="gamma", nfe=2, gamma=1.0, seed=seed, batch_size=16)
        moments = moments.merge(Moments.of(extract(images)))
    [reference] = State.from_tensors(load_tensors(bench.references[1])[0]).moments()
    assert pooled["value"] == pytest.approx(frechet_distance(reference, moments).value, rel=1e-9)


@pytest.mark.parametrize("done", [0, 1, CELLS * SEEDS - 1])
def test_a_killed_evaluation_continues_by_cell(bench: Bench, done: int) -> None:
    undisturbed = bench.evaluate(output="whole", runs=bench.folder / "elsewhere")
    bench.sampled.clear()
    bench.stop_after = done
    with pytest.raises(KeyboardInterrupt):
        bench.evaluate()
    assert not (bench.folder / "out" / "evaluation.json").exists()
    first = list(bench.sampled)
    bench.stop_after, bench.sampled = None, []
    assert bench.evaluate() == undisturbed
    assert len(first) == done
    assert not set(first) & set(bench.sampled)
    previews = [(bench.folder / name / "previews.safetensors") for name in ("out", "whole")]
    assert previews[0].read_bytes() == previews[1].read_bytes()


def test_a_larger_grid_computes_what_is_new(bench: Bench) -> None:
    before = bench.evaluate()
    bench.sampled.clear()
    grid = [{"sampler": "gamma", "nfe": [1, 2], "gamma": [0, 0.5, 1]}]
    after = bench.evaluate({"evaluation.samplers.ctm": grid})
    assert bench.sampled == [("gamma", 2, 0.5, 0), ("gamma", 2, 0.5, 1)]
    assert [r for r in after["rows"] if r["gamma"] != 0.5] == before["rows"]


def test_another_batch_size_is_another_cell(bench: Bench) -> None:
    bench.evaluate()
    bench.sampled.clear()
    bench.evaluate({"evaluation.batch_size": 8})
    assert len(bench.sampled) == CELLS * SEEDS


@pytest.mark.parametrize("damage", ["cut", "missing", "no moments", "bit", "swap", "swap of old"])
def test_a_damaged_cell_is_made_again(
    bench: Bench, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    whole = bench.evaluate()
    bench.sampled.clear()
    [cell, other, *_] = sorted(bench.folder.glob("runs/**/cells/*.safetensors"))
    if damage == "cut":
        cell.write_bytes(cell.read_bytes()[:-1])
    elif damage == "missing":
        cell.unlink()
    elif damage == "bit":
        content = bytearray(cell.read_bytes())
        content[-3] ^= 4
        cell.write_bytes(content)
    elif damage == "swap":
        cell.write_bytes(other.read_bytes())
    elif damage == "swap of old":
        tensors, metadata = load_tensors(other)
        assert (metadata.pop("cell"), metadata.pop("key")) and metadata["seed"] in "01"
        save_file(tensors, cell, metadata=metadata | {"cell": "gamma/nfe-9"})
    else:
        save_tensors(cell, {"n": torch.tensor([24])})
    assert bench.evaluate() == whole
    assert len(bench.sampled) == 1
    assert (f"{cell} is damaged and made again" in caplog.text) == (damage != "missing")


def test_snapshots_are_evaluated_side_by_side(bench: Bench) -> None:
    """The job of one step holds no other step's lock."""
    snapshot = bench.student.folder / "snapshot-00000006.safetensors"
    record = read_record(snapshot)
    runs = bench.folder / "runs"
    bench.evaluate()
    [folder] = runs.glob("tiny/ctm/seed-0/*")
    with RunFolder(folder, config=json.loads((folder / "config.json").read_text()), inputs={}):
        with pytest.raises(Interrupted, match="is in use by process"):
            bench.evaluate()
        assert (
            bench.evaluate(weights=snapshot, step=6, output="six")["step"] == record["step"] == 6
        )
    assert len(list(runs.glob("tiny/ctm/seed-0/*"))) == 2


def test_what_does_not_belong_together_is_refused(bench: Bench, teacher: Trained) -> None:
    with pytest.raises(UserError, match="is of model teacher, not ctm"):
        bench.evaluate(weights=teacher.weights)
    with pytest.raises(UserError, match="is of seed 0, not 1"):
        bench.evaluate(seed=1)
    with pytest.raises(UserError, match="is of step 12, not 6"):
        bench.evaluate(step=6)
    with pytest.raises(UserError, match="no reference given for the protocol tiny-pooled"):
        bench.evaluate(references=bench.references[:1])
    with pytest.raises(UserError, match="is not a reference file"):
        bench.evaluate(references=[bench.student.weights])
    with pytest.raises(UserError, match="has no student 'cd'"):
        bench.evaluate(model="cd")
    changed = {"models.ctm.training.learning_rate": 1e-3}
    with pytest.raises(UserError, match=r"trained with another configuration of ctm \(train_hash"):
        bench.evaluate(changed)
    assert not bench.sampled
    assert not (bench.folder / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset_fingerprint": "f" * 64}, "was made from other images of digits than ctm has"),
        ({"resolution": "16"}, "is of 16-pixel images, ctm makes 8-pixel ones"),
        ({"weights_sha256": "f" * 64}, "was made with other weights of classifier_digits"),
    ],
)
def test_a_reference_that_does_not_belong(
    bench: Bench, changes: dict[str, str], expected: str
) -> None:
    wrong = bench.folder / "wrong.safetensors"
    tensors, metadata = load_tensors(bench.references[0])
    save_tensors(wrong, tensors, metadata | changes)
    with pytest.raises(UserError) as error:
        bench.evaluate(references=[wrong, bench.references[1]])
    assert expected in str(error.value)
    assert not bench.sampled


@shows("Evaluation.sampling_precision")
def test_sampling_in_bf16_is_another_cell_and_is_stated(bench: Bench) -> None:
    before = bench.evaluate()
    bench.sampled.clear()
    after = bench.evaluate({"evaluation.sampling_precision": "bf16"})
    assert len(bench.sampled) == CELLS * SEEDS
    assert {facts["sampling_precision"] for facts in after["protocols"].values()} == {"bf16"}
    assert all("sampling_precision" not in facts for facts in before["protocols"].values())
    values = [[row["value"] for row in record["rows"]] for record in (before, after)]
    assert values[0] != values[1] and values[0] == pytest.approx(values[1], rel=0.05)


@pytest.mark.parametrize("hashed", [True, False])
def test_a_damaged_reference_is_refused_before_the_work(bench: Bench, hashed: bool) -> None:
    wrong = bench.folder / "wrong.safetensors"
    tensors, metadata = load_tensors(bench.references[0])
    if hashed:
        content = bytearray(bench.references[0].read_bytes())
        content[-3] ^= 64
        wrong.write_bytes(content)
    else:
        tensors["moments.mean"][0, 3] = float("nan")
        save_tensors(wrong, tensors, metadata)
    expected = "does not match the SHA-256" if hashed else "'moments.mean' holds NaN or infinity"
    with pytest.raises(UserError, match=rf"wrong\.safetensors .*{expected}"):
        bench.evaluate(references=[wrong, bench.references[1]])
    assert not bench.sampled and not (bench.folder / "runs").exists()


def test_auto_precision_belongs_to_whatever_it_was_resolved_to(bench: Bench) -> None:
    record = bench.evaluate({"models.ctm.training.precision": "auto"})
    assert record["train_hash"] == tiny.experiment().train_hash("ctm")
