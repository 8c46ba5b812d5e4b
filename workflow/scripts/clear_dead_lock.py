"""Clear what a killed Snakemake left in the working directory: its lock, and jobs still running.

`make table` runs this first. A living Snakemake holds `.snakemake/alive` (see
workflow/rules/common.smk); the kernel drops that hold however the process ends. So a lock without
the hold is a dead one, and a job marked as this directory's is an orphan, which would fight its
own successor over a run folder.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ALIVE = Path(".snakemake/alive")
PATIENCE = 60.0  # seconds for a training to write its checkpoint after SIGTERM


def snakemake_lives() -> bool:
    """Whether a Snakemake is at work in this directory."""
    with ALIVE.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def orphans() -> list[int]:
    """Processes that a Snakemake of this directory started (Linux; elsewhere none are found)."""
    mark = f"CTM_WORKFLOW={Path.cwd()}".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        pid = int(environment.parent.name)
        try:
            marked = mark in environment.read_bytes().split(b"\0")
            running = "\nState:\tZ" not in (environment.parent / "status").read_text()
        except OSError:  # ended meanwhile, or another user's
            continue
        if marked and running and pid != os.getpid():
            found.append(pid)
    return found


def end(processes: list[int]) -> None:
    """Ask the processes to stop, wait for them, and end those that do not."""
    deadline = time.monotonic() + PATIENCE
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        while set(processes) & set(orphans()) and time.monotonic() < deadline:
            time.sleep(0.1)


def main() -> None:
    if not any(Path(".snakemake/locks").glob("*")) or not ALIVE.exists() or snakemake_lives():
        return
    if left := orphans():
        print(f"Stopping {len(left)} processes that a killed Snakemake left behind", flush=True)
        end(left)
    print("Clearing the lock of a killed Snakemake", flush=True)
    subprocess.run([sys.executable, "-m", "snakemake", "--unlock"], check=True)


if __name__ == "__main__":
    main()
