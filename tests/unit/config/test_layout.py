"""Names of result files."""

from __future__ import annotations

from fixtures import tiny

from ctm_core.config import layout


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
