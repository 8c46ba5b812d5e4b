"""Sources of own images that are refused: by one sentence, with nothing half made left."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures import tiny
from numpy.typing import NDArray
from PIL import Image

from ctm_core.config.datasets import Dataset as Section
from ctm_core.data.dataset import prepare
from ctm_core.data.readers import _split, _unpack
from ctm_core.runtime.errors import UserError

Refuses = Callable[..., None]


def png(seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (8, 8), **options: Any) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (*size, len(mode)), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, "PNG", **options)
    return stream.getvalue()


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


GOOD = {"a/0.png": png(0), "a/1.png": png(1), "b/0.png": png(2), "b/1.png": png(3)}


@pytest.fixture
def refuses(tmp_path: Path) -> Refuses:
    def check(source: Path | str, sentence: str, split: str = "train", **keys: Any) -> None:
        given = {"name": "mine", "reader": "images", "source": str(source), "resolution": 8}
        section = Section(**given | keys)
        with pytest.raises(UserError, match=sentence) as caught:
            prepare("mine", split, None, tmp_path / "made/out", workers=1, section=section)
        assert "\n" not in str(caught.value)
        assert not [path for path in (tmp_path / "made").rglob("*")]

    return check


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"readme.txt": b"x"}, "holds no PNG or JPEG files"),
        ({"a.png": png()}, "only one picture; at least two"),
        (GOOD | {"c/0.png": png(9)}, "the class c of .* has only one picture"),
        (GOOD | {"b/2.webp": b"x"}, r"1 pictures in formats .* first is b/2\.webp; convert"),
        (GOOD | {"b/2.png": png(4)[:-30]}, r"1 of 5 images .* b/2\.png of .*: it is "),
        (GOOD | {"b/2.png": b"<html>"}, r"b/2\.png of .*: it is not a PNG or JPEG file"),
        (GOOD | {"b/2.png": png(5, "RGBA")}, r"b/2\.png of .*: it has an alpha channel"),
        (GOOD | {"b/2.png": b""}, r"b/2\.png of .*: it is not a PNG"),
        ({"test/a/0.png": png(), "other/0.png": png()}, "a folder test but no train"),
        ({"dataset.json": b"{", **GOOD}, "not valid JSON"),
        ({"dataset.json": b'{"labels": [["a/0.png", "x"]]}', **GOOD}, "expected pairs of"),
        ({"dataset.json": b'{"labels": [["a/0.png", true]]}', **GOOD}, "expected pairs of"),
        ({"dataset.json": b'{"labels": [["a/9.png", 0]]}', **GOOD}, r"missing, .* is a/9\.png"),
        ({"dataset.json": b'{"labels": [["a/0.png", 0]]}', **GOOD}, r"no label .* is a/1\.png"),
        (
            {"dataset.json": json.dumps([[n, 10**9] for n in GOOD]).encode(), **GOOD},
            "the label 1000000000 is too large for 4 images",
        ),
        (
            {"dataset.json": json.dumps([[n, 2] for n in GOOD]).encode(), **GOOD},
            "the class 0 of .* has no picture",
        ),
    ],
)
def test_folders(refuses: Refuses, tmp_path: Path, files: dict[str, bytes], sentence: str) -> None:
    source = fill(tmp_path / "source", files)
    refuses(source, sentence)
    with zipfile.ZipFile(tmp_path / "source.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    refuses(tmp_path / "source.zip", sentence)


def test_animated_pictures_and_pipes(refuses: Refuses, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", GOOD)
    frames = [Image.new("RGB", (8, 8), (n, 0, 0)) for n in (0, 99)]
    frames[0].save(source / "a/2.png", save_all=True, append_images=frames[1:])
    refuses(source, r"a/2\.png of .*: it is animated")
    (source / "a/2.png").unlink()
    os.mkfifo(source / "a/2.png")
    refuses(source, r"a/2\.png of .*: is a named pipe")
    (source / "a/2.png").unlink()
    (source / "a/2.png").symlink_to("nowhere")
    refuses(source, r"a/2\.png cannot be read")
    (source / "a/2.png").unlink()
    (source / "c").symlink_to(source / "a")
    refuses(source, "links to folders, which are not followed")


def test_splits(refuses: Refuses, tmp_path: Path) -> None:
    files = {f"train/{name}": content for name, content in GOOD.items()}
    source = fill(tmp_path / "source", files)
    refuses(source, "no folder test; set dataset.test_fraction", "test")
    fill(source, {"test/c/0.png": png()})
    refuses(source, "test has the class c, train has not", "test")
    refuses(source, "has a folder test of its own; leave dataset.test_fraction", test_fraction=0.1)
    refuses(fill(tmp_path / "small", GOOD), "no image falls into test", "test", test_fraction=1e-9)


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/x.png", "a\\..\\x.png", "c:/x.png", "a/\x1b.png"]
)
def test_names_that_lead_outside(refuses: Refuses, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for member, content in {**GOOD, name: png()}.items():
            archive.writestr(zipfile.ZipInfo(member), content)
    with tarfile.open(tmp_path / "mine.tar", "w") as archive:
        for member, content in {**GOOD, name: png()}.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    before = tiny.tree(tmp_path)
    for suffix in ("zip", "tar"):
        refuses(tmp_path / f"mine.{suffix}", "cannot be unpacked .* (leads outside|not a name)")
    assert {p for p in tiny.tree(tmp_path) if "made" not in str(p)} == set(before)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices(refuses: Refuses, tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "mine.tar", "w") as archive:
        info = tarfile.TarInfo("a/0.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    refuses(tmp_path / "mine.tar", r"a/0\.png is a link or a device")
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as packed:
        entry = zipfile.ZipInfo("a/0.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(entry, "/etc/passwd")
    refuses(tmp_path / "mine.zip", r"a/0\.png is a link or a device")


def test_damaged_archives(refuses: Refuses, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("a/0.png"), png())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(zipfile.ZipInfo("a/0.png"), png())
    refuses(tmp_path / "twice.zip", r"holds a/0\.png twice")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", bytes(2**27))
    refuses(tmp_path / "bomb.zip", "unpacks to more than")
    for name, content, sentence in (
        ("cut.zip", (tmp_path / "twice.zip").read_bytes()[:-40], "cannot be unpacked"),
        ("mine.tar.xz", b"\xfd7zXZ\x00 not so", "cannot be unpacked"),
        ("mine.tar.zst", b"\x28\xb5\x2f\xfd", "unpack it with `tar --zstd -xf`"),
        ("page.zip", b"<html>", "cannot be unpacked"),
        ("empty.tar", b"", "cannot be unpacked"),
    ):
        (tmp_path / name).write_bytes(content)
        refuses(tmp_path / name, sentence)
    refuses(tmp_path / "nowhere", "does not exist; correct the path")
    refuses("https://example.org/x.zip", "is not fetched; download it")


@pytest.mark.parametrize(
    ("stack", "sentence"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "expected uint8 images .* but got float32"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"C 1 or 3, but got uint8 of shape \(4, 8, 8, 4\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "expected uint8 images"),
        (np.zeros((1, 8, 8, 3), np.uint8), "only one picture"),
        (np.zeros((4, 8, 9, 3), np.uint8), "number 0 of .* has 9 x 8 pixels"),
    ],
)
def test_arrays(refuses: Refuses, tmp_path: Path, stack: NDArray[Any], sentence: str) -> None:
    np.save(tmp_path / "mine.npy", stack)
    np.savez(tmp_path / "mine.npz", stack)
    refuses(tmp_path / "mine.npy", sentence, crop="none")
    refuses(tmp_path / "mine.npz", sentence, crop="none")


@pytest.mark.parametrize("labels", [[0.5] * 4, [0, 1], [-1, 0, 0, 0], [[0], [0], [0], [0]]])
def test_labels_of_arrays(refuses: Refuses, tmp_path: Path, labels: list[Any]) -> None:
    np.savez(tmp_path / "mine.npz", np.zeros((4, 8, 8, 3), np.uint8), np.array(labels))
    refuses(tmp_path / "mine.npz", "arr_1 is not one label per image")
    np.savez(tmp_path / "other.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    refuses(tmp_path / "other.npz", "has no arr_0")


@pytest.mark.parametrize("form", ["folder", "zip", "npy"])
def test_a_source_that_changes_while_it_is_read(
    refuses: Refuses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    source = fill(tmp_path / "source", GOOD)
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
            for name, content in GOOD.items():
                archive.writestr(name, content)
        source = tmp_path / "mine.zip"
    elif form == "npy":
        source = tmp_path / "mine.npy"
        np.save(source, np.zeros((4, 8, 8, 3), np.uint8))
    touched = source / "a/0.png" if form == "folder" else source
    module, name = (_unpack, "_members") if form == "zip" else (_split, "square")
    first = getattr(module, name)

    def changing(*arguments: Any) -> Any:
        os.utime(touched, ns=(1, 1))
        return first(*arguments)

    monkeypatch.setattr(module, name, changing)
    refuses(source, "changed while it was read; run again")


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"resolution": None}, "mine needs a resolution"),
        ({"source": None}, "mine needs a source"),
        ({"name": "digits"}, "digits is another data set's name"),
        ({"reader": None, "name": "images", "resolution": None}, "images is a reader: write"),
        (
            {"reader": None, "name": "digits", "source": None},
            "resolution is a setting of a reader",
        ),
        ({"channels": 2}, "Input should be 1 or 3"),
        ({"test_fraction": 0.6}, "less than or equal to 0.5"),
    ],
)
def test_settings(keys: dict[str, Any], sentence: str) -> None:
    given = {"name": "mine", "reader": "images", "source": "x", "resolution": 8}
    given = {key: value for key, value in {**given, **keys}.items() if value is not None}
    if "reader" not in given and given["name"] == "images":
        given.pop("resolution", None)
    with pytest.raises(ValueError, match=sentence):
        Section(**given)


def test_a_resolution_that_the_network_cannot_take() -> None:
    own = {"name": "mine", "reader": "images", "source": "x", "resolution": 9}
    with pytest.raises(ValueError, match=r"levels need a resolution .* multiple of 2, but mine"):
        tiny.experiment({"dataset": own, "network.channel_mult": [1, 2]})
