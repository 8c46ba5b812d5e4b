r"""InceptionV3 of 2015-12-05, the network of FID (Heusel et al., 2017), from its file.

Features are the 2,048 pooled activations. Two ways of enlarging images to 299 pixels, ``resize``
of the protocol, give two different FIDs:

``inside``
    the file's own, TensorFlow's first bilinear one: output pixel j is read at position
    :math:`j \cdot W / 299` of the image, without antialiasing. This is what the numbers of EDM,
    ADM and CTM are made with.
``clean``
    clean-fid's (Parmar et al., 2022).

Probabilities, for the inception score, are the softmax over 1,008 outputs without their bias, as
in the original; spatial activations, for sFID, the first 7 channels of the first branch of
``mixed_6``, 7 · 17 · 17 = 2,023 numbers (Nash et al., 2021). Both need the file to name these
layers, as the known one does.

A TorchScript file runs code when it is loaded. It is loaded only after its SHA-256 was compared
with that in config/assets.yaml.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F

from ctm_core.config.protocols import Protocol
from ctm_core.models import torchvision_shim
from ctm_core.models.features._extractor import FeatureExtractor, Further
from ctm_core.models.features._files import checked_file
from ctm_core.runtime import cuda, extras
from ctm_core.runtime.errors import UserError

ASSETS = {"inception": "inception"}
FILE = "inception-2015-12-05.pt"  # the name that clean-fid looks for
DIM = 2048
SIDE = 299
SPATIAL_CHANNELS = 7
BATCH_SIZE = 64


def weights_sha256(features: str) -> str:
    """SHA-256 of the file, checked against the known one."""
    return checked_file(ASSETS["inception"])[1]


def enlarge(levels: torch.Tensor) -> torch.Tensor:
    """The file's own resizing: levels (B, 3, H, W) to (B, 3, 299, 299).

    Position j · W / 299, in pixel indices, is (2 j + 1) / 299 - 1 + 1 / W - 1 / 299 in the
    coordinates of ``grid_sample``; beyond the last pixel that one is repeated.
    """
    height, width = levels.shape[-2:]
    theta = torch.eye(2, 3, dtype=levels.dtype, device=levels.device)
    theta[0, 2], theta[1, 2] = 1 / width - 1 / SIDE, 1 / height - 1 / SIDE
    grid = F.affine_grid(
        theta.expand(len(levels), 2, 3), [len(levels), 3, SIDE, SIDE], align_corners=False
    )
    return F.grid_sample(levels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def build(protocol: Protocol) -> FeatureExtractor:
    """The extractor; raises UserError if its file is missing or not the known one."""
    path, digest = checked_file(ASSETS["inception"])
    if path.name != FILE:
        raise UserError(f"{path} must be named {FILE}: correct `file` of inception in assets.yaml")
    inside = protocol.resize == "inside"
    device = cuda.device()
    torchvision_shim.apply()
    load = extras.load("cleanfid.inception_torchscript").InceptionV3W
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that TorchScript will be replaced
        try:
            network: Any = load(str(path.parent), download=False, resize_inside=inside)
        except (RuntimeError, AttributeError) as error:
            problem = str(error).strip().splitlines()[0]
            raise UserError(f"{path} holds no InceptionV3 as TorchScript ({problem})") from None
    network = network.eval().requires_grad_(False).to(device)
    further, absent = _further(network, inside)
    return FeatureExtractor(
        dim=DIM,
        weights_sha256=digest,
        network=network,
        protocol=protocol,
        batch_size=BATCH_SIZE,
        further=further,
        absent=absent,
        device=device,
    )


def _further(network: Any, inside: bool) -> tuple[dict[str, Further], dict[str, str]]:
    """What else the file gives, and what it does not."""
    further, absent = {}, {}
    output = getattr(network.base, "output", None)
    weight = getattr(output, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.ndim == 2 and weight.shape[1] == DIM:

        def probabilities(features: torch.Tensor) -> torch.Tensor:
            return (features @ weight.T).softmax(dim=1)

        further["probabilities"] = Further(len(weight), "features", probabilities)
    else:
        absent["probabilities"] = f"the file {FILE} does not show its last layer"
    children = dict(network.layers.named_children())
    branch = getattr(children.get("mixed_6"), "conv", None)
    if branch is None:
        absent["spatial"] = f"the file {FILE} does not show its layer mixed_6"
        return further, absent
    names = list(children)
    before = [children[name] for name in names[: names.index("mixed_6")]]

    def spatial(levels: torch.Tensor) -> torch.Tensor:
        x = ((enlarge(levels) if inside else levels) - 128) / 128
        for layer in (*before, branch):
            x = layer(x)
        return x[:, :SPATIAL_CHANNELS].flatten(start_dim=1)

    further["spatial"] = Further(SPATIAL_CHANNELS * 17 * 17, "levels", spatial)
    return further, absent
