"""Feature extractors for metrics of images, by name, each with the hash of its weights.

A family of extractors is one module of this folder with

``build(protocol) -> FeatureExtractor``
    the extractor that the protocol's ``features`` names, and
``weights_sha256(features) -> str``
    the hash of its weights, without building it.

An extractor gives ``features`` and, where its network can, ``probabilities`` of classes and
``spatial`` activations.

A protocol's ``features`` is the module's name, or the module's name, an underscore, and a variant
the module knows: ``classifier_digits`` is the module ``classifier``'s net for digits. A module
whose networks are external files names them in a dict ``ASSETS``, by ``features``.
"""

import importlib
import pkgutil
from types import ModuleType

from ctm_core.config.protocols import Protocol
from ctm_core.models.features._extractor import FeatureExtractor
from ctm_core.runtime.errors import UserError

__all__ = ["FeatureExtractor", "build_features", "families", "weights_sha256"]


def families() -> list[str]:
    """The modules of this folder."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_"))


def _family(features: str) -> ModuleType:
    fitting = [f for f in families() if features == f or features.startswith(f + "_")]
    if not fitting:
        raise UserError(
            f"unknown features {features!r}; known are {', '.join(families())} "
            "(classifier_<dataset> for one data set)"
        )
    module = importlib.import_module(f"{__name__}.{max(fitting, key=len)}")
    known = getattr(module, "ASSETS", {features: None})
    if features not in known:
        raise UserError(f"unknown features {features!r}; known are {', '.join(known)}")
    return module


def build_features(protocol: Protocol) -> FeatureExtractor:
    """The extractor that a protocol asks for, weights loaded and checked; raises UserError."""
    extractor: FeatureExtractor = _family(protocol.features).build(protocol)
    return extractor


def weights_sha256(features: str) -> str:
    """SHA-256 of an extractor's weights; raises as :func:`build_features`."""
    digest: str = _family(features).weights_sha256(features)
    return digest
