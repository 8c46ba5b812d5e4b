"""The list of external files, their state, and the sentence where one cannot be used."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.tiny import Ended

from ctm_core.data import assets
from ctm_core.data.assets import Asset, State
from ctm_core.data.readers import cifar10
from ctm_core.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()
PLAIN: dict[str, Any] = {
    "title": "Some weights",
    "kind": "file",
    "file": "some.pt",
    "urls": ["https://example.org/some.pt"],
    "format": "torch",
    "licence": "MIT",
}


def made(**more: Any) -> Asset:
    entry = {"name": "some"} | PLAIN | more
    if entry.get("hash"):
        entry.setdefault("hash_from", "a test")
    return Asset.model_validate({k: v for k, v in entry.items() if v is not None})


# -- the committed list ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed() -> dict[str, Asset]:
    return assets.load(ROOT / "config" / "assets.yaml", pinned=False)


def test_the_list_is_valid(listed: dict[str, Asset]) -> None:
    assert len(listed) >= 15
    for name, asset in listed.items():
        assert asset.name == name
        if asset.executes:
            assert asset.sha256, f"{name} could never be loaded"
        if asset.hash and re.search(r"-[0-9a-f]{8}\.pth$", asset.file):
            assert f"-{asset.hash.partition(':')[2][:8]}.pth" in asset.file, name


def test_facts_that_stand_elsewhere_too(listed: dict[str, Asset]) -> None:
    from ctm_core.models.features import efficientnet_lite0

    assert listed["cifar10"].hash == f"md5:{cifar10.ARCHIVE_MD5}"
    assert listed["cifar10"].urls == (cifar10.URL,) and listed["cifar10"].file == cifar10.ARCHIVE
    assert listed["efficientnet-lite0"].sha256 == efficientnet_lite0.SHA256
    assert listed["efficientnet-lite0"].path() == efficientnet_lite0.weights_file()
    import cleanfid.downloads_helper

    assert listed["inception"].urls == (cleanfid.downloads_helper.inception_url,)


def test_files_of_packages_are_there(listed: dict[str, Asset]) -> None:
    packaged = [asset for asset in listed.values() if asset.kind == "package"]
    assert len(packaged) == 3
    for asset in packaged:
        assert assets.state(asset) is State.PRESENT, asset.name


def test_the_page_shows_the_list(listed: dict[str, Asset]) -> None:
    page = (ROOT / "docs" / "assets.md").read_text(encoding="utf-8")
    table = page.partition("<!-- table -->\n")[2].partition("<!-- end -->")[0]
    assert table == assets.table(listed), "run python -m ctm_core.data.assets"
    keys = set(re.findall(r"^\| `(\w+)` \|", page.partition("## Keys")[2], flags=re.M))
    assert keys == set(Asset.model_fields) - {"name"}


def test_assets_are_not_in_git() -> None:
    assert "/assets/" in (ROOT / ".gitignore").read_text().splitlines()


# -- states ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hash_", "content", "expected"),
    [
        (f"sha256:{SHA256}", CONTENT, State.PRESENT),
        (f"sha256:{SHA256[:8]}", CONTENT, State.PRESENT),
        (f"md5:{MD5}", CONTENT, State.PRESENT),
        (None, CONTENT, State.UNPINNED),
        (None, b"", State.UNPINNED),
        (f"sha256:{SHA256}", None, State.MISSING),
        (f"sha256:{SHA256}", b"weightS", State.WRONG),
        (f"sha256:{SHA256}", b"", State.WRONG),
        (f"sha256:{SHA256[:8]}", b"weightS", State.WRONG),
        (f"sha256:{SHA256[:7]}0", CONTENT, State.WRONG if SHA256[7] != "0" else State.PRESENT),
        (f"sha256:{SHA256[:-1]}{'0' if SHA256[-1] != '0' else '1'}", CONTENT, State.WRONG),
        (f"md5:{MD5}", b"weightS", State.WRONG),
    ],
)
def test_state(tmp_path: Path, hash_: str | None, content: bytes | None, expected: State) -> None:
    if content is not None:
        (tmp_path / "some.pt").write_bytes(content)
    asset = made(hash=hash_)
    assert assets.state(asset, tmp_path) is expected
    sentence = assets.problem(asset, tmp_path)
    assert (sentence is None) == (expected in (State.PRESENT, State.UNPINNED))
    told = assets.describe(asset, tmp_path)
    assert told["state"] == expected.value and told["problem"] == sentence
    assert told["path"] == str(tmp_path / "some.pt")


def test_the_size_is_compared_first(tmp_path: Path) -> None:
    (tmp_path / "some.pt").write_bytes(CONTENT)
    asset = made(size=10, hash=f"sha256:{SHA256}")
    assert assets.state(asset, tmp_path) is State.WRONG
    sentence = assets.problem(asset, tmp_path)
    assert sentence is not None
    assert f"it has 7 bytes, expected 10 bytes and SHA-256 {SHA256}; delete it and" in sentence


def test_a_folder(tmp_path: Path) -> None:
    asset = made(kind="folder", file="images", urls=None, by_hand="a desk", contains=["train"])
    assert assets.state(asset, tmp_path) is State.MISSING
    (tmp_path / "images").mkdir()
    assert assets.state(asset, tmp_path) is State.MISSING
    (tmp_path / "images" / "train").mkdir()
    assert assets.state(asset, tmp_path) is State.UNPINNED


def test_a_folder_in_place_of_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "some.pt").mkdir()
    assert assets.state(made(), tmp_path) is State.MISSING


def test_a_package_that_is_not_installed(tmp_path: Path) -> None:
    asset = made(kind="package", package="no-such-package", file="a/b.pth", urls=None)
    assert assets.state(asset, tmp_path) is State.MISSING
    sentence = assets.problem(asset)
    assert sentence is not None and "install the Python package no-such-package" in sentence


@pytest.mark.parametrize("where", ["file", "folder"])
def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """As root nothing is forbidden, so the system's answer is replaced."""
    (tmp_path / "some.pt").write_bytes(CONTENT)

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(*((os, "open") if where == "file" else (Path, "is_file")), refuse)
    assert assets.state(made(), tmp_path) is State.UNREADABLE
    sentence = assets.problem(made(), tmp_path)
    assert sentence == (
        f"Some weights (some) cannot be read at {tmp_path}/some.pt (Permission denied): ask the "
        "folder's owner for the permission, or let CTM_ASSETS name a folder that you can read"
    )


