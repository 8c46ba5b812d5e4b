"""What each network costs per image: operations, weights, and activations kept for the backward.

Networks are built on torch's meta device, where nothing is stored or computed, and run once under
torch's own counter (:class:`torch.utils.flop_counter.FlopCounterMode`): a multiplication and an
addition are two operations, and only those of matrix products, convolutions and attention count.
The gradient of a product to one of its factors is a product of the same size, so a pass costs
twice as much with the gradient to its input, and three times with that to its weights too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ctm_core.config import Diffusion, Discriminator, Network, Perceptual
from ctm_core.models import torchvision_shim, weight_file
from ctm_core.models.features import classifier, efficientnet_lite0, inception
from ctm_core.runtime import extras
from ctm_core.training import distances
from ctm_core.training.objective import Mode

if TYPE_CHECKING:
    from ctm_core.config.protocols import Protocol

#: By the names of protocols: networks of the same layers in timm, whose weights are not read, and
#: the dimensions of their features.
SIMILAR = {
    "dinov2_vitl14": ("vit_large_patch14_dinov2", 1024),
    "efficientnet_lite0": ("tf_efficientnet_lite0", efficientnet_lite0.DIM),
    "inception": ("inception_v3", inception.DIM),
}
INCEPTION_SIDE = 299
#: What F and its derivative along a path cost, in forward passes: CPU seconds of a DDPM++ of width
#: 64 on one thread, by ``benchmarks/bench.py --parts tangents``. Their products are two passes.
TANGENT = 3.7


@dataclass(frozen=True)
class Cost:
    """A network's cost."""

    operations: Mapping[Mode, float]  #: per image, by what follows the forward pass
    parameters: int
    trained: int  #: parameters that learn
    activation_bytes: float  #: float32 activations per image that the backward pass needs


def measured(network: nn.Module, run: Callable[[Tensor], Tensor], image: Tensor) -> Cost:
    """Count a network on the meta device; its weights that require gradient are those that learn.

    ``run`` is its call on ``image``, a meta batch: of two images or more where norms need several.
    """
    parameters = list(network.parameters())
    trained = [p for p in parameters if p.requires_grad]
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        FlopCounterMode(display=False) as counter,
    ):
        out = run(image)
        forward = float(counter.get_total_flops())
        train = 3 * forward if trained else forward
        if 0 < len(trained) < len(parameters):
            # Where a part learns, only what leads back to it is gone through.
            out.sum().backward()  # type: ignore[no-untyped-call]
            train = float(counter.get_total_flops())
    for parameter in trained:
        parameter.grad = None
    weights = {p.untyped_storage()._cdata for p in parameters}
    size = sum(x.untyped_storage().nbytes() for key, x in saved.items() if key not in weights)
    n = len(image)
    operations: dict[Mode, float] = {
        "forward": forward / n,
        "through": 2 * forward / n,
        "twice": 3 * forward / n,
        "train": train / n,
        "tangent": TANGENT * forward / n,
    }
    return Cost(
        operations, sum(p.numel() for p in parameters), sum(p.numel() for p in trained), size / n
    )


@cache
def denoiser(
    network: Network, diffusion: Diffusion, shape: tuple[int, int, int], classes: int, time_s: bool
) -> Cost:
    """The U-Net of an experiment: the teacher's, or with ``time_s`` a student's."""
    channels, side, _ = shape
    with torch.device("meta"):
        model = weight_file.build_model(
            network=network,
            diffusion=diffusion,
            resolution=side,
            channels=channels,
            label_dim=classes,
            time_s=time_s,
        ).train()
        labels = torch.zeros(1, classes) if classes else None
        level = torch.ones(1)
        target = torch.ones(1) if time_s else None
        image = torch.zeros(1, *shape)
        return measured(model, lambda x: model.raw(x, level, target, labels), image)


@cache
def perceptual(distance: str, section: Perceptual, shape: tuple[int, int, int]) -> Cost:
    """The network of a perceptual distance."""
    with torch.device("meta"):
        network = distances.find(distance).configured(section).requires_grad_(False)
        image = torch.zeros(1, *shape)

        def run(x: Tensor) -> Tensor:
            return torch.cat([features.flatten(1) for features in network.features(x)], 1)

        return measured(network, run, image)


@cache
def discriminator(section: Discriminator, shape: tuple[int, int, int]) -> Cost:
    """A discriminator: all its feature networks, projections, and the heads that learn."""
    from ctm_core.training import discriminator as networks

    with torch.device("meta"):
        network = networks.Discriminator(section, seed=0, pretrained=False)
        network.requires_grad_(False)
        for weight in network.trained():
            weight.requires_grad_(True)
        return measured(network, network, torch.zeros(2, *shape))


def features(protocol: Protocol, shape: tuple[int, int, int]) -> tuple[Cost, int] | None:
    """The feature network of a protocol and its dimensions; None for one that is not known."""
    side = INCEPTION_SIDE if protocol.features == "inception" else protocol.input_size
    return _features(protocol.features, side, shape[0])


@cache
def _features(name: str, side: int, channels: int) -> tuple[Cost, int] | None:
    if name.startswith("classifier_"):
        with torch.device("meta"):
            small = classifier.Classifier(side, channels, 10).requires_grad_(False)
            image = torch.zeros(1, channels, side, side)
            return measured(small, small.features, image), classifier.DIM
    if name not in SIMILAR:
        return None
    torchvision_shim.apply()
    timm = extras.load("timm")
    similar, dimensions = SIMILAR[name]
    size: dict[str, Any] = {"img_size": side} if name.startswith("dinov2") else {}
    with torch.device("meta"):
        network = timm.create_model(similar, pretrained=False, **size)
        network.eval().requires_grad_(False)
        image = torch.zeros(1, 3, side, side)
        return measured(network, network, image), dimensions
