"""Torch files, old and new: the storage inside a pickle, zip archives."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import torch
from hostile.corpus.make import (
    MAGIC,
    Payload,
    call,
    edm_network,
    named,
    program,
    storage,
    storage_bytes,
    text,
    torch_bytes,
    touch,
    valid_archive,
)
from hostile.corpus.records import source
from hostile.corpus.register import fixed, hostile

# -- the torch file inside an EDM pickle


@hostile("inner-reduce", r"names the global posix\.system,")
def _(canary: Path) -> bytes:
    return program(storage(pickle.dumps(Payload(os.system, touch(canary)), 2)))


@hostile("inner-reduce-after-the-magic", r"names the global posix\.system,")
def _(canary: Path) -> bytes:
    head = (
        pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    )
    return program(storage(head + pickle.dumps(Payload(os.system, touch(canary)), 2)))


fixed(
    "inner-storage-in-itself",
    r"names the global torch\.storage\._load_from_bytes",
    program(storage(program(storage(storage_bytes())))),
)
fixed("inner-truncated", "truncated", program(storage(storage_bytes()[:-3])))
fixed("inner-empty", "truncated", program(storage(b"")))
fixed("inner-archive", "not a pickle", program(storage(valid_archive())))
fixed(
    "inner-no-bytes",
    "something else than bytes",
    program(call("torch.storage", "_load_from_bytes", b"N")),
)
fixed(
    "inner-value-is-a-dict",
    "something else than a storage",
    program(storage(torch_bytes({"a": 1}, _use_new_zipfile_serialization=False))),
)
fixed(
    "inner-storage-of-2-to-the-60",
    "truncated|two sizes",
    program(
        storage(
            storage_bytes().replace(b"K\x04N", b"\x8a\x08" + struct.pack("<Q", 1 << 60) + b"N")
        )
    ),
)
fixed(
    "inner-big-endian",
    "big-endian",
    program(
        storage(storage_bytes().replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    ),
)
fixed(
    "inner-on-a-strange-class",
    "unknown class",
    program(storage(storage_bytes().replace(b"ctorch\nFloatStorage\n", b"ctorch\nSize\n"))),
)


# -- zip archives


def zipped(
    *members: tuple[str, bytes], method: int = zipfile.ZIP_STORED, comment: bytes = b""
) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # of a name that stands there twice
        for name, data in members:
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name
            info.compress_type = method
            archive.writestr(info, data)
        archive.comment = comment
    return buffer.getvalue()


PROGRAM = ("a/data.pkl", program(b"}"))

for _name, _member in {
    "parent": "a/../../evil",
    "parent-only": "../evil",
    "absolute": "/tmp/evil",
    "backslash": "a\\..\\..\\evil",
    "drive": "C:/evil",
    "top": "evil",
    "dot": "a/./evil",
    "empty-part": "a//evil",
    "folder": "a/",
}.items():
    fixed(f"zip-slip-{_name}", "foreign member", zipped(PROGRAM, (_member, b"x")))

fixed("zip-two-roots", "two roots", zipped(PROGRAM, ("b/data/0", b"x")))
fixed("zip-twice-the-same", "two members", zipped(PROGRAM, PROGRAM))
fixed("zip-empty", "empty zip archive", zipped())
fixed("zip-of-something-else", "none that torch.save wrote", zipped(("a/readme.txt", b"hello")))
fixed("zip-with-a-comment", "foreign bytes", zipped(PROGRAM, comment=b"PK\x05\x06" + b"\0" * 18))
fixed("zip-after-something", "foreign bytes|damaged", b"PK\x03\x04 and more" + zipped(PROGRAM))
fixed(
    "zip-bomb",
    "compressed member",
    zipped(PROGRAM, ("a/data/0", b"\0" * (20 << 20)), method=zipfile.ZIP_DEFLATED),
)
fixed(
    "zip-bomb-in-the-pickle",
    "compressed member",
    zipped(("a/data.pkl", b"N" * (20 << 20)), method=zipfile.ZIP_DEFLATED),
)


def lying_size(data: bytes, size: int) -> bytes:
    """The first entry of the table of contents claims this size, packed and unpacked."""
    entry = data.index(b"PK\x01\x02")
    return data[: entry + 20] + struct.pack("<II", size, size) + data[entry + 28 :]


def overlapping() -> bytes:
    """Two entries of the table of contents that mean the same bytes."""
    data = bytearray(zipped(PROGRAM, ("a/data/0", b"\0" * 1000), ("a/data/1", b"\0" * 1000)))
    last = data.rindex(b"PK\x01\x02")
    second = data.rindex(b"PK\x01\x02", 0, last)
    data[last + 42 : last + 46] = data[second + 42 : second + 46]
    return bytes(data)


def many_overlapping() -> bytes:
    """A table of contents of 3,000 entries over one member of a megabyte."""
    data = zipped(("a/data.pkl", program(b"}") + b"\0" * (1 << 20)))
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry = data[start:end]
    entries = entry + b"".join(entry.replace(b"a/data.pkl", b"a/%08d" % i) for i in range(3000))
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 3001, 3001, len(entries), start, 0)
    return data[:start] + entries + tail


fixed("zip-lying-size", "overlap|truncated|damaged", lying_size(zipped(PROGRAM), 1 << 30))
fixed("zip-lying-size-4-GiB", "overlap|truncated|damaged", lying_size(zipped(PROGRAM), 0xFFFFFFFE))
fixed("zip-overlapping", "holds no network|overlap|damaged|empty state", overlapping())
fixed("zip-bomb-of-overlaps", "overlap", many_overlapping())


def lying_end(entries: int, size: int) -> bytes:
    """An archive whose end claims a table of contents of this many entries and bytes."""
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, entries, entries, size, 0, 0)
    return zipped(PROGRAM)[:-22] + end


def lying_end_64() -> bytes:
    """The same with the end of archives beyond 4 GiB."""
    body = b"PK\x03\x04" + b"\0" * 100
    huge = 1 << 60
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, huge, huge, huge, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(body), 1)
    most = 0xFFFFFFFF
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, most, most, 0)
    return body + end64 + locator + end


fixed("zip-of-4e9-bytes-of-contents", "more members", lying_end(0xFFFF, 0xFFFFFFF0))
fixed("zip64-of-1e18-members", "more members", lying_end_64())


def spoiled(member: str, change: bytes) -> bytes:
    """A valid archive with other bytes at a member's start, whose CRC-32 stays."""
    data = bytearray(valid_archive())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = archive.getinfo(f"archive/{member}")
    start = info.header_offset
    start += 30 + sum(struct.unpack("<HH", data[start + 26 : start + 30]))
    assert data[start : start + len(change)] != change
    data[start : start + len(change)] = change
    return bytes(data)


