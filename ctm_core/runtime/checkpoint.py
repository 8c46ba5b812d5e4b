"""Checkpoints that are complete or absent, and the choice of the newest valid one.

A checkpoint is a folder ``step-XXXXXXXX`` with one safetensors file per section (student, EMAs,
optimiser, …) and ``state.json`` with the step, the counters and the SHA-256 of every section. It
is written under another name, synced and renamed, so a kill at any moment leaves the previous one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import (
    load_tensors,
    read_record,
    remove_tree,
    save_tensors,
    sha256_file,
    sync_folder,
    write_record,
)

log = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: named tensors by section, and the scalars saved with them."""

    step: int
    sections: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


def _folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def save(
    root: Path,
    step: int,
    sections: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
) -> Path:
    """Write a checkpoint after ``step`` optimiser steps.

    Parameters
    ----------
    root
        The folder ``checkpoints`` of a run.
    sections
        Tensors by section; an empty section is written too, so that the format is one for runs
        with and without, say, a discriminator.
    state
        JSON values saved with them.

    Returns
    -------
    The folder in its final place.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = _folder(root, step)
    partial = root / f".{final.name}.partial"
    remove_tree(partial)
    partial.mkdir()
    hashes = {}
    for name, tensors in sections.items():
        file = partial / f"{name}.safetensors"
        save_tensors(file, tensors, {"section": name, "step": str(step)})
        hashes[file.name] = sha256_file(file)
    record = {"format": FORMAT, "step": step, "files": hashes, "state": dict(state)}
    write_record(partial / "state.json", record)
    remove_tree(final)
    os.rename(partial, final)
    sync_folder(root)
    return final


def steps(root: Path) -> list[int]:
    """Steps of the checkpoints under ``root``, ascending, corrupt ones included."""
    names = (path.name for path in root.glob("step-*") if path.is_dir())
    return sorted(int(n.removeprefix("step-")) for n in names if n[5:].isdigit())


def read(root: Path, step: int) -> Checkpoint:
    """The checkpoint of a step; raises UserError if it is corrupt."""
    folder = _folder(root, step)
    record = read_record(folder / "state.json")
    if record.get("format") != FORMAT:
        raise UserError(f"{folder} is a checkpoint of another format")
    if step != int(record["step"]):
        raise UserError(f"{folder} holds the checkpoint of another step, {record['step']}")
    for name, digest in record["files"].items():
        if sha256_file(folder / name) != digest:
            raise UserError(f"{folder / name} is corrupt: its hash differs from state.json")
    sections = {
        name.removesuffix(".safetensors"): load_tensors(folder / name)[0]
        for name in record["files"]
    }
    return Checkpoint(step, sections, record["state"])


def newest(root: Path, before: int | None = None) -> Checkpoint | None:
    """The newest valid checkpoint, or None; corrupt ones are skipped with a warning.

    With ``before``, only checkpoints of earlier steps count.
    """
    for step in reversed(steps(root)):
        if before is not None and step >= before:
            continue
        try:
            return read(root, step)
        except UserError as error:
            log.warning("skipping a corrupt checkpoint: %s", error)
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            log.warning("skipping a corrupt checkpoint: %s: %r", _folder(root, step), error)
    return None


def discard_after(root: Path, step: int) -> None:
    """Remove the checkpoints of later steps: corrupt ones, and those about to be written again."""
    for later in reversed(steps(root)):
        if later > step:
            remove_tree(_folder(root, later))


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and any partially written one."""
    for step in steps(root)[:-keep]:
        remove_tree(_folder(root, step))
    for partial in root.glob(".step-*.partial"):
        remove_tree(partial)
