"""The cases of networks on class-conditional sets of our own making, of other sizes.

The numbers come from our networks, so this shows that a case reads sizes, labels and choices from
its file and notices a wrong value; the official sets show that the numbers are right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctm_core import verification
from ctm_core.diffusion.sampling import return_jumps, sample_jumps
from ctm_core.diffusion.schedule import karras_grid
from ctm_core.diffusion.solvers import heun_solve
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import networks
from ctm_core.models.networks.constructor_arguments import from_arguments
from ctm_core.runtime.files import save_tensors
from ctm_core.verification.golden import DOUBLE, SINGLE, Folder

SONG = {
    "img_resolution": 8,
    "img_channels": 2,
    "label_dim": 3,
    "augment_dim": 5,
    "model_type": "SongUNet",
    "model_channels": 16,
    "channel_mult": [1, 1, 2],
    "num_blocks": 2,
    "attn_resolutions": [8, 2],
    "dropout": 0.0,
}
FOURIER = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
DHARIWAL = SONG | {
    "model_type": "DhariwalUNet",
    "model_channels": 32,
    "channel_mult": [1, 4],  # no head at 8x8, two at 4x4
    "attn_resolutions": [8, 4],
}
OPENAI = {
    "image_size": 8,
    "in_channels": 2,
    "out_channels": 2,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [1, 4],
    "channel_mult": [2, 1, 1],
    "num_classes": 3,
    "num_heads": 2,
    "num_head_channels": -1,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}


def made(arguments: dict[str, Any], *, time_s: bool) -> Trajectory:
    """A network in float64 whose weights float16 holds exactly."""
    section, resolution, channels, label_dim = from_arguments(arguments)
    raw = networks.build(
        section, resolution=resolution, channels=channels, label_dim=label_dim, time_s=time_s
    ).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in raw.state_dict().items():
            if "resample_filter" not in name:
                drawn = 0.1 * torch.randn(value.shape, generator=generator)
                one = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                value.copy_((drawn + one).half())
    return Trajectory(raw)


def images(batch: int, seed: int) -> Tensor:
    drawn = torch.randn(batch, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    return drawn.half().double()  # exact as float32


@torch.no_grad()
def denoiser_file(arguments: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file such as edm_adm with labels and augmentation labels."""
    model = made(arguments, time_s=False)
    sigma = torch.tensor([0.002, 0.5, 80.0]).double()
    x = images(3, 1) * sigma[:, None, None, None]
    x = x.float().double()
    labels, augment = torch.eye(3)[[2, 0, 1]].double(), images(1, 2).flatten()[:15].view(3, 5)
    tensors = {
        "in/x": x.float(),
        "in/sigma": sigma.float(),
        "in/labels_onehot": labels.float(),
        "in/augment_labels": augment.float(),
        "out64/F": model.raw(x, sigma.float().double(), None, labels, augment),
        "out64/D": model.denoise(x, sigma.float().double(), labels, augment),
        "out64/D_noaug": model.denoise(x, sigma.float().double(), labels, None),
        "out64/D_labels_None": model.denoise(x, sigma.float().double(), None, augment),
        "out64/c_noise": sigma.float().double().log() / 4,
    }
    tensors |= {f"net/{name}": value.half() for name, value in model.state_dict().items()}
    if "map_noise.freqs" in model.model.state_dict():
        tensors["net/model.map_noise.freqs"] = model.state_dict()["model.map_noise.freqs"].float()
    return tensors, {"kwargs": arguments}


