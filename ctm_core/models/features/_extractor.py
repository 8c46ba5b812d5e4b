"""A feature extractor: uint8 images in, float32 features out."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ctm_core.config.protocols import Protocol
from ctm_core.runtime.errors import UserError

Network = Callable[[torch.Tensor], torch.Tensor]


class Further(NamedTuple):
    """An output beside the features."""

    dim: int
    of: Literal["features", "levels"]  #: what ``network`` takes
    network: Network


@dataclass(eq=False, kw_only=True)
class FeatureExtractor:
    """A network with the resizing and batching of its protocol.

    Batches have one fixed size, the last one padded, so that a sample's features are the same bits
    however many images are scored with it.
    """

    protocol: Protocol  #: gives input_size S, resizing, and the features' name
    dim: int
    weights_sha256: str
    network: Network  #: float32 levels 0 … 255 (batch, C, S, S) to features (batch, dim)
    batch_size: int
    channels: int = 3  #: what the network takes; one channel is repeated where it takes three
    further: Mapping[str, Further] = field(default_factory=dict)  #: other outputs, by name
    absent: Mapping[str, str] = field(default_factory=dict)  #: those it lacks, and why
    device: torch.device | str = "cpu"  #: where the network is

    @property
    def name(self) -> str:
        """The protocol's name for the features."""
        return self.protocol.features

    @property
    def outputs(self) -> dict[str, int]:
        """Names and dimensions of what :meth:`extract` gives per image: ``features`` at least.

        ``probabilities`` are of the network's classes and sum to one; ``spatial`` are activations
        at positions, flattened.
        """
        return {"features": self.dim} | {name: f.dim for name, f in self.further.items()}

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        size, mode = self.protocol.input_size, self.protocol.resize
        if mode == "clean":
            return clean_resize(images, size, self.channels).to(self.device)
        levels = images.to(device=self.device, dtype=torch.float32)
        if mode in ("bilinear", "bicubic") and levels.shape[-1] != size:
            levels = F.interpolate(
                levels, size=(size, size), mode=mode, align_corners=False, antialias=True
            ).clamp_(0.0, 255.0)
        if self.channels == 3 and levels.shape[1] == 1:
            levels = levels.expand(-1, 3, -1, -1)
        return levels

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of shape (N, dim), float32, on the CPU; raises as :meth:`extract`."""
        return self.extract(images, ["features"])["features"]

    @torch.no_grad()
    def extract(self, images: torch.Tensor, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Outputs (keys of :attr:`outputs`) of uint8 images (N, C, S, S), float32 on the CPU.

        Raises UserError if the network lacks an output, or size or channels are not what protocol
        and network take.
        """
        wanted = list(dict.fromkeys(names))
        self._check(images, wanted)
        sizes = self.outputs
        outputs = {name: torch.empty(len(images), sizes[name]) for name in wanted}
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            count = len(batch)
            if count < self.batch_size:
                filler = batch.new_zeros((self.batch_size - count, *batch.shape[1:]))
                batch = torch.cat([batch, filler])
            for name, values in self._outputs(self._prepare(batch), wanted).items():
                outputs[name][start : start + count] = values[:count].float().cpu()
        return outputs

    def _outputs(self, levels: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
        outputs = {}
        chosen = {name: self.further[name] for name in names if name != "features"}
        if "features" in names or any(f.of == "features" for f in chosen.values()):
            outputs["features"] = self.network(levels)
        for name, further in chosen.items():
            source = levels if further.of == "levels" else outputs["features"]
            outputs[name] = further.network(source)
        return {name: outputs[name] for name in names}

    def _check(self, images: torch.Tensor, names: list[str]) -> None:
        for name in names:
            if name not in self.outputs:
                why = self.absent.get(name, "this network does not give them")
                raise UserError(
                    f"the protocol {self.protocol.name} needs {name} of {self.name}: {why}; leave "
                    "out the metric that needs them"
                )
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"expected uint8 (N, C, H, W), got {images.dtype} {images.shape}")
        channels, side = int(images.shape[1]), int(images.shape[3])
        if channels != self.channels and (channels, self.channels) != (1, 3):
            raise UserError(
                f"{self.name} takes {self.channels} channels, but the images have {channels}"
            )
        if self.protocol.resize in ("none", "inside") and side != self.protocol.input_size:
            raise UserError(
                f"the protocol {self.protocol.name} feeds {self.protocol.input_size} pixels "
                f"without resizing, but the images have {side}; correct resize or input_size"
            )


def clean_resize(images: torch.Tensor, size: int, channels: int = 3) -> torch.Tensor:
    """clean-fid's resizing (Parmar et al., 2022): PIL's bicubic filter, the result not quantised.

    The filter is linear and works along columns and rows alike, so it is two matrix products for a
    whole batch: equal to PIL's, channel by channel, up to float32 rounding. Takes uint8
    (N, C, H, W), C of 1 or 3, to levels 0 … 255, float32 (N, channels, size, size).
    """
    height, width = images.shape[-2:]
    made = _filter(height, size) @ (images.float() @ _filter(width, size).T)
    return made.clamp_(0.0, 255.0).expand(-1, channels, -1, -1)


@cache
def _filter(side: int, size: int) -> torch.Tensor:
    """PIL's bicubic weights (size, side): what it makes of the unit vectors."""
    unit = Image.fromarray(np.eye(side, dtype=np.float32))
    return torch.from_numpy(np.array(unit.resize((side, size), Image.Resampling.BICUBIC)))
