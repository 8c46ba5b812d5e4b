"""Reference statistics: what is known of real images under a protocol, cached in one file.

The file carries everything its values depend on (protocol, hash of the feature weights,
fingerprint of the images), and is refused wherever one of them differs. It comes from a prepared
data set, or from statistics that somebody published.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctm_core import assets, randomness
from ctm_core.data import Dataset
from ctm_core.errors import UserError
from ctm_core.features import FeatureExtractor, build_features, weights_sha256
from ctm_core.files import load_tensors, save_tensors, sha256_file
from ctm_core.metrics.frechet import frechet_distance
from ctm_core.metrics.moments import Moments
from ctm_core.metrics.published import read_published
from ctm_core.protocols import Protocol, ReferenceFile

__all__ = ["Reference", "load_reference", "reference_moments", "score", "write_reference"]

#: The parts of a protocol that reference statistics depend on.
DECISIVE = ("features", "input_size", "resize", "reference", "precision")
CHUNK = 2048


@dataclass(frozen=True)
class Reference:
    """Statistics of real images, with what they were made of.

    Attributes
    ----------
    protocol
        The protocol they serve.
    moments
        Of the features of every image.
    weights_sha256
        Of the feature network.
    fingerprint
        Of the data set; SHA-256 of a published file.
    resolution
        Side of the images before resizing.
    spatial
        Moments of spatial features, if a metric needs them.
    features
        Features of single images, float32 (R, D), if a metric needs them.
    """

    protocol: Protocol
    moments: Moments
    weights_sha256: str
    fingerprint: str
    resolution: int
    spatial: Moments | None = None
    features: torch.Tensor | None = None

    def record(self) -> dict[str, Any]:
        """Protocol and reference as an evaluation file states them (JSON types only)."""
        described = self.protocol.model_dump(mode="json", exclude={"name"})
        described["weights_sha256"] = self.weights_sha256
        described["reference"] |= {"fingerprint": self.fingerprint, "n": self.moments.n}
        if self.features is not None:
            described["reference"]["features"] = len(self.features)
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
    return _of_dataset(protocol, dataset, extractor or build_features(protocol)).moments


def _check_split(protocol: Protocol, dataset: Dataset | None) -> Dataset:
    """The data set, if it is the protocol's reference."""
    wanted = protocol.reference
    assert not isinstance(wanted, ReferenceFile)
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


def _of_dataset(protocol: Protocol, dataset: Dataset, extractor: FeatureExtractor) -> Reference:
    """Statistics of every image; features of a random choice that is always the same."""
    names = ["features", *(["spatial"] if "spatial" in protocol.outputs else [])]
    chosen = randomness.permutation(0, "reference features", 0, len(dataset))
    kept = torch.zeros(len(dataset), dtype=torch.bool)
    kept[torch.from_numpy(chosen[: protocol.neighbours.rows])] = protocol.keeps_features
    moments = {name: Moments.empty(extractor.outputs.get(name, 0)) for name in names}
    rows = []
    for start, images in _chunks(dataset):
        found = extractor.extract(images, names)
        for name in names:
            moments[name] = moments[name].update(found[name])
        rows.append(found["features"][kept[start : start + len(images)]])
    return Reference(
        protocol=protocol,
        moments=moments["features"],
        weights_sha256=extractor.weights_sha256,
        fingerprint=dataset.fingerprint,
        resolution=dataset.resolution,
        spatial=moments.get("spatial"),
        features=torch.cat(rows) if protocol.keeps_features else None,
    )


def _chunks(dataset: Dataset) -> Iterator[tuple[int, torch.Tensor]]:
    for start in range(0, len(dataset), CHUNK):
        rows = list(range(start, min(start + CHUNK, len(dataset))))
        yield start, dataset.batch(rows)[0]


def _of_file(protocol: Protocol, wanted: ReferenceFile, extractor: FeatureExtractor) -> Reference:
    """Statistics that somebody published."""
    path = assets.require(wanted.asset)
    found = read_published(path, wanted.images, images=protocol.keeps_features)
    if found.moments.dim != extractor.dim:
        raise UserError(
            f"{path} holds statistics of {found.moments.dim} features, but {extractor.name} has "
            f"{extractor.dim}; correct reference.asset of the protocol {protocol.name}"
        )
    if "sfid" in protocol.metrics and found.spatial is None:
        raise UserError(
            f"{path} holds no spatial statistics (mu_s and sigma_s), which sfid needs; leave sfid "
            f"out of the protocol {protocol.name}"
        )
    features = None
    if protocol.keeps_features:
        if found.images is None:
            raise UserError(
                f"{path} holds no images (arr_0), whose features kid, precision_recall and "
                f"density_coverage need; leave these out of the protocol {protocol.name}, or "
                "compare with a prepared data set"
            )
        if found.images.shape[-1] != wanted.resolution:
            raise UserError(
                f"{path} holds images of {found.images.shape[-1]} pixels, and the protocol "
                f"{protocol.name} says {wanted.resolution}; correct reference.resolution"
            )
        features = extractor(found.images[: protocol.neighbours.rows])
    return Reference(
        protocol=protocol,
        moments=found.moments,
        weights_sha256=extractor.weights_sha256,
        fingerprint=sha256_file(path),
        resolution=wanted.resolution,
        spatial=found.spatial if "sfid" in protocol.metrics else None,
        features=features,
    )


