"""Look for files that the importer does not refuse in one sentence.

    PYTHONPATH=tests python -m hostile.fuzz --seconds 600 --seed 1

Each failure is cut down and kept in ``tests/hostile/found``, which the tests replay.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hostile.corpus import HOSTILE
from hostile.corpus.make import valid_archive, valid_legacy, valid_pickle
from hostile.mutation import damaged, random_edit, random_program
from hostile.watch import Watch

from ctm_core.models import foreign, weight_file
from ctm_core.runtime.errors import UserError

__all__ = ["FOUND", "attempt", "bases"]

FOUND = Path(__file__).resolve().parent / "found"
SECONDS = 20
#: Kilobytes that one file may make the process grow by.
GROWTH = 600_000


@cache
def bases() -> dict[str, bytes]:
    """Valid files to damage."""
    return {"pickle": valid_pickle(), "archive": valid_archive(), "legacy": valid_legacy()}


def attempt(data: bytes, folder: Path, watch: Watch) -> bool:
    """Convert ``data``; returns whether it was accepted.

    Raises
    ------
    AssertionError, TimeoutError, and whatever escapes
        If it is neither refused in one sentence nor converted into weights that load.
    """
    path, output = folder / "file.pkl", folder / "out"
    path.write_bytes(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with watch(SECONDS):
            loaded = foreign.load_foreign(path)
    except foreign.Refusal as refusal:
        sentence = str(refusal)
        assert sentence and sentence.isprintable() and len(sentence) < 400, sentence
        loaded = None
    assert watch.events == [], watch.events
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < GROWTH
    if loaded is None:
        return False
    try:
        foreign.convert(path, output)
    except UserError as error:  # its name may say what its tensors do not
        assert "was refused" in str(error)
        return False
    weight_file.load_weights(output / "weights.safetensors")
    return True


def shrunk(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """Take out stretches as long as it still fails."""
    size = len(data) // 2
    while size:
        start = 0
        while start < len(data):
            shorter = data[:start] + data[start + size :]
            if fails(shorter):
                data = shorter
            else:
                start += size
        size //= 2
    return data


def main() -> int:
    """Fuzz for some time; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for data in bases().values():
            (folder / "file").write_bytes(data)
            foreign.convert(folder / "file", folder / "out")
        watch = Watch()
        seeds = [*bases().values()] * 20
        seeds += [d for h in HOSTILE.values() if len(d := h.make(folder / "canary")) < 100_000]

        def fails(data: bytes) -> bool:
            try:
                attempt(data, folder, watch)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                return True
            return False

        end = time.monotonic() + arguments.seconds
        tried = accepted = found = 0
        while time.monotonic() < end:
            if draw.random() < 0.3:
                data = random_program(draw)
            else:
                edits = [random_edit(draw) for _ in range(draw.choice([1, 1, 2, 3, 6]))]
                data = damaged(draw.choice(seeds), edits)
            tried += 1
            try:
                accepted += attempt(data, folder, watch)
            except KeyboardInterrupt:
                break
            except BaseException as error:
                found += 1
                kept = shrunk(data, fails)
                FOUND.mkdir(exist_ok=True)
                name = hashlib.sha256(kept).hexdigest()[:12]
                (FOUND / f"{name}.bin").write_bytes(kept)
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
        print(f"{tried} files, {accepted} of them accepted, {found} failures")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
