"""Where converted weights come from: the provenance file and the model card."""

from __future__ import annotations

import datetime
import re
from typing import Any, NamedTuple

import torch

from ctm_core import config
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models.foreign.archives import Foreign
from ctm_core.models.foreign.assumptions import Assumption, option
from ctm_core.models.foreign.edm import PickledNetwork
from ctm_core.models.foreign.inference import Identified
from ctm_core.models.foreign.state_dicts import StateDict
from ctm_core.models.foreign.values import shown
from ctm_core.runtime.provenance import code_version

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
    "imm": "CC BY-NC-SA 4.0 (Luma's imm)",
    "meanflow": "CC BY-NC-SA 4.0 (py-meanflow)",
}


class Source(NamedTuple):
    """What is known of a file's origin."""

    url: str | None
    url_from: str | None  #: ``given``, ``hash`` or ``file name`` (of a known file)
    licence: str
    licence_from: str  #: the same, or ``kind``
    known_hash: bool | None  #: whether its SHA-256 is the published one; None if none is


class Imported(NamedTuple):
    """A network of a foreign file, read and converted."""

    file: Foreign
    identified: Identified
    pickled: PickledNetwork | None
    state: StateDict | None  #: of a torch file
    diffusion: config.Diffusion
    assumed: list[Assumption]
    model: Trajectory

    @property
    def parameters(self) -> int:
        """Their number."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def step(self) -> int:
        """The training step in the name of a checkpoint, ``ema_0.999_049000.pt``; 0 if none."""
        pattern = r"(?:ema_0\.\d+_|target_model|model)(\d{1,9})\.pt"
        match = re.fullmatch(pattern, self.file.path.name)
        return int(match[1]) if match else 0


def provenance(imported: Imported, source: Source, weights: dict[str, Any]) -> dict[str, Any]:
    """The contents of ``provenance.json``."""
    file, identified, pickled, state = imported[:4]
    constructor = pickled and {
        "class": pickled.class_name,
        "arguments": pickled.arguments,
        "inner_class": pickled.inner_class,
        "inner_arguments": pickled.inner_arguments,
        "attributes": pickled.attributes,
    }
    # Whether a known file is a teacher is known.
    assumed = [a for a in imported.assumed if a.key != "role" or not source.known_hash]
    origin = {"file": file.path.name, "container": file.container}
    return {
        "format": FORMAT,
        "kind": identified.kind,
        "source": origin | {"bytes": file.size, "sha256": file.sha256} | source._asdict(),
        "weights": weights,
        "constructor": constructor,
        "entry": "ema" if state is None else state.place,
        "left_out": [shown(name) for name in state.left_out] if state else [],
        "network": identified.network.model_dump(mode="json"),
        "diffusion": imported.diffusion.model_dump(mode="json"),
        "assumed": {
            a.key: {"value": a.value, "reason": a.reason, "option": option(a.key)} for a in assumed
        },
        "parameters": imported.parameters,
        "converter": code_version(),
        "torch": str(torch.__version__),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def model_card(imported: Imported, source: Source) -> str:
    """A short text about the weights for people, in Markdown; the weight file carries it."""
    file, identified, side = imported.file, imported.identified, imported.identified.resolution
    labels = f"{identified.label_dim} classes" if identified.label_dim else "without classes"
    step = f" (step {imported.step:,})" if imported.step else ""
    use = (
        "Samples with `ctm sample` by one jump or more (`--nfe`, `--gamma`)."
        if identified.time_s
        else "Samples with `ctm sample` by Heun's method; teaches with `ctm train --teacher`."
    )
    return f"""# {identified.kind}

{imported.parameters:,} parameters; images of {identified.channels} x {side} x {side}, {labels}.
Converted from `{file.path.name}`{step}, {file.container}, {source.url or "origin not given"}.
SHA-256 of that file: {file.sha256}.
Licence: {source.licence}.
The images that it was trained on are not recorded.
{use}
"""