for _member, _change in {
    "data/1": b"\0\0\0\x40",  # the first weight is 2
    "data/4": b"\0" * 64,
    "data.pkl": b"\x80\x03",
    "version": b"7",
    "byteorder": b"L",
}.items():
    fixed(
        f"archive-with-other-bytes-in-{_member.replace('/', '-')}",
        f"is damaged: the bytes of its member archive/{_member} contradict their CRC-32",
        spoiled(_member, _change),
    )
fixed(
    "archive-with-a-member-beyond-its-end",
    "CRC-32",
    valid_archive().replace(
        b"PK\x03\x04" + valid_archive()[4:30],
        b"PK\x03\x04" + valid_archive()[4:28] + b"\xff\xff",
        1,
    ),
)


@hostile("archive-reduce", r"names the global posix\.system,")
def _(canary: Path) -> bytes:
    return zipped(("a/data.pkl", pickle.dumps(Payload(os.system, touch(canary)), 2)))


@hostile("archive-of-a-module", r"names the global torch\.nn\.modules\.linear\.Linear,")
def _(canary: Path) -> bytes:
    return torch_bytes(torch.nn.Linear(2, 2))


@hostile("archive-torchscript", r"names the global __torch__\.Net,")
def _(canary: Path) -> bytes:
    return zipped(
        ("a/data.pkl", program(named("__torch__", "Net") + b")\x81")),
        ("a/code/__torch__.py", source(canary)),
        ("a/constants.pkl", program(b")")),
    )


STORAGE = named("torch", "FloatStorage")
IDENTITY = program(b"(" + text("storage") + STORAGE + text("0") + text("cpu") + b"K\x04tQ")
fixed("archive-with-a-missing-storage", "lacks its storage 0", zipped(("a/data.pkl", IDENTITY)))
fixed(
    "archive-with-a-storage-of-another-size",
    "another size",
    zipped(("a/data.pkl", IDENTITY), ("a/data/0", b"\0" * 15)),
)
fixed(
    "archive-with-a-huge-bytearray",
    r"names the global builtins\.bytearray,",
    zipped(("a/data.pkl", b"\x80\x02cbuiltins\nbytearray\n(\x8a\x06\0\0\0\0\0\x01tR.")),
)
fixed("archive-big-endian", "big-endian", zipped(PROGRAM, ("a/byteorder", b"big")))


# -- old torch files


@hostile("old-torch-reduce", r"names the global posix\.system,")
def _(canary: Path) -> bytes:
    head = (
        pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    )
    return head + pickle.dumps({"model.a": Payload(os.system, touch(canary))}, 2)


fixed("old-torch-version", "unknown version", pickle.dumps(MAGIC, 2) + pickle.dumps(7, 2))
fixed(
    "old-torch-cut",
    "truncated",
    torch_bytes(edm_network()[0], _use_new_zipfile_serialization=False)[:-5],
)
