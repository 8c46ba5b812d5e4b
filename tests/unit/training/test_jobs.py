"""Whole trainings: what goes in is checked, what comes out says where it is from."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.tiny import Trained

import ctm_core
from ctm_core.data.dataset import Dataset
from ctm_core.models import weight_file
from ctm_core.runtime import checkpoint
from ctm_core.runtime.errors import Interrupted, UserError
from ctm_core.runtime.files import CONTENT, load_tensors, read_json, sha256_file
from ctm_core.runtime.runs import RunFolder
from ctm_core.training import jobs

Train = Callable[..., Path]
#: As short as can be: nothing is learned, everything is checked.
SHORT = {
    "models.ctm.training.steps": 2,
    "models.ctm.training.snapshots": [],
    "models.ctm.training.decay_steps": 0,
}


@pytest.fixture
def train(digits: Dataset, teacher: Trained, tmp_path: Path) -> Train:
    """Train the student for two steps into ``tmp_path``."""

    def run(changes: tiny.Changes | None = None, **options: Any) -> Path:
        given = {
            "dataset": digits,
            "teacher": teacher.weights,
            "output": tmp_path / "out",
            "runs": tmp_path / "runs",
            "seed": 0,
        }
        experiment = tiny.experiment(SHORT | dict(changes or {}))
        model = options.pop("model", "ctm")
        return jobs.train_student(experiment, model, **(given | options))

    return run


def test_records(student: Trained, teacher: Trained, digits: Dataset) -> None:
    experiment = tiny.experiment()
    record = read_json(student.folder / "training.json")
    assert record["experiment"] == "tiny"
    assert record["model"] == record["objective"] == "ctm"
    assert record["train_hash"] == experiment.train_hash("ctm")
    assert record["steps"] == 12
    assert record["weights_sha256"] == sha256_file(student.weights)
    assert record["teacher_sha256"] == sha256_file(teacher.weights)
    assert record["dataset_fingerprint"] == digits.fingerprint
    assert record["exact"] is True
    speed = read_json(student.folder / "speed.json")
    assert speed["hardware"]["threads"] == 1 and speed["seconds"] > 0
    assert speed.keys() & record.keys() == {CONTENT}
    tensors, _ = load_tensors(student.weights)
    assert record["parameters"] == sum(value.numel() for value in tensors.values())
    of_teacher = read_json(teacher.folder / "training.json")
    assert of_teacher["teacher_sha256"] is None
    assert of_teacher["forward_passes"] == {"student": 12 * 8}

    weights = weight_file.read_record(student.weights)
    assert weights["inputs"] == {
        "dataset": digits.fingerprint,
        "teacher": sha256_file(teacher.weights),
        "distance": None,
    }
    snapshot = weight_file.read_record(student.folder / "snapshot-00000006.safetensors")
    assert (weights["step"], snapshot["step"]) == (12, 6)
    assert weights["ema"] == 0.9 and weights["time_s"] is True
    assert student.run.name == experiment.train_hash("ctm")[:12]


def test_the_exported_weights_are_the_evaluated_average(train: Train, tmp_path: Path) -> None:
    changes = {"models.ctm.training.ema": [0.9, 0.5], "models.ctm.training.evaluated_ema": 0.5}
    exported, _ = load_tensors(train(changes))
    [state] = tmp_path.glob("runs/tiny/ctm/seed-0/*/checkpoints/step-00000002")
    average = {
        rate: load_tensors(state / f"ema_{rate}.safetensors")[0] for rate in (0.5, 0.8, 0.9)
    }
    live, _ = load_tensors(state / "student.safetensors")
    name = "model.map_layer0.weight"
    assert torch.equal(exported[name], average[0.5][name])
    for other in (average[0.8], average[0.9], live):
        assert not torch.equal(exported[name], other[name])


def test_the_student_begins_at_the_teacher(
    train: Train, teacher: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def look(self: Any, exports: Any, export: Any) -> None:
        seen.append({name: v.clone() for name, v in self.student.state_dict().items()})
        raise Interrupted("seen enough")

    monkeypatch.setattr(jobs.Trainer, "train", look)
    denoiser, _ = load_tensors(teacher.weights)
    for initial in ("teacher", "random"):
        with pytest.raises(Interrupted):
            train({"models.ctm.initial": initial})
    with pytest.raises(Interrupted):
        train({"models.ctm.initial": "random"}, seed=1)
    begun, drawn, other = seen
    assert denoiser.keys() < begun.keys()
    assert all(torch.equal(begun[name], value) for name, value in denoiser.items())
    fresh = set(begun) - set(denoiser)
    assert all("_s." in name for name in fresh)
    # What the teacher has not is drawn: not zero, and by the seed.
    assert all(torch.equal(begun[name], drawn[name]) for name in fresh)
    assert begun["model.map_layer0_s.weight"].norm() > 0
    name = "model.map_layer0.weight"
    assert not torch.equal(drawn[name], begun[name])
    assert not torch.equal(drawn[name], other[name])


def test_changed_inputs_begin_anew_and_lose_nothing(
    train: Train, tmp_path: Path, teacher: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    first = train().read_bytes()
    [run] = tmp_path.glob("runs/tiny/ctm/seed-0/*")
    old = tiny.tree(run / "exports")
    model, record = weight_file.load_weights(teacher.weights)
    with torch.no_grad():
        model.output_weight.mul_(1.5)
    other = tmp_path / "other.safetensors"
    weight_file.export(other, model, record)
    second = train(teacher=other).read_bytes()
    assert second != first
    assert "teacher changed since this run began; its state is set aside" in caplog.text
    assert tiny.tree(run / "set-aside-1" / "exports") == old
    curve = [json.loads(line)["step"] for line in (tmp_path / "out" / "training.jsonl").open()]
    assert curve == [1, 2]
    assert train().read_bytes() == first  # anew once more, to the same end


def test_another_configuration_has_another_folder(train: Train, tmp_path: Path) -> None:
    train()
    train({"models.ctm.training.learning_rate": 1e-3})
    train({"models.ctm.training.log_every": 2})
    assert len(list(tmp_path.glob("runs/tiny/ctm/seed-0/*"))) == 2


def test_an_explicit_folder_is_one_runs(train: Train, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    weights = train(run=mine).read_bytes()
    assert (mine / "checkpoints").is_dir()
    assert not (tmp_path / "runs").exists()
    state = tiny.tree(mine / "checkpoints")
    for changes, options in (
        ({"models.ctm.training.learning_rate": 1e-3}, {}),
        ({}, {"seed": 1}),
        ({"experiment": "other"}, {}),
    ):
        with pytest.raises(UserError, match="mine belongs to another run: its"):
            train(changes, run=mine, **options)
    assert tiny.tree(mine / "checkpoints") == state
    assert not (mine / "failed.json").exists()
    assert train(run=mine).read_bytes() == weights


def test_a_run_in_use_is_left_alone(train: Train, tmp_path: Path) -> None:
    train()
    [run] = tmp_path.glob("runs/tiny/ctm/seed-0/*")
    config, inputs = read_json(run / "config.json"), read_json(run / "inputs.json")
    with RunFolder(run, config=config, inputs=inputs):
        before = tiny.tree(tmp_path)
        with pytest.raises(Interrupted, match="is in use by process"):
            train()
        assert tiny.tree(tmp_path) == before


# -- refusals ----------------------------------------------------------------------------------


def with_manifest(dataset: Dataset, **changes: Any) -> Dataset:
    return replace(dataset, manifest=dataset.manifest | changes)


def test_a_teacher_of_another_data_set(train: Train, digits: Dataset, tmp_path: Path) -> None:
    experiment = {"dataset.name": "fashion-mnist"}
    others = with_manifest(digits, name="fashion-mnist", fingerprint="f" * 64)
    with pytest.raises(
        UserError, match="was trained for the data set digits, not fashion-mnist; train a teacher"
    ):
        train(experiment, dataset=others)
    changed = with_manifest(digits, fingerprint="f" * 64)
    with pytest.raises(UserError, match="was trained on other images of digits; train a teacher"):
        train(dataset=changed)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"network.model_channels": 12}, "network"),
        ({"diffusion": {"sigma_data": 0.4}}, "diffusion"),
        ({"conditional": False}, "label_dim"),
    ],
)
def test_a_teacher_that_does_not_fit(train: Train, changes: tiny.Changes, what: str) -> None:
    with pytest.raises(UserError, match=rf"has another {what} than tiny; train a teacher for it"):
        train(changes)


def test_a_student_is_no_teacher(train: Train, student: Trained) -> None:
    with pytest.raises(UserError, match=r"is a student \(ctm\), not a teacher"):
        train(teacher=student.weights)


def test_only_training_images_are_learned(train: Train, digits: Dataset) -> None:
    with pytest.raises(UserError, match=r"holds digits, split train, but .* learns fashion-mnist"):
        train({"dataset.name": "fashion-mnist"})
    test = with_manifest(digits, split="test")
    with pytest.raises(UserError, match=r"holds digits, split test, but .* digits, split train"):
        train(dataset=test)


def test_a_training_takes_the_files_it_uses_and_no_other(train: Train, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    with pytest.raises(UserError, match="ctm needs --teacher FILE, because of its objective"):
        train(teacher=None)
    with pytest.raises(UserError, match=r"--init .*other.safetensors: ctm uses no such file"):
        train(init=other)
    with pytest.raises(UserError, match=r"--init-average .*: ctm uses no such file; leave"):
        train(init_average=other)
    scratch = {"models.ctm.objective": "ctm_scratch"}
    with pytest.raises(UserError, match=r"--teacher .*: ctm uses no such file"):
        train(scratch)
    changes = {
        "models.warm": tiny.DESCRIPTION["models"]["ctm"],
        "evaluation.samplers.warm": [{"sampler": "gamma", "nfe": [1], "gamma": [0]}],
        "models.ctm.init_from": {"model": "warm", "step": 6},
    }
    with pytest.raises(UserError, match="ctm needs --init FILE, because of init_from"):
        train(changes)
    with pytest.raises(UserError, match=r"other\.safetensors is missing"):
        train(changes, init=other, init_average=other)


# -- kinds -------------------------------------------------------------------------------------

ADVERSARIAL = {"discriminator": {"backbones": ["tiny"], "resolution": 64, "width": 8}}


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({"objective": "ctm_s0"}, {"ctm", "dsm", "lambda_dsm", "k"}),
        ({"objective": "ctm_scratch"}, {"ctm", "dsm", "lambda_dsm", "k"}),
        ({"objective": "ctm_scratch", "variant": "printed"}, {"ctm", "dsm", "lambda_dsm", "k"}),
        ({"objective": "cd"}, {"ctm", "k"}),
        ({"objective": "ct"}, {"ctm", "k"}),
        ({"adversarial": ADVERSARIAL}, {"ctm", "dsm", "lambda_dsm", "gan", "lambda_gan", "k"}),
        (
            {"objective": "cd", "adversarial": ADVERSARIAL | {"loss": "log"}},
            {"ctm", "gan", "lambda_gan", "k"},
        ),
    ],
    ids=["ctm_s0", "scratch-jump", "scratch-heun", "cd", "ct", "gan", "cd-gan"],
)
def test_every_kind_of_student_trains_and_samples(
    train: Train, tmp_path: Path, changes: dict[str, Any], terms: set[str]
) -> None:
    settings: dict[str, Any] = {f"models.ctm.{key}": value for key, value in changes.items()}
    settings |= {"models.ctm.training.steps": 4, "models.ctm.training.snapshots": []}
    settings["models.ctm.training.preview_every"] = 4
    final_only = changes.get("objective") in ("cd", "ct", "ctm_s0")
    if final_only:
        settings["evaluation.samplers.ctm"] = [{"sampler": "gamma", "nfe": [2], "gamma": [1]}]
    without = {"teacher": None} if changes.get("objective") in ("ct", "ctm_scratch") else {}
    weights = train(settings, **without)
    curve = [json.loads(line) for line in (weights.parent / "training.jsonl").open()]
    assert curve[0].keys() == {"step", "loss"} | terms
    if "adversarial" in changes:
        assert curve[1].keys() == {"step", "d_loss", "d_real", "d_fake"}
    model = ctm_core.load(weights)
    assert model.sample(2, nfe=2).shape == (2, 1, 8, 8)  # gamma as the model allows it
    if final_only:
        with pytest.raises(UserError, match="sampled with gamma 1"):
            model.sample(2, nfe=2, gamma=0.5)


@pytest.mark.parametrize("name", ["student", "snapshot-00000001"])
def test_a_damaged_export_is_not_delivered(train: Train, tmp_path: Path, name: str) -> None:
    changes = {"models.ctm.training.snapshots": [1], "models.ctm.training.checkpoint_every": 1}
    weights = train(changes)
    delivered = weights.with_stem(name)
    whole = delivered.read_bytes()
    [export] = (tmp_path / "runs").glob(f"**/exports/{name}.safetensors")
    content = bytearray(export.read_bytes())
    content[-7] ^= 2
    export.write_bytes(content)
    step = 2 if name == "student" else 1
    with pytest.raises(
        UserError, match=rf"{name}.* is corrupt: it is not what was exported at step {step}"
    ):
        train(changes)
    assert delivered.read_bytes() == whole
    export.unlink()
    train(changes)
    assert delivered.read_bytes() == export.read_bytes() == whole


def test_a_fork_starts_from_the_exports_with_a_fresh_optimiser(
    train: Train, tmp_path: Path
) -> None:
    changes: tiny.Changes = {
        "models.warm": tiny.DESCRIPTION["models"]["ctm"],
        "evaluation.samplers.warm": [{"sampler": "gamma", "nfe": [1], "gamma": [0]}],
        "models.ctm.init_from": {"model": "warm", "step": 6},
        "models.ctm.training.steps": 1,
        "models.ctm.training.snapshots": [],
        "models.ctm.training.learning_rate": 1e-30,
    }
    warm = train(changes, model="warm", output=tmp_path / "warm").parent
    live, average = warm / "live-00000006.safetensors", warm / "snapshot-00000006.safetensors"
    tensors = {path: load_tensors(path)[0] for path in (live, average)}
    assert any(not torch.equal(tensors[live][n], tensors[average][n]) for n in tensors[live])
    weights = train(changes, init=live, init_average=average)
    state = checkpoint.newest(_only(tmp_path / "runs/tiny/ctm/seed-0") / "checkpoints")
    assert state is not None
    # A step that moves nothing shows where training began: live weights, and their EMA.
    for name, value in tensors[live].items():
        torch.testing.assert_close(state.sections["student"][name], value)
    own = load_tensors(weights)[0]
    for name, value in tensors[average].items():
        mixed = 0.9 * value + 0.1 * tensors[live][name]
        torch.testing.assert_close(own[name], mixed)
    inputs = read_json(_only(tmp_path / "runs/tiny/ctm/seed-0") / "inputs.json")
    assert inputs["init"] == sha256_file(live)
    assert inputs["init_average"] == sha256_file(average)


def _only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_unconditional_models_know_no_classes(digits: Dataset, tmp_path: Path) -> None:
    changes = SHORT | {
        "conditional": False,
        "teacher.training.steps": 2,
        "teacher.training.preview_every": 1,
        "models.ctm.training.preview_every": 1,
    }
    experiment = tiny.experiment(changes)
    options: dict[str, Any] = {"runs": tmp_path / "runs"}
    weights = jobs.train_teacher(experiment, digits, output=tmp_path / "t", **options)
    made = jobs.train_student(
        experiment, "ctm", digits, weights, output=tmp_path / "s", seed=0, **options
    )
    model, record = weight_file.load_weights(made)
    assert record["label_dim"] == model.label_dim == 0
    assert not any("map_label" in name for name in load_tensors(made)[0])
    assert len(list(tmp_path.glob("runs/**/previews/*.png"))) == 4


@pytest.mark.parametrize("matching", ["local", "global"])
def test_matchings_train(train: Train, tmp_path: Path, matching: str) -> None:
    train({"models.ctm.matching": matching})
    passes = read_json(tmp_path / "out" / "training.json")["forward_passes"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "training.jsonl").open()]
    if matching == "local":
        assert [line["k"] for line in lines] == [1, 1]
        assert passes["teacher"] == 2 * 1 * 8 * 2
    else:
        assert passes["teacher"] >= 2 * sum(int(line["k"]) for line in lines) * 8
        assert passes["student"] == 2 * 2 * 8


def test_micro_batches_and_perceptual_distance_train(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {
        "models.ctm.training.micro_batch": 2,
        "models.ctm.training.batch_size": 4,
        "models.ctm.distance": "stlpips_vgg",
        "models.ctm.perceptual": {"resize": 32},
    }
    with caplog.at_level(logging.WARNING):
        weights = train(changes)
    record = weight_file.read_record(weights)
    assert len(record["inputs"]["distance"]) == 64
    assert caplog.text == ""


@pytest.mark.parametrize(
    "network",
    [
        {
            "architecture": "openai_adm",
            "model_channels": 32,
            "channel_mult": [1],
            "num_blocks": 1,
            "attn_resolutions": [],
            "num_head_channels": 16,
            "dropout": 0.1,
        },
        tiny.DESCRIPTION["network"] | {"augment_dim": 9},
    ],
    ids=["openai_adm", "augment_dim"],
)
def test_other_networks_train_from_teacher_to_student(
    digits: Dataset, tmp_path: Path, network: dict[str, Any]
) -> None:
    steps = {"steps": 2, "batch_size": 4, "ema": [0.9]}
    experiment = tiny.experiment(
        {"network": network, "teacher.training": steps, "models.ctm.training": steps}
    )
    teacher = jobs.train_teacher(experiment, digits, output=tmp_path, runs=tmp_path / "runs")
    student = jobs.train_student(
        experiment, "ctm", digits, teacher, output=tmp_path, seed=0, runs=tmp_path / "runs"
    )
    before, after = (weight_file.load_weights(path)[0] for path in (teacher, student))
    assert ("model.map_augment.weight" in before.state_dict()) == ("augment_dim" in network)
    assert "model.map_augment.weight" not in after.state_dict()
    x, y = torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    assert torch.isfinite(after.G(x, 5.0, 1.0, y)).all()
    with torch.no_grad():
        assert (after.denoise(x, 1.0, y) - before.denoise(x, 1.0, y)).abs().max() > 0
