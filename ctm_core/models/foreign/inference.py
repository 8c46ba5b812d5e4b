"""Sizes of a network from the names and shapes of its tensors, and the network of these sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from ctm_core import config
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import weight_file
from ctm_core.models.foreign.assumptions import Settled
from ctm_core.models.foreign.values import Refusal
from ctm_core.runtime.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
SectionT = TypeVar("SectionT", config.Network, config.Diffusion)

#: A number in a file's name that may be the side of its images.
SIDE = re.compile(r"(?<![\d.])(16|32|64|128|256|512|1024)(?!\d)")

#: Methods whose networks are variants of DDPM++, by the end of the architecture's name.
METHODS = {"imm": "IMM", "meanflow": "MeanFlow"}


@dataclass(frozen=True)
class Identified:
    """A network that a file holds."""

    kind: str  #: for people, e.g. ``EDM teacher (DDPM++)``
    origin: str  #: ``edm``, ``ctm-cifar10``, ``sony-ctm``, ``openai``, ``imm`` or ``meanflow``
    network: config.Network
    resolution: int
    channels: int
    label_dim: int
    time_s: bool
    names: dict[str, str]  #: the file's names of the tensors, by ours

    @property
    def sizes(self) -> dict[str, Any]:
        """What :func:`.networks.build` takes beside the network's section."""
        keys = ("resolution", "channels", "label_dim", "time_s")
        return {key: getattr(self, key) for key in keys}

    def build(self, diffusion: config.Diffusion | None = None) -> Trajectory:
        """The model without memory (on the meta device), to check names and assign tensors to."""
        try:
            with torch.device("meta"):
                return weight_file.build_model(
                    network=self.network, diffusion=diffusion or config.Diffusion(), **self.sizes
                )
        except UserError as error:
            raise Refusal(f"holds a network that cannot be built: {error}") from None


def _dim(shapes: Shapes, name: str, axis: int, rank: int) -> int:
    """One length of a tensor that must be there."""
    if name not in shapes:
        raise Refusal(f"lacks the tensor {name}")
    shape = shapes[name]
    if len(shape) != rank or 0 in shape:
        raise Refusal(f"holds {name} of the impossible shape {shape}")
    return shape[axis]


def _indices(shapes: Shapes, pattern: str) -> list[tuple[int, ...]]:
    """The numbers in names that match, sorted and once each."""
    matches = (re.fullmatch(pattern, name) for name in shapes)
    return sorted({tuple(map(int, match.groups())) for match in matches if match})


def _ratio(width: int, base: int, what: str) -> int:
    if width % base:
        raise Refusal(f"has {width} channels {what}, which is not a multiple of {base}")
    return width // base


def section(model: type[SectionT], **values: Any) -> SectionT:
    """A section of a configuration of these values; raises Refusal if there can be none."""
    try:
        return model.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        key = "".join(f"{part}: " for part in problem["loc"][:1])
        reason = problem["msg"].removeprefix("Value error, ")
        raise Refusal(f"holds a network that cannot be built: {key}{reason}") from None


def edm_form(shapes: Shapes, settled: Settled, *, pickled: bool) -> Identified:
    blocks = _indices(shapes, r"model\.enc\.(\d{1,5})x\d{1,5}_block(\d{1,5})\.conv0\.weight")
    sides = sorted({side for side, _ in blocks}, reverse=True)
    if not sides:
        raise Refusal("lacks the encoder blocks model.enc.…_block0 of EDM's networks")
    resolution = sides[0]
    if sides != [resolution >> level for level in range(len(sides))]:
        raise Refusal(f"has levels of sides {sides}, which do not halve")
    settled.value("resolution", resolution, None, "")
    if settled.hints.num_head_channels is not None:
        raise Refusal("has EDM's form, whose heads are known; leave out --head-channels")
    adm = "model.out_conv.weight" in shapes
    ncsnpp = any(name.endswith("_aux_residual.weight") for name in shapes)
    first = f"model.enc.{resolution}x{resolution}_conv.weight"
    embedding = "model.map_layer0.weight"
    model_channels = _dim(shapes, embedding, 1, 2) if adm else _dim(shapes, first, 0, 4)
    mults = []
    for side in sides:
        width = _dim(shapes, f"model.enc.{side}x{side}_block0.conv0.weight", 0, 4)
        mults.append(_ratio(width, model_channels, f"at side {side}"))
    emb = _ratio(_dim(shapes, embedding, 0, 2), model_channels, "in its embedding")
    time_s = any(name.startswith("model.map_layer0_s.") for name in shapes)
    in_blocks = any(name.endswith(".affine_s.weight") for name in shapes)
    both_times = not adm and _dim(shapes, embedding, 1, 2) == 4 * model_channels
    attending = [s for s in sides if f"model.enc.{s}x{s}_block0.qkv.weight" in shapes]
    architecture = "adm" if adm else "ncsnpp" if ncsnpp else "ddpmpp"
    if both_times:  # of t and t - r, side by side in the embedding
        architecture, time_s = "ddpmpp_meanflow", True
    elif time_s and not in_blocks:
        architecture = "ddpmpp_imm"
    method = architecture.partition("_")[2]
    network = section(
        config.Network,
        architecture=architecture,
        model_channels=model_channels,
        channel_mult=tuple(mults),
        num_blocks=1 + max(index for _, index in blocks),
        attn_resolutions=tuple(attending),
        channel_mult_emb=None if emb == 4 else emb,
        augment_dim=_optional_dim(shapes, "model.map_augment.weight"),
    )
    title = {"adm": "ADM", "ncsnpp": "NCSN++"}.get(architecture, "DDPM++")
    own = f"{METHODS[method]} model" if method else "CTM student" if time_s else "EDM teacher"
    # Students have no augmentation map: without labels it adds nothing.
    kept = [name for name in shapes if not (method and name == "model.map_augment.weight")]
    return Identified(
        kind=f"{own} ({title})",
        origin=method or ("edm" if pickled else "ctm-cifar10"),
        network=network,
        resolution=resolution,
        channels=_dim(shapes, first, 1, 4),
        label_dim=_optional_dim(shapes, "model.map_label.weight") or 0,
        time_s=time_s,
        names={name: name for name in kept},
    )


