"""Tensors in foreign files: their descriptions, checked before any of them is read.

:data:`WORDS` is the whole vocabulary of network files: torch's tensors and storages, NumPy's
scalars, a few containers. Its values become plain data, or a :class:`Ref`: the dtype,
shape and place of a tensor whose bytes are still in the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ctm_core.models.foreign.machine import Machine
from ctm_core.models.foreign.values import Budget, Global, Record, Refusal, Word, as_key, shown

#: What torch.save wrote before it wrote zip archives begins with this integer.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
DIMENSIONS = 8
#: Tensors of one file; the largest network has about 1,100.
TENSORS = 20_000

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(eq=False, slots=True)
class Storage:
    """A stretch of equal numbers; ``data`` is a view of the file, None while only named."""

    key: str
    dtype: torch.dtype
    numel: int
    data: memoryview | None = None

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor that has not been read: a strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype in the file."""
        return self.storage.dtype

    @property
    def numel(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)

    def read(self) -> torch.Tensor:
        """A copy of the tensor, contiguous."""
        data, size = self.storage.data, self.dtype.itemsize
        if data is None:
            raise Refusal(f"lacks the bytes of its storage {shown(self.storage.key)}")
        if not self.numel:
            return torch.empty(self.shape, dtype=self.dtype)
        raw = bytearray(data[self.offset * size : (self.offset + self._reach) * size])
        flat = torch.frombuffer(raw, dtype=self.dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()

    @property
    def _reach(self) -> int:
        """Elements from the first to the last that it touches."""
        pairs = zip(self.shape, self.stride, strict=True)
        return 1 + sum((n - 1) * step for n, step in pairs) if self.numel else 0


def check_amount(refs: Mapping[str, Ref], limit: int) -> None:
    """Refuse more tensors than a network has, or more than ``limit`` bytes of them.

    Tensors that share a storage are copied, so a small file could become large memory.
    """
    if len(refs) > TENSORS:
        raise Refusal(f"holds {len(refs)} tensors, more than any network")
    if sum(ref.numel * ref.dtype.itemsize for ref in refs.values()) > limit:
        raise Refusal("describes tensors larger than the file itself")


# -- words: what the arguments of known globals become ----------------------------------------


def _natural(values: object) -> bool:
    """Whether it is a tuple of whole numbers from 0 that torch can hold."""
    return isinstance(values, tuple) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 62 for v in values
    )


def _rebuild_tensor(*arguments: Any) -> Ref:
    storage, offset, shape, stride = (*arguments, *[None] * 4)[:4]
    if not (
        isinstance(storage, Storage)
        and _natural((offset,))
        and _natural(shape)
        and _natural(stride)
        and len(shape) == len(stride) <= DIMENSIONS
    ):
        raise Refusal("describes a tensor by something else than a storage and sizes")
    ref = Ref(storage, offset, shape, stride)
    # Repeated elements (stride 0) would let a small storage describe a large tensor.
    if ref.numel > storage.numel or offset + ref._reach > storage.numel:
        raise Refusal(f"describes a tensor of shape {shape} that its storage cannot hold")
    return ref


def _rebuild_parameter(*arguments: Any) -> Ref:
    if not (arguments and isinstance(arguments[0], Ref)):
        raise Refusal("describes a parameter by something else than a tensor")
    return arguments[0]


def _ordered_dict(*arguments: Any) -> dict[Any, Any]:
    if arguments:  # its items are set afterwards
        raise Refusal("calls collections.OrderedDict with arguments, as network files never do")
    return {}


def _tuple(*arguments: Any) -> tuple[Any, ...]:
    if len(arguments) != 1 or not isinstance(arguments[0], tuple | list):
        raise Refusal("calls torch.Size with something else than sizes")
    return tuple(arguments[0])


def _set(*arguments: Any) -> set[Any]:
    """Sets of protocols before 4 are calls."""
    elements = arguments[0] if len(arguments) == 1 else None
    if not isinstance(elements, list):
        raise Refusal("makes a set in an unknown way")
    return {as_key(element) for element in elements}


def _record(name: str) -> Callable[..., Record]:
    return lambda *arguments: Record(name, arguments=arguments)


#: Struct codes of NumPy's scalar types.
SCALARS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "u1": "B", "b1": "?"}


