"""Train one step of each of the paper's experiments at full scale, on the CPU.

    python benchmarks/true_size.py [EXPERIMENT …] [--model ctm] [--batch 2] [--k 3]

The run goes through everything that ``ctm train`` does: config file, prepared data set, teacher
file, run folder, checkpoint, exported weights. Only what is not available is replaced: images are
noise; the teacher, LPIPS and the discriminator's feature networks have full-size random weights; a
fork starts from the teacher; batch size and k are set by the options. Experiments run one at a
time, each in a separate process whose peak memory is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import sizes
import stopwatch
import torch

from ctm_core.config import Experiment, load_experiment
from ctm_core.config.datasets import traits
from ctm_core.data import dataset
from ctm_core.data.dataset import Dataset, open_dataset
from ctm_core.diffusion import schedule
from ctm_core.models import weight_file
from ctm_core.runtime.files import sha256_file, write_json
from ctm_core.training import adversary, distances, jobs
from ctm_core.training.discriminator import Discriminator
from ctm_core.training.loop import Trainer

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ("cifar10-uncond", "cifar10-cond", "cifar10-scratch", "imagenet64")
SIDES = {"cifar10": 32, "imagenet64": 64}


def shortened(path: Path, model: str, batch: int) -> Experiment:
    """The experiment cut down to one step on a small batch, without a fork."""
    described = load_experiment(path).model_dump(mode="json")
    section = described["models"][model]
    section["training"] |= {"steps": 1, "batch_size": batch, "micro_batch": None, "snapshots": []}
    if section["init_from"] is not None:
        section |= {"init_from": None, "initial": "teacher"}
        if described["teacher"] is None:
            section["initial"] = "random"
    described["models"] = {model: section}
    samplers = {"teacher": [{"sampler": "heun", "nfe": [35]}]} if described["teacher"] else {}
    samplers[model] = [{"sampler": "gamma", "nfe": [1], "gamma": [1]}]
    described["evaluation"]["samplers"] = samplers
    described["evaluation"]["protocols"] = dict.fromkeys(
        described["evaluation"]["protocols"], "all"
    )
    return Experiment.model_validate(described)


def write_dataset(experiment: Experiment, folder: Path, count: int = 16) -> Dataset:
    """Write noise as a prepared data set."""
    name = experiment.dataset.name
    known, side = traits(name), SIDES[name]
    names = known.class_names or [str(n) for n in range(1000)]
    images = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    folder.mkdir()
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", np.arange(count, dtype=np.int64) % len(names))
    manifest = {
        "name": name,
        "split": "train",
        "shape": list(images.shape),
        "count": count,
        "classes": len(names),
        "class_names": list(names),
        "flip": known.flip,
        "source": "noise",
        "source_files": [],
        "files": {n: sha256_file(folder / n) for n in ("images.npy", "labels.npy")},
        "fingerprint": "0" * 64,
        "format": dataset.FORMAT,
    }
    write_json(folder / "manifest.json", manifest)
    return open_dataset(folder)


def write_teacher(experiment: Experiment, dataset: Dataset, path: Path) -> None:
    """Random weights of the teacher's size, as `ctm teacher` would have written them."""
    torch.manual_seed(0)
    label_dim = dataset.classes if experiment.conditional else 0
    model = weight_file.build_model(
        network=experiment.network,
        diffusion=experiment.diffusion,
        resolution=dataset.resolution,
        channels=dataset.channels,
        label_dim=label_dim,
        time_s=False,
    )
    described = experiment.model_dump(mode="json")
    record = {
        "experiment": experiment.experiment,
        "model": "teacher",
        "objective": "dsm",
        "seed": 0,
        "step": 0,
        "train_hash": "",
        "class_names": [str(n) for n in range(label_dim)],
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "network": described["network"],
        "diffusion": described["diffusion"],
        "resolution": dataset.resolution,
        "channels": dataset.channels,
        "label_dim": label_dim,
        "time_s": False,
    }
    weight_file.export(path, model, record)


def measure(folder: Path, name: str, model: str, batch: int, k: int, threads: int) -> None:
    """Train one step and print its time and memory as JSON."""
    experiment = shortened(ROOT / f"config/experiments/{name}.yaml", model, batch)
    experiment = experiment.model_copy(update={"threads": threads})
    torch.set_num_threads(threads)
    schedule.heun_steps_from_uniform = lambda *_: k
    build = distances.build_distance

    def distance(wanted: str, section: Any = None) -> Any:
        return sizes.lpips(section.resize) if wanted == "lpips_vgg" else build(wanted, section)

    distances.build_distance = distance
    adversary.Discriminator = partial(Discriminator, pretrained=False)
    stopwatch.install()
    taken: dict[str, float] = {}

    def timed(work: Any, key: str) -> Any:
        def run(*arguments: Any) -> Any:
            stopwatch.reset()
            began = time.perf_counter()
            result = work(*arguments)
            taken[key] = taken.get(key, 0.0) + time.perf_counter() - began
            if key == "step":
                taken.update({f"  {part}": cpu for part, cpu in stopwatch.spent.items()})
                taken["peak before the checkpoint, GB"] = stopwatch.peak()
            return result

        return run

    Trainer._step = timed(Trainer._step, "step")
    Trainer._save = timed(Trainer._save, "checkpoint")
    teacher = folder / "teacher.safetensors"
    began = time.perf_counter()
    jobs.train_student(
        experiment,
        model,
        open_dataset(folder / "train"),
        teacher if experiment.student(model).uses_teacher else None,
        seed=0,
        output=folder / "out",
        runs=folder / "runs",
    )
    taken["whole training"] = time.perf_counter() - began
    print(json.dumps(taken | {"peak, GB": stopwatch.peak()}))


def main() -> None:
    """Measure the experiments one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=str(EXPERIMENTS))
    parser.add_argument("--model", help="ctm, ctm_gan, …  [default: the experiment's first]")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--k", type=int, default=3, help="Heun steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("results/true-size.json"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    batch, k, threads = arguments.batch, arguments.k, arguments.threads
    if arguments.measure:
        name, model = arguments.experiments[0], arguments.model
        measure(arguments.measure, name, model, batch, k, threads)
        return
    results = {}
    for name in arguments.experiments or EXPERIMENTS:
        file = ROOT / f"config/experiments/{name}.yaml"
        model = arguments.model or next(iter(load_experiment(file).models))
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            experiment = shortened(file, model, batch)
            dataset = write_dataset(experiment, folder / "train")
            if experiment.student(model).uses_teacher:
                write_teacher(experiment, dataset, folder / "teacher.safetensors")
            options = ("--model", model, "--batch", str(batch), "--k", str(k))
            call = [sys.executable, __file__, name, *options, "--threads", str(threads)]
            run = subprocess.run(
                [*call, "--measure", str(folder)], check=True, stdout=subprocess.PIPE, text=True
            )
            results[name] = json.loads(run.stdout.splitlines()[-1])
        print(f"{name}, {model}, batch {batch}, k = {k}")
        for key, value in results[name].items():
            unit = "" if "GB" in key else (" CPU-s" if key.startswith(" ") else " s")
            print(f"  {key:<32} {value:8.2f}{unit}", flush=True)
    write_json(arguments.output, results)
    print(f"{arguments.output} written")


if __name__ == "__main__":
    main()
