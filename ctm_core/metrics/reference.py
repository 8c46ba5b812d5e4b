"""Reference features: the moments of real images under a protocol, cached in one file.

The file carries everything its values depend on (protocol, hash of the feature weights,
fingerprint of the images), and is refused wherever one of them differs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctm_core.data import Dataset
from ctm_core.errors import UserError
from ctm_core.features import FeatureExtractor, build_features, weights_sha256
from ctm_core.files import load_tensors, save_tensors
from ctm_core.metrics.frechet import frechet_distance
from ctm_core.metrics.moments import Moments
from ctm_core.protocols import Protocol, ReferenceFile

__all__ = ["Reference", "load_reference", "reference_moments", "score", "write_reference"]

#: The parts of a protocol that reference moments depend on.
DECISIVE = ("features", "input_size", "resize", "reference", "precision")
CHUNK = 2048


@dataclass(frozen=True)
class Reference:
    """Moments of real images, with what they were made of.

    Attributes
    ----------
    protocol
        The protocol they serve.
    moments
        Of the features of every image of the split.
    weights_sha256
        Of the feature network.
    fingerprint
        Of the data set.
    resolution
        Side of the images before resizing.
    """

    protocol: Protocol
    moments: Moments
    weights_sha256: str
    fingerprint: str
    resolution: int

    def record(self) -> dict[str, Any]:
        """Protocol and reference as an evaluation file states them (JSON types only)."""
        described = self.protocol.model_dump(mode="json", exclude={"name"})
        described["weights_sha256"] = self.weights_sha256
        described["reference"] |= {"fingerprint": self.fingerprint, "n": self.moments.n}
        return described


def reference_moments(
    protocol: Protocol, dataset: Dataset, extractor: FeatureExtractor | None = None
) -> Moments:
    """Moments of the features of a whole data set.

    Parameters
    ----------
    protocol, dataset
        What to do, with which images.
    extractor
        The protocol's, if it is built already.

    Raises
    ------
    UserError
        If the protocol's reference is another data set or split, or the features cannot be built.
    """
    _check_split(protocol, dataset)
    extractor = extractor or build_features(protocol)
    moments = Moments.empty(extractor.dim)
    for start in range(0, len(dataset), CHUNK):
        rows = list(range(start, min(start + CHUNK, len(dataset))))
        moments = moments.update(extractor(dataset.batch(rows)[0]))
    return moments


def _check_split(protocol: Protocol, dataset: Dataset | None) -> Dataset:
    """The data set, if it is the protocol's reference."""
    wanted = protocol.reference
    if isinstance(wanted, ReferenceFile):
        raise UserError(
            f"the protocol {protocol.name} compares {protocol.features} features with the file "
            f"{wanted.asset}, which this version of ctm can plan but not read yet"
        )
    if dataset is None:
        raise UserError(
            f"the protocol {protocol.name} compares with {wanted.dataset}/{wanted.split}; give "
            "its folder as --data"
        )
    if (dataset.name, dataset.split) != (wanted.dataset, wanted.split):
        raise UserError(
            f"the protocol {protocol.name} compares with {wanted.dataset}/{wanted.split}, but "
            f"{dataset.path} holds {dataset.name}/{dataset.split}; give that one's folder"
        )
    return dataset


def write_reference(
    path: str | Path, protocol: Protocol, dataset: Dataset | None = None
) -> Reference:
    """Compute reference moments and write them as safetensors; raises as the computation."""
    dataset = _check_split(protocol, dataset)
    extractor = build_features(protocol)
    reference = Reference(
        protocol=protocol,
        moments=reference_moments(protocol, dataset, extractor),
        weights_sha256=extractor.weights_sha256,
        fingerprint=dataset.fingerprint,
        resolution=dataset.resolution,
    )
    metadata = {
        "kind": "reference moments",
        "format": "1",
        "protocol": protocol.model_dump_json(),
        "features": protocol.features,
        "weights_sha256": reference.weights_sha256,
        "dataset_fingerprint": reference.fingerprint,
        "resolution": str(reference.resolution),
        "n": str(reference.moments.n),
        "created_by": "ctm features reference",
    }
    save_tensors(path, reference.moments.tensors(), metadata)
    return reference


def load_reference(
    path: str | Path, protocol: Protocol, *, fingerprint: str | None = None
) -> Reference:
    """Read reference moments and check that they belong to a protocol.

    Parameters
    ----------
    path
        What :func:`write_reference` wrote.
    protocol
        The protocol about to be used.
    fingerprint
        Of the data set they must come from; None accepts the file's.

    Raises
    ------
    UserError
        If the file is missing or damaged, or was made by another protocol, with other feature
        weights, or from other images.
    """
    tensors, metadata = load_tensors(path)
    again = f"make it again by `ctm features reference --protocol {protocol.name}.yaml`"
    try:
        made_by = json.loads(metadata["protocol"])
        moments = Moments.from_tensors(tensors)
        reference = Reference(
            protocol=protocol,
            moments=moments,
            weights_sha256=metadata["weights_sha256"],
            fingerprint=metadata["dataset_fingerprint"],
            resolution=int(metadata["resolution"]),
        )
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} holds no reference moments ({error}); {again}") from None
    wanted = protocol.model_dump(mode="json")
    for key in DECISIVE:
        if made_by.get(key) != wanted[key]:
            raise UserError(
                f"{path} was made for {key} {_shown(made_by.get(key))}, the protocol "
                f"{protocol.name} has {_shown(wanted[key])}; {again}"
            )
    if (current := weights_sha256(protocol.features)) != reference.weights_sha256:
        raise UserError(
            f"{path} was made with other weights of {protocol.features} "
            f"({reference.weights_sha256[:12]}, now {current[:12]}); {again}"
        )
    if fingerprint is not None and fingerprint != reference.fingerprint:
        raise UserError(
            f"{path} was made from other images (fingerprint {reference.fingerprint[:12]}, "
            f"expected {fingerprint[:12]}); {again}"
        )
    return reference


def _shown(value: Any) -> str:
    return "/".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def score(reference: Reference, moments: Moments) -> dict[str, Any]:
    """One row's result: the distance of samples from a reference.

    Parameters
    ----------
    reference
        From :func:`load_reference`.
    moments
        Of the samples' features, by the same protocol.

    Returns
    -------
    ``{protocol, metric, n, value, rank_deficient}`` as an evaluation's rows hold them.
    """
    distance = frechet_distance(reference.moments, moments)
    return {
        "protocol": reference.protocol.name,
        "metric": reference.protocol.metric(moments.n),
        "n": moments.n,
        "value": distance.value,
        "rank_deficient": distance.rank_deficient,
    }
