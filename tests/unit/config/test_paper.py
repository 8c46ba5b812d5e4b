"""The paper's experiments load, are as large as published, and say what they differ in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ctm_core.config import Experiment, load_experiment, read_yaml
from ctm_core.config.protocols import Protocol, ReferenceFile, load_protocol
from ctm_core.data import assets
from ctm_core.models import weight_file

ROOT = Path(__file__).parents[3]
NAMES = read_yaml(ROOT / "config/paper.yaml")["experiments"]
SHAPES = {"cifar10": (32, 10), "imagenet64": (64, 1000)}


def experiment(name: str) -> Experiment:
    return load_experiment(ROOT / f"config/experiments/{name}.yaml")


def protocol(name: str) -> Protocol:
    return load_protocol(ROOT / f"config/protocols/{name}.yaml")


def test_the_paper_is_seven_experiments() -> None:
    trained = {"cifar10-uncond", "cifar10-cond", "cifar10-scratch", "imagenet64"}
    released = {f"{n}-released" for n in ("cifar10-uncond", "cifar10-cond", "imagenet64")}
    assert set(NAMES) == trained | released
    for name in NAMES:
        assert bool(experiment(name).students) == (name in trained)


@pytest.mark.parametrize(
    ("name", "teacher", "student"),
    [
        ("cifar10-uncond", 55_733_891, 60_395_267),
        ("cifar10-cond", 55_735_299, 60_396_675),
        ("cifar10-scratch", None, 60_395_267),
        ("imagenet64", 295_899_267, 324_100_611),
        ("cifar10-uncond-released", None, 60_395_267),
        ("cifar10-cond-released", None, 60_396_675),
        ("imagenet64-released", None, 324_100_611),
    ],
)
def test_networks_have_their_published_size(name: str, teacher: int | None, student: int) -> None:
    made = experiment(name)
    resolution, classes = SHAPES[made.dataset.name]
    for time_s, expected in ((False, teacher), (True, student)):
        if expected is None:
            assert made.teacher is None
            continue
        with torch.device("meta"):
            model = weight_file.build_model(
                network=made.network,
                diffusion=made.diffusion,
                resolution=resolution,
                channels=3,
                label_dim=classes if made.conditional else 0,
                time_s=time_s,
            )
        assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("name", NAMES)
def test_batches_divide_over_processes(name: str) -> None:
    made = experiment(name)
    for student in made.students.values():
        training, processes = student.training, made.resources.training.processes
        assert training.micro_batch in ({16, 18} if student.adversarial is None else {11})
        assert training.batch_size % (training.micro_batch * processes) == 0
        assert training.precision == "bf16"


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_released_code(name: str) -> None:
    made = experiment(name)
    large = made.dataset.name == "imagenet64"
    assert made.variant == "released" and made.network.dropout in (0.0, 0.13)
    for student in made.students.values():
        assert student.grid_points == (40 if large else 18)
        assert (student.distance, student.variant) == ("lpips_vgg", "released")
        assert student.perceptual is not None and student.perceptual.resize == 224
        assert (student.training.optimizer, student.training.final_ema) == ("radam", 0.999)
        assert student.training.warmup_steps == student.training.decay_steps == 0
        if (gan := student.adversarial) is not None:
            assert student.init_from is not None and student.dsm.enabled
            assert (gan.learning_rate, gan.betas, gan.period) == (2e-3, (0.5, 0.9), 2)
            assert gan.discriminator.resolution == 224 and len(gan.discriminator.backbones) == 2


@pytest.mark.parametrize("name", NAMES)
def test_the_list_of_files_says_who_needs_them(name: str) -> None:
    """What an experiment's keys make it need is what config/assets.yaml says of it."""
    made = experiment(name)
    needed = set(made.named_assets().values())
    for student in made.students.values():
        needed |= {*student.assets, *made.dataset.assets}
    for listed in made.evaluation.protocols:
        needed |= set(protocol(listed).assets)
    known = assets.load(ROOT / "config/assets.yaml")
    assert needed == {asset for asset, entry in known.items() if name in entry.needed_by}


@pytest.mark.parametrize("name", ["edm-cifar10", "adm-imagenet64"])
def test_protocols_of_the_paper(name: str) -> None:
    found = protocol(name)
    assert (found.features, found.samples) == ("inception", 50_000)
    assert isinstance(found.reference, ReferenceFile)
    used = [n for n in NAMES if name in experiment(n).evaluation.protocols]
    assert used == [n for n in NAMES if name.split("-")[1] in n]


# -- docs/variants.md --------------------------------------------------------------------------


def rows() -> list[list[str]]:
    """The cells of every row of the tables."""
    text = (ROOT / "docs/variants.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [
        cells
        for line in lines
        if (cells := [cell.strip() for cell in line.strip("|").split(" | ")])[0] != "what"
    ]


def keys_at(model: type[Experiment] | type[Protocol], place: list[str]) -> list[str]:
    """Names of the fields allowed at a location, read from the JSON schema."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})

    def follow(node: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in node:
            return follow(definitions[node["$ref"].rsplit("/", 1)[-1]])
        branches = [*node.get("anyOf", []), *node.get("oneOf", [])]
        return [n for sub in branches for n in follow(sub)] or [node]

    nodes = follow(schema)
    for step in place:
        inside: list[dict[str, Any]] = []
        for node in nodes:
            inner = node.get("properties", {}).get(step) or next(
                iter(node.get("patternProperties", {}).values()),
                node.get("additionalProperties"),
            )
            if isinstance(inner, dict):
                inside += follow(inner)
        nodes = inside
    return sorted({key for node in nodes for key in node.get("properties", {})})


def exists(key: str, model: type[Experiment] | type[Protocol]) -> bool:
    *place, last = key.replace("<model>", "ctm").split(".")
    return last in keys_at(model, place)


def test_every_key_of_the_variants_exists() -> None:
    table = rows()
    assert len(table) > 40
    for cells in table:
        assert len(cells) == 5, cells
        keys = re.findall(r"`([^`]+)`", cells[3])
        assert keys or cells[3] == "–", cells
        of_protocol = cells[3].partition("protocol: ")[2]
        for key in keys:
            assert exists(key, Protocol if of_protocol.startswith(f"`{key}`") else Experiment), key
    assert not exists("models.<model>.adversarial.ramp", Experiment)
    by_variant = [cells[3] for cells in table if cells[4] == "by variant"]
    assert sorted(re.findall(r"\.(\w+)`", " ".join(by_variant))) == [
        "loss",
        "scratch_solver",
        "target_inner",
    ]
