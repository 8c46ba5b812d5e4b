"""The importer of NVIDIA's pickles against the state and the output that EDM's own code read."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ctm_core.models import foreign
from ctm_core.models.foreign.values import Refusal
from ctm_core.runtime.errors import UserError
from ctm_core.verification import case
from ctm_core.verification.builders import denoiser
from ctm_core.verification.golden import SINGLE, Check, Golden, exact

EXAMPLE = "edm_pickle_example.pkl"


@case("edm_pickle_expected", (SINGLE,))
@torch.no_grad()
def importer(golden: Golden) -> Iterator[Check]:
    """Our network with the expected tensors; and the set's pickle, if it has one, imported."""
    state = golden.weights("state")
    models = {"": denoiser(golden, "state").eval()}
    pickle = golden.folder.path / EXAMPLE
    if pickle.is_file():
        try:
            models[f"{EXAMPLE} "] = foreign.load_foreign(pickle).to(golden.device)
        except Refusal as refusal:
            raise UserError(f"{pickle} was refused: it {refusal}") from None
    x, sigma = golden.input("x"), golden.input("sigma")
    labels, augment = golden.labels(), golden.augment_labels()
    for prefix, model in models.items():
        tensors = model.state_dict()
        yield exact(f"{prefix}names", sorted(tensors), sorted(state))
        for name, value in state.items():
            yield exact(f"{prefix}state/{name}", tensors.get(name), value)
        yield golden.check("D", model.denoise(x, sigma, labels, augment), name=f"{prefix}D")
