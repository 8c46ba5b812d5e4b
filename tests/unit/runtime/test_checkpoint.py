"""Checkpoints are whole or absent, and the newest whole one wins."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures import tiny

from ctm_core.runtime import checkpoint

SECTIONS = {
    "student": {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(2.5)},
    "optimizer": {"0.step": torch.tensor(7.0)},
    "discriminator": {},
}


def save(root: Path, step: int) -> Path:
    return checkpoint.save(
        root, step, SECTIONS, {"seconds": 1.5, "evaluations": {"teacher": step}}
    )


def test_round_trip(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoints", 12)
    assert folder.name == "step-00000012"
    found = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 12
    assert found.state == {"seconds": 1.5, "evaluations": {"teacher": 12}}
    assert found.sections.keys() == SECTIONS.keys()
    for name, tensors in SECTIONS.items():
        assert found.sections[name].keys() == tensors.keys()
        for key, value in tensors.items():
            assert torch.equal(found.sections[name][key], value)


def test_none_yet(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "checkpoints") is None
    assert checkpoint.steps(tmp_path / "checkpoints") == []


def test_the_newest_wins_and_before_excludes(tmp_path: Path) -> None:
    for step in (4, 12, 8):
        save(tmp_path, step)
    assert checkpoint.steps(tmp_path) == [4, 8, 12]
    for before, expected in ((None, 12), (13, 12), (12, 8), (5, 4), (4, None)):
        found = checkpoint.newest(tmp_path, before)
        assert (found and found.step) == expected, before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "section cut": lambda folder: cut(folder / "student.safetensors"),
    "section flipped": lambda folder: flip(folder / "optimizer.safetensors"),
    "section empty": lambda folder: (folder / "student.safetensors").write_bytes(b""),
    "section missing": lambda folder: (folder / "student.safetensors").unlink(),
    "state missing": lambda folder: (folder / "state.json").unlink(),
    "state cut": lambda folder: cut(folder / "state.json"),
    "state halved": lambda folder: (folder / "state.json").write_text('{"format": 1}'),
    "state a list": lambda folder: (folder / "state.json").write_text("[]"),
    "state nested": lambda folder: (folder / "state.json").write_text("[" * 100_000),
    "state of a long number": lambda folder: (folder / "state.json").write_text("1" * 5000),
    "files a list": lambda folder: (folder / "state.json").write_text(
        '{"format": 1, "step": 8, "files": [], "state": {}}'
    ),
    "another format": lambda folder: (folder / "state.json").write_text('{"format": 2}'),
    "another step": lambda folder: (folder / "state.json").write_text(
        (folder / "state.json").read_text().replace('"step": 8', '"step": 7')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_one_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 4)
    damage(save(tmp_path, 8))
    with caplog.at_level(logging.WARNING):
        found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 4
    (warning,) = caplog.messages
    assert "skipping a corrupt checkpoint" in warning
    assert "step-00000008" in warning


def test_a_kill_while_writing_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dying before any of the renames is dying with the old checkpoint alone."""
    save(tmp_path, 4)
    renames = 0

    class Killed(BaseException):
        """What no cleanup of ours may rely on."""

    def killed(source: Path, target: Path) -> None:
        nonlocal renames
        if renames == stop:
            raise Killed
        renames += 1
        original(source, target)

    original = os.rename
    monkeypatch.setattr(os, "rename", killed)
    monkeypatch.setattr(os, "replace", killed)
    for stop in range(len(SECTIONS) + 2):  # every section, state.json, the folder
        renames = 0
        with pytest.raises(Killed):
            save(tmp_path, 8)
        found = checkpoint.newest(tmp_path)
        assert found is not None and found.step == 4, stop
    stop = -1
    save(tmp_path, 8)
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 8
    assert not list(tmp_path.glob(".*"))


def test_saving_again_replaces_a_damaged_one(tmp_path: Path) -> None:
    DAMAGES["section cut"](save(tmp_path, 8))
    assert checkpoint.newest(tmp_path) is None
    save(tmp_path, 8)
    assert checkpoint.newest(tmp_path) is not None


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", 4), save(tmp_path / "b", 4)
    assert tiny.tree(first) == tiny.tree(second)


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        save(tmp_path, step)
    (tmp_path / ".step-00000016.partial").mkdir()
    (tmp_path / ".step-00000016.partial" / "student.safetensors").touch()
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000008", "step-00000012"]


def test_discard_after(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        save(tmp_path, step)
    DAMAGES["state missing"](tmp_path / "step-00000012")
    checkpoint.discard_after(tmp_path, 4)
    assert checkpoint.steps(tmp_path) == [4]
    checkpoint.discard_after(tmp_path / "absent", 0)
