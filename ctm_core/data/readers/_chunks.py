"""Images computed from many files: in processes, in pieces that survive a kill.

The files are cut into chunks of a fixed number. A chunk is one job: read, hash and convert its
files, write ``<number>.npy`` (what could be converted, uint8) and then ``<number>.json`` (hashes,
and what was left out and why). The second file makes the chunk count, so a preparation that was
killed goes on with the chunks that lack it. Which process made a chunk changes nothing in it.

A file that cannot be decoded is left out and listed. An error that has nothing to do with the
file, as of a network drive that went away, ends the preparation instead: the images must not
depend on the weather.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import atomic_write, read_json, remove_tree, write_json
from ctm_core.runtime.progress import Progress

__all__ = ["Chunks", "make_chunks"]

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
            pixels: NDArray[np.uint8] = np.load(_pixels(self.folder, number), allow_pickle=False)
            yield pixels


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
        process can import it. Whatever it raises leaves the file out.
    shape
        (C, H, W).
    scratch
        The folder of the chunks. One made from other files or by another recipe is emptied.
    recipe
        What decides the pixels beside the files: the conversion and the versions of its libraries.
    workers
        Processes; 1 works in this one.
    title
        Named by the progress line.

    Raises
    ------
    UserError
        If a worker was killed; all finished chunks are kept.
    """
    plan = hashlib.sha256(f"{recipe}\n{shape}\n{CHUNK}\n{root.absolute()}\n".encode())
    for name in files:
        plan.update(name.encode(errors="surrogateescape") + b"\n")
    if not _continues(scratch, plan.hexdigest()):
        remove_tree(scratch)
        write_json(scratch / "plan.json", {"plan": plan.hexdigest()})
    count = -(-len(files) // CHUNK)
    missing = [n for n in range(count) if not _record(scratch, n).is_file()]
    progress = Progress(title, count, start=count - len(missing))
    try:
        for number in _run(root, files, convert, shape, scratch, missing, workers):
            progress.advance(len(_names(files, number)))
    finally:
        progress.close()
    return _collect(files, scratch, count)


def _continues(scratch: Path, plan: str) -> bool:
    try:
        return bool(read_json(scratch / "plan.json") == {"plan": plan})
    except UserError:
        return False


def _run(
    root: Path,
    files: Sequence[str],
    convert: Convert,
    shape: tuple[int, int, int],
    scratch: Path,
    missing: Sequence[int],
    workers: int,
) -> Iterator[int]:
    """Make the missing chunks and yield the number of each as it is finished."""
    if workers == 1 or len(missing) <= 1:
        for number in missing:
            yield _make(root, _names(files, number), convert, shape, scratch, number)
        return
    # Spawned, not forked: threads of this process may hold locks at the moment of a fork.
    pool = ProcessPoolExecutor(
        min(workers, len(missing)), mp_context=get_context("spawn"), initializer=_as_worker
    )
    waiting: set[Future[int]] = set()
    try:
        for number in missing:
            # A bounded queue: the names of a million files are not copied at once.
            if len(waiting) >= 2 * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
            names = _names(files, number)
            waiting.add(pool.submit(_make, root, names, convert, shape, scratch, number))
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise UserError(
            f"a worker process was killed, for want of memory perhaps; run the same command again "
            f"to continue, with fewer than {workers} --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
        digest = None
        try:
            content = (root / name).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            image = convert(content)
            assert image.dtype == np.uint8 and image.shape == shape
            images.append(image)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes a decoder fail in any way
            if isinstance(error, OSError) and error.errno in TRANSIENT:
                raise
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            skipped.append((position, " ".join(str(reason).split()) or type(error).__name__))
        hashes.append(digest)
    pixels = np.stack(images) if images else np.empty((0, *shape), dtype=np.uint8)
    with atomic_write(_pixels(scratch, number)) as temporary, open(temporary, "wb") as file:
        # Not np.save: on a full disk its error does not say so.
        header = {"descr": "|u1", "fortran_order": False, "shape": pixels.shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(pixels.data)
    write_json(_record(scratch, number), {"sha256": hashes, "skipped": skipped})
    return number


def _collect(files: Sequence[str], scratch: Path, count: int) -> Chunks:
    kept = np.ones(len(files), dtype=np.bool_)
    skipped: list[tuple[str, str]] = []
    listing = hashlib.sha256()
    for number in range(count):
        record = json.loads(_record(scratch, number).read_text(encoding="utf-8"))
        names = _names(files, number)
        for position, reason in record["skipped"]:
            kept[number * CHUNK + position] = False
            skipped.append((names[position], reason))
        for name, digest in zip(names, record["sha256"], strict=True):
            if digest is not None:
                listing.update(f"{digest}  ".encode() + name.encode(errors="surrogateescape"))
                listing.update(b"\n")
    return Chunks(
        folder=scratch,
        count=count,
        kept=kept,
        skipped=tuple(skipped),
        sha256=listing.hexdigest(),
    )


def _names(files: Sequence[str], number: int) -> Sequence[str]:
    return files[number * CHUNK : (number + 1) * CHUNK]


def _pixels(scratch: Path, number: int) -> Path:
    return scratch / f"{number:06d}.npy"


def _record(scratch: Path, number: int) -> Path:
    return scratch / f"{number:06d}.json"
