"""Few-step methods on digits at equal cost: make the search, choose, make the experiment.

    python studies/methods/methods.py search    # digits-methods-search.yaml, beside this file
    snakemake --cores all --keep-going --configfile studies/methods/config.yaml \\
        --directory studies/methods
    python studies/methods/methods.py choose    # config/experiments/digits-methods.yaml

Every method gets the operations of the default experiment's ``ctm``, as ``ctm plan`` counts them:
passes of all networks, feature networks included, a backward pass as two forward passes and a
derivative along a path by its measured time. So the number of steps follows from what a step
costs. The learning rate and one number of each method's clock are chosen among four candidates, by
the distances at NFE 1 and 2 of one training of half the budget, on a seed that the experiment does
not have. One that diverges is out.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from ctm_core.config import Experiment, load_experiment, validated
from ctm_core.config.dag import training
from ctm_core.config.project import open_project
from ctm_core.evaluation.evaluation_file import read_evaluation
from ctm_core.plan import SPEED
from ctm_core.plan.costs import Costs
from ctm_core.plan.speeds import read_speed
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import write_json, write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DEFAULT = ROOT / "config" / "experiments" / "digits.yaml"
FINAL = ROOT / "config" / "experiments" / "digits-methods.yaml"
SEARCH, CHOICE = HERE / "digits-methods-search.yaml", HERE / "choice.json"
METRIC = "fd_classifier_digits_1024"
SEARCH_SEED = 100
MADE = "Made by studies/methods/methods.py; do not edit."
RATES = (2e-3, 6e-3)
#: That of a first stage, whatever its candidate's.
FIRST_RATE = 3e-3
#: Of the budget, for every candidate.
SEARCH_SHARE = 0.5
#: Shares of a training at which its weights are exported, for the curves of quality against cost.
SHARES = (0.25, 0.5)
#: The default's `ctm`: its decay and the memory of its averages, as shares of its steps.
STEPS, DECAY, EMA = 160, 60, 0.95

CTM = {"objective": "ctm", "distance": "pseudo_huber"}
#: Of each method: what its section holds beside the training, the two candidates of its clock (at
#: a key, or at one of its settings), and the middle time of its own two-step sampler, if any.
METHODS: dict[str, tuple[dict[str, Any], str, tuple[Any, Any], float | None]] = {
    "ctm": (CTM, "grid_points", (10, 18), None),
    "ctm_ab2": (CTM | {"solver": "ab2"}, "grid_points", (10, 18), None),
    "ctm_gan": (CTM, "warm", (0.5, 0.75), None),
    "cd": (CTM | {"objective": "cd"}, "grid_points", (10, 18), None),
    "ct": (CTM | {"objective": "ct", "initial": "teacher"}, "grid_points", (10, 18), None),
    "ect": ({"objective": "ect"}, "settings.q", (2.0, 4.0), 0.821),
    "tcm": ({"objective": "tcm"}, "first", (0.5, 0.75), 1.0),
    "scd": ({"objective": "scd"}, "settings.p_mean", (-1.0, 0.0), 0.9824),
    "sct": ({"objective": "sct"}, "settings.p_mean", (-1.0, 0.0), 0.9824),
    "meanflow": ({"objective": "meanflow"}, "settings.times", ("v0", "v1"), 1.0),
    "meanflow_distilled": (
        {"objective": "meanflow_distilled"},
        "settings.times",
        ("v0", "v1"),
        1.0,
    ),
    "imeanflow": ({"objective": "imeanflow"}, "settings.times", ("improved", "v1"), 1.0),
    "imm": ({"objective": "imm"}, "settings.k", (8.0, 12.0), 0.7),
    "ayf": ({"objective": "ayf"}, "settings.p_mean", (-0.8, 0.0), None),
}
#: Objectives that learn the jump to the end alone.
FINAL_ONLY = ("cd", "ct", "ect", "tcm", "scd", "sct")
ADVERSARIAL = {
    "discriminator": {"backbones": ["tf_efficientnet_lite0"], "resolution": 64, "width": 16}
}
#: Stages of the schedule that fit into a training, by q: 1 - r/t ends at about 1/256.
STAGES = {2.0: 8, 4.0: 4}


def base() -> dict[str, Any]:
    """Data, network and teacher: the default experiment's."""
    section: dict[str, Any] = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
    kept = ("dataset", "conditional", "threads", "diffusion", "network", "teacher")
    return {key: section[key] for key in kept}


