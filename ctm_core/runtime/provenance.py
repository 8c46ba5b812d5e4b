"""Which code made a result."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

#: A change elsewhere (docs, notes, DVC's lock file) does not change what a number means.
CODE = ("ctm_core", "workflow", "Snakefile")


@cache
def code_version() -> str:
    """The package's version; in a git checkout with the commit, and ``-dirty`` if code differs."""
    version = metadata.version("ctm_core")
    root = Path(__file__).resolve().parents[2]
    try:
        # Installed into an environment inside somebody's repository, it is not that one's code.
        if Path(_git(root, "rev-parse", "--show-toplevel").stdout.strip()) != root:
            return version
        commit = _git(root, "rev-parse", "--short=12", "HEAD").stdout.strip()
        dirty = _git(root, "status", "--porcelain", "--", *CODE).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+g{commit}{'-dirty' if dirty else ''}"


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True
    )
