"""What the keys of a `training` section change: batches, gradients, steps, averages, files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.one_step import Lab, Run
from fixtures.sections import shows
from torch import Tensor

from ctm_core.models.networks.layers import UNetBlock
from ctm_core.models.weight_file import load_weights
from ctm_core.runtime import checkpoint, devices
from ctm_core.runtime.files import load_tensors
from ctm_core.training.denoising import DsmObjective
from ctm_core.training.objectives.ctm import CtmObjective


def training(**keys: Any) -> dict[str, Any]:
    return {f"teacher.training.{key}": value for key, value in keys.items()}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], factor: float = 1.0) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, factor * theirs[name], rtol=1e-4, atol=1e-6, msg=name)


# -- what a step is made of -----------------------------------------------------------------------


@shows("Training.steps", "Teacher.training", "Student.training")
def test_steps(lab: Lab) -> None:
    made = lab.train("teacher", training(steps=3))
    assert len(made.after) == made.record["steps"] == 3
    made = lab.train("ctm", {"models.ctm.training.steps": 1})
    assert len(made.after) == made.record["steps"] == 1


@shows("Training.batch_size")
@pytest.mark.parametrize("size", [4, 6])
def test_batch_size(lab: Lab, size: int) -> None:
    made = lab.train("teacher", training(batch_size=size))
    assert [len(batch) for batch in made.batches] == [size, size]
    # Each image once an epoch: the second step goes on where the first ended.
    indices = made.trainer.batches.indices(0, 0, 2 * size)
    assert torch.equal(
        torch.cat([batch.images for batch in made.batches]),
        torch.as_tensor(made.trainer.dataset.images[indices]).float() / 127.5 - 1,
    )


@shows("Training.micro_batch")
def test_micro_batch(lab: Lab) -> None:
    made = lab.train("teacher", training(micro_batch=2))
    assert [len(batch) for batch in made.batches] == [2] * 8
    assert_close(made.gradients[0], lab.plain.gradients[0])


@shows("Training.accumulation")
def test_accumulation(lab: Lab) -> None:
    """Means of micro-batches are summed as released; the mean is that of the whole batch."""
    for pieces in (2, 4):
        keys = {"micro_batch": 8 // pieces, "accumulation": "sum"}
        assert_close(
            lab.train("teacher", training(**keys)).gradients[0], lab.plain.gradients[0], pieces
        )
    keys = {"micro_batch": 2, "accumulation": "mean"}
    assert_close(lab.train("teacher", training(**keys)).gradients[0], lab.plain.gradients[0])


# -- the optimiser --------------------------------------------------------------------------------


@shows("Training.optimizer", "Training.learning_rate")
@pytest.mark.parametrize("rate", [1e-3, 3e-3])
def test_first_step(lab: Lab, rate: float) -> None:
    """Adam's first step has the gradient's sign alone; RAdam's is the gradient itself."""
    adam = lab.train("teacher", training(optimizer="adam", learning_rate=rate, steps=1))
    radam = lab.train("teacher", training(optimizer="radam", learning_rate=rate, steps=1))
    gradients = radam.gradients[0]
    assert_close(adam.gradients[0], gradients)
    parameters = dict(adam.trainer.student.named_parameters())
    for name, moved in radam.moved.items():
        torch.testing.assert_close(moved, -rate * gradients[name], rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(
            adam.trainer.optimizer.state[parameters[name]]["exp_avg"], 0.1 * gradients[name]
        )
        clear = gradients[name].abs() > 1e-4
        signs = gradients[name].sign()[clear]
        torch.testing.assert_close(adam.moved[name][clear], -rate * signs, rtol=1e-2, atol=1e-6)


@shows("Training.warmup_steps", "Training.decay_steps")
def test_schedule_of_the_rate(lab: Lab) -> None:
    warm = lab.train("teacher", training(steps=3, warmup_steps=2, learning_rate=1.0e-3))
    assert warm.rates == pytest.approx([0.5e-3, 1e-3, 1e-3])
    cold = lab.train("teacher", training(steps=3, decay_steps=2, learning_rate=1.0e-3))
    assert cold.rates == pytest.approx([1e-3, 1e-3, 0.5e-3])


@shows("Training.kernel")
@pytest.mark.parametrize("kernel", ["foreach", "fused", "loop"])
def test_kernel(lab: Lab, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    many, one = [], []
    foreach, single = torch._foreach_lerp_, Tensor.lerp_
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *a: many.append(a) or foreach(*a))
    monkeypatch.setattr(Tensor, "lerp_", lambda *a: one.append(a) or single(*a))
    made = lab.train("teacher", training(kernel=kernel))
    (group,) = made.trainer.optimizer.param_groups
    assert bool(group["foreach"]) == (kernel == "foreach")
    assert bool(group["fused"]) == (kernel == "fused")
    assert (not many, bool(one)) == ((True, True) if kernel == "loop" else (False, False))


# -- averages -------------------------------------------------------------------------------------


def average(run: Run, rates: list[float]) -> dict[str, Tensor]:
    """Weights averaged with these decays of the steps."""
    mean = dict(run.before)
    for rate, weights in zip(rates, run.after, strict=True):
        mean = {name: rate * value + (1 - rate) * weights[name] for name, value in mean.items()}
    return mean


def exported(run: Run, name: str = "teacher") -> dict[str, Tensor]:
    tensors = load_tensors(run.folder / f"{name}.safetensors")[0]
    return {key: value for key, value in tensors.items() if key in run.before}


@shows("Training.ema", "Training.evaluated_ema")
def test_averages(lab: Lab) -> None:
    made = lab.train("teacher", training(ema=[0.9, 0.5]))
    assert set(made.trainer.averages) == {0.9, 0.5}
    for rate, network in made.trainer.averages.items():
        assert_close(dict(network.named_parameters()), average(made, [rate, rate]))
    assert_close(exported(made), average(made, [0.9, 0.9]))
    other = lab.train("teacher", training(ema=[0.9, 0.5], evaluated_ema=0.5))
    assert_close(exported(other), average(other, [0.5, 0.5]))
    assert load_weights(other.folder / "teacher.safetensors")[1]["ema"] == 0.5


@shows("Training.ema_rampup")
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_ramp_up(lab: Lab, share: float) -> None:
    made = lab.train("teacher", training(ema=[0.9], ema_rampup=share))
    rates = [min(0.9, math.exp(math.log(0.5) / (share * step))) for step in (1, 2)]
    assert rates[0] < 0.9
    assert_close(exported(made), average(made, rates))


# -- how it is computed ---------------------------------------------------------------------------


@shows("Training.precision")
@pytest.mark.parametrize(
    ("key", "native", "computed"),
    [("fp32", "bf16", "fp32"), ("bf16", "fp32", "bf16"), ("auto", "fp32", "fp32"),
     ("auto", "bf16", "bf16")],
)  # fmt: skip
def test_precision(
    lab: Lab, key: str, native: str, computed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    calls = DsmObjective.calls

    def watched(self: DsmObjective, batch: Any) -> Any:
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return calls(self, batch)

    monkeypatch.setattr(DsmObjective, "calls", watched)
    monkeypatch.setattr(devices, "native_precision", lambda device: native)
    made = lab.train("teacher", training(precision=key))
    assert made.record["precision"] == computed
    rounded = computed == "bf16"
    assert {on for on, _ in seen} == {rounded}
    assert not rounded or {dtype for _, dtype in seen} == {torch.bfloat16}


@shows("Training.frozen_precision")
@pytest.mark.parametrize("key", ["bf16", None])
def test_frozen_precision(lab: Lab, key: str | None) -> None:
    changes = {"models.ctm.training.steps": 1}
    if key is not None:
        changes["models.ctm.training.frozen_precision"] = key
    made = lab.train("ctm", changes).trainer.objective
    assert isinstance(made, CtmObjective) and made.teacher is not None
    rounded = any(p.dtype == torch.bfloat16 for p in made.teacher.parameters())
    assert rounded == (key == "bf16")
    assert all(p.dtype == torch.float32 for p in made.student.parameters())


@shows("Training.channels_last")
@pytest.mark.parametrize(("key", "last"), [(True, True), (False, False), ("auto", True)])
def test_channels_last(lab: Lab, key: bool | str, last: bool) -> None:
    made = lab.train("teacher", training(channels_last=key, steps=1))
    weights = [p for p in made.trainer.student.parameters() if p.ndim == 4 and p.shape[2] > 1]
    several = [p for p in weights if p.shape[1] > 1]
    assert several
    for weight in several:
        assert weight.is_contiguous(memory_format=torch.channels_last) == last


@shows("Training.compile", "Training.compile_mode")
@pytest.mark.parametrize("mode", [None, "max-autotune-no-cudagraphs"])
def test_compile(lab: Lab, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    real, modes = torch.compile, []

    def compiled(work: Any, mode: str | None = None, **options: Any) -> Any:
        modes.append(mode)
        return real(work, **options | {"backend": "aot_eager"})

    monkeypatch.setattr(torch, "compile", compiled)
    keys = {"compile": True} | ({"compile_mode": mode} if mode else {})
    made = lab.train("teacher", training(**keys))
    assert modes == [None, mode or "default"]  # a trial, and the network that learns
    assert_close(made.gradients[0], lab.plain.gradients[0])
    assert made.record["compile"] is True and "compile" not in lab.plain.record
    assert made.record["train_hash"] != lab.plain.record["train_hash"]
    with pytest.raises(ValueError, match="set compile to true"):
        tiny.experiment(training(compile_mode="default"))


@shows("Training.tf32")
def test_tf32(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    made = lab.train("teacher", training(tf32=True))
    assert cuda.allow_tf32 is cudnn.allow_tf32 is made.record["tf32"] is True
    assert made.record["train_hash"] != lab.plain.record["train_hash"]
    plain = lab.train("teacher")  # whatever a training before it allowed
    assert cuda.allow_tf32 is cudnn.allow_tf32 is False and "tf32" not in plain.record


@shows("Training.attention")
@pytest.mark.parametrize("kernel", ["math", "sdpa"])
def test_attention(lab: Lab, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, calls = torch.nn.functional.scaled_dot_product_attention, 0

    def counted(*arguments: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return fused(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    lab.train("teacher", {**training(attention=kernel), "network.attn_resolutions": [8]})
    assert bool(calls) == (kernel == "sdpa")


@shows("Training.recompute")
@pytest.mark.parametrize("again", [True, False])
def test_recompute(lab: Lab, again: bool) -> None:
    made = lab.train("teacher", training(recompute=again))
    assert_close(made.gradients[0], lab.plain.gradients[0])
    block = next(m for m in made.trainer.student.modules() if isinstance(m, UNetBlock))
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    block.norm0.register_forward_hook(count)
    x = torch.randn(1, block.conv0.in_channels, 8, 8, requires_grad=True)
    block(x, torch.randn(1, block.affine.in_features)).sum().backward()
    assert calls == (2 if again else 1)


# -- what is kept ---------------------------------------------------------------------------------


@shows("Training.checkpoint_every", "Training.keep")
@pytest.mark.parametrize(("every", "keep", "left"), [(2, 9, [2, 4, 5]), (1, 3, [3, 4, 5])])
def test_checkpoints(lab: Lab, every: int, keep: int, left: list[int]) -> None:
    made = lab.train("teacher", training(steps=5, checkpoint_every=every, keep=keep))
    assert checkpoint.steps(made.trainer.run.checkpoints) == left


@shows("Training.snapshots")
def test_snapshots(lab: Lab) -> None:
    made = lab.train("teacher", training(steps=3, snapshots=[1, 2]))
    for step in (1, 2):
        path = made.folder / f"snapshot-{step:08d}.safetensors"
        tensors = load_tensors(path)[0]
        mean = dict(made.before)
        for weights in made.after[:step]:
            mean = {name: 0.9 * value + 0.1 * weights[name] for name, value in mean.items()}
        assert_close({name: tensors[name] for name in mean}, mean)


@shows("Training.log_every")
@pytest.mark.parametrize(("every", "logged"), [(1, [1, 2, 3]), (2, [2, 3])])
def test_log_every(lab: Lab, every: int, logged: list[int]) -> None:
    made = lab.train("teacher", training(steps=3, log_every=every))
    assert [line["step"] for line in made.curve] == logged


@shows("Training.preview_every")
@pytest.mark.parametrize(("every", "shown"), [(0, []), (2, ["step-00000002.png"])])
def test_preview_every(lab: Lab, every: int, shown: list[str]) -> None:
    made = lab.train("teacher", training(steps=3, preview_every=every))
    folder: Path = made.trainer.run.path / "previews"
    assert sorted(path.name for path in folder.glob("*.png")) == shown
