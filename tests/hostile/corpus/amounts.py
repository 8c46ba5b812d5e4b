"""Lengths, depths, repetitions, impossible tensors, truncation: attempts on time and memory."""

from __future__ import annotations

import struct
from pathlib import Path

from hostile.corpus.make import (
    call,
    dictionary,
    module,
    named,
    network,
    program,
    record,
    storage,
    storage_bytes,
    tensor,
    text,
    tuple_of,
    valid_archive,
    valid_pickle,
)
from hostile.corpus.register import fixed, hostile

fixed("text-of-2-to-the-62", "truncated", b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.")
fixed("bytes-of-2-to-the-63", "truncated", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 63) + b"x.")
fixed("bytes-of-4-GiB", "truncated", b"\x80\x03B\xff\xff\xff\xffx.")
fixed("string-of-minus-1", "truncated", b"\x80\x01T\xff\xff\xff\xffx.")
fixed("frame-of-2-to-the-63", "truncated", b"\x80\x04\x95" + struct.pack("<Q", 1 << 63) + b"N.")
fixed("integer-of-2-GiB", "integer of 2147483647 bytes", b"\x80\x02\x8b\xff\xff\xff\x7f\x01.")
fixed("integer-of-minus-1", "integer of -1 bytes", b"\x80\x02\x8b\xff\xff\xff\xff\x01.")
fixed("integer-of-255-bytes", "integer of 255 bytes", b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".")
fixed("integer-of-4000-digits", "a number is not readable", b"I" + b"9" * 4000 + b"\n.")
fixed("number-with-underscores-and-words", "a number is not readable", b"Iinf\n.")
fixed("memo-at-4-billion", "holds no network", program(b"Nr\xff\xff\xff\xff"))
fixed("memo-text-index", "place in its memo", b"Np" + b"9" * 100 + b"\n.")
fixed("memo-never-stored", "recalls a value that it never stored", program(b"h\x07"))
fixed("memo-of-nothing", "a value is missing", program(b"\x94"))
fixed("deep-lists", "holds no network", program(b"]" * 200_000 + b"a" * 199_999))
fixed("deep-tuples", "holds no network", program(b"N" + b"\x85" * 400_000))
fixed("deep-marks", "values left over", program(b"(" * 400_000 + b"N"))
fixed(
    "deep-dicts",
    "holds no network under the key 'ema'",
    program(b"}K\x01" * 100_000 + b"}" + b"s" * 100_000),
)


CONTAINER = named("torch.nn.modules.container", "Sequential") + b")\x81"
#: Of a container's state, up to the value of its only submodule.
TABLES = b"}(" + text("_parameters") + b"}" + text("_buffers") + b"}" + text("_modules")
TABLES += b"}" + text("a")


def nested(depth: int) -> bytes:
    """Containers in each other, a module in the last."""
    return (CONTAINER + TABLES) * depth + record(module()) + b"sub" * depth


def laughs(count: int) -> bytes:
    """Lists of four times the list before: 4 to the power ``count`` entries to whoever walks."""
    lists = (b"\x940](" + bytes([ord("h"), i]) * 4 + b"e" for i in range(count))
    return b"](NNNNe" + b"".join(lists)


def twice(count: int) -> bytes:
    """Modules that hold the one before them twice: 2 to the power ``count`` paths."""
    made = record(module(), "A") + b"\x940"
    for i in range(count):
        before = bytes([ord("h"), i])
        made += record(module(modules=dictionary(a=before, b=before)), "A") + b"\x940"
    return made + bytes([ord("h"), count])


