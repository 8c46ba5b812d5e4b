"""``ctm assets fetch``: from a misbehaving server to a file that is whole and checked, or none."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.flaky import Site, site
from fixtures.tiny import Ended

from ctm_core.data import assets
from ctm_core.data.assets import State, fetching, transfer
from ctm_core.data.assets.transfer import Patience
from ctm_core.runtime.errors import UserError

CONTENT = b"PK\x03\x04" + bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()
ONCE = Patience(timeout=0.2, attempts=1, pause=0.0)
ENTRY: dict[str, Any] = {
    "title": "Some weights",
    "kind": "file",
    "file": "some.pt",
    "format": "torch",
    "licence": "MIT",
    "hash": f"sha256:{SHA256}",
    "hash_from": "a test",
}
#: What a list without hashes says.
UNKNOWN = {"hash": None, "hash_from": None}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK", 1000)


@pytest.fixture
def server() -> Iterator[Site]:
    with site(CONTENT) as made:
        yield made


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a list of its own; files belong into ``files``."""
    (tmp_path / "config").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTM_ASSETS", "files")
    return tmp_path


def listed(server: Site | None, name: str = "some", **more: Any) -> assets.Asset:
    """Write a list of one file and return its entry, pins included."""
    entry = ENTRY | ({} if server is None else {"urls": [server.url]}) | more
    entry = {key: value for key, value in entry.items() if value is not None}
    Path("config/assets.yaml").write_text(yaml.safe_dump({"assets": {name: entry}}))
    return assets.load()[name]


def fetch(asset: assets.Asset, patience: Patience = ONCE) -> str:
    return fetching.fetch(asset, patience=patience, say=lambda _: None)


def lock() -> Any:
    path = Path("config/assets.lock")
    return json.loads(path.read_text()) if path.exists() else {}


def until(true: Callable[[], bool]) -> None:
    """Wait for what another process does; a test that waits a minute has failed."""
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about")


def files() -> set[str]:
    return {path.name for path in Path("files").iterdir()} - {fetching.LICENCES}


# -- files with a known hash -------------------------------------------------------------------


@pytest.mark.parametrize("known", [f"sha256:{SHA256}", f"md5:{MD5}"])
def test_a_known_file(project: Path, server: Site, known: str) -> None:
    asset = listed(server, hash=known)
    assert fetch(asset) == f"fetched from {server.url}, its hash is the known one"
    assert Path("files/some.pt").read_bytes() == CONTENT and files() == {"some.pt"}
    assert lock() == {} and assets.state(asset) is State.PRESENT
    assert fetch(asset) == "is at files/some.pt" and len(server.seen) == 1


def test_a_corrupt_file_is_not_put_into_place(project: Path, server: Site) -> None:
    server.script = ["corrupt"]
    with pytest.raises(UserError) as failed:
        fetch(listed(server))
    got = hashlib.sha256(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])).hexdigest()
    assert str(failed.value) == (
        f"Some weights (some) cannot be fetched from {server.url}: what came has SHA-256 {got}, "
        f"expected SHA-256 {SHA256}, and was deleted; get the file elsewhere (SHA-256 {SHA256}) "
        "and put it at files/some.pt"
    )
    assert files() == set()


def test_what_breaks_off_is_kept_and_continued(project: Path, server: Site) -> None:
    server.script = ["cut 4000"]
    asset = listed(server)
    with pytest.raises(UserError) as failed:
        fetch(asset)
    assert str(failed.value) == (
        f"Some weights (some) cannot be fetched from {server.url}: the connection broke off; "
        "4,000 bytes of it are here; run the same command again to go on, or get the file "
        f"elsewhere (SHA-256 {SHA256}) and put it at files/some.pt"
    )
    assert files() == {"some.pt.part", "some.pt.part.json"}
    assert assets.state(asset) is State.MISSING
    fetch(asset)
    assert server.asked == [None, "bytes=4000-"] and files() == {"some.pt"}


