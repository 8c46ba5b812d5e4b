"""Names of result files."""

from __future__ import annotations

from fixtures import tiny

from ctm_core.config import layout
from ctm_core.config.protocols import Protocol


def test_weights_are_final_snapshots_or_converted() -> None:
    made = tiny.experiment()
    assert (
        layout.weights(made, "teacher", seed=0)
        == "results/tiny/teacher/seed-0/teacher.safetensors"
    )
    assert layout.weights(made, "ctm") == "results/tiny/ctm/seed-{seed}/student.safetensors"
    assert layout.weights(made, "ctm", 12, 3) == "results/tiny/ctm/seed-3/student.safetensors"
    assert layout.weights(made, "ctm", 6, 3).endswith("seed-3/snapshot-00000006.safetensors")
    converted = tiny.experiment({"teacher": {"asset": "edm-cifar10-uncond"}})
    expected = "results/teachers/edm-cifar10-uncond/weights.safetensors"
    assert layout.weights(converted, "teacher", 0, 5) == expected


def test_a_fork_starts_from_two_files_that_its_parent_exports() -> None:
    made = tiny.experiment(
        {
            "models.fork": tiny.describe()["models"]["ctm"]
            | {"init_from": {"model": "ctm", "step": 6}}
        }
        | {"evaluation.samplers.fork": [{"sampler": "gamma", "nfe": [1], "gamma": [0]}]}
    )
    start = layout.start(made, "fork", 1)
    exported = layout.further_weights(made, "ctm", 1)
    assert set(start) == {"teacher", "init", "init_average"}
    assert {start["init"], start["init_average"]} == set(exported)
    assert start["teacher"] == "results/tiny/teacher/seed-0/teacher.safetensors"


def test_every_exported_step_is_evaluated() -> None:
    made = tiny.experiment({"seeds": [0, 1]})
    assert layout.evaluated([made], "evaluation.json") == [
        f"results/tiny/{folder}/evaluation.json"
        for folder in (
            "teacher/seed-0/step-12",
            "ctm/seed-0/step-6",
            "ctm/seed-0/step-12",
            "ctm/seed-1/step-6",
            "ctm/seed-1/step-12",
        )
    ]
    assert layout.trained([made], "training.json") == [
        f"results/tiny/{folder}/training.json"
        for folder in ("teacher/seed-0", "ctm/seed-0", "ctm/seed-1")
    ]


def test_a_reference_that_is_a_file_needs_no_images() -> None:
    own = Protocol.model_validate(tiny.PROTOCOL)
    assert layout.reference_data(own) == layout.prepared("digits", "train")
    somebodys = {"asset": "somebodys", "images": 100, "resolution": 8}
    theirs = Protocol.model_validate(tiny.PROTOCOL | {"reference": somebodys})
    assert layout.reference_data(theirs) == {}
