"""What ``ctm assets`` prints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctm_core.config.asset_listing import Asset, assets_folder, load
from ctm_core.data.assets.needs import needs
from ctm_core.data.assets.states import State, describe
from ctm_core.runtime.errors import UserError

__all__ = ["chosen", "overview"]


def chosen(
    config: Path | None = None, experiment: str | None = None
) -> tuple[dict[str, Asset], dict[str, tuple[str, ...]]]:
    """The files that are asked for, and who needs each.

    Parameters
    ----------
    config
        Only what the jobs of this config read; None: all of the list.
    experiment
        Only what this experiment needs, as the list says.

    Raises
    ------
    UserError
        If nothing is listed for the experiment, both are given, or a file read is wrong.
    """
    known = load()
    if config is not None and experiment is not None:
        raise UserError("give --config or --needed-by, not both")
    if config is not None:
        needed = needs(config)
        if unknown := sorted(set(needed) - set(known)):
            raise UserError(
                f"{config}: there is no asset {unknown[0]!r}; known are {', '.join(known)}"
            )
        return {name: asset for name, asset in known.items() if name in needed}, needed
    listed = {name: asset.needed_by for name, asset in known.items()}
    if experiment is None:
        return known, listed
    found = {name: asset for name, asset in known.items() if experiment in asset.needed_by}
    if not found:
        raise UserError(f"no external file is listed as needed by an experiment {experiment!r}")
    return found, listed


def overview(
    assets: Mapping[str, Asset],
    needed: Mapping[str, tuple[str, ...]],
    folder: str | os.PathLike[str] | None = None,
) -> tuple[str, list[dict[str, Any]]]:
    """The files' states as a table for people, and everything that is known for programs."""
    told = [
        describe(asset, folder) | {"needed_by": list(needed.get(asset.name, ()))}
        for asset in assets.values()
    ]
    rows = [("name", "state", "size", "file", "needed by")]
    for asset, facts in zip(assets.values(), told, strict=True):
        size = "" if asset.size is None else f"{asset.size / 1e6:,.1f} MB"
        needs_it = ", ".join(facts["needed_by"]) or "-"
        rows.append((asset.name, facts["state"], size, Path(asset.file).name, needs_it))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
        lines.append("  ".join([*cells, row[4]]))
    place = assets_folder() if folder is None else Path(folder)
    lines += ["", *_advice(assets, told), f"They belong into {place}; docs/assets.md says more."]
    return "\n".join(lines), told


def _advice(assets: Mapping[str, Asset], told: list[dict[str, Any]]) -> list[str]:
    absent = [
        asset
        for asset, facts in zip(assets.values(), told, strict=True)
        if facts["state"] in (State.MISSING, State.WRONG)
    ]
    by_command = [a.name for a in absent if a.urls and (a.sha256 or not a.runs_code)]
    by_hand = [a.name for a in absent if a.package is None and a.name not in by_command]
    unreadable = [facts["problem"] for facts in told if facts["state"] == State.UNREADABLE]
    advice = unreadable[:1]
    if by_command:
        advice.append(f"`ctm assets fetch {' '.join(by_command)}` fetches what is missing.")
    if by_hand:
        advice.append(f"By hand: {', '.join(by_hand)}; `ctm assets --json` says where from.")
    return advice
