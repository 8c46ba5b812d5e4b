"""What the benchmarks of processors and GPUs have in common: steps and sampling, by variant."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import baseline
import sizes
import stopwatch
import torch
from rows import Table, alternate, once
from sizes import SIZES

from ctm_core.diffusion import randomness, schedule
from ctm_core.models.generation import Generator
from ctm_core.models.networks.layers import channels_last
from ctm_core.training import acceleration

#: Ways of doing a step: keys of the training section, the first being the plain way.
BF16 = {"precision": "bf16", "channels_last": True, "kernel": "fused"}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"objective": baseline.Plain, "kernel": "loop"},
    "fp32": {"channels_last": True, "kernel": "fused"},
    "bf16": BF16,
}
#: Ways of taking less memory.
SAVING: dict[str, dict[str, Any]] = {
    f"{way}, recompute": WAYS[way] | {"recompute": True} for way in ("fp32", "bf16")
}
#: One key changed, to be seen against ``bf16``.
LEVERS: dict[str, dict[str, Any]] = {
    "bf16, kernel: foreach": BF16 | {"kernel": "foreach"},
    "bf16, kernel: loop": BF16 | {"kernel": "loop"},
    "bf16, channels_last: false": BF16 | {"channels_last": False},
    "bf16, attention: sdpa": BF16 | {"attention": "sdpa"},
}
#: Apart from the others: a number of rows is compiled when it first occurs, which takes minutes.
COMPILED: dict[str, dict[str, Any]] = {"bf16, compile": BF16 | {"compile": True}}
#: Rounds that are not timed: at size `tiny`, nothing was compiled after the second.
COMPILING = 5

# -- training ------------------------------------------------------------------------------------


def steps(
    table: Table, size: str, ways: dict[str, Any], repeats: int, part: str = "step", warm: int = 1
) -> None:
    """The trainer's own step in several variants, interleaved on the same batches.

    Each is compared with the first, after ``warm`` rounds that are not timed.
    """
    first = next(iter(ways))
    trainers = {way: sizes.trainer(size, **keys) for way, keys in ways.items()}
    times: dict[str, list[Any]] = {way: [] for way in ways}
    spent: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    gradients = {}
    for step in range(-warm, repeats):
        for way, trainer in trainers.items():
            trainer.step = warm + step
            stopwatch.reset()
            taken = once(trainer._generator_step)
            if step >= 0:
                times[way].append(taken)
                spent[way].append(dict(stopwatch.spent))
                continue
            found = [p.grad for p in trainer.student.parameters() if p.grad is not None]
            gradients[way] = torch.cat([g.flatten() for g in found])
    usual = gradients[first]
    for way in ways:
        parts = {
            name: statistics.median(one[name] for one in spent[way])
            for name in stopwatch.COMPONENTS
        }
        error = float((gradients[way] - usual).norm() / usual.norm())
        against = None if way == first else times[first]
        table.add(
            size,
            part,
            way,
            times[way],
            against=against,
            components=parts,
            **({} if way == first else {"gradients_differ": error}),
        )


def gan(table: Table, size: str, repeats: int) -> None:
    """Both steps with the adversarial loss: random DeiT and Lite0 at 224."""
    trainers = {way: sizes.trainer(size, adversarial=True, **keys) for way, keys in WAYS.items()}
    for part, name in (("D step", "_discriminator_step"), ("G step", "_generator_step")):
        works = {way: getattr(trainer, name) for way, trainer in trainers.items()}
        times = alternate(works, repeats)
        for way in works:
            against = None if way == "plain" else times["plain"]
            table.add(size, part, way, times[way], against=against)


# -- sampling ------------------------------------------------------------------------------------

#: Ways of sampling: the sampler, and whether it is the student's.
SAMPLERS = {
    "sampling, 1 jump": ({"sampler": "gamma", "nfe": 1}, True),
    "sampling, 2 jumps": ({"sampler": "gamma", "nfe": 2, "gamma": 0.0}, True),
    "sampling, 35 Heun": ({"sampler": "heun", "nfe": 35}, False),
}


def sampling(
    table: Table,
    size: str,
    repeats: int,
    *,
    device: str = "cpu",
    count: int | None = None,
    plain: bool = True,
) -> None:
    """Sampling by jumps of the student and by 35 evaluations of the teacher.

    ``plain`` says whether it is compared with plain loops, which there are of two kinds.
    """
    made, count = SIZES[size], count or SIZES[size].sampled
    record = {
        "channels": 3,
        "resolution": made.resolution,
        "label_dim": 0,
        "diffusion": {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
        "model": "ctm",
        "step": 0,
    }
    shape = (3, made.resolution, made.resolution)
    latents = randomness.normal(0, "latents", 0, 0, count, shape).to(device)
    grid = schedule.karras_grid(18, 0.002, 80.0, 7.0)
    for part, (how, time_s) in SAMPLERS.items():
        model, fast, rounded = (
            sizes.network(made, time_s=time_s).eval().to(device).requires_grad_(False)
            for _ in range(3)
        )
        channels_last(fast)
        acceleration.round_frozen(channels_last(rounded))
        options = {"gamma": None, **how, "seed": 0, "batch_size": count}
        plainly = {1: partial(baseline.one_jump, model, latents)}
        plainly[35] = partial(baseline.heun, model, latents, grid)
        works: dict[str, Any] = {
            "fp32": partial(Generator(fast, record).images, count, **options),
            "bf16": partial(Generator(rounded, record, "bf16").images, count, **options),
        }
        if plain and how["nfe"] in plainly:
            works = {"plain": plainly[how["nfe"]]} | works
        times = alternate(works, repeats)
        for way, taken in times.items():
            against = None if way == next(iter(works)) else times[next(iter(works))]
            speed = count / statistics.median(wall for wall, _ in taken)
            table.add(size, part, way, taken, against=against, images_per_second=speed)
