"""Reference statistics: what is known of real images under a protocol, cached in one file.

The file carries everything its values depend on: the protocol, the hash of the feature weights,
and the fingerprint of the images. It comes from a prepared data set, or from statistics that
somebody published.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctm_core.config.protocols import Protocol, ReferenceFile
from ctm_core.data import assets
from ctm_core.data.dataset import Dataset
from ctm_core.diffusion import randomness
from ctm_core.evaluation.metrics.blocks import whole
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.nearest import nearest_distances
from ctm_core.evaluation.metrics.published_statistics import read_published
from ctm_core.evaluation.metrics.state import State
from ctm_core.models.features import FeatureExtractor, build_features, weights_sha256
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, save_tensors, sha256_file

CHUNK = 2048


@dataclass(frozen=True)
class Reference:
    """Statistics of real images, with what they were made of."""

    protocol: Protocol
    state: State  #: what the protocol's metrics need of the images
    weights_sha256: str  #: of the feature network
    fingerprint: str  #: of the data set; SHA-256 of a published file
    resolution: int  #: side of the images before resizing

    @property
    def moments(self) -> Moments:
        """Of the features of all images."""
        return whole(self.state.moments())

    def record(self) -> dict[str, Any]:
        """Protocol and reference as an evaluation file states them (JSON types only)."""
        described = self.protocol.model_dump(mode="json", exclude={"name"})
        described["weights_sha256"] = self.weights_sha256
        described["reference"] |= {"fingerprint": self.fingerprint, "n": self.state.samples}
        if "features" in self.state.held:
            described["reference"]["features"] = len(self.state["features"])
        return described


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


def _of_dataset(
    protocol: Protocol, dataset: Dataset, held_out: Dataset | None, extractor: FeatureExtractor
) -> State:
    """Statistics of every image."""
    names = [name for name in protocol.outputs if name != "probabilities"]
    keep = protocol.neighbours.rows
    state = State(len(dataset), protocol.needs - {"probabilities", "nearest"}, blocks=1, keep=keep)
    order = torch.arange(len(dataset))
    if protocol.keeps_features and keep < len(dataset):
        # The first images of a file may be of one class.
        chosen = randomness.permutation(0, "reference features", 0, len(dataset))
        order = torch.from_numpy(chosen)
    for rows in torch.split(order, CHUNK):
        state.update(extractor.extract(dataset.batch(rows)[0], names))
    if "nearest" not in protocol.needs:
        return state
    distances = torch.cat(list(_held_out_distances(protocol, dataset, held_out)))
    return State.from_tensors(state.tensors() | {"nearest": distances})


def _held_out_distances(
    protocol: Protocol, dataset: Dataset, held_out: Dataset | None
) -> Iterator[torch.Tensor]:
    """Distances to the nearest training image of images that were not trained on.

    Without a test split these are the training images themselves, each beside all others: a draw
    from the data beside as many draws, but one.
    """
    training = dataset.batch(torch.arange(len(dataset)))[0]
    own = protocol.memorisation.held_out == "others"
    source = dataset if own else held_out
    if source is None or (not own and (source.name, source.split) != (dataset.name, "test")):
        raise UserError(
            f"the protocol {protocol.name} compares distances with those of {dataset.name}'s test "
            "split: give its folder as --held-out, or set memorisation.held_out to others"
        )
    chosen = randomness.permutation(0, "held-out images", 0, len(source))
    rows = torch.from_numpy(chosen)[: protocol.memorisation.images]
    for part in torch.split(rows, CHUNK):
        images = source.batch(part)[0]
        yield nearest_distances(images, training, own=part if own else None)


def _of_file(protocol: Protocol, wanted: ReferenceFile, extractor: FeatureExtractor) -> State:
    """Statistics that somebody published."""
    path = assets.require(wanted.asset)
    published = read_published(path, wanted.images, images=protocol.keeps_features)
    if published.moments.dim != extractor.dim:
        raise UserError(
            f"{path} holds statistics of {published.moments.dim} features, but {extractor.name} "
            f"has {extractor.dim}; correct reference.asset of the protocol {protocol.name}"
        )
    spatial = features = None
    if asking := ", ".join(protocol.needing("spatial")):
        spatial = published.spatial
        if spatial is None:
            raise UserError(
                f"{path} holds no spatial statistics (mu_s and sigma_s), which {asking} needs; "
                f"leave it out of the protocol {protocol.name}"
            )
    if asking := ", ".join(protocol.needing("features")):
        images = published.images
        if images is None:
            raise UserError(
                f"{path} holds no images (arr_0), whose features {asking} needs; leave it out of "
                f"the protocol {protocol.name}, or compare with a prepared data set"
            )
        if images.shape[-1] != wanted.resolution:
            raise UserError(
                f"{path} holds images of {images.shape[-1]} pixels, but the protocol "
                f"{protocol.name} says {wanted.resolution}; correct reference.resolution"
            )
        features = extractor(images[: protocol.neighbours.rows])
    return State.of_moments(published.moments, spatial, features)


def write_reference(
    path: str | Path,
    protocol: Protocol,
    dataset: Dataset | None = None,
    held_out: Dataset | None = None,
) -> Reference:
    """Make reference statistics and write them as safetensors.

    ``dataset`` is the protocol's reference, unless that is a published file; ``held_out`` is its
    test split, for memorisation.

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
        extractor = build_features(protocol)
        state = _of_file(protocol, wanted, extractor)
        fingerprint = sha256_file(assets.require(wanted.asset))
        resolution = wanted.resolution
    else:
        dataset = _check_split(protocol, dataset)
        extractor = build_features(protocol)
        state = _of_dataset(protocol, dataset, held_out, extractor)
        fingerprint, resolution = dataset.fingerprint, dataset.resolution
    made = Reference(protocol, state, extractor.weights_sha256, fingerprint, resolution)
    metadata = {
        "kind": "reference statistics",
        "format": "2",
        "protocol": protocol.model_dump_json(),
        "features": protocol.features,
        "weights_sha256": made.weights_sha256,
        "dataset_fingerprint": made.fingerprint,
        "resolution": str(made.resolution),
        "n": str(state.samples),
        "created_by": "ctm features reference",
    }
    save_tensors(path, state.tensors(), metadata)
    return made


def load_reference(path: str | Path) -> Reference:
    """Read what :func:`write_reference` wrote.

    Raises
    ------
    UserError
        If the file is missing or corrupt, was made with other feature weights, or lacks what a
        metric of its protocol needs.
    """
    tensors, metadata = load_tensors(path)
    try:
        reference = Reference(
            protocol=Protocol.model_validate_json(metadata["protocol"]),
            state=State.from_tensors(tensors),
            weights_sha256=metadata["weights_sha256"],
            fingerprint=metadata["dataset_fingerprint"],
            resolution=int(metadata["resolution"]),
        )
    except (KeyError, ValueError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is not a reference file ({problem}); make one with `ctm features reference`"
        ) from None
    protocol = reference.protocol
    again = f"make it again by `ctm features reference --protocol {protocol.name}.yaml`"
    missing = {"moments", *protocol.needs} - {"probabilities"} - reference.state.held
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(sorted(missing))}, which the metrics of {protocol.name} "
            f"need; {again}"
        )
    current = weights_sha256(protocol.features)
    if current != reference.weights_sha256:
        raise UserError(
            f"{path} was made with other weights of {protocol.features} "
            f"({reference.weights_sha256[:12]}, now {current[:12]}); {again}"
        )
    return reference
