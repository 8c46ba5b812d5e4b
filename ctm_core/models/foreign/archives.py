"""Foreign files: what a file is by its first bytes, and how its values are read safely.

NVIDIA's pickles and torch's old format are run by the machine of :mod:`.machine`. A zip archive of
torch.save has its table of contents and every member's CRC-32 checked before the same machine runs
its pickle. One memory map of the open file serves all: what is hashed is what is read.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from ctm_core.models.foreign.edm import edm_words
from ctm_core.models.foreign.machine import Machine
from ctm_core.models.foreign.tensors import (
    LEGACY_MAGIC,
    WORDS,
    Ref,
    Storage,
    check_amount,
    persistent_storage,
    read_legacy,
)
from ctm_core.models.foreign.values import Budget, Refusal, shown
from ctm_core.runtime.file_kinds import describe_unusable
from ctm_core.runtime.untrusted import open_regular

#: Members of an archive; the largest network has about 1,100 tensors.
MEMBERS = 20_000
#: Bytes of an archive's table of contents, and of its pickle.
DIRECTORY = 8 << 20
PICKLE = 64 << 20

#: Opcode that begins every pickle since protocol 2.
PROTOCOL = b"\x80"

END, END64, LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"


@dataclass(frozen=True)
class Foreign:
    """A file whose values have been described; tensors are :class:`Ref` until they are read."""

    path: Path
    container: str  #: ``pickle``, ``torch archive`` or ``torch file`` (the format before 1.6)
    value: Any
    sha256: str
    size: int
    file: BufferedReader
    modified: int  #: time of its last change when it was opened, in nanoseconds

    def tensors(self, refs: Mapping[str, Ref]) -> dict[str, torch.Tensor]:
        """Read tensors of :attr:`value`.

        Raises Refusal if they are more than the file, or it was written to in the meantime.
        """
        check_amount(refs, self.size)
        tensors = {name: ref.read() for name, ref in refs.items()}
        if os.fstat(self.file.fileno()).st_mtime_ns != self.modified:
            raise Refusal("was changed while it was read; convert it again when it is complete")
        return tensors


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Foreign]:
    """Describe a file; its tensors can be read while the context lasts.

    Raises Refusal if it is no network file of a known kind, is damaged, or asks for anything but
    data, and UserError as :func:`open_regular`.
    """
    path = Path(path)
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if not status.st_size:
            raise Refusal("is empty; download it again")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        container, value = _described(data, file)
        digest = hashlib.sha256(data).hexdigest()
        yield Foreign(path, container, value, digest, len(data), file, status.st_mtime_ns)


def _described(data: memoryview, file: BufferedReader) -> tuple[str, Any]:
    head = bytes(data[:512])
    if problem := _recognised(head, len(data)):
        raise Refusal(problem)
    budget = Budget()
    if head.startswith(b"PK"):
        return "torch archive", _archive(data, file, budget)
    if _is_legacy(head):
        return "torch file", read_legacy(data, budget)
    try:
        return "pickle", Machine(data, edm_words(budget), budget).run()
    except Refusal as refusal:
        if head[:1] == PROTOCOL:
            raise
        # Any file is a pickle of the oldest protocols up to some byte.
        raise Refusal(f"is not a network file (as a pickle, it {refusal})") from None


def _recognised(head: bytes, size: int) -> str | None:
    """What a file is that is surely no network of a known kind; None: it may be one."""
    if problem := describe_unusable(head):
        return problem
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 1 << 40:
        length = struct.unpack("<Q", head[:8])[0]
        if length + 8 > size:
            return "is a damaged safetensors file: its header is longer than the file"
        return "is a safetensors file; convert reads NVIDIA's .pkl and torch's .pt files"
    return None


def _is_legacy(head: bytes) -> bool:
    start = b"\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
    return head[:1] == PROTOCOL and head[2 : 2 + len(start)] == start


# -- zip archives -----------------------------------------------------------------------------


DAMAGED = "is a damaged or truncated zip archive; download it again"


def _archive(data: memoryview, file: BufferedReader, budget: Budget) -> Any:
    _check_directory(data)
    try:
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
        _check_members(listed, len(data))
        members = {info.filename.partition("/")[2]: _content(data, info) for info in listed}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError, struct.error):
        raise Refusal(DAMAGED) from None
    program = members.get("data.pkl")
    if program is None:
        raise Refusal("is a zip archive, but none that torch.save wrote: data.pkl is missing")
    if members.get("byteorder", b"little") != b"little":
        raise Refusal("was written on a big-endian machine")
    if len(program) > PICKLE:
        raise Refusal("holds a pickle larger than any network's")
    storages: dict[str, Storage] = {}
    value = Machine(program, WORDS, budget, persistent_storage(storages)).run()
    for key, storage in storages.items():
        storage.data = members.get(f"data/{key}")
        if storage.data is None or len(storage.data) != storage.nbytes:
            raise Refusal(f"lacks its storage {shown(key)}, or holds it in another size")
    return value


def _content(data: memoryview, member: zipfile.ZipInfo) -> memoryview:
    """The bytes of a member that is not compressed, checked against its CRC-32."""
    start = member.header_offset
    names = struct.unpack("<HH", data[start + 26 : start + 30])
    start += 30 + sum(names)
    content = data[start : start + member.file_size]
    if zlib.crc32(content) != member.CRC:
        raise Refusal(
            f"is damaged: the bytes of its member {shown(member.filename)} contradict their "
            "CRC-32; download it again"
        )
    return content


def _check_directory(data: memoryview) -> None:
    """Bound the table of contents before anyone reads it."""
    tail = len(data) - 22
    if tail < 0 or bytes(data[tail : tail + 4]) != END:
        # torch writes no comment after it, and two ends could be read as two archives.
        raise Refusal(DAMAGED)
    entries, size, start = struct.unpack("<HII", data[tail + 10 : tail + 20])
    end, locator = tail, tail - 20
    if locator >= 0 and bytes(data[locator : locator + 4]) == LOCATOR64:
        (place,) = struct.unpack("<Q", data[locator + 8 : locator + 16])
        if place + 56 > locator or bytes(data[place : place + 4]) != END64:
            raise Refusal(DAMAGED)
        entries, size, start = struct.unpack("<QQQ", data[place + 32 : place + 56])
        end = place
    if entries > MEMBERS or size > DIRECTORY:
        raise Refusal("is a zip archive of more members than any network file")
    if start + size != end:  # bytes before or between, which readers take in different ways
        raise Refusal("is a zip archive with foreign bytes in it")


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    """One top folder; nothing is compressed, named twice or outside it."""
    if not members:
        raise Refusal("is an empty zip archive")
    if len(members) > MEMBERS:
        raise Refusal("is a zip archive of more members than any network file")
    root = members[0].filename.split("/")[0]
    seen = set()
    for member in members:
        name = member.orig_filename
        parts = name.split("/")
        if len(parts) < 2 or {"", ".", ".."} & {*parts} or {"\\", ":", "\0"} & {*name}:
            raise Refusal(f"is a zip archive with the foreign member {shown(name)}")
        if parts[0] != root:
            raise Refusal(f"is a zip archive with two roots, {shown(root)} and {shown(parts[0])}")
        if name in seen:
            raise Refusal(f"is a zip archive with two members {shown(name)}")
        seen.add(name)
        if member.flag_bits & 1:
            raise Refusal("is an encrypted zip archive, as torch.save never writes")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise Refusal(f"is a zip archive with the compressed member {shown(name)}")
    if sum(member.file_size for member in members) > size:
        raise Refusal("is a zip archive whose members overlap")
