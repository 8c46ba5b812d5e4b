"""The distance d of the consistency loss, one value a sample.

=================  ==============================================================================
name               d(a, b) for one sample of D elements
=================  ==============================================================================
``l2``             (1/D) Σ (a - b)²
``pseudo_huber``   √(Σ (a - b)² + c²) - c with c = 0.00054 √D (Song & Dhariwal 2023, section 3.3)
``lpips_vgg``      LPIPS on VGG16 (Zhang et al. 2018), as the paper has it, resized to 224
``stlpips_vgg``    shift-tolerant LPIPS on VGG16 (Ghildyal & Liu, ECCV 2022), pretrained
=================  ==============================================================================

``lpips_vgg`` needs VGG16's weights, a file of 528 MB that no Python package contains.
``stlpips_vgg`` needs none: it is the same construction with an anti-aliased trunk that was trained
anew, so its numbers are ST-LPIPS, not LPIPS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctm_core.data import assets
from ctm_core.training.perceptual.distance import Distance, PseudoHuber, SquaredError
from ctm_core.training.perceptual.lpips import LpipsVgg
from ctm_core.training.perceptual.stlpips import (
    STLPIPS_VGG_FILE,
    STLPIPS_VGG_SHA256,
    ShiftTolerantVgg,
    stlpips_weight_file,
)

if TYPE_CHECKING:
    from ctm_core import config

__all__ = [
    "STLPIPS_VGG_FILE",
    "STLPIPS_VGG_SHA256",
    "Distance",
    "LpipsVgg",
    "PseudoHuber",
    "ShiftTolerantVgg",
    "SquaredError",
    "build_distance",
    "stlpips_weight_file",
]


def build_distance(name: str, perceptual: config.Perceptual | None = None) -> Distance:
    """The distance a config names, its weights loaded and frozen, on the CPU in float32.

    Raises
    ------
    UserError
        If perceptual weights are missing or damaged; the sentence says where to get them.
    """
    if name == "l2":
        return SquaredError()
    if name == "pseudo_huber":
        return PseudoHuber()
    if name not in ("lpips_vgg", "stlpips_vgg") or perceptual is None:
        raise ValueError(f"config.Student lets no {name} pass without perceptual.resize")
    if name == "lpips_vgg":
        lpips = LpipsVgg(perceptual.resize, perceptual.pooling or "average")
        lpips.load(assets.require("vgg16"), assets.require("lpips-vgg"))
        return lpips
    stlpips = ShiftTolerantVgg(perceptual.resize)
    stlpips.load(stlpips_weight_file())
    return stlpips
