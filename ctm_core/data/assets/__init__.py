"""External files: what the project uses but does not contain.

``config/assets.yaml`` lists them. A file lies in the assets folder: the one given, else the one
that the environment variable ``CTM_ASSETS`` names, else ``assets/`` of the project. Files that
come inside an installed Python package are looked up there.

:mod:`ctm_core.config.asset_listing` reads the list, :mod:`.states` compares files with it and pins
hashes of first use, :mod:`.needs` finds what a config needs. What opens connections,
:mod:`.fetching` and :mod:`.transfer`, is not imported here: only ``ctm assets fetch`` and
``ctm data --source URL`` do.
"""

from __future__ import annotations

import os
from pathlib import Path

from ctm_core.config.asset_listing import Asset, assets_folder, check_names, load, named, table
from ctm_core.data.assets.states import State, describe, pin_present, problem, state
from ctm_core.runtime.errors import UserError

__all__ = [
    "Asset",
    "State",
    "assets_folder",
    "check_names",
    "describe",
    "load",
    "pin_present",
    "problem",
    "require",
    "state",
    "table",
]


def require(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """The path of a file that is present and is what it should be.

    Raises
    ------
    UserError
        With the sentence of :func:`problem`, or if there is no asset of that name.
    """
    asset = named(name)
    if sentence := problem(asset, folder):
        raise UserError(sentence)
    return asset.path(folder)
