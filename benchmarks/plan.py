"""Measure this machine's speed for `ctm plan`, and how long planning itself takes.

    python benchmarks/plan.py [--threads N] [--repeats N] [--clock cpu] [--output FILE]
    python benchmarks/plan.py --planning     only the latter, which changes no file

The networks of four experiments and two of `ctm new` run forward, and forward and backward, with
random weights in fp32 and bf16; operations are counted as in a plan. Evaluations of a likelihood
are counted on a mixture of Gaussians, whose exact denoiser needs no training. On a busy machine,
use ``--clock cpu`` to measure CPU seconds per thread, which other programs affect less.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Read when torch is loaded: see bench.py.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import yaml

from ctm_core.config import Diffusion, Network, Training, load_experiment
from ctm_core.config.datasets import traits
from ctm_core.config.optimization import suits_channels_last
from ctm_core.diffusion.gaussian import GaussianMixture
from ctm_core.evaluation.likelihood import ode
from ctm_core.models import weight_file
from ctm_core.plan import network_costs
from ctm_core.runtime import devices
from ctm_core.runtime.files import write_json
from ctm_core.runtime.runs import environment
from ctm_core.training import ema, optimizers

ROOT = Path(__file__).resolve().parents[1]
#: Experiments whose students are measured, and the batch of a pass.
SIZES = {"smoke": 64, "digits": 64, "cifar10-uncond": 2, "imagenet64": 1}
#: Networks of `ctm new` between them: width, side, and the batch of a pass.
NEW = ((32, 16, 128), (64, 32, 32))
#: What a training or evaluation loads before it starts.
IMPORTS = "import ctm_core.cli, ctm_core.training.jobs, ctm_core.evaluation.evaluate"
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/speed.json")
    parser.add_argument("--planning", action="store_true", help="only time planning")
    arguments = parser.parse_args()
    if arguments.planning:
        planning()
        return
    torch.set_num_threads(arguments.threads)
    hardware = environment() | {"bf16_units": devices.bf16_units()}
    result: dict[str, Any] = {"hardware": hardware, "process_bytes": process_bytes()}

    def clock() -> float:
        if arguments.clock == "cpu":
            return time.process_time() / arguments.threads
        return time.perf_counter()

    repeats, result["clock"] = arguments.repeats, arguments.clock
    result["start_seconds"] = start(repeats, arguments.clock)
    result["networks"] = [row for net in measured() for row in speeds(net, repeats, clock)]
    result["update_seconds_per_weight"] = update(repeats, clock)
    result["likelihood"] = [
        {"tolerance": tolerance, "evaluations": evaluations(tolerance)} for tolerance in TOLERANCES
    ]
    write_json(arguments.output, result)
    print(f"{arguments.output} written")


def shortest(work: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Shortest time of ``work`` in seconds, after one warm-up round."""
    work()
    times = []
    for _ in range(repeats):
        began = clock()
        work()
        times.append(clock() - began)
    return min(times)


def process_bytes() -> float:
    """Peak bytes of a process that takes one training step of the smallest network there is."""
    step = """
weight = torch.nn.Conv2d(1, 1, 1)
weight(torch.zeros(1, 1, 8, 8)).sum().backward()
torch.optim.RAdam(weight.parameters()).step()
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""
    # Not getrusage: its peak is inherited from the parent process.
    call = [sys.executable, "-c", f"{IMPORTS}, torch\n{step}"]
    return int(subprocess.run(call, check=True, capture_output=True).stdout) * 1024.0


def start(repeats: int, clock: str) -> float:
    """Seconds of a process that imports what training imports, and exits."""
    command = [sys.executable, "-c", IMPORTS]
    times = []
    for _ in range(repeats + 1):
        before, began = os.times(), time.perf_counter()
        subprocess.run(command, check=True)
        wall, after = time.perf_counter() - began, os.times()
        cpu = after.children_user - before.children_user
        cpu += after.children_system - before.children_system
        times.append(cpu if clock == "cpu" else wall)
    return min(times[1:])


class Measured(NamedTuple):
    """A network whose speed is measured."""

    name: str
    network: Network
    diffusion: Diffusion
    shape: tuple[int, int, int]
    classes: int
    batch: int


def measured() -> Iterator[Measured]:
    """All of them, by size."""
    for name, batch in SIZES.items():
        experiment = load_experiment(ROOT / f"config/experiments/{name}.yaml")
        known = traits(experiment.dataset.name)
        assert known.shape is not None and known.classes is not None
        classes = known.classes if experiment.conditional else 0
        yield Measured(name, experiment.network, experiment.diffusion, known.shape, classes, batch)
    for width, side, batch in NEW:
        network = Network(
            architecture="ddpmpp",
            model_channels=width,
            channel_mult=(1, *(2 for _ in range(side // 16))),
            num_blocks=1,
            attn_resolutions=(8,),
        )
        yield Measured(f"new-{side}", network, Diffusion(), (3, side, side), 10, batch)


def speeds(net: Measured, repeats: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Operations per second of a network with s, in the layout of `channels_last: auto`."""
    name, network, diffusion, shape, classes, batch = net
    cost = network_costs.denoiser(network, diffusion, shape, classes, True)
    torch.manual_seed(0)
    model = weight_file.build_model(
        network=network,
        diffusion=diffusion,
        resolution=shape[1],
        channels=shape[0],
        label_dim=classes,
        time_s=True,
    )
    images = torch.randn(batch, *shape)
    times, targets = torch.full((batch,), 5.0), torch.full((batch,), 0.5)
    labels = torch.zeros(batch, dtype=torch.int64) if classes else None

    def forward() -> torch.Tensor:
        return model.raw(images, times, targets, labels)

    def train() -> None:
        forward().sum().backward()
        model.zero_grad(set_to_none=True)

    def without_gradient() -> None:
        with torch.no_grad():
            forward()

    rows = []
    for precision in ("fp32", "bf16"):
        last = suits_channels_last(network.model_channels, shape[1], precision)
        layout = torch.channels_last if last else torch.contiguous_format
        model.to(memory_format=layout)
        images = images.contiguous(memory_format=layout)
        for mode, work in (("forward", without_gradient), ("train", train)):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                seconds = shortest(work, repeats if batch < 64 else 4 * repeats, clock)
            operations = cost.operations["forward"]
            done = batch * (operations if mode == "forward" else cost.operations["train"])
            row = {
                "network": name,
                "precision": precision,
                "mode": mode,
                "batch": batch,
                "operations": operations,
                "operations_per_second": done / seconds,
                "seconds": seconds,
            }
            rows.append(row)
            print(f"{name:<16} {precision} {mode:<8} {seconds:8.3f} s {done / seconds:9.2e} /s")
    return rows


