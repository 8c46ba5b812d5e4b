"""What the keys of a protocol change: what is compared, and the values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.one_step import Lab
from fixtures.sections import shows
from torch import Tensor

from ctm_core.config import dag
from ctm_core.config.project import open_project
from ctm_core.config.protocols import Protocol, load_protocol
from ctm_core.data import assets
from ctm_core.data.dataset import Dataset
from ctm_core.diffusion import sampling
from ctm_core.evaluation import distillation
from ctm_core.evaluation.metrics import kid, reference
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.published_statistics import PublishedStatistics
from ctm_core.evaluation.metrics.reference import write_reference
from ctm_core.evaluation.metrics.scoring import scores
from ctm_core.evaluation.metrics.state import State
from ctm_core.models.features import build_features
from ctm_core.models.features._extractor import FeatureExtractor, clean_resize
from ctm_core.models.generation import Generator
from ctm_core.runtime.errors import UserError

GRID = {"evaluation.samplers.ctm": [{"sampler": "gamma", "nfe": [1], "gamma": [0]}]}


def protocol(**keys: Any) -> dict[str, Any]:
    return tiny.PROTOCOL | keys


def valid(**keys: Any) -> Protocol:
    return Protocol.model_validate(protocol(**keys))


def values(lab: Lab, **keys: Any) -> dict[str, float]:
    """The values of one cell, by metric; the mean over seeds of one cell."""
    made = lab.evaluate(GRID, [protocol(**keys)])
    return {row["metric"]: row["value"] for row in made}


@shows("Protocol.name")
def test_name(tmp_path: Path, lab: Lab) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("name: mine\nfeatures: classifier_digits\ninput_size: 8\nsamples: 8\n"
                    "reference: {dataset: digits}\n")  # fmt: skip
    with pytest.raises(UserError, match=r"so its file must be mine\.yaml"):
        load_protocol(path)
    (row,) = lab.evaluate(GRID, [protocol(name="mine")])
    assert row["protocol"] == "mine"


@shows("Protocol.features")
def test_features() -> None:
    made = build_features(valid(features="classifier_digits"))
    other = build_features(valid(features="efficientnet_lite0", input_size=8))
    assert (made.name, made.dim) == ("classifier_digits", 64)
    assert (other.name, other.dim) == ("efficientnet_lite0", 1280)


@shows("Protocol.input_size", "Protocol.resize")
@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "clean"])
@pytest.mark.parametrize("size", [8, 12])
def test_resizing(resize: str, size: int) -> None:
    fed: list[Tensor] = []
    images = (torch.arange(64).view(1, 1, 8, 8) * 4).to(torch.uint8)
    extractor(fed, resize=resize, input_size=size)(images)
    if resize == "clean":
        expected = clean_resize(images, size, 1)
    else:
        expected = torch.nn.functional.interpolate(
            images.float(), size=(size, size), mode=resize, align_corners=False, antialias=True
        ).clamp(0, 255)
    assert fed[0].shape == (1, 1, size, size)
    torch.testing.assert_close(fed[0], expected)


def extractor(fed: list[Tensor], **keys: Any) -> FeatureExtractor:
    """An extractor that keeps what its network is fed."""

    def network(levels: Tensor) -> Tensor:
        fed.append(levels)
        return levels.flatten(1)[:, :1]

    return FeatureExtractor(
        protocol=valid(features="efficientnet_lite0", **keys), dim=1, weights_sha256="",
        network=network, batch_size=1, channels=1,
    )  # fmt: skip


def test_without_resizing_another_side_is_refused() -> None:
    with pytest.raises(UserError, match="feeds 12 pixels without resizing, but the images have 8"):
        extractor([], input_size=12)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


@shows("Protocol.reference", "ReferenceSplit.dataset", "ReferenceSplit.split")
def test_reference(tmp_path: Path, digits: Dataset) -> None:
    for wanted, said in (
        ({"dataset": "fashion-mnist"}, "compares with fashion-mnist/train"),
        ({"dataset": "digits", "split": "test"}, "compares with digits/test"),
    ):
        with pytest.raises(UserError, match=said):
            write_reference(tmp_path / "x", valid(reference=wanted), digits)
    tiny.write_experiment(
        tmp_path / "tiny.yaml", {"evaluation.protocols": {"desk-fashion-test": "all"}}
    )
    project = open_project(tmp_path / "tiny.yaml")
    assert dag.reference(project, "desk-fashion-test").reads["images"] == (
        "results/data/fashion-mnist/test/images.npy"
    )


@shows("ReferenceFile.asset", "ReferenceFile.images", "ReferenceFile.resolution")
def test_published_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    (tmp_path / "file").write_bytes(b"statistics")

    def require(name: str) -> Path:
        asked.append(name)
        return tmp_path / "file"

    def read(path: Path, n: int, *, images: bool = False) -> PublishedStatistics:
        return PublishedStatistics(Moments.of(torch.randn(n, 64)), None, None)

    monkeypatch.setattr(assets, "require", require)
    monkeypatch.setattr(reference, "read_published", read)
    wanted = {"asset": "edm-reference-cifar10", "images": 70, "resolution": 8}
    made = write_reference(tmp_path / "x.safetensors", valid(reference=wanted))
    assert (made.moments.n, made.resolution, set(asked)) == (70, 8, {"edm-reference-cifar10"})


@shows("Protocol.metrics", "Protocol.samples")
def test_metrics(lab: Lab) -> None:
    assert set(values(lab)) == {"fd_classifier_digits_24"}
    made = values(lab, metrics=["kid", "is"], samples=30)
    assert set(made) == {"kid_classifier_digits_30", "is_classifier_digits_30"}


@shows("Protocol.seeds")
@pytest.mark.parametrize(
    ("key", "named"), [("separate", [(0, 24), (1, 24)]), ("pooled", [("0+1", 48)])]
)
def test_seeds(lab: Lab, key: str, named: list[Any]) -> None:
    both = {**GRID, "evaluation.sample_seeds": [0, 1]}
    made = lab.evaluate(both, [protocol(seeds=key)])
    assert [(row["sample_seed"], row["n"]) for row in made] == named


@shows("Protocol.rounding")
def test_rounding(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    level = torch.full((1, 1, 8, 8), 100.7 / 127.5 - 1)
    assert int(sampling.to_uint8(level, "truncate")[0, 0, 0, 0]) == 100
    assert int(sampling.to_uint8(level, "round")[0, 0, 0, 0]) == 101
    used = []
    batches = Generator.batches

    def watched(self: Generator, count: int, **options: Any) -> Any:
        used.append(options.get("rounding"))
        return batches(self, count, **options)

    monkeypatch.setattr(Generator, "batches", watched)
    assert values(lab, rounding="truncate") != values(lab, rounding="round")
    assert {"truncate", "round"} <= set(used)


@shows("Protocol.labels")
@pytest.mark.parametrize("labels", ["uniform", "training"])
def test_labels(lab: Lab, labels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    batches = Generator.batches

    def watched(self: Generator, count: int, **options: Any) -> Any:
        given.append(options.get("labels"))
        return batches(self, count, **options)

    monkeypatch.setattr(Generator, "batches", watched)
    values(lab, labels=labels)
    assert (given[0] is None) == (labels == "uniform")


@shows("Protocol.precision")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision(precision: str) -> None:
    made = build_features(valid(features="efficientnet_lite0", precision=precision))
    seen = []
    convolution = torch.nn.functional.conv2d

    def watched(x: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu") or x.dtype == torch.bfloat16)
        return convolution(x, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "conv2d", watched)
        patch.setattr(made, "batch_size", 1)
        made(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    assert any(seen) == (precision == "bf16")  # the last stage and the head alone
    with pytest.raises(ValueError, match="classifiers run in fp32"):
        valid(precision="bf16")


# -- neighbours, subsets, trajectories, memorisation ----------------------------------------------


@shows("Protocol.neighbours", "Neighbours.precision_recall", "Neighbours.density_coverage")
def test_neighbours() -> None:
    torch.manual_seed(0)
    states = []
    for _ in range(2):
        state = State(40, {"features"})
        state.update({"features": torch.randn(40, 3)})
        states.append(state)

    def shares(**keys: int) -> dict[str, float]:
        metrics = ["precision_recall", "density_coverage"]
        wanted = valid(metrics=metrics, neighbours=keys)
        return {row["metric"]: row["value"] for row in scores(*states, wanted)}

    base = shares()
    for key, families in (
        ("precision_recall", ["precision", "recall"]),
        ("density_coverage", ["coverage", "density"]),
    ):
        made = shares(**{key: 1})
        changed = {name.split("_")[0] for name in base if made[name] != base[name]}
        assert sorted(changed) == families
        assert made == shares(**{key: 1}) != shares(**{key: 2})


@shows("Neighbours.rows")
@pytest.mark.parametrize("rows", [10, 20])
def test_rows(lab: Lab, tmp_path: Path, rows: int) -> None:
    keys = {"metrics": ["kid"], "neighbours": {"rows": rows}}
    reference = write_reference(tmp_path / "x.safetensors", valid(**keys), lab.digits)
    assert len(reference.state["features"]) == rows
    assert set(values(lab, **keys)) == {f"kid_classifier_digits_{rows}"}


@shows("Protocol.kid", "Kid.subsets", "Kid.size")
def test_kid(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    subsets = []
    own = kid.kid_of_subsets

    def watched(x: Tensor, y: Tensor, draws: Any) -> Any:
        drawn = list(draws)
        subsets.append([(len(a), len(b)) for a, b in drawn])
        return own(x, y, drawn)

    monkeypatch.setattr(kid, "kid_of_subsets", watched)
    values(lab, metrics=["kid"])
    assert not subsets
    values(lab, metrics=["kid"], kid={"subsets": 3, "size": 7})
    assert subsets == [[(7, 7)] * 3]


@shows("Protocol.trajectory", "Trajectories.noises", "Trajectories.points")
@pytest.mark.parametrize(("noises", "points"), [(3, 5), (2, 9)])
def test_trajectory(lab: Lab, noises: int, points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    path = distillation.path

    def watched(denoiser: Any, x: Tensor, *rest: Any, **options: Any) -> Any:
        asked.append((len(x), options["points"]))
        return path(denoiser, x, *rest, **options)

    monkeypatch.setattr(distillation, "path", watched)
    keys = {"noises": noises, "points": points}
    made = values(lab, metrics=["trajectory"], trajectory=keys)
    assert asked == [(noises, points)]
    assert set(made) == {f"trajectory_error_{noises}"}


@shows("Protocol.memorisation", "HeldOut.images", "HeldOut.held_out")
def test_memorisation(lab: Lab, tmp_path: Path) -> None:
    def distances(**keys: Any) -> Tensor:
        wanted = valid(metrics=["memorisation"], memorisation=keys)
        return write_reference(tmp_path / "x.safetensors", wanted, lab.digits).state["nearest"]

    assert [len(distances(held_out="others", images=n)) for n in (5, 9)] == [5, 9]
    with pytest.raises(UserError, match=r"digits's test split: give its folder as --held-out"):
        distances(held_out="test")
