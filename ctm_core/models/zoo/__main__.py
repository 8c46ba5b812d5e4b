"""Copy finished weights into the zoo, with model cards: ``python -m ctm_core.models.zoo``."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from ctm_core.models import zoo
from ctm_core.models.weight_file import export, load_weights


def measured(table: Path, experiment: str, model: str) -> list[str]:
    """Every Fréchet distance of a model in a table.csv, one line each."""
    lines = []
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["experiment"], row["model"]) != (experiment, model):
                continue
            gamma = f", γ {row['gamma']}" if row["gamma"] else ""
            lines += [
                f"* {row['sampler']}, NFE {row['nfe']}{gamma}: {key.removesuffix('_mean')} "
                f"{float(row[key]):.3g} [{float(row[low]):.3g}, {float(row[high]):.3g}]"
                for key in row
                if key.startswith("fd_") and key.endswith(f"_{row['n_samples']}_mean") and row[key]
                for low, high in [[key[:-4] + f"ci95_{end}" for end in ("low", "high")]]
                if row[low]
            ]
    return lines


def add(name: str, results: Path) -> Path:
    """Copy one model from the results of its run."""
    origin = zoo.origin(name)
    model, record = load_weights(results / origin.file)
    shape = f"{record['channels']} x {record['resolution']} x {record['resolution']}"
    scores = measured(results / "table.csv", record["experiment"], record["model"])
    card = f"""# {name}

{sum(p.numel() for p in model.parameters()):,} parameters; images of {shape}, \
{record["label_dim"] or "no"} classes.
`{record["model"]}` of the experiment `{record["experiment"]}` after {record["step"]:,} steps, \
seed {record["seed"]}, made by `{origin.made_by}`.
Training hash: {record["train_hash"]}.
Data: {origin.data}.
Licence of the weights: Apache-2.0.

Measured (a Fréchet distance in features of another network is not FID), with 95% intervals:

{chr(10).join(scores)}
"""
    export(path := zoo.file_of(name), model, record, card=card)
    return path


def main() -> None:
    """Copy those that are named, by default all."""
    parser = argparse.ArgumentParser(prog="python -m ctm_core.models.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(zoo.MODELS), metavar="NAME")
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args()
    for name in given.names:
        print(add(name, given.results))


if __name__ == "__main__":
    main()
