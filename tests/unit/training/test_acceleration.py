"""Each lever of speed leaves the result what it was, within rounding."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.tiny import Trained
from torch.nn import Conv2d

from ctm_core import config
from ctm_core.config import Training
from ctm_core.data.dataset import Dataset
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import torchvision_shim, weight_file
from ctm_core.models.networks.layers import UNetBlock
from ctm_core.runtime.files import load_tensors
from ctm_core.training import acceleration, distances, ema, jobs
from ctm_core.training.batches import Batch
from ctm_core.training.discriminator.backbones import Backbone, Deit, build_backbone
from ctm_core.training.discriminator.projected_layers import initialise
from ctm_core.training.objectives.ctm import CtmObjective
from ctm_core.training.terms import floats

SIDE = 8
KINDS: dict[str, dict[str, Any]] = {
    "ddpmpp": {"model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1},
    "openai_adm": {
        "architecture": "openai_adm",
        "model_channels": 32,
        "channel_mult": (1, 2),
        "num_blocks": 1,
        "num_head_channels": 16,
    },
}


def build(
    kind: str = "ddpmpp", *, time_s: bool = True, attn_resolutions: tuple[int, ...] = (8, 4)
) -> Trajectory:
    torch.manual_seed(int(time_s))
    model = weight_file.build_model(
        network=config.Network.model_validate(
            KINDS[kind] | {"attn_resolutions": attn_resolutions}
        ),
        diffusion=config.Diffusion(),
        resolution=SIDE,
        channels=3,
        label_dim=0,
        time_s=time_s,
    )
    with torch.no_grad():
        for parameter in model.parameters():  # zeros hide what lies before them
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def section(**keys: Any) -> Training:
    return Training.model_validate({"steps": 1, "batch_size": 1} | keys)


def objective(kind: str = "ddpmpp") -> CtmObjective:
    student = build(kind).train()
    return CtmObjective(
        section=config.Student.model_validate(
            {"grid_points": 6, "training": {"steps": 1, "batch_size": 4}}
        ),
        diffusion=config.Diffusion(),
        student=student,
        target=ema.frozen_copy(student).train(),
        teacher=build(kind, time_s=False).eval().requires_grad_(False),
        distance=distances.build_distance("l2"),
    )


def batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    return Batch(torch.rand(4, 3, SIDE, SIDE, generator=generator) * 2 - 1, None, seed=0, step=3)


def step(made: CtmObjective) -> tuple[dict[str, float], torch.Tensor]:
    terms = floats(made.backward(batch(), 1.0))
    found = [p.grad.flatten() for p in made.student.parameters() if p.grad is not None]
    return terms, torch.cat(found)


def accelerated(made: CtmObjective, **keys: Any) -> CtmObjective:
    acceleration.apply(section(**keys), [made.student, made.target], made.frozen())
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", [{"attention": "sdpa"}, {"channels_last": True}])
def test_a_step_is_the_same_with_the_key(kind: str, key: dict[str, Any]) -> None:
    usual, expected = step(objective(kind))
    terms, gradient = step(accelerated(objective(kind), **key))
    assert terms == pytest.approx(usual, rel=1e-4)
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_keeps_less_and_changes_no_bit(kind: str, precision: str) -> None:
    found = {}
    for recompute in (False, True):
        made = accelerated(objective(kind), recompute=recompute)
        for network in (made.student, made.target):
            for module in network.modules():
                if isinstance(module, UNetBlock):
                    module.dropout = 0.3
                elif isinstance(module, torch.nn.Dropout):
                    module.p = 0.3
        torch.manual_seed(0)
        kept = Kept()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), kept:
            found[recompute] = (*step(made), kept.numbers)
    terms, gradient, numbers = found[True]
    assert terms == found[False][0]
    assert torch.equal(gradient, found[False][1])
    assert numbers < 0.7 * found[False][2]


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """How many numbers of images autograd keeps, all told."""

    def __init__(self) -> None:
        self.numbers = 0
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 4 and len(tensor) == len(batch()):
            self.numbers += tensor.numel()
        return tensor


def test_sdpa_is_what_runs() -> None:
    made = accelerated(objective(), attention="sdpa")
    with torch.profiler.profile() as profile:
        step(made)
    assert any("scaled_dot_product" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_the_teacher_beforehand_is_what_autocast_does(kind: str) -> None:
    teacher = build(kind, time_s=False)
    rounded = copy.deepcopy(teacher)
    acceleration.round_frozen(rounded)
    kinds = {p.dtype for p in rounded.parameters()}
    assert kinds == {torch.bfloat16, torch.float32}  # norms keep theirs
    x, t = batch().images, torch.full((4,), 2.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher.denoise(x, t), rounded.denoise(x, t))


def test_only_frozen_networks_are_rounded_and_only_in_bf16() -> None:
    made = accelerated(objective(), precision="bf16")
    assert {p.dtype for p in made.student.parameters()} == {torch.float32}
    assert {p.dtype for p in made.target.parameters()} == {torch.float32}
    assert made.teacher is not None
    assert torch.bfloat16 in {p.dtype for p in made.teacher.parameters()}
    made = accelerated(objective(), precision="fp32")
    assert made.teacher is not None
    assert {p.dtype for p in made.teacher.parameters()} == {torch.float32}


def test_frozen_networks_in_bf16_serve_a_student_in_fp32() -> None:
    seen: dict[str, set[torch.dtype]] = {"teacher": set(), "student": set()}

    def watched(made: CtmObjective) -> CtmObjective:
        for name, dtypes in seen.items():
            for module in getattr(made, name).modules():
                if isinstance(module, Conv2d):
                    module.register_forward_hook(lambda _, __, out, d=dtypes: d.add(out.dtype))
        return made

    usual, expected = step(objective())
    terms, gradient = step(watched(accelerated(objective(), frozen_precision="bf16")))
    assert seen == {"teacher": {torch.bfloat16}, "student": {torch.float32}}
    assert terms != usual and terms == pytest.approx(usual, rel=0.05)
    assert 0 < (gradient - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "deit_base_distilled_patch16_224"])
def test_feature_networks_in_bf16_return_float32(name: str) -> None:
    if name.startswith("deit"):
        torchvision_shim.apply()
        from timm.models.vision_transformer import VisionTransformer

        network = VisionTransformer(img_size=32, embed_dim=16, depth=12, num_heads=2)
        made: Backbone = Deit(network)
        initialise(made, 0, "test")
    else:
        made = build_backbone(name, 32, pretrained=False)
    images = batch().images.requires_grad_()
    usual = made(images, 32)
    for entry in (acceleration.round_frozen, acceleration.run_in_bf16):
        assert made.trunk is not None
        entry(made.trunk)
    maps = made(images, 32)
    assert {x.dtype for x in maps} == {torch.float32}
    for a, b in zip(maps, usual, strict=True):
        assert not torch.equal(a, b) and (a - b).norm() < 0.1 * b.norm()
    (gradient,) = torch.autograd.grad(sum(x.sum() for x in maps), images)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_a_key_that_is_not_given_stands_in_no_hash() -> None:
    assert "attention" not in section().model_dump()
    assert section(attention="sdpa").model_dump()["attention"] == "sdpa"
    assert "recompute" not in section().model_dump()
    with pytest.raises(ValueError, match="attention"):
        section(attention="flash")


def test_weights_rounded_without_gradients_have_them_afterwards() -> None:
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with acceleration.bf16(torch.device("cpu")):
        with torch.no_grad():
            layer(x)
        (gradient,) = torch.autograd.grad(layer(x).float().sum(), layer.weight)
    assert gradient.tolist() == [[1, 1], [1, 1]]


def test_bf16_with_an_adversary_keeps_single_precision_weights(
    digits: Dataset, teacher: Trained, tmp_path: Path
) -> None:
    discriminator = {"backbones": ["tiny"], "resolution": 64, "width": 8}
    changes = {
        "models.ctm.adversarial": {"discriminator": discriminator},
        "models.ctm.training.precision": "bf16",
        "models.ctm.training.channels_last": True,
        "models.ctm.training.steps": 4,
        "models.ctm.training.snapshots": [],
    }
    places = {"output": tmp_path / "out", "runs": tmp_path / "runs"}
    jobs.train_student(tiny.experiment(changes), "ctm", digits, teacher.weights, seed=0, **places)
    lines = (tmp_path / "out" / "training.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [("gan" in row, "d_loss" in row) for row in rows] == [(True, False), (False, True)] * 2
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert numbers and all(math.isfinite(value) for value in numbers)
    (kept,) = (tmp_path / "runs").rglob("step-00000004")
    files = sorted(kept.glob("*.safetensors"))
    assert {"student", "discriminator", "optimizer"} <= {file.stem for file in files}
    for file in files:
        kinds = {tensor.dtype for tensor in load_tensors(file)[0].values()}
        assert kinds <= {torch.float32, torch.int64}, file.name