def _numpy_scalar(*arguments: Any) -> Any:
    dtype, raw = (*arguments, None, None)[:2]
    name = dtype.arguments[0] if isinstance(dtype, Record) and dtype.arguments else None
    code = SCALARS.get(name) if isinstance(name, str) else None
    if isinstance(raw, str):  # protocol 2 writes bytes as latin-1 text
        raw = memoryview(raw.encode("latin-1", "replace"))
    if code is None or not isinstance(raw, memoryview) or len(raw) != struct.calcsize(code):
        raise Refusal("describes a NumPy scalar in an unknown way")
    # The byte order is in the dtype's state: (version, order, ...).
    state = dtype.state if isinstance(dtype.state, tuple) else ()
    order = state[1] if len(state) > 1 and state[1] in (">", "<", "|", "=") else "<"
    return struct.unpack(("<" if order in "|=" else order) + code, raw)[0]


def _encoded(*arguments: Any) -> Any:
    if not (len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1"):
        raise Refusal("calls _codecs.encode in an unknown way")
    return memoryview(arguments[0].encode("latin-1", "replace"))


_ARRAY = Word(call=_record("numpy.ndarray"))
_INERT = Word()

#: Globals of network files. Nothing of them is imported.
WORDS: dict[tuple[str, str], Word] = {
    ("collections", "OrderedDict"): Word(call=_ordered_dict),
    ("torch._utils", "_rebuild_tensor_v2"): Word(call=_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Word(call=_rebuild_parameter),
    ("torch", "Size"): Word(call=_tuple),
    ("torch", "device"): Word(call=_record("torch.device")),
    ("_codecs", "encode"): Word(call=_encoded),
    ("builtins", "set"): Word(call=_set),
    ("__builtin__", "set"): Word(call=_set),
    ("numpy", "dtype"): Word(call=_record("numpy.dtype")),
    ("numpy", "ndarray"): _INERT,
}
WORDS |= {("torch", name): _INERT for name in DTYPES}
WORDS |= {("torch", str(dtype).removeprefix("torch.")): _INERT for dtype in DTYPES.values()}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    WORDS[_module, "scalar"] = Word(call=_numpy_scalar)
    WORDS[_module, "_reconstruct"] = _ARRAY


# -- storages ---------------------------------------------------------------------------------


def persistent_storage(storages: dict[str, Storage]) -> Callable[[Any], Storage]:
    """A function that makes storages of persistent ids and enters them in ``storages``.

    An id is ``("storage", class, key, location, numel)``, in old files with a sixth element that
    is None. The location (``cpu``, ``cuda:0``) has no meaning here.
    """

    def storage(identity: Any) -> Storage:
        if not (isinstance(identity, tuple) and 5 <= len(identity) <= 6):
            raise Refusal("names a storage in an unknown way")
        kind, cls, key, _, numel = identity[:5]
        if kind != "storage" or not isinstance(key, str) or not _natural((numel,)):
            raise Refusal("names a storage in an unknown way")
        if not isinstance(cls, Global) or cls.name not in DTYPES:
            raise Refusal("names a storage of an unknown class")
        if identity[5:] not in ((), (None,)):
            raise Refusal("holds a view of a storage, which only the oldest files have")
        named = Storage(key, DTYPES[cls.name], numel)
        known = storages.setdefault(key, named)
        if (known.dtype, known.numel) != (named.dtype, numel):
            raise Refusal(f"names its storage {shown(key)} with two sizes")
        return known

    return storage


def read_legacy(data: memoryview, budget: Budget) -> Any:
    """What torch.save wrote before 1.6, and still writes for a storage inside a pickle.

    Five pickles (magic number, version, byte order, object, storage keys), then for each key the
    number of elements and their bytes.
    """
    storages: dict[str, Storage] = {}
    machine = Machine(data, WORDS, budget)
    if machine.run() != LEGACY_MAGIC:
        raise Refusal("holds a storage in an unknown format")
    if machine.run() != LEGACY_VERSION:
        raise Refusal("holds a storage of an unknown version of torch's format")
    system = machine.run()
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise Refusal("was written on a big-endian machine")
    machine.persistent = persistent_storage(storages)
    value = machine.run()
    machine.persistent = None
    keys = machine.run()
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise Refusal("is damaged: its storage keys are not a list of names")
    if sorted(keys) != sorted(storages):
        raise Refusal("is damaged: its storages are not those that it names")
    position = machine.position
    for key in keys:
        storage = storages[key]
        end = position + 8 + storage.nbytes
        if end > len(data):
            raise Refusal("is truncated: the bytes of a tensor go on beyond its end")
        (numel,) = struct.unpack("<q", data[position : position + 8])
        if numel != storage.numel:
            raise Refusal(f"is damaged: its storage {shown(storage.key)} has two sizes")
        storage.data = data[position + 8 : end]
        position = end
    return value