def test_a_part_of_another_file_costs_one_more_download(project: Path, server: Site) -> None:
    Path("files").mkdir()
    Path("files/some.pt.part").write_bytes(b"x" * 100)
    fetch(listed(server))
    assert server.asked == ["bytes=100-", None]
    assert Path("files/some.pt").read_bytes() == CONTENT


def test_the_next_address(project: Path, server: Site) -> None:
    asset = listed(None, urls=[server.url + "1", server.url + "2"])
    server.script = ["status 404"]
    assert fetch(asset).startswith(f"fetched from {server.url}2")
    server.script = ["status 404", "status 403"]
    Path("files/some.pt").unlink()
    with pytest.raises(UserError) as failed:
        fetch(asset)
    assert f"from {server.url}1: the server answers 404 Not Found; nor from" in str(failed.value)
    assert f"{server.url}2: the server answers 403 Forbidden; get" in str(failed.value)


def test_a_wrong_file_is_set_aside_when_the_right_one_is_here(project: Path, server: Site) -> None:
    Path("files").mkdir()
    Path("files/some.pt").write_bytes(b"mine")
    asset = listed(server)
    server.script = ["status 500"]
    with pytest.raises(UserError):
        fetch(asset)
    assert Path("files/some.pt").read_bytes() == b"mine"
    assert fetch(asset).endswith("the other file of that name is now files/some.pt.wrong")
    assert Path("files/some.pt.wrong").read_bytes() == b"mine"
    assert Path("files/some.pt").read_bytes() == CONTENT


# -- files without one -------------------------------------------------------------------------


