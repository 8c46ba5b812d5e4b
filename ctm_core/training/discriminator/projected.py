"""The discriminator: for each feature network a branch of projections and heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ctm_core import config
from ctm_core.config.gan import down_blocks
from ctm_core.runtime.errors import UserError
from ctm_core.training.discriminator import diffaugment
from ctm_core.training.discriminator.backbones import Backbone, build_backbone
from ctm_core.training.discriminator.diffaugment import DiffAugment
from ctm_core.training.discriminator.heads import BatchNorm, heads
from ctm_core.training.discriminator.projected_layers import initialise
from ctm_core.training.discriminator.projection import Projection

__all__ = ["Branch", "Discriminator", "build_discriminator"]


class Branch(nn.Module):
    """One feature network, its projections, and its four heads.

    Parameters
    ----------
    backbone
        The frozen network.
    resolution
        Side of its input.
    width
        Channels of the finest map; the others have 1, 2 and 4 times as many.
    batch_norm
        ``local`` or ``global`` statistics in the heads.
    """

    def __init__(
        self, backbone: Backbone, *, resolution: int, width: int, batch_norm: BatchNorm
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.backbone = backbone
        self.projection = Projection(backbone.channels, width)
        channels = self.projection.channels
        self.mini_discs = heads(channels, down_blocks(resolution), width, batch_norm)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Projected features, finest first, of images (B, 1 or 3, H, W) in about [-1, 1]."""
        pyramid: list[Tensor] = self.projection(self.backbone(images, self.resolution))
        return pyramid

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, n) of all heads, finest map first, in float32 at least."""
        maps = zip(self.mini_discs.values(), self.pyramid(images), strict=True)
        logits = torch.cat([head(x).flatten(1) for head, x in maps], dim=1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Discriminator(nn.Module):
    """Logits of images by one or several branches, which are submodules by their networks' names.

    What trains are the heads alone (``<backbone>.mini_discs.…``); frozen random layers
    (``<backbone>.projection.…``, ``<backbone>.backbone.…``) belong to the state beside them.
    Starting values depend on ``seed`` and on nothing else.

    Parameters
    ----------
    backbones
        At least one, no two of one name.
    resolution
        Side of the networks' input: see :func:`ctm_core.config.gan.down_blocks`.
    width, batch_norm
        See :class:`Branch`.
    seed
        The run's seed.

    Raises
    ------
    ValueError
        For any other resolution.
    """

    def __init__(
        self,
        backbones: Iterable[Backbone],
        *,
        resolution: int = 224,
        width: int = 64,
        batch_norm: BatchNorm = "local",
        seed: int,
    ) -> None:
        super().__init__()
        self.names: list[str] = []
        for backbone in backbones:
            branch = Branch(backbone, resolution=resolution, width=width, batch_norm=batch_norm)
            self.add_module(backbone.name, branch)
            self.names.append(backbone.name)
        initialise(self, seed, "discriminator")

    def branches(self) -> list[Branch]:
        """The branches, in order."""
        return [branch for branch in self.children() if isinstance(branch, Branch)]

    def forward(
        self, images: Tensor, augmentations: Mapping[str, DiffAugment] | None = None
    ) -> Tensor:
        """Logits of images, differentiable with respect to them.

        Parameters
        ----------
        images : Tensor, shape (B, 1 or 3, H, W), floating, in about [-1, 1]
            Grey images are repeated to three channels.
        augmentations
            Parameters for each backbone by name, from :meth:`draw`; None augments nothing.

        Returns
        -------
        Tensor, shape (B, total), float32 or float64
            The branches in order; 64 per branch at 224.

        Raises
        ------
        UserError
            If the images have another number of channels.
        """
        if images.shape[1] not in (1, 3):
            raise UserError(
                f"the discriminator takes images of 1 or 3 channels, not {images.shape[1]}"
            )
        logits = []
        for name, branch in zip(self.names, self.branches(), strict=True):
            x = images
            if augmentations is not None:
                x = diffaugment.diffaugment(x, augmentations[name])
            logits.append(branch(x))
        return torch.cat(logits, dim=1)

    def draw(
        self, uniform: Callable[[str], Tensor], size: tuple[int, int], stream: str
    ) -> dict[str, DiffAugment]:
        """Parameters of DiffAugment, drawn for each backbone, as :meth:`forward` takes them.

        Parameters
        ----------
        uniform, size, stream
            As in :func:`ctm_core.training.discriminator.diffaugment.draw`; real and generated
            images share their draws if they share the stream.
        """
        return {name: diffaugment.draw(uniform, size, f"{stream}/{name}") for name in self.names}

    def trained(self) -> list[nn.Parameter]:
        """The heads' parameters, also while a generator step freezes them."""
        return [p for branch in self.branches() for p in branch.mini_discs.parameters()]

    def load_heads(self, state: Mapping[str, Tensor]) -> None:
        """Load the heads alone, as the published ``d_model*.pt`` files hold them.

        Raises
        ------
        UserError
            If tensors are missing, foreign or of another shape; the first is named.
        """
        own = {name: value for name, value in self.state_dict().items() if ".mini_discs." in name}
        for problem, names in (
            ("lacks", own.keys() - state.keys()),
            ("has the foreign tensor", state.keys() - own.keys()),
            (
                "has another shape of",
                {n for n in own.keys() & state.keys() if own[n].shape != state[n].shape},
            ),
        ):
            if names:
                raise UserError(f"the discriminator's state {problem} {min(names)}")
        # Names and shapes were compared above; only what is not a head is missing.
        self.load_state_dict(state, strict=False)

    def weights_sha256(self) -> dict[str, str | None]:
        """Hash of each backbone's weight file by name; None for random ones."""
        return {
            name: branch.backbone.weights_sha256
            for name, branch in zip(self.names, self.branches(), strict=True)
        }


def build_discriminator(
    section: config.Discriminator, seed: int, *, pretrained: bool = True
) -> Discriminator:
    """The discriminator of a config, on the CPU in float32.

    Parameters
    ----------
    seed
        The run's seed: projections and heads are drawn from it.
    pretrained
        False gives the feature networks random weights: for tests and for measuring time alone.

    Raises
    ------
    UserError
        If a feature network's weights are missing or wrong.
    """
    backbones: Sequence[Backbone] = [
        build_backbone(name, section.resolution, pretrained=pretrained)
        for name in section.backbones
    ]
    return Discriminator(
        backbones,
        resolution=section.resolution,
        width=section.width,
        batch_norm=section.batch_norm,
        seed=seed,
    )
