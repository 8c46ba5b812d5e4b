"""The benchmark sizes, with random weights, and the trainer's own step on them.

``cifar10``
    The paper's CIFAR-10: DDPM++ of 55.7 million parameters, LPIPS on VGG16 at 224, batch 4.
``tiny``
    16 x 16 images, 32 channels, multipliers 1 and 2, one block, l2, batch 64.
``imagenet64``
    The paper's ImageNet network of 324 million parameters without classes, LPIPS at 224, batch 2.

All take three Heun steps. Dropout is off, so that two variants of a step can be compared
number by number. Weights are random, since they do not affect the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ctm_core import config
from ctm_core.diffusion import schedule
from ctm_core.models import weight_file
from ctm_core.training import acceleration, compilation, distances, ema
from ctm_core.training.adversary import Adversary
from ctm_core.training.discriminator import Discriminator
from ctm_core.training.distances._vgg import VGG16_STAGES
from ctm_core.training.distances.lpips_vgg import LpipsVgg
from ctm_core.training.loop import Trainer
from ctm_core.training.objectives.ctm import CtmObjective, Draw

HEUN_STEPS = 3
DECAY = 0.999


@dataclass(frozen=True)
class Size:
    """The settings of one size."""

    network: dict[str, Any]
    resolution: int
    batch: int
    distance: str
    sampled: int  # images of one sampling batch


SIZES = {
    "cifar10": Size({}, 32, 4, "lpips_vgg", 2),  # the network section's defaults are this network
    "tiny": Size(
        {"model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (8,)},
        resolution=16,
        batch=64,
        distance="l2",
        sampled=64,
    ),
    "imagenet64": Size(
        {
            "architecture": "openai_adm",
            "model_channels": 192,
            "channel_mult": (1, 2, 3, 4),
            "num_blocks": 3,
            "attn_resolutions": (32, 16, 8),
            "dropout": 0.0,
        },
        resolution=64,
        batch=2,
        distance="lpips_vgg",
        sampled=2,
    ),
}


class Images:
    """A data set of noise with the interface that the trainer expects."""

    flip = False
    classes = 0
    channels = 3

    def __init__(self, resolution: int, count: int = 256) -> None:
        self.resolution = resolution
        generator = torch.Generator().manual_seed(0)
        shape = (count, self.channels, resolution, resolution)
        self.images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels by index."""
        return self.images[indices], torch.zeros(len(indices), dtype=torch.int64)


class FixedSteps(CtmObjective):
    """CTM with k = 3 in every step."""

    def draw(self, batch: Any) -> Draw:
        """As in CTM, except for k."""
        t, s = batch.uniform("t"), batch.uniform("s")
        i, j = schedule.indices_from_uniforms(t, s, HEUN_STEPS, self.section.grid_points)
        return Draw(HEUN_STEPS, i, j)


def network(size: Size, *, time_s: bool) -> Any:
    """A model of this size; zero-initialised layers get noise, so that gradients do not vanish."""
    torch.manual_seed(int(time_s))
    model = weight_file.build_model(
        network=config.Network(**size.network),
        diffusion=config.Diffusion(),
        resolution=size.resolution,
        channels=Images.channels,
        label_dim=0,
        time_s=time_s,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.01)
    return model


def lpips(resize: int) -> LpipsVgg:
    """LPIPS at full size with random weights."""
    torch.manual_seed(2)
    convolutions, incoming = [], 3
    for width, count in VGG16_STAGES:
        for _ in range(count):
            scale = (2 / (9 * incoming)) ** 0.5
            convolutions.append((scale * torch.randn(width, incoming, 3, 3), torch.zeros(width)))
            incoming = width
    distance = LpipsVgg(resize)
    distance.fill(convolutions, [torch.rand(width) / width for width, _ in VGG16_STAGES])
    return distance


def trainer(
    name: str,
    *,
    objective: Callable[..., CtmObjective] = FixedSteps,
    adversarial: bool = False,
    device: str = "cpu",
    batch: int | None = None,
    **training: Any,
) -> Trainer:
    """The trainer at one size; ``training`` holds keys of the section of that name.

    ``batch`` is another batch size than the size's own.
    """
    size = SIZES[name]
    options: dict[str, Any] = {"distance": size.distance}
    if size.distance == "lpips_vgg":
        options["perceptual"] = {"resize": 224}
    if adversarial:
        small = {"backbones": ["tiny"], "resolution": 64, "width": 8}
        options["adversarial"] = {"discriminator": small} if name == "tiny" else {}
    section = config.Student(
        max_heun_steps=HEUN_STEPS,
        training={"steps": 1000, "batch_size": batch or size.batch, "ema": (DECAY,), **training},
        **options,
    )
    student = network(size, time_s=True).to(device).train()
    teacher = network(size, time_s=False).to(device).eval().requires_grad_(False)
    target = ema.frozen_copy(student).train()
    distance = lpips(224) if size.distance == "lpips_vgg" else distances.build_distance("l2")
    distance.to(device)
    adversary = None
    if section.adversarial is not None:
        torch.manual_seed(3)
        judge = Discriminator(section.adversarial.discriminator, 0, pretrained=False)
        judge.to(device)
        kernel = section.training.kernel
        adversary = Adversary(judge, section.adversarial, section.adversarial_loss, kernel)
    made = objective(
        section=section,
        diffusion=config.Diffusion(),
        student=student,
        target=target,
        teacher=teacher,
        distance=distance,
        adversary=adversary,
    )
    acceleration.apply(section.training, [student, target], made.frozen())
    if section.training.compile:
        compilation.apply(section.training.compile_mode, made)
    return Trainer(
        title=name,
        section=section.training,
        objective=made,
        student=student,
        averages={DECAY: target},
        dataset=Images(size.resolution),
        labels=False,
        seed=0,
        run=None,
        device=torch.device(device),
    )