def test_an_unknown_hash_is_pinned_before_the_file_has_its_name(
    project: Path, server: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = listed(server, **UNKNOWN)
    seen = []
    real = fetching.install
    monkeypatch.setattr(fetching, "install", lambda *a: (seen.append(lock()), real(*a)))
    assert fetch(asset).endswith(f"its SHA-256 {SHA256} is pinned in config/assets.lock")
    pin = lock()["some"]
    assert seen == [{"some": pin}]
    assert (pin["sha256"], pin["size"], pin["by"]) == (SHA256, len(CONTENT), "first use")
    asset = listed(server, **UNKNOWN)
    assert asset.sha256 == SHA256 and assets.state(asset) is State.PRESENT
    Path("files/some.pt").write_bytes(CONTENT[:-1] + b"!")
    sentence = assets.problem(asset)
    assert sentence is not None
    assert f"and SHA-256 {SHA256} (config/assets.lock, first use on {pin['on']})" in sentence


def test_a_changed_publication_does_not_pass_the_pin(project: Path, server: Site) -> None:
    fetch(listed(server, **UNKNOWN))
    Path("files/some.pt").unlink()
    known = f"{len(CONTENT):,} bytes and SHA-256 {SHA256} \\(config/assets.lock"
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(UserError, match=f"what came has SHA-256 .*, expected {known}"):
        fetch(listed(server, **UNKNOWN))
    server.content = CONTENT + b"!"  # another size is seen before the first byte
    with pytest.raises(UserError, match=f"bytes there, expected {len(CONTENT):,}; .*{known}"):
        fetch(listed(server, **UNKNOWN))
    assert files() == set() and lock()["some"]["sha256"] == SHA256


def test_a_known_prefix_is_completed(project: Path, server: Site) -> None:
    assert "is pinned" in fetch(listed(server, hash=f"sha256:{SHA256[:8]}"))
    assert lock()["some"]["sha256"] == SHA256


def test_a_page_of_text_is_not_pinned(project: Path, server: Site) -> None:
    server.script = ["page"]
    with pytest.raises(UserError, match="what came is a web page, not a file of the format torch"):
        fetch(listed(server, **UNKNOWN))
    assert lock() == {} and files() == set()


@pytest.mark.parametrize("format_", ["pickle", "torchscript"])
def test_code_of_unknown_hash_is_refused(project: Path, server: Site, format_: str) -> None:
    how = UNKNOWN | {"format": format_, "executes": format_ == "torchscript"}
    with pytest.raises(UserError) as refused:
        fetch(listed(server, **how))
    assert str(refused.value) == (
        f"Some weights (some) from {server.url} is refused because files of the format {format_} "
        "can run code and its SHA-256 is not known: get it from somebody you trust and pass it "
        "with `ctm assets fetch some --sha256 …`"
    )
    assert server.seen == [] and not Path("files").exists() and lock() == {}


def test_code_of_a_stated_hash(project: Path, server: Site, ctm: Callable[..., Ended]) -> None:
    listed(server, **UNKNOWN, format="torchscript", executes=True)
    for wrong in ("abc", SHA256[:-1] + "g"):
        ended = ctm("assets", "fetch", "some", "--sha256", wrong)
        assert ended.code == 2 and "--sha256 takes 64 hexadecimal digits" in ended.stderr
    ended = ctm("assets", "fetch", "some", "--sha256", SHA256.upper())
    assert ended.code == 0 and lock()["some"]["by"] == "given"
    assert assets.require("some") == Path("files/some.pt")
    ended = ctm("assets", "fetch", "some", "--sha256", "0" * 64)
    assert ended.code == 2 and f"not SHA-256 {'0' * 64}" in ended.stderr


# -- by hand -----------------------------------------------------------------------------------


def test_a_file_fetched_by_hand_is_pinned_and_then_verified(project: Path) -> None:
    asset = listed(None, **UNKNOWN, by_hand="the shared drive")
    with pytest.raises(UserError, match="get it by hand from the shared drive"):
        fetch(asset)
    Path("files").mkdir()
    Path("files/some.pt").write_bytes(b"<html>sign in</html>")
    with pytest.raises(UserError, match=r"files/some\.pt is a web page, .* delete it and get it"):
        fetch(asset)
    Path("files/some.pt").write_bytes(CONTENT)
    assert "is pinned in config/assets.lock" in fetch(asset)
    Path("files/some.pt").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(UserError, match=f"it has SHA-256 .*, expected .* and SHA-256 {SHA256}"):
        fetch(listed(None, **UNKNOWN, by_hand="the shared drive"))


# -- together ----------------------------------------------------------------------------------


def test_two_commands_do_not_write_one_file(project: Path, server: Site) -> None:
    Path("files").mkdir()
    with open("files/some.pt.part", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(UserError, match="is being fetched by another process"):
            fetch(listed(server))
    assert server.seen == []
    fetch(listed(server))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.EACCES, "permission denied; choose a folder you can write to"),
        (errno.EROFS, "the file system is read-only; choose"),
        (errno.EDQUOT, "the disk quota is used up; free some space"),
    ],
)
def test_a_folder_that_cannot_be_written(
    project: Path,
    server: Site,
    ctm: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    says: str,
) -> None:
    listed(server)

    def refuse(path: Any, *_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    ended = ctm("assets", "fetch", "some")
    assert ended.code == 2 and len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith(f"ctm: Some weights (some) cannot be put into files: {says}")


def test_a_disk_that_fills_up_keeps_what_came(
    project: Path, server: Site, ctm: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(server)
    real = open

    class Full:
        """A file that takes 3,000 bytes."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            if self.file.tell() >= 3000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "open", lambda *a: Full(real(*a)), raising=False)
        ended = ctm("assets", "fetch", "some")
    assert ended.code == 2 and ended.stderr == (
        "ctm: Some weights (some) cannot be put into files: the disk is full; free some space and "
        "run the same command again\n"
    )
    assert Path("files/some.pt.part").read_bytes() == CONTENT[:3000]
    assert ctm("assets", "fetch", "some").code == 0
    assert server.asked == [None, "bytes=3000-"]


def test_a_killed_command_goes_on(project: Path, server: Site) -> None:
    server.content = CONTENT * 20
    digest = hashlib.sha256(server.content).hexdigest()
    asset = listed(server, hash=f"sha256:{digest}")
    server.script = ["stall 100000"]
    process = subprocess.Popen([sys.executable, "-m", "ctm_core.cli", "assets", "fetch", "some"])
    try:
        part = Path("files/some.pt.part")
        until(lambda: part.exists() and part.stat().st_size >= 1 << 16)
    finally:
        process.kill()
        process.wait()
    assert not Path("files/some.pt").exists()
    fetch(asset)
    first, second = server.asked
    assert first is None and second is not None
    assert 1 << 16 <= int(second.removeprefix("bytes=").removesuffix("-")) <= 100_000
    assert Path("files/some.pt").read_bytes() == server.content
    assert files() == {"some.pt"}


def test_licences_are_shown_once_and_recorded(project: Path, server: Site) -> None:
    shown: list[str] = []
    fetching.fetch(listed(server), patience=ONCE, say=shown.append)
    assert shown == ["some: licence of Some weights: MIT"]
    Path("files/some.pt").unlink()
    fetching.fetch(listed(server), patience=ONCE, say=shown.append)
    assert len(shown) == 1
    Path("files/some.pt").unlink()
    fetching.fetch(listed(server, licence="CC0"), patience=ONCE, say=shown.append)
    assert shown[1:] == ["some: licence of Some weights: CC0"]
    record = json.loads(Path("files/licences.json").read_text())["some"]
    assert (record["licence"], record["from"], record["file"]) == ("CC0", server.url, "some.pt")


def test_the_command(project: Path, server: Site, ctm: Callable[..., Ended]) -> None:
    entries = {
        "one": ENTRY | {"urls": [server.url], "needed_by": ["mine"]},
        "two": ENTRY | {"urls": [server.url], "file": "two.pt", "needed_by": ["mine"]},
        "three": ENTRY | {"by_hand": "a drive", "file": "three.pt"},
    }
    Path("config/assets.yaml").write_text(yaml.safe_dump({"assets": entries}))
    ended = ctm("assets")
    assert "`ctm assets fetch one two` fetches what is missing." in ended.stdout
    assert "By hand: three; `ctm assets --json` says where from." in ended.stdout
    server.script = ["status 404"]
    ended = ctm("assets", "fetch", "--needed-by", "mine", "--attempts", "1", "--timeout", "0.2")
    assert ended.code == 2 and "404" in ended.stderr and len(ended.stderr.splitlines()) == 1
    assert f"two: fetched from {server.url}, its hash is the known one" in ended.stdout
    ended = ctm("assets", "fetch", "one", "three")
    assert ended.code == 2 and "(three) is missing: get it by hand" in ended.stderr
    server.script = ["status 404"]
    Path("files/some.pt").unlink()
    ended = ctm("assets", "fetch", "one", "three")
    lines = ended.stderr.splitlines()
    assert ended.code == 2 and len(lines) == 3
    assert lines[-1] == "ctm: 2 of 2 files are not here yet, see above"
    assert ctm("assets", "fetch", "--sha256", SHA256).code == 2, "of which file?"
    for arguments, says in (
        (("four",), "unknown asset 'four'; known are one, three, two"),
        (("one", "--needed-by", "yours"), "needed by an experiment 'yours'"),
        (("--config", "no.yaml"), "the config file no.yaml is missing"),
    ):
        ended = ctm("assets", "fetch", *arguments)
        assert ended.code == 2 and says in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def test_all_that_can_be_fetched(project: Path, server: Site, ctm: Callable[..., Ended]) -> None:
    """By the bare command; what has to be got by hand is no failure."""
    entries = {
        "one": ENTRY | {"urls": [server.url]},
        "two": ENTRY | {"urls": [server.url], "file": "two.pt"},
        "drive": ENTRY | {"by_hand": "a drive", "file": "drive.pt"},
        "pickle": ENTRY | {"urls": [server.url], "file": "its.pkl", "format": "pickle"},
    }
    del entries["pickle"]["hash"], entries["pickle"]["hash_from"]
    Path("config/assets.yaml").write_text(yaml.safe_dump({"assets": entries}))
    ended = ctm("assets", "fetch")
    assert (ended.code, ended.stderr) == (0, ""), ended
    assert {path.name for path in Path("files").glob("*.p*")} == {"some.pt", "two.pt"}
