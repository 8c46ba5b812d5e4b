"""DINOv2 (Oquab et al., 2023), for FD-DINOv2 (Stein et al., 2023): the class token, normalised.

The file is the one that the authors publish, of tensors alone; the network is timm's vision
transformer. A file was trained at 518 pixels, 37 × 37 patches; the positions of another side are
interpolated as the authors' code does it, bicubic with a scale of (patches + 0.1) / 37, since the
features that are published as FD-DINOv2 were made so. Input is normalised by ImageNet's mean and
deviation.
"""

import math
import pickle
import re
from typing import Any

import torch
import torch.nn.functional as F

from ctm_core.config.protocols import Protocol
from ctm_core.models import torchvision_shim
from ctm_core.models.features._extractor import FeatureExtractor
from ctm_core.models.features._files import checked_file
from ctm_core.runtime import cuda, extras
from ctm_core.runtime.errors import UserError

ASSETS = {"dinov2_vitl14": "dinov2-vitl14"}
HEAD_CHANNELS = 64
BATCH_SIZE = 32
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
#: What reading a file of something else raises.
DAMAGED = (
    KeyError, ValueError, RuntimeError, AttributeError, TypeError, OSError, EOFError,
    pickle.UnpicklingError,
)  # fmt: skip


def weights_sha256(features: str) -> str:
    """SHA-256 of the weights file, checked against the known one."""
    return checked_file(ASSETS[features])[1]


def positions(embedding: torch.Tensor, side: int) -> torch.Tensor:
    """Position embedding for ``side`` × ``side`` patches: (1, 1 + n², D) to (1, 1 + side², D).

    The first row is the class token's, the others are a square of patches.
    """
    count = math.isqrt(embedding.shape[1] - 1)
    if count == side:
        return embedding
    grid = embedding[:, 1:].reshape(1, count, count, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / count
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([embedding[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _network(state: dict[str, torch.Tensor], input_size: int) -> tuple[Any, int]:
    """The network of a file's tensors, and its dimensions; KeyError or RuntimeError if none."""
    transformer = extras.load("timm.models.vision_transformer").VisionTransformer
    dim, _, patch, _ = state["patch_embed.proj.weight"].shape
    depth = 1 + max(int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", k) for k in state) if m)
    network = transformer(
        img_size=input_size,
        patch_size=patch,
        num_classes=0,
        global_pool="token",
        embed_dim=dim,
        depth=depth,
        num_heads=max(dim // HEAD_CHANNELS, 1),
        init_values=1e-5,
    )
    fitting = {name: value for name, value in state.items() if name != "mask_token"}
    fitting["pos_embed"] = positions(state["pos_embed"], input_size // patch)
    network.load_state_dict(fitting, strict=True)
    return network.eval().requires_grad_(False), dim


def build(protocol: Protocol) -> FeatureExtractor:
    """The extractor; raises UserError if its file is missing or not the known one."""
    path, digest = checked_file(ASSETS[protocol.features])
    torchvision_shim.apply()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network, dim = _network(state, protocol.input_size)
    except DAMAGED as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds no weights of DINOv2 ({problem})") from None
    dtype = torch.bfloat16 if protocol.precision == "bf16" else torch.float32
    device = cuda.device()
    cuda.check_precision(protocol.precision, device)
    network = network.to(device=device, dtype=dtype)
    mean, deviation = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, DEVIATION)
    )

    def features(levels: torch.Tensor) -> torch.Tensor:
        token: torch.Tensor = network(((levels / 255 - mean) / deviation).to(dtype))
        return token

    return FeatureExtractor(
        dim=dim,
        weights_sha256=digest,
        network=features,
        protocol=protocol,
        batch_size=BATCH_SIZE,
        device=device,
    )