def write_reference(
    path: str | Path, protocol: Protocol, dataset: Dataset | None = None
) -> Reference:
    """Make reference statistics and write them as safetensors.

    Parameters
    ----------
    path
        The file to write.
    protocol
        What to do.
    dataset
        The protocol's reference, unless that is a published file.

    Raises
    ------
    UserError
        If the reference is another data set, a file is missing, damaged or lacks what a metric
        needs, or the features cannot be built.
    """
    if isinstance(wanted := protocol.reference, ReferenceFile):
        if dataset is not None:
            raise UserError(
                f"the protocol {protocol.name} compares with the file {wanted.asset} and not with "
                f"a data set: leave out --data"
            )
        reference = _of_file(protocol, wanted, build_features(protocol))
    else:
        dataset = _check_split(protocol, dataset)
        reference = _of_dataset(protocol, dataset, build_features(protocol))
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
    tensors = reference.moments.tensors()
    if reference.spatial is not None:
        tensors |= {f"spatial.{name}": t for name, t in reference.spatial.tensors().items()}
    if reference.features is not None:
        tensors["features"] = reference.features
    save_tensors(path, tensors, metadata)
    return reference


def load_reference(
    path: str | Path, protocol: Protocol, *, fingerprint: str | None = None
) -> Reference:
    """Read reference statistics and check that they belong to a protocol.

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
        If the file is missing or damaged, was made by another protocol, with other feature
        weights, or from other images, or lacks what a metric needs.
    """
    tensors, metadata = load_tensors(path)
    again = f"make it again by `ctm features reference --protocol {protocol.name}.yaml`"
    spatial = {name: tensors.pop(name) for name in list(tensors) if name.startswith("spatial.")}
    try:
        made_by = json.loads(metadata["protocol"])
        features = tensors.get("features")
        reference = Reference(
            protocol=protocol,
            moments=Moments.from_tensors(tensors),
            weights_sha256=metadata["weights_sha256"],
            fingerprint=metadata["dataset_fingerprint"],
            resolution=int(metadata["resolution"]),
            spatial=Moments.from_tensors(
                {name.removeprefix("spatial."): tensor for name, tensor in spatial.items()}
            )
            if spatial
            else None,
            features=features,
        )
        if features is not None and features.shape[1:] != (reference.moments.dim,):
            raise ValueError("features and moments have different dimensions")
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} holds no reference moments ({error}); {again}") from None
    wanted = protocol.model_dump(mode="json")
    for key in DECISIVE:
        if made_by.get(key) != wanted[key]:
            raise UserError(
                f"{path} was made for {key} {_shown(made_by.get(key))}, the protocol "
                f"{protocol.name} has {_shown(wanted[key])}; {again}"
            )
    _check_held(path, reference, made_by, again)
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


def _check_held(path: Any, reference: Reference, made_by: dict[str, Any], again: str) -> None:
    protocol = reference.protocol
    rows = made_by.get("neighbours", {}).get("rows")
    for lacking, what in (
        (protocol.keeps_features and reference.features is None, "single images' features"),
        ("sfid" in protocol.metrics and reference.spatial is None, "spatial statistics"),
    ):
        if lacking:
            raise UserError(
                f"{path} was made without {what}, which the metrics of {protocol.name} need; "
                f"{again}"
            )
    if protocol.keeps_features and rows != protocol.neighbours.rows:
        raise UserError(
            f"{path} was made for neighbours.rows {rows}, the protocol {protocol.name} has "
            f"{protocol.neighbours.rows}; {again}"
        )


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
    few = reference.protocol.too_little_for_fid(moments.n)
    return {
        "protocol": reference.protocol.name,
        "metric": f"fd_{reference.protocol.features}_{moments.n}" if few else "fid",
        "n": moments.n,
        "value": distance.value,
        "rank_deficient": distance.rank_deficient,
    }
