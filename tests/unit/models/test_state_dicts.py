"""Networks in state dicts of torch files: every wrapper's names, every place, the choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import foreign as made_by_others
from fixtures.foreign import DDPMPP
from fixtures.tiny import Ctm
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ctm_core.models import foreign
from ctm_core.models.foreign import Hints, Refusal
from ctm_core.models.foreign.state_dicts import ENTRIES, StateDict, find_state
from ctm_core.models.foreign.tensors import Ref, Storage
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, read_json

SCALAR = Ref(Storage("0", torch.int64, 1), 0, (), ())


def refs(*names: str) -> dict[str, Any]:
    return {name: Ref(Storage("0", torch.float32, 4), 0, (4,), (1,)) for name in names}


#: Two tensors of an EDM network, as EDM's own code names them, and of OpenAI's.
EDM = refs("model.map_layer0.weight", "model.enc.8x8_conv.weight")
INNER = {name.removeprefix("model."): ref for name, ref in EDM.items()}
OPENAI = refs("time_embed.0.weight", "input_blocks.0.0.weight")


def under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": ref for name, ref in state.items()}


def found(value: Any, entry: str | None = None) -> StateDict:
    state = find_state(value, entry)
    assert state is not None
    return state


@pytest.mark.parametrize("state", [EDM, INNER, OPENAI], ids=["edm", "inner", "openai"])
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "_orig_mod._orig_mod.",
        "_fsdp_wrapped_module._checkpoint_wrapped_module.",
        "model.",
        "net.",
        "ema_model.module.",
        "averaged_model.module._orig_mod.",
        "some.thing.unheard.of.",
    ],
)
@pytest.mark.parametrize("keys", [(), ("ema",), ("state_dict",), ("a", "b", "c"), ("module",)])
def test_any_mixture(state: dict[str, Any], prefix: str, keys: tuple[str, ...]) -> None:
    value = under(prefix, state)
    for key in keys[::-1]:
        value = {key: value, "step": 7, "epoch": None}
    names = EDM if state is INNER else state
    made = found(value)
    assert (made.tensors, made.left_out) == (
        {name: [*state.values()][i] for i, name in enumerate(names)},
        (),
    )


def test_wrappers_inside_a_network() -> None:
    names = ["model._orig_mod.map_layer0.weight", "model.enc.8x8_conv._orig_mod.module.weight"]
    assert found(refs(*names)).tensors.keys() == EDM.keys()


@pytest.mark.parametrize(
    ("value", "entry", "place"),
    [
        ({"model": EDM, "ema": under("module.", EDM)}, "ema", "ema.model"),
        ({"model": EDM, "ema": EDM}, "model.model", "model.model"),
        ({"model": INNER, "ema": INNER}, "model", "model"),
        ({"model": INNER, "ema": {"model": INNER}}, "model", "model"),
        ({"model": INNER, "ema": {"model": INNER}}, "ema", "ema.model"),
        ({"state_dict": under("net.", EDM) | under("ema_net.", EDM)}, "ema_net", None),
        (under("online_model.", OPENAI) | under("ema_model.", OPENAI), "ema_model", "ema_model"),
        (INNER | {"ema": INNER}, ".", "."),
        (INNER | {"ema": INNER}, "ema", "ema"),
        ({"ema": EDM}, "ema", "ema.model"),
    ],
)
def test_the_choice_is_the_users(value: Any, entry: str, place: str | None) -> None:
    if value != {"ema": EDM}:
        with pytest.raises(
            Refusal, match=r"holds 2 networks \(.*ema.*\); choose one with --entry"
        ):
            find_state(value, None)
    assert found(value, entry).place == (place or "state_dict.ema_net.model")
    with pytest.raises(Refusal, match=r"holds no networks at other \(there are .*ema.*\); corr"):
        find_state(value, "other")


def test_an_entry_that_two_share() -> None:
    value = {"a": {"x": INNER}, "b": {"x": INNER}}
    with pytest.raises(Refusal, match=r"holds 2 networks at x \(there are b.x, a.x\)"):
        find_state(value, "x")


@pytest.mark.parametrize(
    ("value", "left_out"),
    [
        ({"n_averaged": SCALAR} | under("module.", EDM), ("n_averaged",)),
        ({"n_averaged": SCALAR} | under("module.", INNER), ("n_averaged",)),
        ({"ema": EDM, "optimizer": {"state": {0: refs("exp_avg"), 1: refs("b")}}}, ("optimizer",)),
        ({"state_dict": under("net.", EDM) | refs("loss.a", "loss.b")}, ("state_dict.loss",)),
        ({"model": EDM, "ema": {"shadow_params": [*EDM.values()]}}, ("ema",)),
        (EDM | refs("model_ema.decay", "lpips.lin0"), ("model_ema", "lpips")),
    ],
)
def test_what_is_left_out(value: Any, left_out: tuple[str, ...]) -> None:
    made = found(value)
    assert (made.tensors.keys(), made.left_out) == (EDM.keys(), left_out)


@pytest.mark.parametrize("state", [EDM, INNER, OPENAI], ids=["edm", "inner", "openai"])
def test_a_stranger_in_the_network_is_kept(state: dict[str, Any]) -> None:
    """Whoever compares the names with the network's will refuse it."""
    assert "extra" in found(state | refs("extra")).tensors


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (EDM | under("module.", EDM), r"holds model\.map_layer0\.weight with and without"),
        (EDM | refs("model.enc.a.weight_g"), r"weight_g, .* call torch\.nn\.utils\.remove_weight"),
        (
            refs("model.map_layer0.parametrizations.weight.original0"),
            r"parametrizations.*, which a wrapper made .*; call .*remove_parametrizations before",
        ),
        ({"a": [{}] * 1000, "b": [[{}] * 1000] * 1000}, "nests more entries"),
        ({str(i): [0] * 1000 for i in range(1 + ENTRIES // 1000)}, "nests more entries"),
    ],
)
def test_refused(value: Any, reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        find_state(value, None)


def test_a_loop_ends() -> None:
    value: dict[str, Any] = {"ema": EDM}
    value["again"] = value
    with pytest.raises(Refusal, match=r"holds \d networks"):
        find_state(value, None)


def test_only_what_is_chosen_is_compared_with_the_rest() -> None:
    """Thousands of networks in one file cost no more than their names."""
    value = {str(i): refs("map_layer0.weight") for i in range(20_000)}
    with pytest.raises(Refusal, match="holds 20000 networks"):
        find_state(value, None)
    assert found(value, "17").place == "17"


class Lightning(nn.Module):
    """What a training module looks like."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = torch.compile(net)
        self.ema = AveragedModel(net)
        self.loss = nn.Linear(2, 2)


def test_files_of_training_code(ctm: Ctm, tmp_path: Path) -> None:
    """What torch's own wrappers write becomes the same weights as the plain file."""
    made, older = (made_by_others.model(DDPMPP, seed=seed) for seed in (0, 1))
    module = Lightning(made)
    module.ema.module.load_state_dict(older.state_dict())
    checkpoint = {
        "state_dict": module.state_dict(),
        "optimizer_states": [torch.optim.Adam(made.parameters()).state_dict()],
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
    }
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint, path)
    done = ctm("convert", path, "--output", tmp_path / "made")
    assert done.code == 2 and not (tmp_path / "made").exists()
    assert "holds 2 networks (state_dict.net.model, state_dict.ema.model); cho" in done.stderr
    for entry, expected in (("net", made), ("state_dict.ema", older)):
        done = ctm("convert", path, "--output", tmp_path / "made", "--entry", entry)
        assert done.code == 0, done.stderr
        tensors, _ = load_tensors(tmp_path / "made/weights.safetensors")
        own = expected.state_dict()
        assert tensors.keys() == own.keys()
        assert all(torch.equal(tensors[name], own[name]) for name in own)
        document = read_json(tmp_path / "made/provenance.json")
        assert document["entry"] == f"state_dict.{entry[-3:]}.model"
        assert f"took the network at {document['entry']}, left out " in done.stdout
        assert "state_dict.loss" in document["left_out"]


def test_a_whole_module_says_how_to_save_it(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "file.pt")
    with pytest.raises(UserError, match=r"Linear, .*; save the network's own state dict, torch"):
        foreign.convert(tmp_path / "file.pt", tmp_path / "made", hints=Hints(role="teacher"))
