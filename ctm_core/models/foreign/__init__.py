"""Networks of other projects: recognised, checked and converted without running their code.

``ctm convert`` reads NVIDIA's EDM pickles, OpenAI's EDM teacher, the CTM students of sony/ctm and
ctm-cifar10, and IMM's and MeanFlow's models of CIFAR-10. It writes a weight file of this project
and where it came from.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ctm_core import config
from ctm_core.data import assets
from ctm_core.data.assets import Asset
from ctm_core.models import weight_file
from ctm_core.models.foreign import released_forms
from ctm_core.models.foreign.archives import Foreign, opened
from ctm_core.models.foreign.assumptions import Hints, Settled
from ctm_core.models.foreign.card import LICENCES, Imported, Source, model_card, provenance
from ctm_core.models.foreign.edm import PickledNetwork, find_network
from ctm_core.models.foreign.inference import Identified, section
from ctm_core.models.foreign.kinds import check_arguments, identify
from ctm_core.models.foreign.state_dicts import find_state, why_none
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file, write_json

if TYPE_CHECKING:
    from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models.foreign.values import Refusal, shown

__all__ = ["Hints", "Refusal", "convert", "load_foreign"]

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
PROVENANCE = "provenance.json"
UNSEEN = (
    "the only network of the file; its published files were not at hand, so whether these are the "
    "averaged weights is not known"
)
TEACHER = "a consistency model has the same tensors, and only its origin can tell"


def convert(
    path: str | os.PathLike[str],
    output: Path,
    *,
    hints: Hints | None = None,
    url: str | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """Convert a foreign network file; nothing in it is executed.

    Parameters
    ----------
    path
        An EDM or IMM pickle, or a torch file of OpenAI, sony/ctm, ctm-cifar10, IMM or MeanFlow.
    output
        Folder for ``weights.safetensors`` and ``provenance.json``, whose contents are returned;
        untouched if the file is refused.
    hints
        What the tensors cannot tell.
    url, licence
        Of the file; default: those of the known file of that hash or name, the licence else by
        kind.

    Raises
    ------
    UserError
        If the file is missing or refused; one sentence says why.
    """
    path = Path(path)
    try:
        with opened(path) as foreign:
            imported = _imported(foreign, hints or Hints())
            return _written(imported, _source(imported, url, licence), output)
    except Refusal as refusal:
        raise UserError(f"{path} was refused: it {refusal}") from None


def load_foreign(path: str | os.PathLike[str], hints: Hints | None = None) -> Trajectory:
    """The model of a foreign file in eval mode, float32; raises Refusal if it is none."""
    with opened(path) as foreign:
        return _imported(foreign, hints or Hints()).model.eval()


def _imported(foreign: Foreign, hints: Hints) -> Imported:
    settled, pickled = Settled(hints), None
    if state := find_state(foreign.value, hints.entry):
        refs = state.tensors
    elif foreign.container == "pickle":
        pickled = find_network(foreign.value)
        settled.value("entry", "ema", None, "")
        refs = pickled.tensors
    else:
        raise Refusal(why_none(foreign.value))
    identified = identify(refs, settled, name=foreign.path.name, pickled=pickled is not None)
    dropout = pickled and check_arguments(pickled, identified)
    diffusion = _diffusion(pickled, settled, identified.origin)
    if pickled is None and not identified.time_s:
        settled.value("role", None, "teacher", TEACHER)
    if state is not None and identified.origin in released_forms.CHANGES:
        settled.value("entry", None, state.place, UNSEEN)
    # The CTM code for CIFAR-10 leaves EDM's default on, whatever its flags say.
    usual = 0.13 if identified.origin == "ctm-cifar10" and identified.time_s else 0.0
    usual = 0.2 if identified.origin in released_forms.CHANGES else usual
    dropout = settled.value("dropout", dropout, usual, "it matters for further training only")
    sizes = identified.network.model_dump() | {"dropout": dropout}
    identified = replace(identified, network=section(config.Network, **sizes))
    read = foreign.tensors(refs)
    tensors = {ours: read[theirs].float() for ours, theirs in identified.names.items()}
    if change := released_forms.CHANGES.get(identified.origin):
        tensors = {name: change(name, value) for name, value in tensors.items()}
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise Refusal(f"holds NaN or infinity in {name}; it is damaged")
    model = identified.build(diffusion)
    model.load_state_dict(tensors, assign=True)
    _check_filters(model, identified)
    model.requires_grad_(False)
    return Imported(foreign, identified, pickled, state, diffusion, settled.assumed, model)


def _diffusion(pickled: PickledNetwork | None, settled: Settled, origin: str) -> config.Diffusion:
    """The process of which only a pickle tells a part."""
    told = {"sigma_data": None if pickled is None else _sigma_data(pickled)}
    reason = "EDM's values; the file holds none"
    usual = config.Diffusion().model_dump()
    if origin == "imm":
        usual |= released_forms.IMM_LEVELS
        reason = "the times 0.006 to 0.994 that IMM trains at; the file holds none"
    values = {k: settled.value(k, told.get(k), default, reason) for k, default in usual.items()}
    return section(config.Diffusion, **values)


def _sigma_data(pickled: PickledNetwork) -> float | None:
    value = pickled.attributes.get("sigma_data")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise Refusal(f"says sigma_data = {shown(value)}, which is not a standard deviation")
    return float(value)


def _check_filters(model: Trajectory, identified: Identified) -> None:
    """Filters are buffers of the file, but our networks compute with their own taps."""
    taps = torch.tensor(identified.network.own_sizes.get("resample_filter", (1, 1))).float()
    kernel = taps.outer(taps) / taps.sum() ** 2
    for name, value in model.named_buffers():
        if name.endswith(".resample_filter") and not torch.allclose(value[0, 0], kernel):
            raise Refusal(f"resamples by another filter than {taps.int().tolist()} ({name})")


def _source(imported: Imported, url: str | None, licence: str | None) -> Source:
    """What is known of the file: from the user, else from the list of external files."""
    asset, known_by, known_hash = _known(imported.file)
    if asset is not None and known_hash is False:
        log.warning(
            "%s has the name of a known file (%s) but not its SHA-256; it may be another file",
            imported.file.path.name,
            asset.title,
        )
    address = None if asset is None else (*asset.urls, asset.by_hand)[0]
    return Source(
        url=url or address,
        url_from="given" if url else known_by if address else None,
        licence=licence or (asset.licence if asset else LICENCES[imported.identified.origin]),
        licence_from="given" if licence else known_by or "kind",
        known_hash=known_hash,
    )


def _known(foreign: Foreign) -> tuple[Asset | None, str | None, bool | None]:
    """The known file of this hash, else name; how it was found, and whether the hash agrees."""
    named = None
    for asset in assets.load().values():
        algorithm, _, digits = (asset.hash or "").partition(":")
        if algorithm == "sha256" and foreign.sha256.startswith(digits):
            return asset, "hash", True
        if asset.kind == "file" and asset.file == foreign.path.name:
            named = asset
    if named is None:
        return None, None, None
    return named, "file name", False if (named.hash or "").startswith("sha256:") else None


def _written(imported: Imported, source: Source, output: Path) -> dict[str, Any]:
    foreign, identified, model = imported.file, imported.identified, imported.model
    record = {
        "experiment": "imported",
        "model": "ctm" if identified.time_s else "teacher",
        "objective": "ctm" if identified.time_s else "dsm",
        "seed": 0,
        "step": imported.step,
        # What decided these weights is not known; the file stands for it.
        "train_hash": foreign.sha256,
        "dataset": "unknown",
        "dataset_fingerprint": None,
        "network": identified.network.model_dump(mode="json"),
        "diffusion": imported.diffusion.model_dump(mode="json"),
        **identified.sizes,
        "class_names": [str(n) for n in range(identified.label_dim)],
        "imported": {
            "kind": identified.kind,
            "file": foreign.path.name,
            "sha256": foreign.sha256,
            "url": source.url,
            "licence": source.licence,
        },
    }
    weights = output / WEIGHTS
    weight_file.export(weights, model, record, card=model_card(imported, source))
    size, digest = weights.stat().st_size, sha256_file(weights)
    written = {"file": WEIGHTS, "bytes": size, "sha256": digest}
    document = provenance(imported, source, written)
    write_json(output / PROVENANCE, document)
    return document
