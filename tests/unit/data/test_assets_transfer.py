"""Downloads from a server that breaks off, stalls, lies and redirects."""

from __future__ import annotations

import collections
import gzip
import io
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from fixtures.flaky import Site, site

from ctm_core.data.assets import transfer
from ctm_core.data.assets.transfer import Patience, TransferError, download
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.progress import Transferred

CONTENT = bytes(range(256)) * 1000
LENGTH = len(CONTENT)
#: No waiting between attempts; the stalling tests take this long.
QUICK = Patience(timeout=0.2, attempts=3, pause=0.0)
ONCE = Patience(timeout=0.2, attempts=1, pause=0.0)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks off within a chunk is lost; here all comes in whole ones."""
    monkeypatch.setattr(transfer, "CHUNK", 1000)


@pytest.fixture
def server() -> Iterator[Site]:
    with site(CONTENT) as made:
        yield made


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "file.part"


def get(server: Site, part: Path, patience: Patience = QUICK, **more: Any) -> bool:
    return download(server.url, part, title="file", patience=patience, **more)


def test_in_one_piece(server: Site, part: Path) -> None:
    assert get(server, part) is False
    assert part.read_bytes() == CONTENT and server.asked == [None]


@pytest.mark.parametrize("how", ["cut", "stall", "chunks"])
def test_what_breaks_off_is_continued(server: Site, part: Path, how: str) -> None:
    server.script = [f"{how} 100000", f"{how} 70000"]
    assert get(server, part) is False
    assert part.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=170000-"]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("cut 100000", "the connection broke off; 100,000 bytes of it are here"),
        ("stall 0", "the server sent nothing for 0.2 s"),
        ("status 404", "the server answers 404 Not Found"),
        ("status 503", "the server answers 503 Service Unavailable"),
    ],
)
def test_what_is_said_of_a_failure(server: Site, part: Path, step: str, reason: str) -> None:
    server.script = [step]
    with pytest.raises(TransferError) as failed:
        get(server, part, ONCE)
    assert str(failed.value) == reason


def test_a_second_call_goes_on_where_the_first_ended(server: Site, part: Path) -> None:
    server.script = ["cut 100000"]
    with pytest.raises(TransferError):
        get(server, part, ONCE)
    assert get(server, part) is True
    assert part.read_bytes() == CONTENT
    assert server.seen[1][1:] == ("bytes=100000-", '"1"')


def test_attempts_are_counted_from_the_last_byte_that_came(server: Site, part: Path) -> None:
    server.script = ["status 503", "status 503", "cut 1000", "status 503", "cut 1000"]
    get(server, part)
    assert part.read_bytes() == CONTENT and len(server.seen) == 6
    server.script = ["status 503"] * 3
    part.unlink()
    with pytest.raises(TransferError, match="503"):
        get(server, part)
    server.script = ["status 404", "cut 9"]
    with pytest.raises(TransferError, match="404"):
        get(server, part)
    assert server.script == ["cut 9"], "a file that is not there was asked for again"


def test_waiting_grows(server: Site, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(
        transfer, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic)
    )
    server.script = ["status 503"] * 3 + ["cut 1000", "status 503"]
    get(server, part, Patience(0.2, 5, 1.0))
    assert waits == [1.0, 2.0, 4.0, 1.0, 2.0]


def test_a_changed_file_begins_anew(server: Site, part: Path) -> None:
    server.script = ["cut 100000"]
    with pytest.raises(TransferError):
        get(server, part, ONCE)
    server.content, server.etag = CONTENT[::-1], '"2"'
    get(server, part)
    assert part.read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_begins_anew(server: Site, part: Path) -> None:
    server.ranges = False
    server.script = ["cut 100000"]
    get(server, part)
    assert part.read_bytes() == CONTENT and server.asked[1] == "bytes=100000-"


def test_without_validator_only_a_checked_part_is_continued(server: Site, part: Path) -> None:
    server.etag = None
    for checked, asked in ((False, None), (True, "bytes=5000-")):
        server.script = ["cut 5000"]
        get(server, part, checked=checked)
        assert part.read_bytes() == CONTENT and server.asked[-1] == asked
        transfer.forget(part)


def test_a_part_of_another_address_is_continued_only_if_checked(server: Site, part: Path) -> None:
    part.write_bytes(b"x" * 100)
    get(server, part, checked=True)
    assert part.read_bytes() == b"x" * 100 + CONTENT[100:]  # the hash will tell
    part.write_bytes(b"x" * 100)
    note = {"url": "http://elsewhere/", "validator": server.etag}
    transfer._note_path(part).write_text(json.dumps(note))
    get(server, part)
    assert part.read_bytes() == CONTENT


def test_another_range_than_asked_for_is_not_written(server: Site, part: Path) -> None:
    server.script = ["cut 1000", "shift"]
    get(server, part)
    assert part.read_bytes() == CONTENT and server.asked == [None, "bytes=1000-", None]


@pytest.mark.parametrize("sign", ["etag", "length"])
def test_a_206_of_another_file_is_not_joined(server: Site, part: Path, sign: str) -> None:
    """The server answers with its new file from there, whatever If-Range says."""
    server.script = ["cut 100000"]
    with pytest.raises(TransferError):
        get(server, part, ONCE)
    server.content = CONTENT[::-1] if sign == "etag" else CONTENT[::-1][:-1000]
    server.etag = '"2"' if sign == "etag" else '"1"'
    server.script = ["careless"]
    get(server, part)
    assert part.read_bytes() == server.content
    assert server.asked == [None, "bytes=100000-", None]


def test_a_206_that_ends_early_is_continued(server: Site, part: Path) -> None:
    server.script = ["cut 100000", "piece 50000"]
    get(server, part)
    assert part.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


@pytest.mark.parametrize(
    ("more", "says"),
    [({"size": LENGTH}, "more than 256,000 bytes"), ({"largest": 10**6}, "more than 1,000,000")],
)
def test_what_has_no_end_is_refused(
    server: Site, part: Path, more: dict[str, int], says: str
) -> None:
    server.script = ["flood"]
    with pytest.raises(TransferError, match=says):
        get(server, part, **more)
    assert part.read_bytes() == b""


def test_what_has_no_end_leaves_room_on_the_disk(
    server: Site, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 10**6))
    server.script = ["flood"]
    with pytest.raises(TransferError, match="it sends more than 900,000 bytes"):
        get(server, part)


def test_more_than_a_file_may_have_is_refused_before_the_first_byte(
    server: Site, part: Path
) -> None:
    with pytest.raises(TransferError, match="has 256,000 bytes there, expected at most 1,000"):
        get(server, part, largest=1000)


def test_a_byte_now_and_then_is_no_progress(server: Site, part: Path) -> None:
    server.script = ["drip"] * 3
    began = time.monotonic()
    with pytest.raises(TransferError, match="the server sends less than 1,000 bytes per second"):
        get(server, part)
    assert time.monotonic() - began < 10 and len(server.seen) == 3


def test_a_part_that_is_a_pipe_is_not_waited_for(server: Site, part: Path) -> None:
    os.mkfifo(part)
    with pytest.raises(UserError, match=r"file\.part is not a file; delete it"):
        get(server, part)


def test_a_note_of_anything_begins_anew(server: Site, part: Path) -> None:
    note = transfer._note_path(part)
    for content in (b"[" * 100_000, b'{"url": NaN}', b"\xff", b"[]"):
        part.write_bytes(b"x" * 100)
        note.write_bytes(content)
        get(server, part)
        assert part.read_bytes() == CONTENT and server.asked[-1] is None


def test_a_whole_part_needs_no_bytes(server: Site, part: Path) -> None:
    get(server, part)
    assert get(server, part) is True and server.asked[-1] == f"bytes={LENGTH}-"
    asked = len(server.seen)
    get(server, part, size=LENGTH)
    assert len(server.seen) == asked and part.read_bytes() == CONTENT


@pytest.mark.parametrize("more", [{}, {"size": LENGTH}])
def test_a_part_that_is_too_long_begins_anew(
    server: Site, part: Path, more: dict[str, int]
) -> None:
    get(server, part)
    with part.open("ab") as file:
        file.write(b"more")
    get(server, part, **more)
    assert part.read_bytes() == CONTENT


def test_another_size_is_refused_before_the_first_byte(server: Site, part: Path) -> None:
    with pytest.raises(TransferError, match=r"it has 256,000 bytes there, expected 1,000"):
        get(server, part, size=1000)
    assert part.read_bytes() == b""


def test_redirects(server: Site, part: Path) -> None:
    server.script = ["redirect /a", "redirect /b", "cut 1000"]
    get(server, part)
    assert part.read_bytes() == CONTENT
    assert [path for path, *_ in server.seen] == ["/file", "/a", "/b", "/file"]
    server.script = ["redirect /file"] * 40
    with pytest.raises(TransferError, match="redirects in a circle"):
        get(server, part.with_name("other"))


def test_a_redirect_to_plain_http_is_refused_without_a_hash(
    server: Site, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Redirecting(requests.adapters.BaseAdapter):
        """A server at https://example.org/a; everything else is the test's own server."""

        def __init__(self, target: str) -> None:
            self.target = target

        def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:
            answer = requests.Response()
            answer.request, answer.url = request, str(request.url)
            answer.status_code, answer.raw = 302, io.BytesIO()
            answer.headers["Location"] = self.target
            return answer

        def close(self) -> None:
            pass

    real = requests.Session

    def session(target: str) -> requests.Session:
        made = real()
        made.mount("https://example.org/", Redirecting(target))
        return made

    url = "https://example.org/a"
    monkeypatch.setattr(requests.sessions, "Session", lambda: session(server.url))
    with pytest.raises(TransferError, match=rf"it redirects to {server.url}, which is not encr"):
        download(url, part, title="file", patience=ONCE)
    assert server.seen == []
    download(url, part, title="file", patience=ONCE, checked=True)
    assert part.read_bytes() == CONTENT


def test_a_file_that_is_called_an_encoding_stays_as_it_is(part: Path) -> None:
    packed = gzip.compress(CONTENT)
    with site(packed, headers={"Content-Encoding": "x-gzip"}, script=["cut 1000"]) as server:
        get(server, part)
    assert part.read_bytes() == packed


def test_nobody_answers(part: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with pytest.raises(TransferError, match=r"^no connection to it$"):
            download(url, part, title="file", patience=ONCE)


def test_a_disk_without_room(server: Site, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 100_000))
    with pytest.raises(UserError) as refused:
        get(server, part)
    assert "has 0.1 MB free, but 0.3 MB more are needed for http" in str(refused.value)
    assert part.read_bytes() == b""


def test_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Transferred("weights", 1_000_000, 3_000_000, interval=0.0)
    shown.update(1_500_000)
    shown.update(500_000)
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "weights: 2.5 of 3.0 MB",
        "weights: 3.0 of 3.0 MB",
    ]
    assert shown.done == 3_000_000