def update(repeats: int, clock: Callable[[], float]) -> float:
    """Seconds per weight and step for RAdam and one EMA."""
    experiment = load_experiment(ROOT / "config/experiments/digits.yaml")
    model = weight_file.build_model(
        network=experiment.network,
        diffusion=experiment.diffusion,
        resolution=8,
        channels=1,
        label_dim=10,
        time_s=True,
    )
    average = ema.frozen_copy(model)
    optimizer = optimizers.build(Training(steps=1, batch_size=1), model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        optimizer.step()
        ema.update(average, model, 0.999, 1, None, foreach=True)

    return shortest(step, 20 * repeats, clock) / sum(p.numel() for p in model.parameters())


def evaluations(tolerance: float) -> int:
    """Denoiser evaluations per likelihood, on a mixture that resembles 8x8 images."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(10, 1, 8, 8, generator=generator) / 2
    mixture = GaussianMixture(torch.full((10,), 0.1), means, torch.full((10,), 0.01))
    uniform, noise = torch.rand(16, generator=generator), torch.randn(16, 1, 8, 8)
    x = mixture.sample(uniform, noise)
    probes = ode.signs(0, "probes", list(range(16)), 1, mixture.shape)
    return ode.log_density(mixture.denoise, x, probes=probes, tolerance=tolerance).evaluations


# -- planning itself -----------------------------------------------------------------------------


def planning() -> None:
    """Seconds for planning the paper, and a configuration with ten thousand cells."""
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.yaml"
        large.write_text(f"experiments: [{ten_thousand_cells(Path(folder))}]\n")
        seeds = Path(folder) / "seeds.yaml"
        seeds.write_text(f"experiments: [{ten_thousand_cells(Path(folder), trainings=100)}]\n")
        named = Path(folder) / "named.yaml"
        named.write_text(f"experiments: [{ten_thousand_cells(Path(folder), named=True)}]\n")
        for what, config in (
            ("the paper", ROOT / "config/paper.yaml"),
            ("10,000 cells, ten sampling seeds", large),
            ("10,000 cells, a hundred training seeds", seeds),
            ("10,000 cells, each protocol naming 1,000", named),
        ):
            dry = ["snakemake", "-n", "--quiet", "all", "--configfile", str(config)]
            dry += ["--directory", folder, "--snakefile", str(ROOT / "Snakefile")]
            ours = ["-m", "ctm_core.cli", "plan", "--config", str(config)]
            took = [
                run([sys.executable, "-m", *dry, "--", "results/table.csv"]),
                run([sys.executable, *ours]),
            ]
            print(f"{what:<42} snakemake -n {took[0]:6.1f} s   ctm plan {took[1]:6.1f} s")


def run(command: list[str]) -> float:
    """Seconds of a command that must succeed."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - began


def ten_thousand_cells(folder: Path, *, trainings: int = 1, named: bool = False) -> Path:
    """An experiment whose one student has ten thousand (sampler, nfe, gamma, seed) cells."""
    text = (ROOT / "config/experiments/digits.yaml").read_text(encoding="utf-8")
    section = yaml.safe_load(text)
    name = f"many-{trainings}-{int(named)}"
    nfe, gamma = list(range(2, 52)), [round(n / 20, 2) for n in range(20)]
    seeds = 10
    if trainings > 1:
        nfe, seeds = nfe[:5], 1
    cells = [{"sampler": "gamma", "nfe": n, "gamma": g} for n in nfe for g in gamma]
    chosen: Any = [{"model": "ctm"} | cell for cell in cells] if named else "all"
    section |= {
        "experiment": name,
        "models": {"ctm": section["models"]["ctm"]},
        "seeds": list(range(trainings)),
        "evaluation": {
            "sample_seeds": list(range(seeds)),
            "samplers": {
                "teacher": [{"sampler": "heun", "nfe": [3]}],
                "ctm": [{"sampler": "gamma", "nfe": nfe, "gamma": gamma}],
            },
            "protocols": {"desk-digits": chosen},
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(section), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
