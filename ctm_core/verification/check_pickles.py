"""NVIDIA's pickle form: a writer of such files, and the importer against the golden state.

A golden set need not hold a pickle. :func:`edm_pickle` writes one of the true form, opcode by
opcode, from the expected tensors: every object of EDM's own classes is a call of
``torch_utils.persistence._reconstruct_persistent_obj`` with one dict, tensors are calls of torch's
rebuilding functions on storages that are torch files of their own. The source text that stands
there for each class would end the process if anybody ran it.
"""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctm_core.models import foreign
from ctm_core.models.foreign.values import Refusal
from ctm_core.runtime.errors import UserError
from ctm_core.verification import case
from ctm_core.verification.golden import SINGLE, Check, Golden, compare, exact

__all__ = ["edm_pickle"]

EXAMPLE = "edm_pickle_example.pkl"
SOURCE = "raise SystemExit('the source text inside a pickle was executed')\n"
HOOKS = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks")


@case("edm_pickle_expected", precisions=(SINGLE,))
def importer(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """A pickle of the expected tensors, and the set's own if it has one, through the importer."""
    state = golden.weights("state", precision)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "network.pkl"
        written.write_bytes(edm_pickle(state, golden.meta["kwargs"]))
        yield from _checks("", written, golden, state, precision)
    own = golden.folder.path / EXAMPLE
    if own.is_file():
        yield from _checks(f"{EXAMPLE} ", own, golden, state, precision)


def _checks(
    prefix: str, path: Path, golden: Golden, state: Mapping[str, Tensor], precision: torch.dtype
) -> Iterator[Check]:
    try:
        model = foreign.load_foreign(path)
    except Refusal as refusal:
        raise UserError(f"{path} was refused: it {refusal}") from None
    found = model.state_dict()
    yield exact(f"{prefix}names", sorted(found), sorted(state))
    for name, value in state.items():
        yield exact(f"{prefix}state/{name}", found.get(name), value)
    augment = None
    if "in/augment_labels" in golden:
        augment = golden.input("augment_labels", precision)
    x, sigma = golden.input("x", precision), golden.input("sigma", precision)
    with torch.no_grad():
        denoised = model.denoise(x, sigma, golden.labels(precision), augment)
    yield compare(f"{prefix}D", denoised, golden.expected("D", precision), precision)


# -- writing ----------------------------------------------------------------------------------


def edm_pickle(state: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> bytes:
    """An EDM pickle ``{"ema": network}``.

    Parameters
    ----------
    state
        Tensors by EDM's names, ``model.enc.32x32_conv.weight``.
    kwargs
        Constructor arguments of the preconditioned network.
    """
    tree: dict[str, Any] = {}
    for name, value in state.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    attributes = {"sigma_data": 0.5, "sigma_min": 0, "sigma_max": float("inf")}
    network = _module("EDMPrecond", tree, kwargs, attributes, inner=str(kwargs["model_type"]))
    return b"\x80\x04" + _dict([(_text("ema"), network)]) + b"."


def _module(
    class_name: str,
    tree: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    attributes: Mapping[str, Any],
    inner: str = "",
) -> bytes:
    """A persistent object: its tensors, the modules below it, and its plain attributes."""
    tensors = {key: value for key, value in tree.items() if isinstance(value, Tensor)}
    modules = {key: value for key, value in tree.items() if not isinstance(value, Tensor)}
    buffers = {key for key in tensors if key in ("resample_filter", "freqs")}
    entries = {"training": _value(False)} | {key: _ordered_dict() for key in HOOKS}
    entries["_parameters"] = _tensors({k: v for k, v in tensors.items() if k not in buffers}, True)
    entries["_buffers"] = _tensors({k: v for k, v in tensors.items() if k in buffers}, False)
    entries["_non_persistent_buffers_set"] = b"\x8f"
    entries["_modules"] = _dict(
        [
            (_text(key), _child(key, value, kwargs, inner if key == "model" else ""))
            for key, value in modules.items()
        ]
    )
    entries |= {key: _value(value) for key, value in attributes.items()}
    entries["skip_scale"] = _numpy_scalar(0.5**0.5)
    entries["_init_args"] = b")"
    entries["_init_kwargs"] = _value(dict(kwargs))
    meta = {
        "type": _text("class"),
        "version": _value(6),
        "module_src": _text(SOURCE),
        "class_name": _text(class_name),
        "state": _state(entries),
    }
    function = _global("torch_utils.persistence", "_reconstruct_persistent_obj")
    return function + _state(meta) + b"\x85R"


def _child(key: str, tree: Mapping[str, Any], kwargs: Mapping[str, Any], inner: str) -> bytes:
    if key in ("enc", "dec"):
        state = {
            "training": _value(False),
            "_parameters": b"}",
            "_buffers": b"}",
            "_modules": _dict([(_text(k), _child(k, v, {}, "")) for k, v in tree.items()]),
        }
        container = _global("torch.nn.modules.container", "ModuleDict")
        return container + b")\x81" + _state(state) + b"b"
    leaf = all(isinstance(value, Tensor) for value in tree.values())
    class_name = inner or ("Layer" if leaf else "UNetBlock")
    return _module(class_name, tree, kwargs if inner else {}, {})


def _tensors(tensors: Mapping[str, Tensor], parameters: bool) -> bytes:
    made = []
    for name, tensor in tensors.items():
        code = _tensor(tensor.contiguous())
        if parameters:
            arguments = b"(" + code + _value(False) + _ordered_dict() + b"t"
            code = _global("torch._utils", "_rebuild_parameter") + arguments + b"R"
        made.append((_text(name), code))
    return _dict(made)


def _tensor(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    storage = tensor.clone()._typed_storage()  # type: ignore[no-untyped-call]
    torch.save(storage, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    storage_code = (
        _global("torch.storage", "_load_from_bytes")
        + b"B"
        + struct.pack("<I", len(data))
        + data
        + b"\x85R"
    )
    sizes = _value(tuple(tensor.shape)) + _value(tuple(tensor.stride()))
    arguments = b"(" + storage_code + _value(0) + sizes + _value(False) + _ordered_dict() + b"t"
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _numpy_scalar(value: float) -> bytes:
    dtype = (
        _global("numpy", "dtype")
        + _value(("f8", False, True))
        + b"R"
        + _value((3, "<", None, None, None, -1, -1, 0))
        + b"b"
    )
    raw = b"C\x08" + struct.pack("<d", value)
    return _global("numpy._core.multiarray", "scalar") + dtype + raw + b"\x86R"


def _ordered_dict() -> bytes:
    return _global("collections", "OrderedDict") + b")R"


def _global(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + b"\x93"


def _state(entries: Mapping[str, bytes]) -> bytes:
    return _dict([(_text(key), code) for key, code in entries.items()])


def _dict(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _value(value: Any) -> bytes:
    """Opcodes of a plain value."""
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return _dict([(_text(key), _value(entry)) for key, entry in value.items()])
    entries = b"".join(_value(entry) for entry in value)
    return b"(" + entries + b"t" if isinstance(value, tuple) else b"](" + entries + b"e"
