"""How much sampling in bf16 moves a Fréchet distance, paired over sampling seeds.

    python benchmarks/sampling_precision.py [--results results] [--seeds 8] [--docs]

Needs the trained models of `make table`. Every cell is sampled with each seed in fp32 and in bf16
from the same noises and classes and scored by the experiment's first protocol; the difference of
the two distances has Student's 95% interval over seeds. ``--docs`` writes docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from rows import fill

from ctm_core.config import Cell
from ctm_core.evaluation.metrics.frechet import frechet_distance
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.reference import load_reference
from ctm_core.models.features import build_features
from ctm_core.models.generation import Generator
from ctm_core.report.statistics import Summary, paired, summarise
from ctm_core.runtime.errors import UserError

#: Weights under results/, and a way of sampling them.
CELLS = {
    "digits/ctm/seed-0/student.safetensors": (
        Cell("gamma", 1, None),
        Cell("gamma", 4, 0.0),
        Cell("gamma", 4, 1.0),
    ),
    "digits/teacher/seed-0/teacher.safetensors": (Cell("heun", 35, None),),
}
PROTOCOL = "desk-digits"
BATCH = 256


def compare(results: Path, seeds: int, samples: int | None = None) -> list[str]:
    """Lines of a table: each cell's distance in both precisions, and the difference."""
    reference = load_reference(results / f"features/{PROTOCOL}.safetensors")
    protocol = reference.protocol
    count = samples or protocol.samples
    extract = build_features(protocol)
    lines = [
        f"Protocol `{PROTOCOL}`, {count} samples for each of {seeds} seeds, paired by seed.",
        "",
        "| model | sampler | FD in fp32 | FD in bf16 | bf16 − fp32 |",
        "|---|---|--:|--:|--:|",
    ]
    for file, cells in CELLS.items():
        for cell in cells:
            scored: dict[str, Summary] = {}
            for precision in ("fp32", "bf16"):
                generator = Generator.from_file(results / file, precision)
                values = {}
                for seed in range(seeds):
                    moments = Moments.of(torch.zeros(0, extract.dim))
                    options = {**cell._asdict(), "seed": seed, "batch_size": BATCH}
                    options["rounding"] = protocol.rounding
                    for images in generator.batches(count, **options):
                        moments = moments.merge(Moments.of(extract(images)))
                    values[0, seed] = frechet_distance(reference.moments, moments).value
                scored[precision] = summarise(values)
            difference = paired(scored["bf16"], scored["fp32"])
            gamma = "" if cell.gamma is None else f", γ = {cell.gamma:g}"
            lines.append(
                f"| {file.split('/')[1]} | {cell.sampler}, NFE {cell.nfe}{gamma} | "
                f"{scored['fp32']} | {scored['bf16']} | {difference} |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--samples", type=int, help="per seed  [default: the protocol's]")
    parser.add_argument("--docs", action="store_true", help="write docs/performance.md")
    arguments = parser.parse_args()
    try:
        lines = compare(arguments.results, arguments.seeds, arguments.samples)
    except UserError as error:
        parser.exit(2, f"sampling_precision: {error}\n")
    if arguments.docs:
        fill("sampling precision", "\n".join(lines))


if __name__ == "__main__":
    main()
