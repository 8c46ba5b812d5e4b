"""MeanFlow's and IMM's models become ours: their channels, signs and noise levels."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from fixtures import foreign as made_by_others
from fixtures.foreign import DDPMPP, edm_kwargs, equal, saved, two_commands
from fixtures.tiny import Ctm

from ctm_core.models import weight_file
from ctm_core.runtime.files import read_json


def thirds(value: torch.Tensor) -> torch.Tensor:
    """Attention's channels (channel, {q, k, v}) as all q, all k, all v."""
    return torch.cat([value[kind::3] for kind in range(3)])


def test_model_of_meanflow(ctm: Ctm, tmp_path: Path) -> None:
    made = made_by_others.model(DDPMPP | {"architecture": "ddpmpp_meanflow"}, time_s=True)
    state = {
        name.removeprefix("model."): thirds(value) if ".qkv." in name else value
        for name, value in made.state_dict().items()
    }
    state["map_augment.weight"] = torch.randn(32, 6)
    average = {f"net_ema.{name}": value for name, value in state.items()}
    whole = average | {f"net.{name}": value + 1 for name, value in state.items()}
    path = saved(tmp_path / "checkpoint.pth", {"model": whole, "epoch": 15999})
    done = ctm("convert", path, "--output", tmp_path / "made")
    assert (done.code, "choose one with --entry" in done.stderr) == (2, True)
    done = two_commands(ctm, path, tmp_path, "--entry", "net_ema")
    assert "MeanFlow model (DDPM++)" in done.stdout
    assert equal(tmp_path / "made/weights.safetensors", made)
    document = read_json(tmp_path / "made/provenance.json")
    assert (document["assumed"]["dropout"]["value"], "entry" in document["assumed"]) == (
        0.2,
        False,
    )
    assert "CC BY-NC-SA" in document["source"]["licence"]


@pytest.mark.parametrize("pickled", [True, False])
def test_model_of_imm(pickled: bool, ctm: Ctm, tmp_path: Path) -> None:
    made = made_by_others.model(DDPMPP | {"architecture": "ddpmpp_imm"}, time_s=True)
    theirs = copy.deepcopy(made)  # whose output has the other sign
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            value.mul_(-1 if "_aux_conv." in name else 1)
    path = tmp_path / f"cifar10.{'pkl' if pickled else 'pt'}"
    if pickled:
        kwargs = edm_kwargs(made, dropout=0.2, wrapper="IMMPrecond", s_embed=True)
        made_by_others.write_edm(path, theirs, kwargs, tmp_path / "canary")
    else:
        saved(path, {"ema": theirs.state_dict()})
    done = two_commands(ctm, path, tmp_path)
    assert "IMM model (DDPM++)" in done.stdout
    assert equal(tmp_path / "made/weights.safetensors", made)
    record = weight_file.read_record(tmp_path / "made/weights.safetensors")
    assert record["diffusion"]["sigma_min"] == pytest.approx(0.0030181, rel=1e-4)
    assert record["diffusion"]["sigma_max"] == pytest.approx(82.8333, rel=1e-4)
    # Nobody here has seen a published file.
    assert ("published files were not at hand" in done.stdout) is not pickled


def test_imms_preconditioning_around_another_network_is_refused(ctm: Ctm, tmp_path: Path) -> None:
    made = made_by_others.model(DDPMPP)
    path = tmp_path / "cifar10.pkl"
    kwargs = edm_kwargs(made, wrapper="IMMPrecond")
    made_by_others.write_edm(path, made, kwargs, tmp_path / "canary")
    done = ctm("convert", path, "--output", tmp_path / "made")
    assert (done.code, "holds a IMMPrecond network" in done.stderr) == (2, True)