fixed("deep-modules", "nests more modules", network(nested(100)))
fixed("module-in-itself", "nests more modules", network(CONTAINER + b"\x94" + TABLES + b"h\0sub"))
fixed("modules-in-each-other", "nests more modules", network(twice(30)))
fixed("billion-laughs", "holds no network", program(laughs(100)))
fixed(
    "tuple-of-tuples-as-key",
    "has a tuple as a key",
    program(b"}" + b"N" + b"2\x86" * 200 + b"Ns"),
)
fixed("duplicates", "more pickle instructions", program(b"N" + b"2\x86" * 600_000))
fixed("flood-of-dicts", "more pickle instructions", program(b"}" * 3_000_000))
fixed("flood-of-sets", "more pickle instructions", program(b"\x8f" * 3_000_000))
fixed(
    "flood-of-text",
    "more text than any network",
    program((b"X\0\0\x10\0" + b"a" * (1 << 20) + b"0") * 66),
)
fixed("key-of-300-bits", "has an int as a key", program(b"}\x8a\x20" + b"\x7f" * 32 + b"Ns"))
fixed("key-of-bytes", "has a memoryview as a key", program(b"}C\x01aNs"))
fixed("set-of-lists", "has a list as a key", program(b"\x8f(]\x90"))
fixed("set-of-tuples", "has a tuple as a key", program(b"()\x91"))


# -- tensors

fixed("tensor-beyond-its-storage", "cannot hold", program(tensor(tuple_of(5), tuple_of(1))))
fixed(
    "tensor-behind-its-storage", "cannot hold", program(tensor(tuple_of(2), tuple_of(1), b"K\x03"))
)
fixed("tensor-of-repeated-numbers", "cannot hold", program(tensor(tuple_of(1 << 30), tuple_of(0))))
fixed(
    "tensor-of-2-to-the-90",
    "cannot hold",
    program(tensor(tuple_of(1 << 30, 1 << 30, 1 << 30), tuple_of(0, 0, 0))),
)
fixed("tensor-of-minus-1", "something else than", program(tensor(tuple_of(-1), tuple_of(1))))
fixed("tensor-with-a-negative-stride", "else than", program(tensor(tuple_of(4), tuple_of(-1))))
fixed(
    "tensor-at-minus-1",
    "else than",
    program(tensor(tuple_of(1), tuple_of(1), b"J\xff\xff\xff\xff")),
)
fixed("tensor-of-truth", "else than", program(tensor(b"\x88\x85", b"\x88\x85")))
fixed(
    "tensor-of-9-dimensions", "else than", program(tensor(tuple_of(*[1] * 9), tuple_of(*[1] * 9)))
)
fixed(
    "tensor-of-no-storage",
    "something else than a storage",
    program(call("torch._utils", "_rebuild_tensor_v2", text("os"), b"K\0))\x89N")),
)
fixed(
    "parameter-of-no-tensor",
    "else than a tensor",
    program(call("torch._utils", "_rebuild_parameter", b"N")),
)


@hostile("many-tensors-of-one-storage", "no network of a known kind")
def _(canary: Path) -> bytes:
    hooks = call("collections", "OrderedDict")
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    size = struct.pack("<i", 250_000)
    shared = rebuild + b"(h\x00K\x00J" + size + b"\x85K\x01\x85\x89" + hooks + b"tR"
    parameters = b"}(" + b"".join(text(f"w{i}") + shared for i in range(2_000)) + b"u"
    data = storage(storage_bytes(250_000)) + b"\x940"
    inner = record(module(parameters=parameters), "SongUNet")
    return program(data + dictionary(ema=record(module(modules=dictionary(model=inner)))))


# -- truncation

for _share in (1, 5, 20, 50, 80, 95, 99):
    fixed(
        f"pickle-cut-at-{_share}-percent",
        "truncated|damaged|not a pickle",
        valid_pickle()[: len(valid_pickle()) * _share // 100],
    )
    fixed(
        f"archive-cut-at-{_share}-percent",
        "damaged or truncated zip archive",
        valid_archive()[: len(valid_archive()) * _share // 100],
    )
for _count in (1, 2, 3, 11, 22):
    fixed(f"pickle-without-{_count}-bytes", "truncated", valid_pickle()[:-_count])
    fixed(f"archive-without-{_count}-bytes", "truncated zip", valid_archive()[:-_count])
