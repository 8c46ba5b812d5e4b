"""Networks as their authors describe them: constructor arguments in terms of our configuration.

EDM's pickles and the golden files carry the arguments their networks were made with. The two
families name things differently: OpenAI's ``attention_resolutions`` are factors by which an image
is reduced, EDM's ``attn_resolutions`` are sides. Defaults are the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from ctm_core.config import Network
from ctm_core.runtime.errors import UserError


class DescribedNetwork(NamedTuple):
    """A network's section and what the data set decides."""

    network: Network
    resolution: int
    channels: int
    label_dim: int


def from_arguments(arguments: Mapping[str, Any]) -> DescribedNetwork:
    """Describe a network by the arguments of EDM's or OpenAI's constructors.

    Which of the two it is shows in the name of the image side: ``img_resolution`` or
    ``image_size``. Arguments that concern training alone are not looked at.

    Raises
    ------
    UserError
        For a network that none of ours equals, naming the argument.
    """
    try:
        if "image_size" in arguments:
            return _openai(arguments)
        if "img_resolution" in arguments:
            return _edm(arguments)
    except KeyError as error:
        raise UserError(f"the network's constructor arguments lack {error.args[0]}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        text = problem["msg"].removeprefix("Value error, ")
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(
            f"the network's constructor arguments describe none of ours: {key}: {text}"
        ) from None
    raise UserError(
        "the network's constructor arguments have neither EDM's img_resolution nor OpenAI's "
        "image_size"
    )


#: What EDM's two networks take where their arguments do not say.
SONG = {
    "model_channels": 128, "channel_mult": (1, 2, 2, 2), "num_blocks": 4,
    "attn_resolutions": (16,), "dropout": 0.1,
}  # fmt: skip
#: With sinusoids of twice the usual width, and a filter of four taps unless one is given.
WIDE = ("ncsnpp", "ddpmpp_meanflow")
DHARIWAL = {
    "model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3,
    "attn_resolutions": (32, 16, 8), "dropout": 0.1,
}  # fmt: skip


def _edm(arguments: Mapping[str, Any]) -> DescribedNetwork:
    kind = arguments.get("model_type", "DhariwalUNet")
    if kind not in ("SongUNet", "DhariwalUNet"):
        raise UserError(f"model_type {kind!r} is not supported; SongUNet and DhariwalUNet are")
    defaults = DHARIWAL if kind == "DhariwalUNet" else SONG
    own = {"architecture": "adm"} if kind == "DhariwalUNet" else _song(arguments)
    network = Network(
        **own,
        **{key: arguments.get(key, default) for key, default in defaults.items()},
        channel_mult_emb=_unless(arguments.get("channel_mult_emb"), 4),
        augment_dim=arguments.get("augment_dim") or None,
    )
    return DescribedNetwork(
        network,
        resolution=arguments["img_resolution"],
        channels=arguments["img_channels"],
        label_dim=arguments.get("label_dim", 0),
    )


def _song(arguments: Mapping[str, Any]) -> dict[str, Any]:
    _only(arguments, "decoder_type", "standard")
    kind = arguments.get("embedding_type", "positional")
    if kind not in ("positional", "fourier"):
        raise UserError(f"embedding_type {kind!r} is not supported")
    plain, width = kind == "positional", arguments.get("channel_mult_noise", 1)
    architecture = "ddpmpp" if plain else "ncsnpp"
    if plain and arguments.get("s_embed"):
        architecture = "ddpmpp_imm"
    elif plain and width == 2 and "in_channels" in arguments:  # the bare network's own
        architecture = "ddpmpp_meanflow"
    _only(arguments, "encoder_type", "standard" if plain else "residual", "standard")
    _only(arguments, "channel_mult_noise", 2 if architecture in WIDE else 1, 1)
    taps = tuple(arguments.get("resample_filter", (1, 1)))
    return {
        "architecture": architecture,
        "resample_filter": _unless(taps, (1, 3, 3, 1) if architecture in WIDE else (1, 1)),
    }


def _openai(arguments: Mapping[str, Any]) -> DescribedNetwork:
    _only(arguments, "use_scale_shift_norm", True, False)
    _only(arguments, "resblock_updown", True, False)
    _only(arguments, "dims", 2)
    side, per_head = arguments["image_size"], arguments.get("num_head_channels", -1)
    if arguments.get("out_channels", arguments["in_channels"]) != arguments["in_channels"]:
        raise UserError("out_channels differ from in_channels: which is not supported")
    heads, above = arguments.get("num_heads", 1), arguments.get("num_heads_upsample", -1)
    given = per_head is not None and per_head > 0  # the numbers of heads then have no effect
    if not given and above not in (None, -1, heads):
        raise UserError(
            f"num_heads_upsample = {above} beside num_heads = {heads} is not supported"
        )
    factors = [int(factor) for factor in arguments["attention_resolutions"]]
    network = Network(
        architecture="openai_adm",
        model_channels=arguments["model_channels"],
        channel_mult=arguments["channel_mult"],
        num_blocks=arguments["num_res_blocks"],
        attn_resolutions=[side // factor for factor in factors if side % factor == 0],
        dropout=arguments.get("dropout", 0.0),
        num_head_channels=_unless(per_head if given else None, 64),
        num_heads=None if given else heads,
    )
    return DescribedNetwork(
        network,
        resolution=side,
        channels=arguments["in_channels"],
        label_dim=arguments.get("num_classes") or 0,
    )


def _only(arguments: Mapping[str, Any], key: str, wanted: Any, default: Any = None) -> None:
    value = arguments.get(key, wanted if default is None else default)
    if value != wanted:
        raise UserError(f"{key} = {value!r} is not supported; {wanted!r} is")


def _unless(value: Any, default: Any) -> Any:
    """None for a value that is the default: it is then left out of records and hashes."""
    return None if value == default else value
