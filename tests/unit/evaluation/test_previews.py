"""Pictures for people: equal noises everywhere, and every state on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.tiny import Trained

from ctm_core.config import Cell
from ctm_core.diffusion.samplers.gamma import plan as gamma_jumps
from ctm_core.diffusion.sampling import sigmas
from ctm_core.evaluation.previews import path_cells, walk, write_previews
from ctm_core.models.generation import Generator
from ctm_core.runtime.files import load_tensors

CELLS = [Cell("gamma", 1, None), Cell("gamma", 2, 0.0), Cell("gamma", 2, 1.0)]


@pytest.fixture(scope="module")
def generator(student: Trained) -> Generator:
    return Generator.from_file(student.weights)


@pytest.fixture(scope="module")
def written(
    generator: Generator, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    path: Path = tmp_path_factory.mktemp("previews") / "previews.safetensors"
    write_previews(path, "ctm", CELLS, generator, seed=0, weights_sha256="0" * 64)
    tensors, metadata = load_tensors(path)
    return tensors, {key: json.loads(metadata[key]) for key in ("labels", "paths")}


def test_the_same_noises_go_through_every_cell(
    generator: Generator, written: tuple[dict[str, torch.Tensor], dict[str, Any]]
) -> None:
    images, metadata = written
    labels = metadata["labels"]
    assert labels == [n % 10 for n in range(64)]
    for gamma in (0.0, 1.0):
        made = generator.images(
            64, sampler="gamma", nfe=2, gamma=gamma, seed=0, batch_size=64,
            labels=torch.tensor(labels),
        )  # fmt: skip
        assert torch.equal(images[f"gamma/nfe-2/gamma-{gamma:g}"], made)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_a_path_ends_at_the_sample_and_names_its_levels(
    written: tuple[dict[str, torch.Tensor], dict[str, Any]], gamma: float
) -> None:
    tensors, metadata = written
    label = f"gamma/nfe-2/gamma-{gamma:g}"
    states, levels = tensors[f"path/{label}"], metadata["paths"][label]
    assert states.shape == (4, 4, 1, 8, 8)
    jumps = gamma_jumps(sigmas(2), gamma)
    expected = [float(level) for pair in zip(jumps.t, jumps.s, strict=True) for level in pair]
    assert levels == pytest.approx(expected, rel=1e-6)
    # Shown at sigma_min a state is the sample itself, but for one level of rounding.
    final = tensors[label][:4].int()
    assert (states[-1].int() - final).abs().max() <= 1
    # Without noise the second jump starts where the first has landed.
    assert torch.equal(states[1], states[2]) == (gamma == 0.0)


def test_the_longest_gamma_sampling_is_followed() -> None:
    cells = [
        *CELLS,
        Cell("gamma", 8, 0.0),
        Cell("gamma", 8, 0.5),
        Cell("gamma", 16, 0.0),
        Cell("gamma_paper", 8, 0.5),
        Cell("gamma", 8, 1.0, (40.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5)),
    ]
    assert path_cells(cells) == [Cell("gamma", 8, 0.0), Cell("gamma", 8, 0.5)]
    assert path_cells([Cell("heun", 35, None), Cell("gamma", 1, None)]) == []


def test_a_path_does_not_depend_on_how_many_are_shown(generator: Generator) -> None:
    labels = torch.arange(4)
    two, _ = walk(generator, CELLS[2], seed=0, labels=labels[:2], count=2)
    four, _ = walk(generator, CELLS[2], seed=0, labels=labels, count=4)
    assert (two.int() - four[:, :2].int()).abs().max() <= 1