def optimisation(steps: int, rate: float, share: float = 1.0) -> dict[str, Any]:
    """A training of so many steps, a share of the budget: the default's schedule, stretched."""
    return {
        "steps": steps,
        "batch_size": 64,
        "learning_rate": rate,
        "decay_steps": round(steps * DECAY / STEPS),
        "ema": [round(EMA ** (share * STEPS / steps), 5)],
        "channels_last": True,
        "checkpoint_every": max(1, steps // 4),
        "log_every": max(1, steps // 80),
    }


class Costing:
    """What a step of a model costs, in operations; the budget is an experiment's ``ctm``'s."""

    def __init__(self, experiment: Path = DEFAULT) -> None:
        self._costs = Costs(open_project(experiment), read_speed(SPEED))
        self._known: dict[str, float] = {}
        self.budget = self.operations(load_experiment(experiment), "ctm")

    def operations(self, experiment: Experiment, model: str) -> float:
        """All operations of a training."""
        (estimate,) = self._costs.of([training(experiment, model)])
        return estimate.operations

    def per_step(self, models: Mapping[str, Any], name: str) -> float:
        """Of one optimiser step of a section, which stands among others that it may name."""
        key = json.dumps(models[name] | {"training": None}, sort_keys=True)
        if key not in self._known:
            experiment = built(models, [0], {})
            steps = experiment.student(name).training.steps
            self._known[key] = self.operations(experiment, name) / steps
        return self._known[key]


def built(models: Mapping[str, Any], seeds: list[int], grids: Mapping[str, Any]) -> Experiment:
    """The experiment of some models, checked."""
    return validated(Experiment, section(models, seeds, grids), "digits-methods")


def section(
    models: Mapping[str, Any], seeds: list[int], grids: Mapping[str, Any]
) -> dict[str, Any]:
    """The experiment as it is written."""
    one = {name: [jumps(model, (1,))] for name, model in models.items()}
    samplers = {"teacher": [{"sampler": "heun", "nfe": [35]}]} | one | dict(grids)
    return {
        "experiment": "digits-methods-search" if seeds == [SEARCH_SEED] else "digits-methods",
        **base(),
        "models": dict(models),
        "seeds": seeds,
        "evaluation": {
            "sample_seeds": [0],
            "batch_size": 256,
            "samplers": samplers,
            "protocols": {"desk-digits": "all"},
        },
    }


def jumps(model: Mapping[str, Any], nfes: tuple[int, ...]) -> dict[str, Any]:
    """The grid of a model on common levels: consistency sampling if it jumps to the end alone."""
    gamma = 1 if model["objective"] in FINAL_ONLY else 0
    return {"sampler": "gamma", "nfe": list(nfes), "gamma": [gamma]}


def reported(model: Mapping[str, Any], times: float | None) -> list[dict[str, Any]]:
    """The cells of a method: of its last weights also NFE 8 and its own two-step sampler."""
    once = [jumps(model, (8,))]
    if times is not None:
        once.append(jumps(model, (2,)) | {"times": [times]})
    return [jumps(model, (1, 2, 4)), *(grid | {"steps": "last"} for grid in once)]


def models_of(
    costing: Costing, method: str, rate: float, clock: Any, name: str, budget: float = 1.0
) -> dict[str, dict[str, Any]]:
    """The sections of a method under a name, with the steps that a share of the budget allows: the
    model, and before it the one that it starts from, if it has a first stage."""
    fixed, key, _, _ = METHODS[method]
    made: dict[str, dict[str, Any]] = {}
    if method in ("tcm", "ctm_gan"):
        # Of its share alone, so that candidates of equal shares start from one training.
        before = f"{method}_{'warm' if method == 'ctm_gan' else 'stage1'}_{round(100 * clock)}"
        first = CTM | {"grid_points": 10} if method == "ctm_gan" else {"objective": "ect"}
        made[before] = timed(costing, before, first, clock, FIRST_RATE, {}, budget)
        steps = made[before]["training"]["steps"]
        fixed = fixed | {"init_from": {"model": before, "step": steps}}
        if method == "ctm_gan":
            fixed |= {"grid_points": 10, "adversarial": ADVERSARIAL}
        share = 1 - clock
    else:
        share = 1.0
        settings, _, setting = key.partition(".")
        fixed = fixed | ({settings: {setting: clock}} if setting else {key: clock})
    made[name] = timed(costing, name, fixed, share, rate, made, budget)
    return made


def timed(
    costing: Costing,
    name: str,
    fixed: Mapping[str, Any],
    share: float,
    rate: float,
    others: Mapping[str, Any],
    budget: float,
) -> dict[str, Any]:
    """A section with as many steps as its share of the budget pays for."""
    trial = dict(fixed) | {"training": optimisation(100, rate)}
    each = costing.per_step(dict(others) | {name: trial}, name)
    steps = round(share * budget * costing.budget / each)
    made = dict(fixed) | {"training": optimisation(steps, rate, share)}
    if fixed["objective"] in ("cd", "ct", "ctm"):
        made["target_ema"] = made["training"]["ema"][0]
    own_settings = dict(made.get("settings", {}))
    if fixed["objective"] == "ect":
        stages = STAGES[own_settings.setdefault("q", 2.0)]
        own_settings["stage_images"] = math.ceil(64 * steps / stages)
    if "_stage1" in name:
        own_settings["truncated"] = True
    if fixed["objective"] in ("scd", "sct", "ayf"):
        own_settings["warmup"] = steps // 4
    return made | ({"settings": own_settings} if own_settings else {})


def candidates() -> Iterator[tuple[str, str, float, Any]]:
    """Name, method, learning rate and clock of each."""
    for method, (_, _, clocks, _) in METHODS.items():
        for place, (rate, clock) in enumerate(product(RATES, clocks), start=1):
            yield f"{method}_{place}", method, rate, clock


def search() -> None:
    """Write the experiment of all candidates."""
    write(SEARCH, searched(), f"Candidates: two clocks, two rates. {MADE}")


def searched() -> dict[str, Any]:
    """The experiment of all candidates."""
    costing, models = Costing(), dict[str, Any]()
    for name, method, rate, clock in candidates():
        models |= models_of(costing, method, rate, clock, name, SEARCH_SHARE)
    grids = {name: [jumps(model, (1, 2))] for name, model in models.items()}
    return section(models, [SEARCH_SEED], grids)


def score(candidate: str) -> float | None:
    """Geometric mean of the distances at NFE 1 and 2; None for a training that diverged."""
    folder = HERE / "results" / "digits-methods-search" / candidate / f"seed-{SEARCH_SEED}"
    files = sorted(folder.glob("step-*/evaluation.json"))
    if not files:
        return None
    rows = [row for row in read_evaluation(files[-1]).rows if row.metric == METRIC]
    return round(math.exp(sum(math.log(row.value) for row in rows) / len(rows)), 4)


def choose() -> None:
    """Keep of each method the candidate of the least geometric mean distance at NFE 1 and 2."""
    costing = Costing()
    models, grids, choice = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    for method, (_, _, _, times) in METHODS.items():
        scores = {}
        for name, of, rate, clock in candidates():
            if of == method:
                scores[name] = {"rate": rate, "clock": clock, "score": score(name)}
        finished = [s for s in scores.values() if s["score"] is not None]
        if not finished:
            raise UserError(f"{method} has no finished candidate; run the search first")
        best = min(finished, key=lambda s: s["score"])
        choice[method] = {"chosen": best, "candidates": scores}
        made = models_of(costing, method, best["rate"], best["clock"], method)
        last = made[method]["training"]
        last["snapshots"] = [round(share * last["steps"]) for share in SHARES]
        models |= made
        grids[method] = reported(made[method], times)
        if method == "ctm":
            stochastic = {"sampler": "gamma", "nfe": [2, 4, 8], "gamma": [1]}
            grids[method].append(stochastic | {"steps": "last"})
    write_json(CHOICE, choice)
    made_of = section(models, [0, 1, 2], grids)
    write(FINAL, made_of, f"Few-step methods at equal cost, as chosen. {MADE}")


def write(path: Path, experiment: dict[str, Any], what: str) -> None:
    """An experiment as YAML, checked."""
    validated(Experiment, experiment, path)
    plain = json.loads(json.dumps(experiment))  # without YAML's references to shared parts
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=98)
    write_text(path, f"# {what}\n{text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("step", choices=("search", "choose"))
    {"search": search, "choose": choose}[parser.parse_args().step]()
