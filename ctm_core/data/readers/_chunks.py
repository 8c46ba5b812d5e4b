"""Images computed from many files, by several processes, in chunks that survive a kill.

The files are cut into chunks of a fixed number. A chunk is one job: read, hash and convert its
files, write ``<number>.npy`` (the converted images, uint8) and then ``<number>.json`` (hashes, and
what was skipped and why). The second file makes the chunk count, so a preparation that was killed
continues with the chunks that lack it. The bytes do not depend on which process made a chunk.

A file that cannot be decoded is skipped and listed. An error that has nothing to do with the file,
such as a network drive that went away, ends the preparation instead: the images must not depend on
the weather.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctm_core.data.picture_files import LARGEST_FILE, Refused
from ctm_core.runtime.arrays import load_array, save_array
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import (
    read_json,
    read_record,
    remove_tree,
    sha256_file,
    write_json,
    write_record,
)
from ctm_core.runtime.progress import Progress
from ctm_core.runtime.untrusted import read_bytes

CHUNK = 512
#: Errors of the machine rather than of a file.
TRANSIENT = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}

Convert = Callable[[bytes], NDArray[np.uint8]]


@dataclass(frozen=True)
class Chunks:
    """What the files became.

    Attributes
    ----------
    kept
        bool of shape (files,): whether a file became an image.
    skipped
        (file, reason) of those that did not, in order.
    sha256
        SHA-256 of the text ``<SHA-256>  <file>\\n`` of every file that could be read, in order:
        what ``sha256sum`` prints for them.
    """

    folder: Path
    count: int
    kept: NDArray[np.bool_]
    skipped: tuple[tuple[str, str], ...]
    sha256: str

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """The images, in pieces of shape (n, C, H, W)."""
        for number in range(self.count):
            yield load_array(_pixels(self.folder, number), dtype=np.uint8)


def make_chunks(
    root: Path,
    files: Sequence[str],
    convert: Convert,
    shape: tuple[int, int, int],
    scratch: Path,
    *,
    recipe: str,
    workers: int,
    title: str,
) -> Chunks:
    """Convert every file, or what a killed call left to do.

    Parameters
    ----------
    root, files
        The files are ``root / name`` for each name, in this order.
    convert
        The content of a file to uint8 of ``shape``; a function of a module, so that another
        process can import it. A file for which it raises :class:`Refused` is skipped.
    shape
        (C, H, W).
    scratch
        The folder of the chunks. One made from other files or by another recipe is emptied.
    recipe
        What decides the pixels besides the files: the conversion and the versions of its
        libraries.
    workers
        Processes; 1 works in this one.
    title
        Shown in the progress line.

    Raises
    ------
    UserError
        If a worker was killed; all finished chunks are kept.
    """
    digest = hashlib.sha256(f"{recipe}\n{shape}\n{CHUNK}\n{root.absolute()}\n".encode())
    for name in files:
        digest.update(os.fsencode(name) + b"\n")
    plan = {"plan": digest.hexdigest()}
    if not _continues(scratch, plan):
        remove_tree(scratch)
        write_json(scratch / "plan.json", plan)
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    missing = [n for n in range(len(chunks)) if not _is_done(scratch, n)]
    jobs = [partial(_make, root, chunks[n], convert, shape, scratch, n) for n in missing]
    progress = Progress(title, len(chunks), start=len(chunks) - len(missing))
    try:
        for number in _run(jobs, min(workers, len(jobs))):
            progress.advance(len(chunks[number]))
    except BrokenProcessPool:
        raise UserError(
            f"a worker process was killed, for want of memory perhaps; run the same command again "
            f"to continue, with fewer than {workers} --workers"
        ) from None
    finally:
        progress.close()
    return _collect(chunks, scratch)


def _continues(scratch: Path, plan: dict[str, str]) -> bool:
    try:
        return bool(read_json(scratch / "plan.json") == plan)
    except UserError:
        return False


def _run(jobs: Sequence[Callable[[], int]], workers: int) -> Iterator[int]:
    """The result of each job as it is finished."""
    if workers <= 1:
        for job in jobs:
            yield job()
        return
    # Spawned, not forked: threads of this process may hold locks at the moment of a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_as_worker)
    try:
        for done in as_completed([pool.submit(job) for job in jobs]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _as_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however that dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _make(
    root: Path,
    names: Sequence[str],
    convert: Convert,
    shape: tuple[int, int, int],
    scratch: Path,
    number: int,
) -> int:
    images: list[NDArray[np.uint8]] = []
    hashes: list[str | None] = []
    skipped: list[tuple[int, str]] = []
    for position, name in enumerate(names):
        hashes.append(None)
        try:
            content = read_bytes(root / name, LARGEST_FILE)
            hashes[-1] = hashlib.sha256(content).hexdigest()
            image = convert(content)
            assert image.dtype == np.uint8 and image.shape == shape
            images.append(image)
        except OSError as error:
            if error.errno in TRANSIENT:
                raise
            skipped.append((position, error.strerror or type(error).__name__))
        except Refused as error:
            skipped.append((position, str(error)))
        except UserError as error:
            # Neither where the folder lies nor what to do about one file.
            reason = str(error).removeprefix(f"{root / name} ").split(";")[0]
            skipped.append((position, reason))
    pixels = np.stack(images) if images else np.empty((0, *shape), dtype=np.uint8)
    save_array(_pixels(scratch, number), pixels)
    digest = sha256_file(_pixels(scratch, number))
    record = {"sha256": hashes, "skipped": skipped, "pixels_sha256": digest}
    write_record(_record(scratch, number), record)
    return number


def _is_done(scratch: Path, number: int) -> bool:
    """Whether a chunk is there as it was written; a damaged one is made again."""
    if not _record(scratch, number).is_file():
        return False
    try:
        record = read_record(_record(scratch, number))
        return record.get("pixels_sha256") == sha256_file(_pixels(scratch, number))
    except UserError:
        return False


def _collect(chunks: Sequence[Sequence[str]], scratch: Path) -> Chunks:
    kept: list[bool] = []
    skipped: list[tuple[str, str]] = []
    listing = hashlib.sha256()
    for number, names in enumerate(chunks):
        record = read_record(_record(scratch, number))
        reasons = dict(record["skipped"])
        for position, (name, digest) in enumerate(zip(names, record["sha256"], strict=True)):
            kept.append(position not in reasons)
            if position in reasons:
                skipped.append((name, reasons[position]))
            if digest is not None:
                listing.update(f"{digest}  ".encode() + os.fsencode(name) + b"\n")
    return Chunks(scratch, len(chunks), np.array(kept, bool), tuple(skipped), listing.hexdigest())


def _pixels(scratch: Path, number: int) -> Path:
    return scratch / f"{number:06d}.npy"


def _record(scratch: Path, number: int) -> Path:
    return scratch / f"{number:06d}.json"
