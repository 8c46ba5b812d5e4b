"""Small damage to valid files, and programs of random opcodes."""

from __future__ import annotations

import random
from typing import NamedTuple

from hostile.corpus.make import named, text

__all__ = ["KINDS", "SNIPPETS", "Edit", "damaged", "random_edit", "random_program"]

KINDS = ("flip", "set", "insert", "delete", "repeat", "cut", "copy")

#: Opcodes without arguments, but for those of the memo.
BARE = b"(012N]la)tet}dsuRboQ.\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94"
ARGUED = (
    *(code + bytes([i]) for code in (b"h", b"q") for i in range(6)),
    *(b"K\x00", b"K\x04", b"J\xff\xff\xff\xff", b"G\x7f\xf0\0\0\0\0\0\0"),
    *(b"\x8a\x01\xff", b"\x8a\x20" + b"\x7f" * 32, b"I7\n", b"I01\n", b"L9L\n", b"F1e9\n"),
    *(
        b"S'a'\n",
        b"V\\u0041\n",
        b"p1\n",
        b"g1\n",
        b"Pid\n",
        b"C\x02ab",
        b"U\x01a",
        b"B\x01\0\0\0a",
    ),
)
WORDS = [
    "ema",
    "type",
    "class",
    "version",
    "module_src",
    "class_name",
    "state",
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_init_kwargs",
    "model",
    "weight",
    "storage",
    "cpu",
    "f8",
    "latin1",
    "EDMPrecond",
]
GLOBALS = [
    "collections:OrderedDict",
    "torch._utils:_rebuild_tensor_v2",
    "torch._utils:_rebuild_parameter",
    "torch.storage:_load_from_bytes",
    "torch:FloatStorage",
    "torch:Size",
    "torch:device",
    "numpy:dtype",
    "torch_utils.persistence:_reconstruct_persistent_obj",
    "dnnlib.util:EasyDict",
    "torch.nn.modules.container:ModuleDict",
    "numpy.core.multiarray:scalar",
    "numpy.core.multiarray:_reconstruct",
    "_codecs:encode",
    "builtins:set",
    "os:system",
]
#: Opcodes with arguments that lead somewhere: containers, marks, memo, known words and names.
SNIPPETS = [
    *(bytes([code]) for code in BARE),
    *ARGUED,
    *map(text, WORDS),
    *(named(*words.split(":")) for words in GLOBALS),
]


class Edit(NamedTuple):
    """One change: what is done, where (0 to 1), to how many bytes, and with what."""

    kind: str
    place: float
    length: int
    payload: bytes


def damaged(data: bytes, edits: list[Edit]) -> bytes:
    """Apply the edits in order."""
    for kind, place, length, payload in edits:
        start = int(place * len(data))
        end = start + length
        part = data[start:end]
        if kind == "flip":
            part = bytes(byte ^ (payload or b"\x01")[0] for byte in part[:1]) + part[1:]
        elif kind == "set":
            part = payload[:length] + part[len(payload) :]
        elif kind == "insert":
            part = payload + part
        elif kind == "delete":
            part = b""
        elif kind == "repeat":
            part *= 3
        elif kind == "cut":
            end = len(data)
            part = b""
        elif kind == "copy":
            part += data[len(data) // 3 : len(data) // 3 + length]
        data = data[:start] + part + data[end:]
    return data


def random_edit(draw: random.Random) -> Edit:
    """One edit; most are small."""
    payload = draw.choice([draw.choice(SNIPPETS), draw.randbytes(draw.choice([1, 1, 4, 8]))])
    length = draw.choice([1, 1, 2, 4, 8, 64, 1000])
    return Edit(draw.choice(KINDS), draw.random(), length, payload)


def random_program(draw: random.Random) -> bytes:
    """A pickle of opcodes in random order."""
    count = draw.choice([3, 10, 30, 100])
    return b"\x80\x04" + b"".join(draw.choice(SNIPPETS) for _ in range(count)) + b"."
