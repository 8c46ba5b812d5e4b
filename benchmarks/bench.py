"""Time the parts of a training step, sampling and scoring on this machine.

    python benchmarks/bench.py [--sizes tiny cifar10] [--images N] [--repeats N]
                               [--parts step gan sampling memory scores passes]
                               [--output FILE] [--docs]

Variants are interleaved on the same inputs in one process, so their ratios are meaningful even on
a busy machine. CPU time is reported along with wall time, because other programs affect it less.
``--docs`` writes the tables to docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

# Read when torch is loaded: threads that spin while they wait would slow whatever runs next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import baseline
import layouts
import scoring
import sizes
import stopwatch
import torch
from rows import Table, alternate, fill, once
from sizes import SIZES

from ctm_core.config import Training
from ctm_core.diffusion import randomness, schedule
from ctm_core.models.generation import Generator
from ctm_core.runtime import devices
from ctm_core.runtime.files import write_json
from ctm_core.runtime.runs import environment
from ctm_core.training import acceleration

PARTS = ("step", "gan", "sampling", "memory", "scores", "passes")

#: Ways of doing a step: keys of the training section, the first being the plain way.
BF16 = {"precision": "bf16", "channels_last": True, "kernel": "fused"}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"objective": baseline.Plain, "kernel": "loop"},
    "fp32": {"kernel": "fused"},
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
    "bf16, compile": BF16 | {"compile": True},
}

# -- training ------------------------------------------------------------------------------------


def steps(table: Table, size: str, ways: dict[str, Any], repeats: int, first: str) -> None:
    """The trainer's own step in several variants, interleaved on the same batches."""
    trainers = {way: sizes.trainer(size, **keys) for way, keys in ways.items()}
    times: dict[str, list[Any]] = {way: [] for way in ways}
    spent: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    gradients = {}
    for step in range(-1, repeats):
        for way, trainer in trainers.items():
            trainer.step = max(step, 0)
            stopwatch.reset()
            taken = once(trainer._generator_step)
            if step >= 0:  # the first round only warms up
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
            "step",
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


