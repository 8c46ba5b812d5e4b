"""Where converted weights come from: the provenance file and the model card."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ctm_core.models.foreign.archives import Foreign
from ctm_core.models.foreign.edm import PickledNetwork
from ctm_core.models.foreign.inference import Identified
from ctm_core.runtime.provenance import code_version

__all__ = ["LICENCES", "Source", "model_card", "provenance"]

FORMAT = "ctm-provenance-1"

#: Licences as the publishers of each kind of file state them.
LICENCES = {
    "edm": "CC BY-NC-SA 4.0 (NVIDIA's EDM code and pretrained networks)",
    "openai": "MIT (OpenAI's consistency_models)",
    "sony-ctm": "MIT (sony/ctm); parts of that code are under NVIDIA's non-commercial licence",
    "ctm-cifar10": (
        "MIT (ctm-cifar10); parts of that code are under NVIDIA's non-commercial licence, and its "
        "teacher under CC BY-NC-SA 4.0"
    ),
}


@dataclass(frozen=True)
class Source:
    """What is known of a file's origin.

    Attributes
    ----------
    url, url_from
        Where it can be had, and who says so: ``given``, ``hash`` or ``file name`` (of a known
        file), None.
    licence, licence_from
        Its licence, and who says so: ``given``, ``hash``, ``file name`` or ``kind``.
    known_hash
        Whether its SHA-256 is the published one; None if none is published.
    """

    url: str | None
    url_from: str | None
    licence: str
    licence_from: str
    known_hash: bool | None


def provenance(
    foreign: Foreign,
    identified: Identified,
    pickled: PickledNetwork | None,
    source: Source,
    *,
    weights: dict[str, Any],
    parameters: int,
) -> dict[str, Any]:
    """The contents of ``provenance.json``."""
    constructor = None
    if pickled is not None:
        constructor = {
            "class": pickled.class_name,
            "arguments": pickled.arguments,
            "inner_class": pickled.inner_class,
            "inner_arguments": pickled.inner_arguments,
            "attributes": pickled.attributes,
        }
    return {
        "format": FORMAT,
        "kind": identified.kind,
        "source": {
            "file": foreign.path.name,
            "container": foreign.container,
            "bytes": foreign.size,
            "sha256": foreign.sha256,
        }
        | asdict(source),
        "weights": weights,
        "constructor": constructor,
        "network": identified.network.model_dump(mode="json"),
        "parameters": parameters,
        "converter": code_version(),
        "torch": str(torch.__version__),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def model_card(
    foreign: Foreign, identified: Identified, source: Source, *, parameters: int, step: int
) -> str:
    """A short text about the weights for people, in Markdown; the weight file carries it."""
    labels = f"{identified.label_dim} classes" if identified.label_dim else "without classes"
    use = (
        "Samples with `ctm sample` by one jump or more (`--nfe`, `--gamma`)."
        if identified.time_s
        else "Samples with `ctm sample` by Heun's method; teaches with `ctm train --teacher`."
    )
    where = source.url or "origin not given"
    lines = [
        f"# {identified.kind}",
        "",
        f"{parameters:,} parameters; images of {identified.channels} x {identified.resolution} x "
        f"{identified.resolution}, {labels}.",
        f"Converted from `{foreign.path.name}`"
        + (f" (step {step:,})" if step else "")
        + f", {foreign.container}, {where}.",
        f"SHA-256 of that file: {foreign.sha256}.",
        f"Licence: {source.licence}.",
        "The images that it was trained on are not recorded.",
        use,
    ]
    return "\n".join(lines) + "\n"
