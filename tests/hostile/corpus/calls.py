"""Calls of Python functions, by every opcode and name that leads to one."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

from hostile.corpus.make import (
    Payload,
    call,
    dictionary,
    named,
    program,
    tensor,
    text,
    touch,
    tuple_of,
)
from hostile.corpus.register import fixed, hostile

for _protocol in range(6):

    @hostile(f"reduce-os-system-protocol-{_protocol}", r"names the global posix\.system,")
    def _(canary: Path, protocol: int = _protocol) -> bytes:
        return pickle.dumps({"ema": Payload(os.system, touch(canary))}, protocol)


@hostile("reduce-eval", r"names the global builtins\.eval,")
def _(canary: Path) -> bytes:
    return pickle.dumps(Payload(eval, f"open({str(canary)!r}, 'w')"))


@hostile("reduce-exec", r"names the global builtins\.exec,")
def _(canary: Path) -> bytes:
    return pickle.dumps([Payload(exec, f"open({str(canary)!r}, 'w')")])


@hostile("getattr-chain", r"names the global builtins\.getattr,")
def _(canary: Path) -> bytes:
    imported = call("builtins", "__import__", text("os"))
    found = call("builtins", "getattr", imported, text("system"))
    return program(found + b"(" + text(touch(canary)) + b"tR")


@hostile("map-of-eval", r"names the global builtins\.map,")
def _(canary: Path) -> bytes:
    return program(call("builtins", "map", named("builtins", "eval"), b"](" + text("1") + b"e"))


for _module, _name in (
    ("subprocess", "Popen"),
    ("importlib", "import_module"),
    ("builtins", "__import__"),
    ("builtins", "open"),
    ("builtins", "bytearray"),
    ("collections", "Counter"),
    ("functools", "partial"),
    ("operator", "attrgetter"),
    ("types", "FunctionType"),
    ("ctypes", "CDLL"),
    ("pickle", "loads"),
    ("_pickle", "loads"),
    ("marshal", "loads"),
    ("shutil", "rmtree"),
    ("webbrowser", "open"),
    ("copyreg", "_reconstructor"),
    ("numpy", "load"),
    ("numpy.f2py.crackfortran", "getlincoef"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.serialization", "load"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch._utils", "_rebuild_sparse_tensor"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"),
    ("torch._utils", "_rebuild_wrapper_subclass"),
    ("torch.storage", "_load_from_bytes.__globals__"),
    ("torch.nn.modules.module", "Module"),
    ("torch.jit._script", "RecursiveScriptModule"),
    ("torch_utils.persistence", "import_hook"),
    ("torch_utils.persistence", "_src_to_module"),
    ("dnnlib.util", "call_func_by_name"),
    ("dnnlib.util", "open_url"),
    ("__main__", "anything"),
):

    @hostile(f"global-{_module}.{_name}", rf"names the global {_module}\.{_name},")
    def _(canary: Path, module: str = _module, name: str = _name) -> bytes:
        return program(dictionary(ema=call(module, name, text(touch(canary)))))


# -- names

for _module, _name in (
    ("os", "path.os.system"),
    ("collections", "OrderedDict.fromkeys.__func__"),
    ("torch", "serialization.os.system"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch.nn.modules.container", "ModuleDict.__init__.__globals__"),
    ("dnnlib.util", "EasyDict.__class__"),
    ("torch_utils", "persistence._reconstruct_persistent_obj"),
):

    @hostile(f"nested-{_module}-{_name}", rf"names the global {_module}\.{_name},")
    def _(canary: Path, module: str = _module, name: str = _name) -> bytes:
        return program(call(module, name, text(touch(canary))))


@hostile("stack-global-from-memo", r"names the global posix\.system,")
def _(canary: Path) -> bytes:
    words = text("posix") + b"\x940" + text("system") + b"\x940"
    return program(words + b"h\x00h\x01\x93(" + text(touch(canary)) + b"tR")


fixed("stack-global-of-numbers", "global is not text", program(b"K\x01K\x02\x93)R"))
fixed("stack-global-of-bytes", "global is not text", program(b"C\x02osC\x06system\x93)R"))
fixed(
    "global-with-control-characters",
    r"impossible global os\\x1b\[2J\\n\.system",
    program(named("os\x1b[2J\n", "system") + b")R"),
)
fixed("global-of-100-kB", "names the global a{70,}", program(named("a" * 100_000, "b") + b")R"))
fixed("global-line-without-end", "a line of text has no end", b"\x80\x02c" + b"o" * 100_000)


# -- other ways to an object

fixed("extension-1", r"opcode EXT1", b"\x80\x02\x82\x01)R.")
fixed("extension-2", r"opcode EXT2", b"\x80\x02\x83\x01\x02)R.")
fixed("extension-4", r"opcode EXT4", b"\x80\x02\x84\x01\x02\x03\x04)R.")
fixed("extension-4-negative", r"opcode EXT4", b"\x80\x02\x84\xff\xff\xff\xff)R.")


@hostile("inst", r"names the global posix\.system,")
def _(canary: Path) -> bytes:
    return b"(S" + repr(touch(canary)).encode() + b"\niposix\nsystem\n."


fixed("inst-of-a-known-class", r"opcode INST", b"(icollections\nOrderedDict\n.")
fixed("obj-of-a-known-class", r"opcode OBJ", b"\x80\x02(ccollections\nOrderedDict\no.")
fixed("newobj-ex", r"opcode NEWOBJ_EX", program(named("dnnlib.util", "EasyDict") + b")}\x92"))
fixed("newobj-os", r"names the global posix\.system", program(named("posix", "system") + b")\x81"))
fixed("newobj-of-a-function", "only name", program(named("collections", "OrderedDict") + b")\x81"))
fixed("call-of-a-class", "only name", program(call("torch", "FloatStorage", b"K\x01")))
fixed(
    "call-of-a-container", "only name", program(call("torch.nn.modules.container", "ModuleDict"))
)
fixed("call-of-a-dict", "calls a dict, which is not a function", program(b"})R"))
fixed("call-without-a-tuple", "only name", program(named("collections", "OrderedDict") + b"]R"))
fixed("call-of-a-text", "calls a str, which is not a function", program(text("os.system") + b")R"))
fixed("bytearray8", r"opcode BYTEARRAY8", b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".")
fixed("next-buffer", r"opcode NEXT_BUFFER", b"\x80\x05\x97.")
fixed("readonly-buffer", r"opcode READONLY_BUFFER", b"\x80\x05C\x01a\x98.")
fixed("persistent-id-of-text", "persistent id where", b"Pos.system\n.")
fixed("persistent-id", "persistent id where", program(text("os.system") + b"Q"))
fixed("build-a-list", "sets the state of a list", program(b"]}b"))
fixed("build-a-global", "sets the state of torch.Size", program(named("torch", "Size") + b"}b"))
fixed(
    "build-a-tensor",
    "sets the state of a ref",
    program(tensor(tuple_of(4), tuple_of(1)) + dictionary(__class__=text("os")) + b"b"),
)
fixed(
    "ordered-dict-with-arguments",
    "OrderedDict with arguments",
    program(call("collections", "OrderedDict", b"](](K\x01K\x02ee")),
)
fixed(
    "numpy-object-scalar",
    "NumPy scalar in an unknown way",
    program(
        call(
            "numpy.core.multiarray",
            "scalar",
            call("numpy", "dtype", text("O8"), b"\x89", b"\x88"),
            text("x"),
        )
    ),
)


@hostile("numpy-object-array", r"names the global posix\.system,")
def _(canary: Path) -> bytes:
    # NumPy pickles the elements of an object array; the payload stands in the array's state.
    inner = call("posix", "system", text(touch(canary)))
    array = call(
        "numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), b")", b"C\x01b"
    )
    return program(array + b"(K\x01" + inner + b"tb")
