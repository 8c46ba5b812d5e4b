"""Files that are either complete or absent.

Every file is written under a temporary name, synced to disk and renamed, so that a reader never
sees a partial file, whatever kills the writer. Tensors are stored as safetensors, everything
else as JSON; nothing is pickled.

A safetensors file carries its own SHA-256, which every reader compares: its metadata's
``content_sha256`` is ``sha256:`` and the hash of the whole file with zeros for these 64 digits.
Files without it, of earlier versions and of other projects, are read as they are.
"""

import fcntl
import functools
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.file_kinds import describe_other
from ctm_core.runtime.untrusted import PathLike, open_regular, parse_json, printable, read_bytes

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

#: The key of a record's hash over everything else in it.
CONTENT = "content_sha256"
_warned: set[str] = set()

#: Digits of a hash that is still to come.
_BLANK = b"0" * 64
_CONTENT = re.compile(rb'"content_sha256":"sha256:([0-9a-f]{64})"')
#: Either half of the entry, so that damage within it is not taken for its absence.
_HALF = re.compile(rb'"content_sha256":|:"sha256:')
#: Bytes of a header; safetensors refuses longer ones.
_LARGEST_HEADER = 100_000_000


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of the canonical (sorted, compact) JSON form of ``value``."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def sha256_file(path: PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes.

    Raises
    ------
    UserError
        If the file is missing, or is none.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path: PathLike) -> tuple[str, int, int, int]:
    """What distinguishes a file from its changed self: path, inode, size and time of change."""
    now = os.stat(path)
    return os.path.abspath(path), now.st_ino, now.st_size, now.st_mtime_ns


def lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed; False if another process holds it.

    Not filelock, which fails on file systems without locks (ENOLCK, as on some NFS). Here such a
    file counts as free.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def sync_folder(path: PathLike) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; on success sync it and rename it into place.

    On an exception the temporary file is removed and ``path`` keeps what it held before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not name the file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of writers that were killed; those of live ones stay."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = leftover.name.split(".")[-2]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            leftover.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            pass  # whether it lives is unknown


def write_bytes(path: PathLike, content: bytes) -> None:
    """Write a whole file, atomically.

    What libraries encode (PNG, PDF) is to be encoded in memory and written here: their own
    writing to a full disk ends in errors that do not say so.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: PathLike, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: PathLike) -> Any:
    """Read a JSON file.

    Raises
    ------
    UserError
        If the file is missing, larger than any of ours, or not JSON; the sentence names it.
    """
    return parse_json(read_bytes(path), path)


def write_record(path: PathLike, record: Mapping[str, Any]) -> None:
    """Write a JSON object with a hash over its content, which :func:`read_record` compares."""
    write_json(path, {**record, CONTENT: _content_sha256(record)})


def read_record(path: PathLike, again: str | None = None) -> dict[str, Any]:
    """Read a JSON object; one that was edited since it was written is refused.

    Parameters
    ----------
    again
        How such a file is made again. With it, the first file of the kind without a hash is
        warned of: an older version wrote it, so nothing tells whether it was edited.

    Raises
    ------
    UserError
        As :func:`read_json`, or if the file holds something else or does not match its hash.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path} is not a record of this project; {again or 'make it again'}")
    check_content(record, path, again)
    if again and CONTENT not in record and again not in _warned:
        _warned.add(again)
        log.warning(
            "%s (perhaps with others) has no %s, as files of older versions have none, so nobody "
            "knows whether it was edited; to be sure, %s",
            path,
            CONTENT,
            again,
        )
    return {key: value for key, value in record.items() if key != CONTENT}


def _content_sha256(record: Mapping[str, Any]) -> str:
    return sha256_json({key: record[key] for key in record if key != CONTENT})


def check_content(record: Mapping[str, Any], path: PathLike, again: str | None = None) -> None:
    """Refuse a record that does not match the hash that it carries; it may carry none."""
    if CONTENT in record and record[CONTENT] != _content_sha256(record):
        raise UserError(
            f"{path} was changed after it was written: its content does not match its {CONTENT}; "
            f"{again or 'make it again'}"
        )


def save_tensors(
    path: PathLike,
    tensors: "Mapping[str, torch.Tensor]",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors, string metadata and their hash as safetensors, atomically.

    Equal tensors and metadata give equal bytes, so a file's hash says what it holds.
    """
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous() for name, value in sorted(tensors.items())}
    data = save(
        plain, metadata={**(metadata or {}), "content_sha256": f"sha256:{_BLANK.decode()}"}
    )
    header, start = _sorted_header(data)
    content = memoryview(data)[start:]  # without another copy in memory
    digest = hashlib.sha256(header)
    digest.update(content)
    entry = _CONTENT.search(header)
    assert entry is not None
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(_with_digits(header, entry, digest.hexdigest().encode()))
        file.write(content)


def _with_digits(header: bytes, entry: re.Match[bytes], digits: bytes) -> bytes:
    return header[: entry.start(1)] + digits + header[entry.end(1) :]


def _sorted_header(data: bytes) -> tuple[bytes, int]:
    """The header in sorted order, and where the tensors start in ``data``."""
    # safetensors writes its metadata in the order of a hash map that differs between processes.
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    ordered = {"__metadata__": dict(sorted(header.pop("__metadata__", {}).items()))} | header
    text = json.dumps(ordered, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, 8 + length


@contextmanager
def _opened(path: PathLike) -> "Iterator[Any]":
    from safetensors import SafetensorError, safe_open

    if other := describe_other(path):
        raise UserError(f"{path} {other}")
    try:
        with safe_open(str(path), framework="pt") as file:
            if not _is_intact(*identity(path)):
                raise UserError(
                    f"{path} is corrupt: it does not match the SHA-256 recorded when it was "
                    "written; delete it and make it again (`snakemake`, or the `ctm` command that "
                    "wrote it)"
                )
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        reason = printable(str(error), 200)
        raise UserError(
            f"{path} is corrupt or not a safetensors file ({reason}); if this project made it, "
            "delete it and make it again"
        ) from None


@functools.cache
def _is_intact(path: str, *_: int) -> bool:
    """Whether a safetensors file has the hash that it carries, if any; once for each state."""
    with open_regular(path) as file:
        size = file.read(8)
        header = size + file.read(min(int.from_bytes(size, "little"), _LARGEST_HEADER))
        entry = _CONTENT.search(header)
        if entry is None:
            return _HALF.search(header) is None
        digest = hashlib.sha256(_with_digits(header, entry, _BLANK))
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest().encode() == entry[1]


def _metadata(file: Any) -> dict[str, str]:
    held = dict(file.metadata() or {})
    held.pop("content_sha256", None)
    return held


def load_tensors(path: PathLike) -> "tuple[dict[str, torch.Tensor], dict[str, str]]":
    """Read every tensor and the metadata of a safetensors file.

    Raises
    ------
    UserError
        If the file is missing, corrupt or not safetensors; the sentence says what it is.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, _metadata(file)


def read_metadata(path: PathLike) -> dict[str, str]:
    """Read only the string metadata of a safetensors file; raises as :func:`load_tensors`."""
    with _opened(path) as file:
        return _metadata(file)


def remove_tree(path: PathLike) -> None:
    """Remove a folder and what it holds; a missing one is not an error."""
    shutil.rmtree(path, ignore_errors=True)