def test_a_format_that_executes_needs_its_whole_hash(tmp_path: Path) -> None:
    (tmp_path / "some.pt").write_bytes(CONTENT)
    script = {"format": "torchscript", "executes": True}
    for known in (None, f"sha256:{SHA256[:63]}", f"md5:{MD5}"):
        sentence = assets.problem(made(hash=known, **script), tmp_path)
        assert sentence is not None and "runs code when it is loaded and is refused" in sentence
    asset = made(hash=f"sha256:{SHA256}", **script)
    assert assets.problem(asset, tmp_path) is None
    (tmp_path / "some.pt").write_bytes(b"another")
    sentence = assets.problem(asset, tmp_path)
    assert sentence is not None and "is not Some weights (some): it has SHA-256" in sentence


# -- require -----------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a list of its own: one file to fetch, one by hand."""
    by_hand = PLAIN | {"file": "drive.pt", "by_hand": "the shared drive", "licence": "CC0"}
    del by_hand["urls"]
    fetched = PLAIN | {"hash": f"sha256:{SHA256}", "hash_from": "a test", "needed_by": ["mine"]}
    (tmp_path / "config").mkdir()
    write(tmp_path, {"some": fetched, "drive": by_hand})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTM_ASSETS", "files")
    return tmp_path


def write(project: Path, entries: Any) -> None:
    (project / "config" / "assets.yaml").write_text(yaml.safe_dump({"assets": entries}))


def test_require(project: Path) -> None:
    with pytest.raises(UserError) as refused:
        assets.require("some")
    assert str(refused.value) == (
        "Some weights (some) is missing: run `ctm assets fetch some`, or fetch "
        f"https://example.org/some.pt (SHA-256 {SHA256}; licence: MIT) and put it at files/some.pt"
    )
    with pytest.raises(UserError) as refused:
        assets.require("drive")
    assert str(refused.value) == (
        "Some weights (drive) is missing: get it by hand from the shared drive (no hash is known; "
        "licence: CC0) and put it at files/drive.pt"
    )
    (project / "files").mkdir()
    (project / "files" / "some.pt").write_bytes(CONTENT[:3])
    found = hashlib.sha256(CONTENT[:3]).hexdigest()
    with pytest.raises(UserError) as refused:
        assets.require("some")
    assert str(refused.value) == (
        f"files/some.pt is not Some weights (some): it has SHA-256 {found}, expected SHA-256 "
        f"{SHA256}; delete it and run `ctm assets fetch some`, or fetch "
        f"https://example.org/some.pt (SHA-256 {SHA256}; licence: MIT) and put it at files/some.pt"
    )
    (project / "files" / "some.pt").write_bytes(CONTENT)
    assert assets.require("some") == Path("files/some.pt")
    (project / "other").mkdir()
    (project / "other" / "drive.pt").write_bytes(b"anything")
    assert assets.require("drive", "other") == Path("other/drive.pt")
    with pytest.raises(UserError, match="unknown asset 'sone'; known are drive, some"):
        assets.require("sone")


