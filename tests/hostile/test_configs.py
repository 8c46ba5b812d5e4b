"""Configurations that ask for too much are refused before anything is listed or allocated."""

from __future__ import annotations

import math
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import tiny
from hostile.watch import Watch

from ctm_core.config import Experiment, validated
from ctm_core.config.protocols import Protocol
from ctm_core.config.reading import load_experiment
from ctm_core.runtime.errors import UserError

#: Kilobytes that one configuration may make the process grow by, and seconds.
GROWTH, SECONDS = 300_000, 20
#: Beyond every bound.
#: A learning rate may be anything that float32 holds: training says where it diverges.
NUMBERS = (10**39, -(10**19), 10**400, 1e300, -1e300, math.inf, -math.inf, math.nan)
LONG = 20_000


def whole() -> dict[str, Any]:
    """An experiment in which every section has its keys."""
    student = tiny.DESCRIPTION["models"]["ctm"] | {
        "max_heun_steps": 2,
        "dsm": {
            "weight": 1.0, "p_mean": -1.2, "p_std": 1.2, "uniform_max": 0.7, "group": 2,
        },
        "distance": "lpips_vgg",
        "perceptual": {"resize": 32},
        "init_from": {"model": "ctm", "step": 6},
        "adversarial": {
            "discriminator": {"backbones": ["tiny"], "resolution": 64, "width": 8},
            "discriminator_weight": 1.0, "learning_rate": 1e-3, "betas": [0.5, 0.9], "period": 2,
        },
        "training": tiny.TRAINING | {
            "micro_batch": 4, "warmup_steps": 2, "decay_steps": 2, "ema_rampup": 0.1,
            "evaluated_ema": 0.9, "keep": 2, "snapshots": [3], "preview_every": 3,
        },
    }  # fmt: skip
    made = tiny.describe(
        {
            "dataset": {"name": "fashion-mnist", "source": "data"},
            "diffusion": {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": 0.5},
            "seeds": [0, 1],
            "resources": {"training": {"gpus": 1, "memory_gb": 4, "hours": 1.0, "processes": 1}},
            "models.full": student,
            "evaluation.samplers.full": [{"sampler": "gamma", "nfe": [2], "gamma": [0.5]}],
            "evaluation.likelihood": {
                "models": ["ctm"], "images": 8, "probes": 1, "tolerance": 1e-3, "seed": 0,
            },
        }
    )  # fmt: skip
    made["network"] |= {
        "channel_mult_emb": 4, "resample_filter": [1.0, 1.0], "attn_resolutions": [4],
        "augment_dim": 9,
    }  # fmt: skip
    made["teacher"] |= {"seed": 0, "p_mean": -1.2, "p_std": 1.2, "augment": 0.1}
    made["evaluation"]["protocols"]["tiny-pooled"][0] |= {"model": "full", "gamma": 0.5}
    return made


PROTOCOL = tiny.PROTOCOL | {
    "reference": {"asset": "edm-reference-cifar10", "images": 50_000, "resolution": 32},
    "metrics": ["fd", "kid"],
    "neighbours": {"precision_recall": 3, "density_coverage": 5, "rows": 100},
    "kid": {"subsets": 10, "size": 10},
    "trajectory": {"noises": 4, "points": 8},
    "memorisation": {"held_out": "test", "images": 100},
}


def leaves(data: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Places of all values, lists and their entries among them."""
    if place and not isinstance(data, dict):
        yield place
    entries = enumerate(data) if isinstance(data, list) else ()
    for key, value in data.items() if isinstance(data, dict) else entries:
        yield from leaves(value, (*place, key))


def exchanged(data: Any, place: tuple[str | int, ...], make: Callable[[Any], Any]) -> Any:
    """A copy with another value at a place."""
    if not place:
        return make(data)
    copy = list(data) if isinstance(data, list) else dict(data)
    copy[place[0]] = exchanged(data[place[0]], place[1:], make)  # type: ignore[call-overload]
    return copy


def attempts(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return []
    if isinstance(value, int | float):
        return [*NUMBERS]
    if isinstance(value, str):
        return ["x" * LONG, ""]
    distinct = all(isinstance(entry, int) for entry in value)
    return [list(range(1, LONG)) if distinct else value * LONG] if value else []


def value_at(data: Any, place: tuple[str | int, ...]) -> Any:
    for key in place:
        data = data[key]
    return data


@pytest.fixture(scope="module")
def watching() -> Watch:
    return Watch()


def refused(model: Any, data: Any, watching: Watch) -> str:
    """The sentence of a refusal, which takes neither time nor memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with watching(SECONDS), pytest.raises(UserError) as error:
        validated(model, data, "config.json")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < GROWTH
    sentence = str(error.value)
    assert sentence.startswith("config.json: ") and sentence.isprintable()
    assert len(sentence) < 500
    return sentence


@pytest.mark.parametrize(("model", "data"), [(Experiment, whole()), (Protocol, PROTOCOL)])
def test_no_value_is_without_bounds(model: Any, data: Any, watching: Watch) -> None:
    validated(model, data, "config.json")
    for place in leaves(data):
        for attempt in attempts(value_at(data, place)):
            sentence = refused(model, exchanged(data, place, lambda _, a=attempt: a), watching)
            last = next(str(key) for key in reversed(place) if isinstance(key, str))
            assert last in sentence, (place, sentence)


def many(count: int) -> dict[str, Any]:
    """Changes to that many students, and their cells."""
    names = [f"m{number}" for number in range(count)]
    grids = [{"sampler": "gamma", "nfe": [1, 2], "gamma": [0, 1]}]
    return {
        "models": {name: {"training": tiny.TRAINING, "grid_points": 4} for name in names},
        "teacher": tiny.describe()["teacher"],
        "evaluation.samplers": {name: grids for name in ("teacher", *names)},
        "evaluation.protocols": {"tiny": "all"},
    }


#: What is within the bounds one by one and too much together: changes, and what is said.
PRODUCTS: dict[str, tuple[dict[str, Any], str]] = {
    "weights": (
        {"network.num_blocks": 64, "network.model_channels": 4096},
        "network.num_blocks: 64 blocks of 4,096 channels make some",
    ),
    "width": (
        {"network.model_channels": 4096, "network.channel_mult": [1, 1024]},
        "network.channel_mult: a level has model_channels * channel_mult = 4,194,304 channels",
    ),
    "draws": (
        {"models.ctm.grid_points": 2048},
        "models.ctm.grid_points: 2048 points and up to 2047 solver steps make",
    ),
    "cells": (
        {"evaluation.samplers.ctm": [
            {"sampler": "gamma", "nfe": [*range(1, 1001)], "gamma": [i / 999 for i in range(1000)]}
        ]},
        "evaluation.samplers.ctm.0.nfe: 1,000,000 pairs of nfe and gamma; at most 10,000",
    ),
    "samplings": (
        {
            "seeds": [*range(900)],
            "evaluation.sample_seeds": [*range(500)],
        },
        "evaluation.samplers: 3,600,500 samplings (cells, steps, seeds and sample_seeds); at most",
    ),
    "jobs": (
        {
            "seeds": [*range(1000)],
            "models.ctm.training.steps": 1000,
            "models.ctm.training.snapshots": [*range(1, 100)],
            "evaluation.samplers.ctm": [{"sampler": "gamma", "nfe": [1]}],
            "evaluation.protocols": {"tiny": "all"},
        },
        "seeds: 101,002 trainings and evaluations; at most 20,000",
    ),
    "models": (many(101), "Dictionary should have at most 10"),
    "batch": (
        {"models.ctm.training.batch_size": 2**20, "network.model_channels": 1024},
        "models.ctm.training.batch_size: activations of 1,048,576 images at the first level take "
        "256 GiB; at most 64",
    ),
    "micro-batch": (
        {
            "teacher.training.batch_size": 2**20, "teacher.training.micro_batch": 2**19,
            "network.model_channels": 1024,
        },
        "teacher.training.micro_batch: activations of 524,288 images",
    ),
    "sampled batch": (
        {"evaluation.batch_size": 2**20, "network.model_channels": 1024},
        "evaluation.batch_size: activations of 1,048,576 images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_allowed_numbers(name: str, tmp_path: Path, watching: Watch) -> None:
    changes, expected = PRODUCTS[name]
    sentence = refused(Experiment, tiny.describe(changes), watching)
    assert expected in sentence
    path = tiny.write_experiment(tmp_path / "tiny.yaml", changes)
    with pytest.raises(UserError) as error:
        load_experiment(path)
    line = path.read_text().splitlines()[int(str(error.value).split("(line ")[1][:-1]) - 1]
    named = sentence.removeprefix("config.json: ").split(": ")[0].split(".")
    assert line.strip().split(":")[0] == named[-1], line


@pytest.mark.parametrize(
    "text",
    [
        "evaluation: {samplers: {ctm: [{sampler: gamma, nfe: [1e9], gamma: [0]}]}}",
        "models: {ctm: {grid_points: 1e9}}",
        "network: {num_blocks: 1e6}",
        f"network: {{channel_mult: {[1] * 20_000}}}",
        "models: {ctm: {training: {steps: 1e18}}}",
        f"seeds: {[*range(20_000)]}",
        f"seeds: {[*range(500_000)]}",
    ],
    ids=lambda text: text[:40],
)
def test_by_the_command(text: str, tmp_path: Path) -> None:
    """Exit code 2, one line with file and line, in little memory."""
    made, path = tiny.describe(), tmp_path / "tiny.yaml"

    def merge(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        for key, value in theirs.items():
            if isinstance(value, dict):
                merge(ours[key], value)
            else:
                ours[key] = float(value) if isinstance(value, str) else value

    if text.startswith("seeds: "):
        path.write_text(f"{yaml.safe_dump(made)}{text}\n", encoding="utf-8")
    else:
        merge(made, yaml.safe_load(text))
        path.write_text(yaml.safe_dump(made), encoding="utf-8")
    done = tiny.ctm(["plan", "--config", "tiny.yaml"], tmp_path, [tiny.MemoryLimit()])
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith("ctm: tiny.yaml") and done.stderr.count("\n") == 1
    assert re.search(r"[ (]line \d+", done.stderr)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.yaml"]
