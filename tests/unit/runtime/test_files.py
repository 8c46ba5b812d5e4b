"""Files are whole or absent, and equal content gives equal bytes."""

from __future__ import annotations

import errno
import gzip
import io
import math
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctm_core.runtime import files
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.untrusted import open_regular


def test_atomic_write_makes_parents_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    with files.atomic_write(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_atomic_write_keeps_the_old_file_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_keeps_the_old_file_if_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    replace = os.replace

    def sync(descriptor: int) -> None:
        calls.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def rename(source: Path, target: Path) -> None:
        calls.append(f"rename {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    files.write_text(tmp_path / "file", "text")
    assert calls == [f"sync .file.{os.getpid()}.tmp", "rename file", f"sync {tmp_path.name}"]


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, {"a": [1, 2.5, None, "ü"]})
    assert files.read_json(path) == {"a": [1, 2.5, None, "ü"]}
    assert path.read_text().endswith("\n")


def test_records_notice_an_edit(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    files.write_record(path, {"a": [0.1, -0.0, 1e300, 7], "b": {"é": None}})
    assert files.read_record(path) == {"a": [0.1, -0.0, 1e300, 7], "b": {"é": None}}
    before = path.read_bytes()
    files.write_record(path, files.read_json(path))  # of another hash nothing is kept
    assert path.read_bytes() == before
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(
        UserError, match=r"record\.json was changed .*content_sha256; make it again"
    ):
        files.read_record(path)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"record\.json is not a record"):
        files.read_record(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_refuses_what_json_does_not_know(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "value.json", {"a": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{'a': 1}", b"[" * 10**5])
def test_read_json_names_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"value\.json is not valid JSON"):
        files.read_json(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    for read in (files.read_json, files.load_tensors, files.read_metadata, files.sha256_file):
        with pytest.raises(UserError, match="absent is missing"):
            read(path)


def test_hashes() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert files.sha256_bytes(b"") == empty
    assert files.sha256_json({"a": 1, "b": [2]}) == files.sha256_json({"b": [2], "a": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": 2})


def test_hash_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    assert files.sha256_file(path) == files.sha256_bytes(path.read_bytes())


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 4, 5, generator=generator)
    return {
        "matrix": torch.randn(7, 5, generator=generator).double().T,
        "image": image.contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5),
        "levels": torch.arange(9, dtype=torch.uint8),
        "half": image[0].bfloat16(),
        "none": torch.empty(0, 3),
        "rate.0.9": torch.tensor([1], dtype=torch.int64),
    }


def test_tensors_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    tensors = _tensors()
    files.save_tensors(path, tensors, {"kind": "test", "ü": "ö"})
    back, metadata = files.load_tensors(path)
    assert metadata == {"kind": "test", "ü": "ö"} == files.read_metadata(path)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value)


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    tensors, metadata = _tensors(), {name: name for name in "zyxwvutsrq"}
    files.save_tensors(tmp_path / "a", tensors, metadata)
    shuffled = dict(sorted(tensors.items(), key=lambda item: item[0][::-1]))
    for number in range(5):
        files.save_tensors(tmp_path / "b", shuffled, dict(reversed(metadata.items())))
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes(), number
    shuffled["scalar"] = torch.tensor(3.25)
    files.save_tensors(tmp_path / "b", shuffled, metadata)
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_every_flipped_bit_of_tensors_is_noticed(tmp_path: Path) -> None:
    """In header, hash, padding and values; under the same size."""
    files.save_tensors(tmp_path / "whole", _tensors(), {"kind": "test"})
    whole, path = (tmp_path / "whole").read_bytes(), tmp_path / "flipped.safetensors"
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        for read in (files.load_tensors, files.read_metadata):
            with pytest.raises(UserError, match=r"flipped\.safetensors (is|begins)"):
                read(path)


def test_another_type_in_the_header_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    files.save_tensors(path, {"a": torch.ones(3)})
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(
        UserError, match=r"t\.safetensors is corrupt: it does not match the SHA-256"
    ):
        files.load_tensors(path)


def test_a_file_of_tensors_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.safetensors"
    files.save_tensors(path, _tensors())
    opened = []
    monkeypatch.setattr(files, "open_regular", lambda p: opened.append(p) or open_regular(p))
    for _ in range(3):
        files.load_tensors(path)
    assert opened == [str(path)]


def test_tensors_without_a_hash_are_read(tmp_path: Path) -> None:
    """Those of earlier versions and of other projects, and whatever their texts hold."""
    from safetensors.torch import save_file

    texts = {"record": '{"sha256": "sha256:00", "content_sha256": "sha256:00"}'}
    save_file({"a": torch.ones(3)}, tmp_path / "old", metadata=texts)
    assert files.read_metadata(tmp_path / "old") == texts
    files.save_tensors(tmp_path / "new", {"a": torch.ones(3)}, texts)
    assert files.load_tensors(tmp_path / "new")[1] == texts


def test_anybody_can_compute_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    files.save_tensors(path, _tensors())
    content = path.read_bytes()
    [digits] = re.findall(rb'"content_sha256":"sha256:(.{64})"', content)
    assert files.sha256_bytes(content.replace(digits, b"0" * 64)).encode() == digits


@settings(max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    files.save_tensors(folder / "whole", _tensors(), {"kind": "test"})
    data = (folder / "whole").read_bytes()
    cut = folder / "cut.safetensors"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"cut\.safetensors is corrupt or not a safetensors file"):
        files.load_tensors(cut)
    with pytest.raises(UserError, match=r"cut\.safetensors is corrupt or not a safetensors file"):
        files.read_metadata(cut)


def test_a_foreign_file_is_called_what_it_is(tmp_path: Path) -> None:
    """And nobody is told to delete it."""
    buffers = {name: io.BytesIO() for name in ("torch", "npz", "zip")}
    torch.save({"a": torch.zeros(3)}, buffers["torch"])
    np.savez(buffers["npz"], mu=np.zeros(4))
    with zipfile.ZipFile(buffers["zip"], "w") as archive:
        archive.writestr("readme", "text")
    kinds = {
        pickle.dumps(list(range(50))): r"is a pickle.*`ctm convert`",
        buffers["torch"].getvalue(): r"is a PyTorch file.*`ctm convert`",
        buffers["npz"].getvalue(): r"\.npz archive; `ctm features reference`",
        buffers["zip"].getvalue(): "is a zip archive",
        b"PK\x03\x04" + b"\1" * 50: "is a zip archive without",
        b"version https://git-lfs.github.com/spec/v1\n": "`git lfs pull`",
        b"<!DOCTYPE html><html>": "is a web page",
        gzip.compress(b"text" * 9): "is compressed",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 9: "is a picture",
        b"\0" * 100: "begins with zeros",
        b"just a line of text\n": "is a text file",
    }
    path = tmp_path / "given.safetensors"
    for content, says in kinds.items():
        path.write_bytes(content)
        for read in (files.load_tensors, files.read_metadata):
            with pytest.raises(UserError, match=rf"given\.safetensors .*{says}") as refused:
                read(path)
            assert not re.search("delete|corrupt", str(refused.value))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (files.read_json, files.load_tensors, files.sha256_file):
        with pytest.raises(UserError, match="is a named pipe, not a file"):
            read(tmp_path / "pipe")


def test_remove_tree(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    files.remove_tree(tmp_path / "a")
    files.remove_tree(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
