"""The interface of a feature extractor, and what every one of them does to its input."""

from collections.abc import Callable
from typing import Protocol as Interface

import torch
import torch.nn.functional as F

from ctm_core.errors import UserError
from ctm_core.protocols import Protocol

__all__ = ["Extractor", "FeatureExtractor"]


class FeatureExtractor(Interface):
    """uint8 images in, float32 features out."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def weights_sha256(self) -> str: ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of shape (N, dim), float32, on the CPU, of uint8 images (N, C, H, W)."""
        ...


class Extractor:
    """A network with the resizing and batching of its protocol.

    Batches have one fixed size, the last one padded, so that a sample's features are the same bits
    however many images are scored with it.

    Parameters
    ----------
    name, dim, weights_sha256
        As in :class:`FeatureExtractor`.
    network
        Maps float32 levels 0 … 255 of shape (batch, C, S, S) to features (batch, dim).
    protocol
        Gives input_size S and resizing.
    channels
        What the network takes; one-channel images are repeated where it takes three.
    batch_size
        Images a forward pass.
    """

    def __init__(
        self,
        *,
        name: str,
        dim: int,
        weights_sha256: str,
        network: Callable[[torch.Tensor], torch.Tensor],
        protocol: Protocol,
        channels: int,
        batch_size: int,
    ) -> None:
        self.name = name
        self.dim = dim
        self.weights_sha256 = weights_sha256
        self.network = network
        self.protocol = protocol
        self.channels = channels
        self.batch_size = batch_size

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        size, mode = self.protocol.input_size, self.protocol.resize
        levels = images.to(torch.float32)
        if mode != "none" and levels.shape[-1] != size:
            levels = F.interpolate(
                levels, size=(size, size), mode=mode, align_corners=False, antialias=True
            ).clamp_(0.0, 255.0)
        if self.channels == 3 and levels.shape[1] == 1:
            levels = levels.expand(-1, 3, -1, -1)
        return levels

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of shape (N, dim), float32, on the CPU.

        Parameters
        ----------
        images
            uint8 of shape (N, C, H, W), H = W.

        Raises
        ------
        UserError
            If size or channels are not what protocol and network take.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"expected uint8 (N, C, H, W), got {images.dtype} {images.shape}")
        channels, side = int(images.shape[1]), int(images.shape[3])
        if channels != self.channels and (channels, self.channels) != (1, 3):
            raise UserError(
                f"{self.name} takes {self.channels} channels, but the images have {channels}"
            )
        if self.protocol.resize == "none" and side != self.protocol.input_size:
            raise UserError(
                f"the protocol {self.protocol.name} feeds {self.protocol.input_size} pixels "
                f"without resizing, but the images have {side}; correct resize or input_size"
            )
        features = torch.empty(len(images), self.dim, dtype=torch.float32)
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            count = len(batch)
            if count < self.batch_size:
                filler = batch.new_zeros((self.batch_size - count, *batch.shape[1:]))
                batch = torch.cat([batch, filler])
            features[start : start + count] = self.network(self._prepare(batch))[:count].float()
        return features
