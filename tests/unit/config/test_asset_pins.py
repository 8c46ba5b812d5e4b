"""``assets.lock``, and what is pinned at a workflow's first use."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from ctm_core.config import asset_pins
from ctm_core.data import assets
from ctm_core.data.assets import State
from ctm_core.runtime.errors import UserError

CONTENT = b"PK\x03\x04 weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = "0" * 64
ENTRY: dict[str, Any] = {
    "title": "Some weights",
    "kind": "file",
    "by_hand": "a drive",
    "format": "torch",
    "licence": "MIT",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config").mkdir()
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTM_ASSETS", "files")
    return tmp_path


def listed(**entries: dict[str, Any]) -> dict[str, assets.Asset]:
    """Write a list and its files."""
    made = {name: ENTRY | {"file": f"{name}.pt"} | more for name, more in entries.items()}
    Path("config/assets.yaml").write_text(yaml.safe_dump({"assets": made}, sort_keys=False))
    for name in made:
        Path(f"files/{name}.pt").write_bytes(CONTENT)
    return assets.load()


def write(name: str, sha256: str, by: Any = "first use") -> None:
    asset_pins.write(Path("config/assets.lock"), name, sha256, len(CONTENT), by)


def test_first_use(project: Path) -> None:
    """What is there without a hash is pinned, unless it could run code or is not what it says."""
    entries = listed(
        plain={},
        known={"hash": f"sha256:{SHA256}", "hash_from": "a test"},
        page={"format": "npz"},
        pickled={"format": "pickle"},
        gone={},
    )
    Path("files/page.pt").write_bytes(b"<html>")
    Path("files/gone.pt").unlink()
    told: list[str] = []
    assets.pin_present(list(entries.values()), say=told.append)
    assert told[0] == f"plain: its SHA-256 {SHA256} is pinned in config/assets.lock"
    assert told[1].startswith("page: not pinned (files/page.pt is a web page")
    assert len(told) == 2
    assert list(json.loads(Path("config/assets.lock").read_text())) == ["plain"]
    assert assets.state(assets.load()["plain"]) is State.PRESENT
    told.clear()
    assets.pin_present([assets.load()["plain"]], say=told.append)
    assert told == []


def test_a_project_that_cannot_be_written_only_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = listed(plain={})

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    told: list[str] = []
    assets.pin_present(list(entries.values()), say=told.append)
    assert len(told) == 1 and told[0].startswith("plain: not pinned (")
    assert list(Path("config").iterdir()) == [Path("config/assets.yaml")]


@pytest.mark.parametrize(
    ("entry", "pin", "by", "holds"),
    [
        ({}, SHA256, "first use", True),
        ({"hash": f"sha256:{SHA256[:8]}"}, SHA256, "first use", True),
        ({"hash": f"sha256:{SHA256[:8]}"}, OTHER, "first use", False),
        ({"hash": f"sha256:{SHA256}"}, OTHER, "given", False),
        ({"hash": f"md5:{OTHER[:32]}"}, SHA256, "given", False),
        ({"format": "pickle"}, SHA256, "first use", False),
        ({"format": "pickle"}, SHA256, "given", True),
    ],
)
def test_which_pins_hold(
    project: Path, entry: dict[str, Any], pin: str, by: Any, holds: bool
) -> None:
    """The list goes before the pin, and no first use vouches for what can run code."""
    listed(some=entry | ({"hash_from": "a test"} if "hash" in entry else {}))
    write("some", pin, by)
    asset = assets.load()["some"]
    assert (asset.hash == f"sha256:{pin}") is holds
    assert holds or asset.hash == entry.get("hash")
    assert assets.load(pinned=False)["some"].hash == entry.get("hash")


def test_an_entry_is_kept_and_others_stay(project: Path) -> None:
    listed(some={}, other={})
    write("some", SHA256)
    first = Path("config/assets.lock").read_text()
    write("some", SHA256, "given")
    assert Path("config/assets.lock").read_text() == first
    write("other", OTHER)
    known = asset_pins.read(Path("config/assets.lock"))
    assert [known[name].sha256 for name in ("other", "some")] == [OTHER, SHA256]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not valid JSON"),
        ('{"some": {"sha256": "12"}}', "config/assets.lock: "),
        (f'{{"some": {{"sha256": "{SHA256}", "size": 1, "on": "x", "by": "given"}}}}', "some.on"),
        ("[]", "config/assets.lock: "),
    ],
)
def test_a_damaged_lock_is_one_sentence(project: Path, text: str, says: str) -> None:
    listed(some={})
    Path("config/assets.lock").write_text(text)
    with pytest.raises(UserError) as refused:
        assets.load()
    assert says in str(refused.value) and "\n" not in str(refused.value)
