"""What ``ctm assets`` prints."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ctm_core.config.asset_listing import Asset, assets_folder, load
from ctm_core.data.assets.needs import needs
from ctm_core.data.assets.states import State, describe
from ctm_core.runtime.errors import UserError


def chosen(
    config: Path | None = None, experiment: str | None = None
) -> tuple[dict[str, Asset], dict[str, tuple[str, ...]]]:
    """The requested files by name, and who needs each.

    Parameters
    ----------
    config
        Only what the jobs of this config read; None: the whole list.
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
    wanted = {name: asset for name, asset in known.items() if experiment in asset.needed_by}
    if not wanted:
        raise UserError(f"no external file is listed as needed by an experiment {experiment!r}")
    return wanted, listed


def overview(
    assets: Mapping[str, Asset],
    needed: Mapping[str, tuple[str, ...]],
    folder: str | os.PathLike[str] | None = None,
) -> tuple[str, list[dict[str, Any]]]:
    """The files' states as a table for people, and everything that is known for programs."""
    facts = {
        name: describe(asset, folder) | {"needed_by": list(needed.get(name, ()))}
        for name, asset in assets.items()
    }
    rows = [("name", "state", "size", "file", "needed by")]
    for name, asset in assets.items():
        size = "" if asset.size is None else f"{asset.size / 1e6:,.1f} MB"
        needed_by = ", ".join(facts[name]["needed_by"]) or "-"
        rows.append((name, facts[name]["state"], size, Path(asset.file).name, needed_by))
    widths = [max(len(row[column]) for row in rows) for column in range(4)] + [0]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    place = assets_folder() if folder is None else Path(folder)
    advice = _advice(assets.values(), facts)
    lines += ["", *advice, f"They belong into {place}; docs/assets.md says more."]
    return "\n".join(lines), list(facts.values())


def _advice(assets: Iterable[Asset], facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    absent = [a for a in assets if facts[a.name]["state"] in (State.MISSING, State.WRONG)]
    by_command = [a.name for a in absent if a.downloadable]
    by_hand = [a.name for a in absent if a.package is None and a.name not in by_command]
    advice = [f["problem"] for f in facts.values() if f["state"] == State.UNREADABLE][:1]
    if by_command:
        advice.append(f"`ctm assets fetch {' '.join(by_command)}` fetches what is missing.")
    if by_hand:
        advice.append(f"By hand: {', '.join(by_hand)}; `ctm assets --json` says where from.")
    return advice
