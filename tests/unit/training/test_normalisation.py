"""Batch norm over processes: two unequal shares of a batch do what one process does with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, multiprocessing, nn

from ctm_core import config
from ctm_core.training.discriminator import Discriminator
from ctm_core.training.discriminator.normalisation import GlobalBatchNorm2d

SHARES = (slice(0, 3), slice(3, 8))  # of a batch of eight


def batch(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 + 2 * torch.randn(8, *shape, generator=generator, dtype=torch.float64)


def norm(kind: type[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    layer = kind(4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, 4))
        layer.bias.copy_(torch.linspace(-1, 1, 4))
    return layer


def measure(model: nn.Module, share: slice, images: Tensor) -> dict[str, Tensor]:
    """Output and gradients of a weighted sum over a share, and the buffers after two passes."""
    x = images[share].clone().requires_grad_()
    model(images[share].flip(0))
    out = model(x)
    (out * batch(*out.shape[1:], seed=1)[share]).sum().backward()
    assert x.grad is not None
    found = {"out": out.detach(), "input": x.grad}
    found |= {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | {f"buffer {n}": b for n, b in model.named_buffers()}


def models(kind: str) -> dict[str, tuple[nn.Module, Tensor]]:
    section = config.Discriminator.model_validate(
        {"backbones": ["tiny"], "resolution": 64, "width": 2, "batch_norm": kind}
    )
    layer = norm(GlobalBatchNorm2d if kind == "global" else nn.BatchNorm2d)
    return {
        "layer": (layer, batch(4, 5, 3)),
        "discriminator": (Discriminator(section, seed=0).double(), batch(3, 8, 8) / 5),
    }


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for name, (model, images) in models("global").items():
        found = measure(model, SHARES[rank], images)
        save_file(
            {key: value.contiguous() for key, value in found.items()},
            os.path.join(folder, f"{name}-{rank}.safetensors"),
        )
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(worker, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("name", ["layer", "discriminator"])
def test_two_processes_are_one(name: str, folder: Path) -> None:
    model, images = models("local")[name]
    alone = measure(model, slice(0, 8), images)
    ranks = [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2)]
    assert alone.keys() == ranks[0].keys() == ranks[1].keys()
    for key, expected in alone.items():
        if key in ("out", "input"):
            together = torch.cat([rank[key] for rank in ranks])
        elif key.startswith("grad"):
            together = ranks[0][key] + ranks[1][key]
        else:
            assert torch.equal(ranks[0][key], ranks[1][key]), key
            together = ranks[0][key]
        torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-10, msg=key)


def test_one_process_is_torchs() -> None:
    ours, theirs = norm(GlobalBatchNorm2d), norm(nn.BatchNorm2d)
    x = batch(4, 5, 3)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
