"""Networks in the state dicts of torch files, at any depth and under any wrapper's names.

Training code saves more than a network: averages of it, counters, an optimiser, the module around
it. A network is found by the names of its first layer; what precedes them is its place in the
file, such as ``state_dict.ema_model`` in a checkpoint of Lightning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ctm_core.models.foreign.tensors import Ref
from ctm_core.models.foreign.values import SAVE, Refusal, shown

#: Parts that wrappers insert into names: data-parallel training and averaging, torch.compile,
#: FSDP, activation checkpointing.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
#: Wrappers that change the tensors as well, and what to do before saving.
REMEDIES = {
    "parametrizations": "call torch.nn.utils.parametrize.remove_parametrizations",
    "weight_g": "call torch.nn.utils.remove_weight_norm",
    "_flat_param": "gather FSDP's full state dict",
    "shadow_params": "copy them to the network",
}
#: The first layer: of EDM's networks, which are in their preconditioning's ``model``; of OpenAI's.
EDM, OPENAI = "map_layer0", "time_embed"
#: Entries of a file, an optimiser's included, and how deep they are looked for.
ENTRIES = 200_000
DEPTH = 8

Path = tuple[str, ...]
#: The tensors of a file by their full names.
Tensors = Mapping[Path, Ref]


@dataclass(frozen=True)
class StateDict:
    """A network's tensors as its own code names them."""

    place: str  #: in the file, without wrappers: ``ema``, ``state_dict.model``; ``.``: the top
    tensors: dict[str, Ref]
    left_out: tuple[str, ...]  #: what else the file holds


def find_state(value: Any, entry: str | None) -> StateDict | None:
    """The network of a file's value, at a place that is ``entry`` or has it as a part.

    Returns None if there are no networks' tensors; raises Refusal if there are several networks,
    or none at ``entry``.
    """
    tensors = dict(_tensors(value)) if isinstance(value, dict) else {}
    layers: dict[tuple[Path, Path], str] = {}
    for path in tensors:
        names = _restored(path[-1])
        for layer in {EDM, OPENAI} & {*names[:-1]}:
            layers.setdefault((path[:-1], names[: names.index(layer)]), layer)
    if not layers:
        return None
    places = {place: _shown(*place) for place in layers}
    chosen = [p for p, text in places.items() if entry in (None, text)]
    chosen = chosen or [p for p, text in places.items() if f".{entry}." in f".{text}."]
    if len(chosen) != 1:
        listed = ", ".join(shown(text, 30) for text in [*places.values()][:6])
        if entry is None:
            raise Refusal(f"holds {len(places)} networks ({listed}); choose one with --entry")
        many = f"{len(chosen) or 'no'} networks at {shown(entry, 40)}"
        raise Refusal(f"holds {many} (there are {listed}); correct --entry")
    state = _state_dict(tensors, *chosen[0], layers[chosen[0]])
    _check_names(state.tensors)
    return state


def _shown(path: Path, prefix: Path) -> str:
    return ".".join((*path, *prefix)) or "."


def _tensors(value: dict[Any, Any]) -> Iterator[tuple[Path, Ref]]:
    """Every tensor with the keys that lead to it, its own name last."""
    waiting: list[tuple[Path, Any]] = [((), value)]
    count = 0
    while waiting:
        path, container = waiting.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        count += 1 + len(container)  # one container may be the entry of many
        if count > ENTRIES:
            raise Refusal(f"nests more entries than any network file; {SAVE}")
        for key, entry in items:
            if isinstance(entry, Ref):
                yield (*path, str(key)), entry
            elif isinstance(entry, dict | list | tuple) and len(path) < DEPTH:
                waiting.append(((*path, str(key)), entry))


def _restored(name: str) -> Path:
    return tuple(part for part in name.split(".") if part not in WRAPPERS)


def _state_dict(tensors: Tensors, path: Path, prefix: Path, layer: str) -> StateDict:
    made: dict[str, Ref] = {}
    left_out: dict[str, None] = {}
    place = (*path, *prefix)
    for full, ref in tensors.items():
        names = _restored(full[-1])
        beside = full[:-1] == path
        alone = beside and len(names) == 1 and prefix in ((), ("model",))
        if alone and ref.shape:  # in none of the modules: an unknown part of the network
            name = full[-1]
        elif beside and not alone and names[: len(prefix)] == prefix:
            name = ".".join((*["model"] * (layer == EDM), *names[len(prefix) :]))
        else:
            parts = (*full[:-1], *names)
            # One may end first; what follows the common part is no part of the place.
            same = [a == b for a, b in zip(parts, place, strict=False)]
            left_out.setdefault(".".join(parts[: (*same, False).index(False) + 1]))
            continue
        if name in made:
            raise Refusal(f"holds {shown(name)} with and without a wrapper's prefix; {SAVE}")
        made[name] = ref
    return StateDict(_shown(path, prefix), made, tuple(left_out)[:20])


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        for part in REMEDIES.keys() & {*name.split(".")}:
            raise Refusal(
                f"holds {shown(name)}, which a wrapper made of the network's tensors; "
                f"{REMEDIES[part]} before saving its state dict"
            )


def why_none(value: Any) -> str:
    """Why a file without a network's tensors is refused."""
    if not isinstance(value, dict):
        return f"holds a {shown(type(value).__name__.lower())}, not a network's state dict"
    if not value:
        return "holds an empty state dict"
    if "state" in value and "param_groups" in value:
        return "is the state of an optimiser, not a network"
    names = [".".join(path) for path, _ in _tensors(value)]
    if not names:
        return f"holds no tensors; {SAVE}"
    _check_names(names)
    if any(".mini_discs." in name for name in names):
        return "holds a discriminator, not a network that samples"
    return f"holds no network of a known kind (its first tensor is {shown(names[0])}); {SAVE}"
