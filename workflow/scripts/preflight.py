"""What is checked before the first job of a run: external files, and what Slurm would refuse."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import snakemake_internals

from ctm_core.config.asset_listing import Asset
from ctm_core.data import assets
from ctm_core.runtime import slurm

__all__ = ["check", "refuse"]


def refuse(sentence: object) -> NoReturn:
    """End as `ctm` does on a user's mistake: one sentence and exit code 2."""
    say(f"snakemake: {sentence}")
    sys.exit(2)


def say(line: object) -> None:
    print(line, file=sys.stderr)


def check(workflow: Any, known: Mapping[str, Asset]) -> None:
    """Refuse a run whose jobs would fail; record the hashes of files that nobody states."""
    if snakemake_internals.submits_to_slurm(workflow):
        check_slurm(workflow)
    needed = [known[name] for name in snakemake_internals.needed_assets(workflow)]
    problems = [problem for problem in map(assets.problem, needed) if problem]
    for problem in problems:
        say(problem)
    if problems:
        refuse(f"{len(problems)} external files are needed first, see above; nothing was started")
    assets.pin_present(needed, say=say)


def check_slurm(workflow: Any) -> None:
    """End what a killed Snakemake left running, and hear what Slurm would refuse."""
    if jobs := slurm.jobs_of(Path.cwd()):
        say(
            f"Stopping Slurm jobs that a killed Snakemake left behind: {', '.join(jobs)}; their "
            "work is continued"
        )
        if not slurm.stop(jobs):
            refuse(f"Slurm jobs do not end: {', '.join(jobs)}; try again once they are gone")
    for request in snakemake_internals.requests(workflow):
        asked = request.resources
        if asked["slurm_account"] and not slurm.keeps_accounts():
            refuse(
                f"slurm_account is {asked['slurm_account']}, but this Slurm keeps no accounts; "
                "take it out of slurm/config.yaml"
            )
        if reason := slurm.refusal(asked, request.threads):
            text = ", ".join(f"{name}={value}" for name, value in asked.items() if value)
            refuse(
                f"Slurm refuses the job {request.rule}: {reason}; it was asked for {text}, "
                f"threads={request.threads}: correct slurm/config.yaml, or the resources of the "
                "experiment"
            )