def _optional_dim(shapes: Shapes, name: str) -> int | None:
    return _dim(shapes, name, 1, 2) if name in shapes else None


def openai_form(shapes: Shapes, settled: Settled, *, name: str) -> Identified:
    if not any(name.startswith("output_blocks.") for name in shapes):
        raise Refusal("has no output_blocks: it is a classifier, not a network that samples")
    if any(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name) for name in shapes):
        raise Refusal("shrinks images by a plain convolution; only resblock_updown is known here")
    model_channels = _dim(shapes, "time_embed.0.weight", 1, 2)
    inputs = _indices(shapes, r"input_blocks\.(\d{1,5})\.0\.in_layers\.2\.weight")
    ups = _indices(shapes, r"output_blocks\.(\d{1,5})\.[12]\.in_layers\.2\.weight")
    # With n blocks per level, L levels have L (n + 1) - 1 residual blocks in the encoder.
    levels = len(ups) + 1
    total = len(inputs) + 1
    if total % levels or total // levels < 2:
        raise Refusal(f"has {len(inputs)} encoder blocks, which do not make {levels} equal levels")
    num_blocks = total // levels - 1
    resolution = _openai_side(levels, settled, name)
    mults, levels_attending = [], []
    for level in range(levels):
        index = 1 + level * (num_blocks + 1)
        width = _dim(shapes, f"input_blocks.{index}.0.out_layers.3.weight", 0, 4)
        mults.append(_ratio(width, model_channels, f"at level {level}"))
        if f"input_blocks.{index}.1.qkv.weight" in shapes:
            levels_attending.append(level)
    time_s = any(name.startswith("time_embed_s.") for name in shapes)
    per_head = settled.value("num_head_channels", None, 64, "as in OpenAI's networks")
    attending = [mults[-1], *(mults[level] for level in levels_attending)]
    for mult in attending:  # the middle always attends
        if mult * model_channels % per_head:
            raise Refusal(
                f"attends over {mult * model_channels} channels, which heads of {per_head} do not "
                "divide; give the width of its heads with --head-channels"
            )
    network = section(
        config.Network,
        architecture="openai_adm",
        model_channels=model_channels,
        channel_mult=tuple(mults),
        num_blocks=num_blocks,
        attn_resolutions=tuple(resolution >> level for level in levels_attending),
        num_head_channels=settled.hints.num_head_channels,
    )
    return Identified(
        kind="CTM student (OpenAI's ADM)" if time_s else "EDM teacher (OpenAI's ADM)",
        origin="sony-ctm" if time_s else "openai",
        network=network,
        resolution=resolution,
        channels=_dim(shapes, "input_blocks.0.0.weight", 1, 4),
        label_dim=_dim(shapes, "label_emb.weight", 0, 2) if "label_emb.weight" in shapes else 0,
        time_s=time_s,
        names={f"model.{name}": name for name in shapes},
    )


def _openai_side(levels: int, settled: Settled, name: str) -> int:
    """The side of the images, which no tensor tells; raises Refusal if the evidence differs."""
    named = {int(side) for side in SIDE.findall(name)}
    # OpenAI's networks of 64 to 512 pixels, of 4 to 7 levels, all end at 8x8.
    sides = named | ({8 << (levels - 1)} if 4 <= levels <= 8 else set())
    if len(sides) > 1 and settled.hints.resolution is None:
        raise Refusal(
            f"may be for images of {' or '.join(map(str, sorted(sides)))} pixels by its name and "
            f"its {levels} levels; give the side with --resolution"
        )
    reason = (
        f"as in OpenAI's networks of {levels} levels" if sides else "as in OpenAI's for ImageNet"
    )
    reason = "from the file's name" if named else reason
    side: int = settled.value("resolution", None, min(sides or {64}), reason)
    return side