def test_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CTM_ASSETS", raising=False)
    assert assets.assets_folder() == ROOT / "assets"
    monkeypatch.setenv("CTM_ASSETS", "")
    assert assets.assets_folder() == ROOT / "assets"
    monkeypatch.setenv("CTM_ASSETS", "/elsewhere")
    assert assets.assets_folder() == Path("/elsewhere")


def test_the_projects_list_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "inception" in assets.load()


# -- a list with mistakes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sha256": SHA256}, "unknown key 'assets.some.sha256'; allowed here: by_hand, classes"),
        ({"licence": None}, "the key 'assets.some.licence' is missing"),
        ({"urls": None}, "say where it comes from: urls or by_hand"),
        ({"urls": ["ftp://example.org/a"]}, "assets.some.urls.0"),
        ({"hash": "sha256:123", "hash_from": "me"}, "assets.some.hash"),
        ({"hash": f"md5:{MD5[:8]}", "hash_from": "me"}, "assets.some.hash"),
        ({"hash": SHA256, "hash_from": "me"}, "assets.some.hash"),
        ({"hash": f"sha256:{SHA256}"}, "hash and hash_from go together"),
        ({"file": "../../etc/passwd"}, "file must be a plain name"),
        ({"kind": "package"}, "`package` belongs to kind package, and only there"),
        ({"kind": "package", "package": "lpips"}, "leave urls and by_hand out"),
        ({"package": "lpips"}, "`package` belongs to kind package, and only there"),
        ({"contains": ["train"]}, "`contains` belongs to kind folder, and only there"),
        ({"kind": "folder"}, "a folder has no hash, size or urls"),
        ({"format": "torchscript"}, "a TorchScript file executes: set executes: true"),
        ({"size": 0}, "assets.some.size"),
        ({"title": "two\nlines"}, "must be one line of text"),
        ({"name": "other"}, "some must not name itself 'other'"),
    ],
)
def test_mistakes(project: Path, change: dict[str, Any], says: str) -> None:
    entry = {k: v for k, v in (PLAIN | change).items() if v is not None}
    write(project, {"some": entry})
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        assets.load()
    assert str(refused.value).startswith("config/assets.yaml: ")
    assert "\n" not in str(refused.value)


def test_mistakes_beyond_an_entry(project: Path) -> None:
    write(project, {"some": PLAIN, "same": PLAIN})
    with pytest.raises(UserError, match="are both called some"):
        assets.load()
    for entries in ([PLAIN], "some", {"some": "weights"}):
        write(project, entries)
        with pytest.raises(UserError, match=r"config/assets\.yaml: assets"):
            assets.load()
    (project / "config" / "assets.yaml").write_text("assets: {")
    with pytest.raises(UserError, match="not readable YAML"):
        assets.load()


# -- the command -------------------------------------------------------------------------------


def test_the_command(project: Path, ctm: Callable[..., Ended]) -> None:
    (project / "files").mkdir()
    (project / "files" / "drive.pt").write_bytes(b"anything")
    ended = ctm("assets")
    assert ended.code == 0
    rows = [re.split(r"\s{2,}", line) for line in ended.stdout.splitlines()]
    assert ["drive", "unpinned", "drive.pt", "-"] in rows
    assert ["some", "missing", "some.pt", "mine"] in rows
    assert "They belong into files; docs/assets.md says more." in ended.stdout
    ended = ctm("assets", "--needed-by", "mine", "--json")
    [told] = json.loads(ended.stdout)
    assert (told["name"], told["state"]) == ("some", "missing")
    assert told["problem"].startswith("Some weights (some) is missing: run")
    (project / "other").mkdir()
    (project / "other" / "some.pt").write_bytes(CONTENT)
    assert "present" in ctm("assets", "--folder", "other", "--needed-by", "mine").stdout
    ended = ctm("assets", "--needed-by", "yours")
    assert ended.code == 2 and "needed by an experiment 'yours'" in ended.stderr


def test_names_in_configs_are_those_of_the_list(listed: dict[str, Asset]) -> None:
    assets.check_names({"teacher.asset": "edm-cifar10-cond"}, listed, "a.yaml")
    with pytest.raises(UserError, match=r"^a\.yaml: teacher\.asset: there is no asset 'edm'; "):
        assets.check_names({"teacher.asset": "edm"}, listed, "a.yaml")
