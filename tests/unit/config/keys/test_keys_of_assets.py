"""What the keys of config/assets.yaml and assets.lock change: state, sentences, the table."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.sections import shows

from ctm_core.config import Dataset, asset_listing
from ctm_core.config.asset_listing import Asset
from ctm_core.data import assets
from ctm_core.data.assets import State
from ctm_core.data.assets.overview import chosen
from ctm_core.data.assets.states import expected, unlike
from ctm_core.plan import storage
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import write_json

CONTENT = b"PK\x03\x04weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PLAIN: dict[str, Any] = {
    "title": "Some weights", "kind": "file", "file": "some.pt", "format": "torch",
    "urls": ["https://example.org/some.pt"], "licence": "MIT",
}  # fmt: skip


def made(**more: Any) -> Asset:
    entry = {"name": "some"} | PLAIN | more
    return Asset.model_validate({k: v for k, v in entry.items() if v is not None})


def known(digits: str = SHA256) -> dict[str, str]:
    return {"hash": f"sha256:{digits}", "hash_from": "a test"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "some.pt").write_bytes(CONTENT)
    return tmp_path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of two files in a project of its own."""
    (tmp_path / "config").mkdir()
    monkeypatch.chdir(tmp_path)
    entries = {"some": PLAIN, "other": PLAIN | {"file": "other.pt", "needed_by": ["digits"]}}
    (tmp_path / "config/assets.yaml").write_text(yaml.safe_dump({"assets": entries}))
    return tmp_path


@shows("Asset.name", "_List.assets", "Asset.needed_by")
def test_list(project: Path) -> None:
    assert set(asset_listing.load()) == {"some", "other"}
    assert asset_listing.named("other").file == "other.pt"
    with pytest.raises(UserError, match="unknown asset 'third'; known are other, some"):
        asset_listing.named("third")
    assert list(chosen(experiment="digits")[0]) == ["other"]


@shows("Asset.images", "Asset.classes")
def test_counts_for_the_plan() -> None:
    section = Dataset(name="mine", reader="images", source="asset:some", resolution=8)
    counted = made(images={"train": 7}, classes=3)
    assert storage.listed(section, {"some": counted}) == ((3, 8, 8), 3, {"train": 7})
    assert storage.listed(section, {"some": made()}) is None
    single = section.model_copy(update={"classes": "none"})
    assert storage.listed(single, {"some": counted}) == ((3, 8, 8), 1, {"train": 7})


@shows("Asset.file", "Asset.kind", "Asset.package", "Asset.contains")
def test_where_it_is(folder: Path) -> None:
    assert assets.state(made(), folder) is State.UNPINNED
    assert assets.state(made(file="gone.pt"), folder) is State.MISSING
    directory = {"kind": "folder", "file": "images", "urls": None, "by_hand": "them"}
    assert assets.state(made(**directory), folder) is State.MISSING
    (folder / "images").mkdir()
    assert assets.state(made(**directory), folder) is State.UNPINNED
    assert assets.state(made(**directory, contains=["a"]), folder) is State.MISSING
    packaged = made(kind="package", package="numpy", file="numpy/version.py", urls=None)
    assert packaged.path(folder) == Path(__import__("numpy").__file__).with_name("version.py")


@shows("Asset.hash", "Asset.hash_from", "Asset.size")
def test_what_it_must_be(folder: Path) -> None:
    assert assets.state(made(**known()), folder) is State.PRESENT
    assert assets.state(made(**known("0" * 64)), folder) is State.WRONG
    assert assets.state(made(size=len(CONTENT)), folder) is State.UNPINNED
    assert assets.state(made(size=1), folder) is State.WRONG
    assert "(a test)" in assets.table({"some": made(**known())})
    with pytest.raises(ValueError, match="hash and hash_from go together"):
        made(hash=known()["hash"])
    assert expected(made(**known(), size=5)) == f"5 bytes and SHA-256 {SHA256}"


@shows("Asset.format", "Asset.executes")
def test_formats(folder: Path) -> None:
    assert unlike(made(), folder / "some.pt") is None
    foreign = unlike(made(format="tar"), folder / "some.pt")
    assert foreign is not None and "not a file of the format tar" in foreign
    assert [made(format=f).runs_code for f in ("torch", "pickle")] == [False, True]
    assert assets.problem(made(), folder) is None
    refused = assets.problem(made(executes=True), folder)
    assert refused is not None and "runs code when it is loaded and is refused" in refused


@shows("Asset.urls", "Asset.by_hand", "Asset.licence", "Asset.title")
def test_where_to_get_it(tmp_path: Path) -> None:
    by_url = assets.problem(made(), tmp_path)
    assert by_url is not None
    assert by_url.startswith("Some weights (some) is missing: run `ctm assets fetch some`, or")
    assert "https://example.org/some.pt" in by_url and "licence: MIT" in by_url
    by_hand = assets.problem(made(urls=None, by_hand="a friend", licence="BSD"), tmp_path)
    assert by_hand is not None
    assert "get it by hand from a friend" in by_hand and "licence: BSD" in by_hand
    assert "Other (some) is missing" in (assets.problem(made(title="Other"), tmp_path) or "")


@shows("Asset.note")
def test_note() -> None:
    assert "| Some weights; mind this |" in assets.table({"some": made(note="mind this")})


@shows("Pin.sha256", "Pin.size", "Pin.on", "Pin.by")
def test_pins(project: Path) -> None:
    def pinned(format_: str = "torch", **keys: Any) -> Asset:
        pin = {"sha256": SHA256, "size": None, "on": "2026-01-02", "by": "first use"} | keys
        write_json(project / "config/assets.lock", {"some": pin})
        entries = {"some": PLAIN | {"format": format_}}
        (project / "config/assets.yaml").write_text(yaml.safe_dump({"assets": entries}))
        return asset_listing.load()["some"]

    assert pinned().hash == f"sha256:{SHA256}"
    assert pinned(sha256="0" * 64).hash == f"sha256:{'0' * 64}"
    assert "first use on 2026-01-02" in (pinned().hash_from or "")
    assert "given on 2025-12-31" in (pinned(by="given", on="2025-12-31").hash_from or "")
    assert pinned(size=5).size == 5 and pinned().size is None
    # Of a format that can run code a person states the hash.
    assert pinned("pickle").hash is None
    assert pinned("pickle", by="given").hash is not None
