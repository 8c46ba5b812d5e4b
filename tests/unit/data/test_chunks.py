"""Images computed in chunks by several processes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctm_core.data.readers import _chunks
from ctm_core.data.readers._chunks import make_chunks
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_record, sha256_file

CONVERT = """
import os, time
import numpy as np

def slow(content):
    time.sleep(0.05)
    return np.full((1, 1, 1), content[0], dtype=np.uint8)

def kill(content):
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of conversions that worker processes can import."""
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / "conversions_of_a_test.py").write_text(CONVERT)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(_chunks, "CHUNK", 4)
    import conversions_of_a_test

    yield conversions_of_a_test
    del sys.modules["conversions_of_a_test"]


def numbered(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03d}").write_bytes(bytes([number]))
    return [f"{number:03d}" for number in range(count)]


@pytest.mark.parametrize("damaged", ["000001.npy", "000001.json"])
def test_a_damaged_chunk_is_made_again(convert: Any, tmp_path: Path, damaged: str) -> None:
    place = (tmp_path / "files", numbered(tmp_path / "files", 12), convert.slow, (1, 1, 1))
    options: Any = {"recipe": "", "workers": 1, "title": "test"}
    whole = np.concatenate(list(make_chunks(*place, tmp_path / "scratch", **options)))
    content = bytearray((tmp_path / "scratch" / damaged).read_bytes())
    content[-4] ^= 1
    (tmp_path / "scratch" / damaged).write_bytes(content)
    again = np.concatenate(list(make_chunks(*place, tmp_path / "scratch", **options)))
    assert np.array_equal(again, whole) and whole.ravel().tolist() == list(range(12))


def test_a_killed_worker_is_one_sentence(convert: Any, tmp_path: Path) -> None:
    names = numbered(tmp_path / "files", 12)
    options = {"recipe": "", "workers": 2, "title": "test"}
    place = (tmp_path / "files", names)
    with pytest.raises(UserError, match=r"a worker process was killed.* fewer than 2 --workers"):
        make_chunks(*place, convert.kill, (1, 1, 1), tmp_path / "scratch", **options)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_workers_end_with_their_parent(convert: Any, tmp_path: Path) -> None:
    numbered(tmp_path / "files", 240)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "module")!r})
from pathlib import Path
import conversions_of_a_test as conversions
from ctm_core.data.readers import _chunks
if __name__ == "__main__":
    _chunks.CHUNK = 4
    folder = Path({str(tmp_path)!r})
    names = [f"{{number:03d}}" for number in range(240)]
    _chunks.make_chunks(folder / "files", names, conversions.slow, (1, 1, 1),
                        folder / "scratch", recipe="", workers=2, title="test")
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "scratch").glob("*.npy"))) < 3:
            assert parent.poll() is None, parent.stderr and parent.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        workers = [
            pid for pid in listed if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert len(workers) == 2
        parent.kill()
        parent.wait()
        while any(alive(pid) for pid in listed):
            assert time.monotonic() < deadline, f"{listed} outlive their parent"
            time.sleep(0.05)
        done = len(list((tmp_path / "scratch").glob("*.npy")))
        assert done < 60  # it was killed before its end
    finally:
        parent.kill()
        parent.wait()
        assert parent.stderr is not None
        parent.stderr.close()


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_chunks_are_read_one_by_one(convert: Any, tmp_path: Path) -> None:
    names = numbered(tmp_path / "files", 10)
    options = {"recipe": "", "workers": 1, "title": "test"}
    place = (tmp_path / "files", names)
    chunks = make_chunks(*place, convert.slow, (1, 1, 1), tmp_path / "scratch", **options)
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    assert np.concatenate(list(chunks)).ravel().tolist() == list(range(10))
    assert chunks.kept.all() and chunks.skipped == ()
    record = read_record(tmp_path / "scratch" / "000002.json")
    assert record == {
        "sha256": [hashlib.sha256(bytes([number])).hexdigest() for number in (8, 9)],
        "skipped": [],
        "pixels_sha256": sha256_file(tmp_path / "scratch" / "000002.npy"),
    }
    assert json.loads((tmp_path / "scratch" / "plan.json").read_text()).keys() == {"plan"}
