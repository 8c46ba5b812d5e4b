"""Write config/experiments/cifar10-methods.yaml: the few-step methods on CIFAR-10 at equal cost.

    python studies/methods/cifar10.py

Network, data and converted teacher are those of cifar10-uncond, and the budget is its ``ctm``'s.
Learning rates and settings are the published ones for CIFAR-10 where there are any (docs/methods);
every method has one batch size, so that its number of steps alone follows from what a step costs.
"""

from __future__ import annotations

import math
from typing import Any

from methods import METHODS, ROOT, SHARES, Costing, jumps, reported, write

from ctm_core.config import Experiment, read_yaml, validated

PAPER = ROOT / "config/experiments/cifar10-uncond.yaml"
OUTPUT = ROOT / "config/experiments/cifar10-methods.yaml"
#: Optimiser, rate and average of those that start from a network's weights alone.
TUNING = {"optimizer": "radam", "learning_rate": 1.0e-4, "ema": [0.9999]}
FLOW = {"optimizer": "adam", "learning_rate": 6.0e-4, "warmup_steps": 10_000, "ema": [0.9999]}
#: Training of each, as published for CIFAR-10 where it is; settings are the objectives' defaults.
PUBLISHED: dict[str, dict[str, Any]] = {
    "ect": TUNING,
    "tcm": TUNING | {"learning_rate": 5.0e-5},
    "scd": TUNING,
    "sct": TUNING,
    "meanflow": FLOW,
    "meanflow_distilled": FLOW,
    "imeanflow": FLOW,
    "imm": TUNING,
    "ayf": TUNING,
}
#: The method's share of the budget before it starts, and what is trained then.
BEFORE = {"ctm_gan": ("ctm", 0.5), "tcm": ("tcm_stage1", 0.5)}


def models() -> dict[str, Any]:
    """Every method's section, with the steps that the budget allows."""
    paper, costing = read_yaml(PAPER), Costing(PAPER)
    known, made = paper["models"], dict[str, Any]()
    common = {
        key: value
        for key, value in known["ctm"]["training"].items()
        if key not in ("steps", "snapshots", "optimizer", "learning_rate", "ema", "evaluated_ema")
    } | {"micro_batch": "auto"}

    def add(name: str, section: dict[str, Any], training: dict[str, Any], share: float) -> None:
        trial = made | {name: section | {"training": training | {"steps": 1000}}}
        each = costing.operations(experiment(trial), name) / 1000
        steps = round(share * costing.budget / each, -2)
        marks = [round(part * steps) for part in SHARES]
        section["training"] = training | {"steps": int(steps), "snapshots": marks}
        if section["objective"] == "ect":
            stages = 8
            images = math.ceil(training["batch_size"] * steps / stages)
            section["settings"] = section.get("settings", {}) | {"stage_images": images}
        made[name] = section

    for name in METHODS:
        if name in PUBLISHED:
            section: dict[str, Any] = {"objective": name}
            training = common | PUBLISHED[name]
        else:
            source = {"ctm_ab2": "ctm", "ct": "cd"}.get(name, name)
            section = {k: v for k, v in known[source].items() if k != "training"}
            section |= {"ctm_ab2": {"solver": "ab2"}}.get(name, {})
            section |= {"ct": {"objective": "ct", "initial": "teacher"}}.get(name, {})
            training = {
                key: value
                for key, value in known[source]["training"].items()
                if key not in ("steps", "snapshots")
            }
        share = 1.0
        if name in BEFORE:
            before, share = BEFORE[name]
            if before not in made:
                first = {"objective": "ect", "settings": {"truncated": True}}
                add(before, first, common | TUNING, share)
                step = made[before]["training"]["steps"]
            else:
                step = made[before]["training"]["snapshots"][-1]
            section["init_from"] = {"model": before, "step": step}
            share = 1 - share
        add(name, section, training, share)
    return made


def experiment(sections: dict[str, Any]) -> Experiment:
    """The experiment of some methods, checked."""
    return validated(Experiment, written(sections), OUTPUT)


def written(sections: dict[str, Any]) -> dict[str, Any]:
    """The experiment as its file has it."""
    paper = read_yaml(PAPER)
    grids: dict[str, Any] = {"teacher": [{"sampler": "heun", "nfe": [35]}]}
    for name, model in sections.items():
        known = METHODS.get(name)
        grids[name] = [jumps(model, (1,))] if known is None else reported(model, known[3])
    return {
        "experiment": "cifar10-methods",
        **{key: paper[key] for key in ("dataset", "conditional", "variant", "threads")},
        **{key: paper[key] for key in ("resources", "diffusion", "network", "teacher")},
        "models": sections,
        "seeds": [0, 1, 2],
        "evaluation": {
            "sample_seeds": [0],
            "batch_size": 500,
            "samplers": grids,
            "protocols": {"edm-cifar10": "all"},
        },
    }


if __name__ == "__main__":
    write(OUTPUT, written(models()), "Made by studies/methods/cifar10.py; do not edit.")