@torch.no_grad()
def student_file(arguments: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file such as ctm_student_sony with labels in every block."""
    model = made(arguments, time_s=True)
    teacher = made(arguments, time_s=False)
    state = model.model.state_dict()
    teacher.model.load_state_dict({k: v for k, v in state.items() if "_s." not in k})
    t, s = torch.tensor([80.0, 2.0, 2.0]).double(), torch.tensor([1.0, 2.0, 0.5]).double()
    x, y = (images(3, 1) * t[:, None, None, None]).float().double(), torch.tensor([2, 0, 1])
    out = {"F": model.raw(x, t, s, y), "g": model.g(x, t, s, y), "G": model.G(x, t, s, y)}
    out |= {"rescaled_t": 250 * t.log(), "rescaled_s": 250 * s.log()}
    tensors: dict[str, Tensor] = {"in/x": x.float(), "in/t": t.float(), "in/s": s.float()}
    tensors |= {"in/y": y} | {f"out64/{name}": value for name, value in out.items()}

    points = 12
    grid, h = karras_grid(points), 3
    i, j, labels = torch.tensor([0, 5]), torch.tensor([11, 9]), torch.tensor([1, 1])
    x_0, noise = images(2, 3), images(2, 4)
    times = {"t": grid[i], "u": grid[i + h], "s": grid[j]}
    x_t = x_0 + times["t"].view(-1, 1, 1, 1) * noise
    x_u = heun_solve(lambda z, r: teacher.denoise(z, r, labels), x_t, grid, i, h)
    both = {
        name: model.G(
            model.G(z, times[time], times["s"], labels), times["s"], grid[-1].expand(2), labels
        )
        for name, z, time in (("estimate", x_t, "t"), ("target", x_u, "u"))
    }
    solved = times | both | {"x_u": x_u, "teacher_D_xt": teacher.denoise(x_t, times["t"], labels)}
    tensors |= {"heun/in/idx_t": i, "heun/in/idx_s": j, "heun/in/heun_steps": torch.tensor(h)}
    tensors |= {"heun/in/x0": x_0, "heun/in/noise": noise, "heun/in/y": labels}
    tensors |= {f"heun/out64/{name}": value for name, value in solved.items()}

    latents, injected = images(2, 5), images(2, 6)[None]
    plan = return_jumps(karras_grid(points), 9, 4)
    final = sample_jumps(
        lambda z, a, b: model.G(z, a, b, labels), latents * plan.t[0], plan, injected
    )
    tensors |= {"sample/in/latents": latents, "sample/in/noise": injected}
    tensors["sample/in/y"] = labels.clone()
    tensors["sample/gammaind_9_4/final"] = final
    variant = {"sampler": "gamma", "steps": points, "ind_1": 9, "ind_2": 4, "noise_used": 1}
    variant["t_s"] = torch.stack([plan.t, plan.s], 1).tolist()
    tensors |= {f"net/{name}": value.half() for name, value in state.items()}
    return tensors, {"kwargs": arguments, "N": points, "sample": {"gammaind_9_4": variant}}


FILES: dict[str, Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]] = {
    "edm_ddpmpp": lambda: denoiser_file(SONG),
    "edm_ncsnpp": lambda: denoiser_file(SONG | FOURIER),
    "edm_adm": lambda: denoiser_file(DHARIWAL),
    "ctm_student_sony": lambda: student_file(OPENAI),
}


def results(folder: Folder, name: str, precision: torch.dtype) -> Iterator[verification.Result]:
    """The results of the cases of one file, as they come."""
    for case in verification.cases():
        if case.file == name:
            yield verification.check(case, folder, precision)


@pytest.mark.parametrize("name", FILES)
def test_a_conditional_set_of_other_sizes(name: str, tmp_path: Path) -> None:
    tensors, meta = FILES[name]()
    metadata = {key: json.dumps(value) for key, value in meta.items()}
    save_tensors(tmp_path / f"{name}.safetensors", tensors, metadata)
    folder = Folder(tmp_path)
    for precision in (SINGLE, DOUBLE):
        found = list(results(folder, name, precision))
        assert found
        for result in found:
            assert result.passed, (result.case.name, result.problem, *map(str, result.checks))
    assert folder.load(name).unused() == []


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_label_and_a_wrong_result_are_noticed(name: str, tmp_path: Path) -> None:
    tensors, meta = FILES[name]()
    metadata = {key: json.dumps(value) for key, value in meta.items()}
    labels = [key for key in tensors if key.endswith(("in/y", "labels_onehot"))]
    outputs = [key for key in tensors if key.startswith(("out64/", "heun/out64/"))]
    outputs += [key for key in tensors if key.endswith("/final")]
    assert labels and outputs
    for key in labels + outputs:
        value = tensors[key]
        if key.endswith("in/y"):
            wrong = (value + 1) % 3
        else:
            wrong = value.roll(1, dims=1) if key in labels else value + 1
        save_tensors(tmp_path / f"{name}.safetensors", tensors | {key: wrong}, metadata)
        found = results(Folder(tmp_path), name, DOUBLE)
        assert not all(result.passed for result in found), key


def test_strangers_and_gaps_among_the_weights_are_noticed(tmp_path: Path) -> None:
    tensors, meta = FILES["edm_adm"]()
    metadata = {key: json.dumps(value) for key, value in meta.items()}
    for changed in (
        tensors | {"net/model.enc.8x8_conv.scale": torch.zeros(1)},
        {key: value for key, value in tensors.items() if key != "net/model.out_conv.bias"},
    ):
        save_tensors(tmp_path / "edm_adm.safetensors", changed, metadata)
        found = list(results(Folder(tmp_path), "edm_adm", DOUBLE))
        assert found and all("model." in str(result.problem) for result in found)