def sampling(table: Table, size: str, repeats: int) -> None:
    """Sampling by one jump of the student and by 35 evaluations of the teacher."""
    made, count = SIZES[size], SIZES[size].sampled
    record = {
        "channels": 3,
        "resolution": made.resolution,
        "label_dim": 0,
        "diffusion": {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
        "model": "ctm",
        "step": 0,
    }
    latents = randomness.normal(0, "latents", 0, 0, count, (3, made.resolution, made.resolution))
    grid = schedule.karras_grid(18, 0.002, 80.0, 7.0)
    half = Training(steps=1, batch_size=1, precision="bf16", channels_last=True)
    for part, time_s, nfe in (("sampling, 1 jump", True, 1), ("sampling, 35 Heun", False, 35)):
        model, fast = (sizes.network(made, time_s=time_s).eval() for _ in range(2))
        model.requires_grad_(False)
        acceleration.apply(half, [], [fast.requires_grad_(False)])
        how = {"sampler": "gamma" if time_s else "heun", "nfe": nfe}
        options = {**how, "gamma": None, "seed": 0, "batch_size": count}

        def bf16(model: Any = fast, options: Any = options) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                Generator(model, record).images(count, **options)

        plain = partial(baseline.one_jump, model, latents)
        if not time_s:
            plain = partial(baseline.heun, model, latents, grid)
        ours = partial(Generator(model, record).images, count, **options)
        times = alternate({"plain": plain, "fp32": ours, "bf16": bf16}, repeats)
        for way, taken in times.items():
            against = None if way == "plain" else times["plain"]
            speed = count / statistics.median(wall for wall, _ in taken)
            table.add(size, part, way, taken, against=against, images_per_second=speed)


# -- memory --------------------------------------------------------------------------------------


def memory(table: Table, size: str) -> None:
    """Peak resident memory of a process that does two steps, and of one that only builds."""
    for way in WAYS | SAVING:
        found = {}
        for count in (0, 2):
            call = [sys.executable, __file__, "--memory-of", size, way, str(count)]
            text = subprocess.run(call, check=True, capture_output=True, text=True).stdout
            found[count] = json.loads(text.splitlines()[-1])
        row = {"size": size, "part": "memory", "way": way, "gigabytes": found[2]}
        first = next((r for r in table.rows if r["part"] == "memory" and r["size"] == size), None)
        if first is not None:
            row["share"] = found[2] / first["gigabytes"]
        table.put(row | {"networks_gigabytes": found[0]})


def memory_of(size: str, way: str, count: int) -> None:
    """Print the peak of this process in GB."""
    trainer = sizes.trainer(size, **(WAYS | SAVING)[way])
    for _ in range(count):
        trainer._generator_step()
    # Not getrusage: its peak is inherited from the parent process.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps(int(peak.split()[1]) * 1024 / 1e9))


# -- output --------------------------------------------------------------------------------------


def kind() -> str:
    """Which table of docs/performance.md: bf16 is another thing on each kind of processor."""
    units = devices.bf16_units()
    return {"amx_bf16": "AMX", None: "no AMX"}.get(units, str(units))


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/performance.md."""
    hardware = result["hardware"]
    text = [
        f"{hardware['device']}, {hardware['threads']} threads, torch {hardware['torch']}; "
        f"medians of {result['repeats']}.",
        "",
        "| size | what | variant | s | CPU-s | speed-up | by CPU time |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        if "seconds" not in row:
            continue
        ratios = [f"{row[key]:.2f} ×" if key in row else "" for key in ("faster", "faster_cpu")]
        text.append(
            f"| {row['size']} | {row['part']} | {row['way']} | {row['seconds']:.3g} | "
            f"{row['cpu_seconds']:.3g} | {ratios[0]} | {ratios[1]} |"
        )
    peaks = [row for row in result["rows"] if "gigabytes" in row]
    if peaks:
        text += [
            "",
            "| size | variant | peak memory, GB | before the first step | vs plain |",
        ]
        text += ["|---|---|--:|--:|--:|"]
        for row in peaks:
            share = f"{row['share']:.2f}" if "share" in row else ""
            text.append(
                f"| {row['size']} | {row['way']} | {row['gigabytes']:.2f} | "
                f"{row['networks_gigabytes']:.2f} | {share} |"
            )
    text += scoring.markdown(result["rows"])
    timed = [row for row in result["rows"] if "components" in row and row["way"] in WAYS]
    for size in dict.fromkeys(row["size"] for row in timed):
        columns = [row for row in timed if row["size"] == size]
        text += ["", f"CPU seconds of one step by component, {size}:", ""]
        text += ["| component | " + " | ".join(row["way"] for row in columns) + " |"]
        text += ["|---|" + "--:|" * len(columns)]
        for name in stopwatch.COMPONENTS:
            cells = [row["components"][name] for row in columns]
            if any(cells):
                text.append(f"| {name} | " + " | ".join(f"{cell:.3g}" for cell in cells) + " |")
    return "\n".join(text)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    known = (*PARTS, "levers", "layouts")
    parser.add_argument("--parts", nargs="+", choices=known, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--images",
        type=int,
        default=scoring.IMAGES,
        help="images to score in the passes (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, default=Path("results/bench.json"))
    parser.add_argument("--docs", action="store_true", help="write docs/performance.md")
    parser.add_argument("--add", action="store_true", help="keep the other rows of the output")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        size, way, count = arguments.memory_of
        memory_of(size, way, int(count))
        return
    stopwatch.install()
    table, repeats, parts = Table(), arguments.repeats, arguments.parts
    for size in arguments.sizes:
        many = repeats if size == "cifar10" else 4 * repeats
        if "step" in parts:
            steps(table, size, WAYS, many, "plain")
        if "levers" in parts:
            steps(table, size, {"bf16": BF16} | LEVERS, many, "bf16")
        if "gan" in parts and size == "cifar10":
            gan(table, size, repeats)
        if "sampling" in parts:
            sampling(table, size, repeats)
        if "memory" in parts:
            memory(table, size)
    if "layouts" in parts:
        layouts.layouts(table, repeats)
    if "scores" in parts:
        scoring.distances(table, repeats)
    if "passes" in parts:
        scoring.passes(table, arguments.images, arguments.threads)
    result = {"hardware": environment(), "repeats": repeats, "rows": table.rows}
    if arguments.add and arguments.output.exists():
        before = json.loads(arguments.output.read_text(encoding="utf-8"))["rows"]
        new = {(row["size"], row["part"], row["way"]) for row in table.rows}
        kept = [row for row in before if (row["size"], row["part"], row["way"]) not in new]
        result["rows"] = sorted(kept + table.rows, key=lambda row: row["size"])
    write_json(arguments.output, result)
    print(f"{arguments.output} written")
    if arguments.docs:
        fill(kind(), markdown(result))


if __name__ == "__main__":
    main()
