"""NVIDIA's network pickles: the tree of records, and the state and arguments in it.

An EDM pickle stores each object of EDM's own classes as one call with one dict: the class's source
text, its name, and the object's ``__dict__``. The text is dropped unread; the name and the state
make a :class:`~ctm_core.models.foreign.values.Record`. Parameters and buffers are collected from
the records as ``Module.state_dict`` would name them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ctm_core.models.foreign.tensors import WORDS, Ref, Storage, read_legacy
from ctm_core.models.foreign.values import Budget, Record, Refusal, Vocabulary, Word, shown

#: Versions of the persistence format: 6 since StyleGAN2-ADA.
VERSION = 6
#: Modules and their entries of one network, and how deep they are nested; EDM's largest has about
#: 10,000 entries, 4 deep.
ENTRIES = 200_000
DEPTH = 32

CONTAINERS = ("ModuleDict", "ModuleList", "Sequential")


@dataclass(frozen=True)
class PickledNetwork:
    """A network of a pickle: tensors by name, and what its makers said of it."""

    class_name: str  #: of the preconditioning
    inner_class: str  #: of the raw network in it
    arguments: dict[str, Any]  #: keyword arguments of their constructors, plain values
    inner_arguments: dict[str, Any]
    attributes: dict[str, Any]  #: of the preconditioning, plain values such as ``sigma_data``
    tensors: dict[str, Ref]


def edm_words(budget: Budget) -> Vocabulary:
    """The vocabulary of EDM's pickles; storages inside are decoded under ``budget``."""

    def storage(*arguments: Any) -> Storage:
        if len(arguments) != 1 or not isinstance(arguments[0], memoryview):
            raise Refusal("describes a storage by something else than bytes")
        decoded = read_legacy(arguments[0], budget)
        if not isinstance(decoded, Storage):
            raise Refusal("describes a storage by something else than a storage")
        return decoded

    words = WORDS | {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): Word(call=_persistent),
        ("torch.storage", "_load_from_bytes"): Word(call=storage),
        ("dnnlib.util", "EasyDict"): Word(call=_empty_dict, new=_empty_dict),
        ("dnnlib", "EasyDict"): Word(call=_empty_dict, new=_empty_dict),
    }
    return words | {
        ("torch.nn.modules.container", name): Word(new=_container(name)) for name in CONTAINERS
    }


def _container(name: str) -> Any:
    def new(*arguments: Any) -> Record:
        if arguments:
            raise Refusal(f"makes a {name} in an unknown way")
        return Record(name)

    return new


def _empty_dict(*arguments: Any) -> dict[Any, Any]:
    if arguments and arguments != ({},):
        raise Refusal("makes an EasyDict in an unknown way")
    return {}


def _persistent(*arguments: Any) -> Record:
    meta = arguments[0] if len(arguments) == 1 else None
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise Refusal("describes an object in a way that EDM's files do not")
    if meta.get("version") != VERSION:
        raise Refusal(f"uses another version of EDM's object format than {VERSION}")
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise Refusal("describes an object without class name and state")
    return Record(name, state)


def find_network(value: Any) -> PickledNetwork:
    """The network ``ema`` of a pickle's value; raises Refusal if there is none."""
    if isinstance(value, dict) and "ema" in value:
        value = value["ema"]
    elif isinstance(value, dict):
        keys = ", ".join(sorted(shown(key, 20) for key in list(value)[:8])) or "nothing"
        raise Refusal(f"holds no network under the key 'ema' (it holds: {keys})")
    if not isinstance(value, Record) or not isinstance(value.state, dict):
        raise Refusal("holds no network")
    inner = _dict(value, "_modules").get("model")
    if not isinstance(inner, Record) or not isinstance(inner.state, dict):
        raise Refusal(
            f"holds an object {shown(value.name)}, which is not a preconditioned network"
        )
    return PickledNetwork(
        class_name=value.name,
        inner_class=inner.name,
        arguments=_plain_dict(value.state.get("_init_kwargs")),
        inner_arguments=_plain_dict(inner.state.get("_init_kwargs")),
        attributes=_plain_dict(value.state),
        tensors=_collect(value),
    )


def _collect(root: Record) -> dict[str, Ref]:
    tensors: dict[str, Ref] = {}
    waiting = [(root, "", 0)]
    count = 0
    while waiting:
        record, prefix, depth = waiting.pop()
        tables = [_dict(record, key) for key in ("_parameters", "_buffers", "_modules")]
        count += 1 + sum(map(len, tables))  # many records may share one table
        if count > ENTRIES or depth > DEPTH:
            raise Refusal("nests more modules than any network")
        transient = record.state.get("_non_persistent_buffers_set")
        if not isinstance(transient, set | frozenset):
            transient = ()
        parameters, buffers, modules = tables
        for name, value in [*parameters.items(), *buffers.items()]:
            if isinstance(value, Ref) and name not in transient:
                tensors[_joined(prefix, name)] = value
            elif not isinstance(value, Ref) and value is not None:
                raise Refusal(f"holds no tensor as {shown(_joined(prefix, name))}")
        for name, value in modules.items():
            if value is None:
                continue
            if not isinstance(value, Record) or not isinstance(value.state, dict):
                raise Refusal(f"holds no module as {shown(_joined(prefix, name))}")
            waiting.append((value, _joined(prefix, name) + ".", depth + 1))
    return tensors


def _joined(prefix: str, name: object) -> str:
    if not isinstance(name, str) or len(prefix) + len(name) > 200:
        raise Refusal("holds a module whose name is not a short text")
    return prefix + name


def _dict(record: Record, key: str) -> dict[Any, Any]:
    value = record.state.get(key)
    if not isinstance(value, dict):
        raise Refusal(f"holds an object {shown(record.name)} without {key}")
    return value


def _plain_dict(value: Any) -> dict[str, Any]:
    """The entries that are numbers, texts, or short lists of them."""
    if not isinstance(value, dict):
        return {}
    plain = {key: _plain(entry) for key, entry in list(value.items())[:100]}
    short = {k: v for k, v in plain.items() if isinstance(k, str) and len(k) <= 64}
    return {k: v for k, v in short.items() if not k.startswith("_") and v is not ...}


def _plain(value: Any) -> Any:
    """The value as JSON can hold it; an ellipsis if it cannot."""
    if isinstance(value, list | tuple):
        if len(value) > 32 or any(isinstance(entry, list | tuple) for entry in value):
            return ...
        entries = [_plain(entry) for entry in value]
        return ... if ... in entries else entries
    if isinstance(value, str):
        return value if len(value) <= 200 else ...
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if value is None or isinstance(value, bool):
        return value
    return value if isinstance(value, int) and value.bit_length() < 64 else ...
