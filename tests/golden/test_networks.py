"""Networks, preconditioning, g and G against the official ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctm_core.networks.layers import UNetBlock
from ctm_core.trajectory import Trajectory, scalings

from .reference import build, compare, error, load, student


@torch.no_grad()
def test_teacher(precision: torch.dtype) -> None:
    """EDM's DDPM++: raw output and denoiser, with labels and augmentation labels where given."""
    case = load("edm_ddpmpp")
    model = build(case.meta["kwargs"], case.weights("net", precision), precision, time_s=False)
    x, t = case.input("x", precision), case.input("sigma", precision)
    labels = case.labels(precision)
    augment = case.input("augment_labels", precision) if "in/augment_labels" in case else None

    def denoised(y: Tensor | None, aug: Tensor | None) -> Tensor:
        return model.denoise(x, t, y, aug)

    compare("F", model.raw(x, t, None, labels, augment), case.expected("F", precision), precision)
    compare("D", denoised(labels, augment), case.expected("D", precision), precision)
    # What the other condition was in these two is not recorded: either reading may match.
    for name, candidates in (
        ("D_noaug", [(labels, None), (None, None)]),
        ("D_labels_None", [(None, augment), (None, None)]),
    ):
        if f"out64/{name}" in case:
            golden = case.expected(name, precision)
            best = min((denoised(*c) for c in candidates), key=lambda d: error(d, golden))
            compare(name, best, golden, precision)
    if precision == torch.float64:
        compare("c_noise", scalings(t).c_noise, case["out64/c_noise"], precision)


@torch.no_grad()
def test_student(precision: torch.dtype) -> None:
    """CTM's DDPM++ with s: F, g, G."""
    case = load("ctm_student_cifar")
    model = student(case, precision)
    x, t, s = (case.input(key, precision) for key in "xts")
    y = case.labels(precision)
    compare("F", model.raw(x, t, s, y), case.expected("F", precision), precision)
    compare("g", model.g(x, t, s, y), case.expected("g", precision), precision)
    jumped = model.G(x, t, s, y)
    compare("G", jumped, case.expected("G", precision), precision)
    assert torch.equal(jumped[s == t], x[s == t])
    if precision == torch.float64:
        compare("c_noise_t", scalings(t).c_noise, case["out64/c_noise_t"], precision)
        compare("c_noise_s", scalings(s).c_noise, case["out64/c_noise_s"], precision)
        compare("250 ln t", 1000 * scalings(t).c_noise, case["out64/rescaled_t"], precision)


@torch.no_grad()
@pytest.mark.parametrize("name", ["edm_ddpmpp", "ctm_student_cifar"])
def test_channels_last_is_the_same_function(name: str, precision: torch.dtype) -> None:
    case = load(name)
    time_s = name == "ctm_student_cifar"
    model = build(case.meta["kwargs"], case.weights("net", precision), precision, time_s=time_s)
    model = model.to(memory_format=torch.channels_last)
    x = case.input("x", precision).contiguous(memory_format=torch.channels_last)
    y = case.labels(precision)
    if time_s:
        ours = model.G(x, case.input("t", precision), case.input("s", precision), y)
    else:
        aug = case.input("augment_labels", precision) if "in/augment_labels" in case else None
        ours = model.denoise(x, case.input("sigma", precision), y, aug)
    compare(name, ours, case.expected("G" if time_s else "D", precision), precision)


@torch.no_grad()
def test_blocks(precision: torch.dtype) -> None:
    """Single residual blocks of the DDPM++ and NCSN++ kind, both resampling filters."""
    case = load("edm_blocks")
    checked = []
    for name, arguments in case.meta["blocks"].items():
        if arguments.get("adaptive_scale", True):
            continue  # ADM's blocks
        block = _block(arguments).to(precision)
        block.load_state_dict(case.weights(f"{name}/net", precision), strict=True)
        x, emb = (case[f"{name}/in/{key}"].to(precision) for key in ("x", "emb"))
        compare(name, block(x, emb), case[f"{name}/out64/y"], precision)
        checked.append(name)
    assert any(name.startswith("ddpm_") for name in checked)


def test_scalings() -> None:
    """Every coefficient of the released default: inner ``edm``, outer ``euler``."""
    case = load("grids_and_draws")
    precision = torch.float64
    t, s = case["scalings/t"], case["scalings/s"]
    ours = scalings(t)
    compare("c_in", ours.c_in, case["scalings/c_in"], precision)
    compare("c_skip", ours.c_skip, case["scalings/inner_edm/c_skip"], precision)
    compare("c_out", ours.c_out, case["scalings/inner_edm/c_out"], precision)
    compare("250 ln t", 1000 * ours.c_noise, case["scalings/rescaled_t"], precision)
    # G over any raw output is linear in it: the outer coefficients by superposition.
    generator = torch.Generator().manual_seed(0)
    x, raw = (torch.randn(len(t), 1, 2, 2, generator=generator, dtype=precision) for _ in range(2))
    model = Trajectory(torch.nn.Identity())
    inner = _times(case["scalings/inner_edm/c_skip"], x) + _times(
        case["scalings/inner_edm/c_out"], raw
    )
    jumped = _times(case["scalings/outer_euler/c_skip"], x) + _times(
        case["scalings/outer_euler/c_out"], inner
    )
    compare("g", model.inner(raw, x, t), inner, precision)
    compare("G", model.jump(raw, x, t, s), jumped, precision)


def _block(arguments: dict[str, Any]) -> UNetBlock:
    attention = arguments.get("attention", False)
    heads = arguments.get("num_heads")
    if heads is None:
        heads = arguments["out_channels"] // arguments.get("channels_per_head", 64)
    if arguments.get("up") or arguments.get("down"):
        assert arguments.get("resample_proj") or (
            arguments["in_channels"] != arguments["out_channels"]
        )
    return UNetBlock(
        arguments["in_channels"],
        arguments["out_channels"],
        arguments["emb_channels"],
        up=arguments.get("up", False),
        down=arguments.get("down", False),
        attention=attention and heads > 0,
        heads=heads,
        skip_scale=arguments.get("skip_scale", 1.0),
        eps=arguments.get("eps", 1e-5),
        resample_filter=arguments.get("resample_filter", (1, 1)),
    )


def _times(coefficient: Tensor, x: Tensor) -> Tensor:
    return coefficient.view(-1, 1, 1, 1) * x
