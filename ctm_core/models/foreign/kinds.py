"""Which network a file holds: the form from its names, the sizes from its shapes.

Nothing that a file says of itself is trusted: sizes come from the tensors, a network of these
sizes is built without memory, and names and shapes must be exactly its own. What a pickle's
constructor arguments say must agree.

=============  ==============================  ===========================================
form           a name in it                    files
=============  ==============================  ===========================================
EDM            ``model.map_layer0.weight``     NVIDIA's pickles; ctm-cifar10's students; IMM's and
                                               MeanFlow's models for CIFAR-10
OpenAI         ``time_embed.0.weight``         ``edm_imagenet64_ema.pt``; sony/ctm's students
=============  ==============================  ===========================================

A student has layers of the target time s (``…_s``). Without them an EDM teacher and a consistency
model have the same tensors; only the user, or the file's name, can tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ctm_core.models import weight_file
from ctm_core.models.foreign.assumptions import Role, Settled
from ctm_core.models.foreign.edm import PickledNetwork
from ctm_core.models.foreign.inference import Identified, edm_form, openai_form
from ctm_core.models.foreign.tensors import Ref
from ctm_core.models.foreign.values import Refusal, shown

#: Names under which OpenAI published consistency models, and the releases of CTM keep them.
CONSISTENCY_NAMES = re.compile(r"(cd|ct)[_-].*", re.IGNORECASE)
#: Names of the checkpoints of CTM's training code.
STUDENT_NAMES = re.compile(r"(model|target_model|ema_0\.\d+_)\d+\.pt")

NO_TIME_S = (
    "has no layers of the target time s: it is a consistency model or a teacher, not a CTM student"
)

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def identify(
    state: Mapping[str, Ref], settled: Settled, *, name: str, pickled: bool
) -> Identified:
    """Recognise the network of a file called ``name`` and check names, shapes and dtypes.

    Raises Refusal if it is none of the known networks, or lacks a tensor, or holds a foreign one.
    ``pickled`` says whether NVIDIA's pickle held it.
    """
    for key in state:
        if not re.fullmatch(r"[A-Za-z0-9_.]{1,200}", key):
            raise Refusal(f"holds {shown(key)}, a name that no network's tensor has")
    shapes = {key: ref.shape for key, ref in state.items()}
    if any(key.startswith("model.map_layer0.") for key in shapes):
        identified = edm_form(shapes, settled, pickled=pickled)
    elif any(key.startswith("time_embed.") for key in shapes):
        identified = openai_form(shapes, settled, name=name)
    else:
        first = shown(next(iter(shapes), "missing"))
        raise Refusal(f"holds no network of a known kind (its first tensor is {first})")
    if identified.resolution > weight_file.LARGEST:
        raise Refusal(
            f"is for images of {identified.resolution} pixels a side, more than the "
            f"{weight_file.LARGEST} of any network"
        )
    _check_role(identified, settled.hints.role, name, pickled)
    own = {key: tuple(value.shape) for key, value in identified.build().state_dict().items()}
    given = {ours: shapes[theirs] for ours, theirs in identified.names.items()}
    if problem := weight_file.misfit(own, given):
        raise Refusal(f"is not the {identified.kind} that it seems to be: it {problem}")
    for key, ref in state.items():
        if ref.dtype not in FLOATS:
            kind = str(ref.dtype).removeprefix("torch.")
            raise Refusal(f"holds {shown(key)} as {kind}; networks hold float32")
    return identified


def _check_role(identified: Identified, role: Role | None, name: str, pickled: bool) -> None:
    if identified.time_s:
        if role == "teacher":
            raise Refusal("is a CTM student (it has layers of the target time s), not a teacher")
        return
    if role == "ctm" or (role is None and STUDENT_NAMES.fullmatch(name)):
        raise Refusal(f"{NO_TIME_S}; if it is a teacher, give --kind teacher")
    if role is None and not pickled and CONSISTENCY_NAMES.fullmatch(name):
        raise Refusal(
            "is a consistency model by its name (no layers of the target time s); CTM needs an "
            "EDM teacher or a CTM student; if it is a teacher after all, give --kind teacher"
        )


# -- what a pickle says of itself ---------------------------------------------------------------

NETWORKS = {"ddpmpp": "SongUNet", "ncsnpp": "SongUNet", "adm": "DhariwalUNet"}
#: Preconditionings of pickles, and the architectures that others than EDM's belong to.
WRAPPERS = {"EDMPrecond": None, "IMMPrecond": "ddpmpp_imm"}


def check_arguments(pickled: PickledNetwork, identified: Identified) -> float | None:
    """Compare a pickle's constructor arguments with what its tensors say.

    Returns the dropout, which only the arguments tell, if they do. Raises Refusal if it is
    another preconditioning than EDM's, or an argument and the tensors disagree.
    """
    network = identified.network
    own = None if network.architecture in NETWORKS else network.architecture
    if WRAPPERS.get(pickled.class_name, "") != own:
        raise Refusal(
            f"holds a {shown(pickled.class_name)} network; only EDM's preconditioning "
            "(EDMPrecond), and IMM's around IMM's network, are known here"
        )
    inner = NETWORKS.get(network.architecture, "SongUNet")
    if pickled.inner_class != inner:
        raise Refusal(f"holds a {shown(pickled.inner_class)} whose tensors are those of a {inner}")
    ncsnpp = network.architecture == "ncsnpp"
    seen: dict[str, Any] = {
        "img_resolution": identified.resolution,
        "img_channels": identified.channels,
        "label_dim": identified.label_dim,
        "model_type": pickled.inner_class,
        "augment_dim": network.augment_dim or 0,
        "model_channels": network.model_channels,
        "channel_mult": list(network.channel_mult),
        "num_blocks": network.num_blocks,
        "embedding_type": "fourier" if ncsnpp else "positional",
        "encoder_type": "residual" if ncsnpp else "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 2 if ncsnpp else 1,
        "resample_filter": [*network.own_sizes.get("resample_filter", (1, 1))],
    }
    said = pickled.inner_arguments | pickled.arguments
    for key, value in seen.items():
        if said.get(key, value) != value:
            raise Refusal(
                f"says {key} = {shown(said[key])} in its constructor arguments, but its tensors "
                f"are those of {value}"
            )
    _check_attention(said.get("attn_resolutions"), identified)
    dropout = said.get("dropout")
    if dropout is None:
        return None
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise Refusal(f"says dropout = {shown(dropout)} in its constructor arguments")
    return float(dropout)


def _check_attention(said: object, identified: Identified) -> None:
    network = identified.network
    if not isinstance(said, list):
        return
    widths = {
        identified.resolution >> level: network.model_channels * mult
        for level, mult in enumerate(network.channel_mult)
    }
    # EDM's ADM has heads of 64 channels, so narrower levels have none, whatever the list says.
    least = 64 if network.architecture == "adm" else 1
    expected = {side for side in widths if side in said and widths[side] >= least}
    if expected != set(network.attn_resolutions):
        raise Refusal(
            f"says attn_resolutions = {shown(said)} in its constructor arguments, but its tensors "
            f"attend at {sorted(network.attn_resolutions, reverse=True)}"
        )
