"""What is checked before the first job of a run.

External files, what Slurm would refuse, and whether files are still what finished jobs made.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import snakemake_internals

from ctm_core.config.asset_listing import Asset
from ctm_core.data import assets
from ctm_core.runtime import slurm
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file
from ctm_core.runtime.untrusted import printable_lines

__all__ = ["changed_files", "check", "refuse", "say"]

#: Bytes of a file that is hashed even if its date is still that of its job.
ALWAYS_HASHED = 16 * 2**20


def refuse(sentence: object) -> NoReturn:
    """End as `ctm` does on a user's mistake: one sentence and exit code 2."""
    say(f"snakemake: {sentence}")
    sys.exit(2)


def say(line: object) -> None:
    print(printable_lines(str(line)), file=sys.stderr)


def changed_files() -> list[str]:
    """A sentence on each file that is no longer what the job that made it left.

    Every finished job has the hashes of its inputs recorded, and those of an input that was made
    before it began are those of what was made.
    """
    jobs = snakemake_internals.finished()
    hashes: dict[str, str] = {}
    for reader in sorted(jobs.values(), key=lambda job: job.began):
        made = {p: h for p, h in reader.inputs.items() if p in jobs}
        hashes |= {path: h for path, h in made.items() if jobs[path].ended <= reader.began}
    return [
        f"snakemake: {path} was changed after its job ({jobs[path].rule}) had made it; to have it "
        f"made again, add --forcerun {shlex.quote(path)}"
        for path, expected in sorted(hashes.items())
        if _is_other(Path(path), expected, jobs[path].ended)
    ]


def _is_other(path: Path, expected: str, made_at: float) -> bool:
    try:
        status = path.stat()
        untouched = abs(status.st_mtime - made_at) < 1e-3
        if untouched and status.st_size > ALWAYS_HASHED:
            return False
        return f"sha256:{sha256_file(path)}" != expected
    except (OSError, UserError):  # missing or unreadable, of which Snakemake speaks
        return False


def check(workflow: Any, known: Mapping[str, Asset]) -> None:
    """Refuse a run whose jobs would fail; record the hashes of files that nobody states."""
    if snakemake_internals.submits_to_slurm(workflow):
        check_slurm(workflow)
    # A job on own images also needs their settings, and a parameter of its own would make every
    # data set that exists anew.
    needed = [known[n] for n in snakemake_internals.needed_assets(workflow) if n in known]
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
