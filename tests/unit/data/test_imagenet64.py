"""ImageNet 64×64 from small trees of ILSVRC2012's form: layouts, kills, damaged files."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fixtures import tiny
from fixtures.photographs import DAMAGED, encoded, photograph
from fixtures.tiny import FileSizeLimit, KillAt, MemoryLimit, SetAt
from PIL import Image

from ctm_core.data import dataset
from ctm_core.data.readers import _chunks, imagenet64
from ctm_core.data.readers._shrink import decoder, shrink
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json

WNIDS = ("n01440764", "n01443537", "n15075141")


# -- a tree ------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes of seven photographs, in chunks of four; one photograph is a PNG."""
    monkeypatch.setattr(_chunks, "CHUNK", 4)
    root = tmp_path / "ILSVRC2012"
    for number, wnid in enumerate(WNIDS):
        folder = root / "train" / wnid
        folder.mkdir(parents=True)
        for image in range(7):
            picture = photograph(10 * number + image)
            form = "PNG" if (number, image) == (1, 2) else "JPEG"
            (folder / f"{wnid}_{image}.JPEG").write_bytes(encoded(picture, form))
    return root


def prepare(tree: Path, output: Path, workers: int = 1, split: str = "train") -> dataset.Dataset:
    return dataset.prepare("imagenet64", split, str(tree), output, workers=workers)


def test_a_tree(tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = prepare(tree, tmp_path / "out" / "train")
    assert (
        made.images.shape == (21, 3, 64, 64)
        and made.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    )
    files = sorted(tree.glob("train/*/*.JPEG"))
    for image, file in zip(made.images, files, strict=True):
        assert np.array_equal(image, shrink(file.read_bytes()))
    assert made.class_names == list(WNIDS) and made.classes == 3 and made.flip
    preparation = made.manifest["preparation"]
    assert preparation["files"] == 21 and preparation["skipped"] == []
    assert preparation["complete"] is False and preparation["decoder"] == decoder()
    assert "21 images of 3 classes, where ILSVRC2012 has 1,281,167 of 1,000" in caplog.text
    # The one hash of all sources is what anybody can compute in a shell.
    told = subprocess.run(
        "find train -name '*.JPEG' | LC_ALL=C sort | xargs sha256sum | sha256sum",
        **{"shell": True, "cwd": tree, "capture_output": True, "text": True, "check": True},
    ).stdout
    assert made.manifest["source_files"] == [{"name": "train", "sha256": told.split()[0]}]
    assert not list((tmp_path / "out" / "downloads").iterdir())
    dataset.open_dataset(tmp_path / "out" / "train", verify=True)


def test_a_whole_set_says_so(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(imagenet64, "FILES", {"train": 21, "test": 0})
    monkeypatch.setattr(imagenet64, "CLASSES", 3)
    made = prepare(tree, tmp_path / "train")
    assert made.manifest["preparation"]["complete"] is True and not caplog.records


def test_the_number_of_workers_changes_nothing(tree: Path, tmp_path: Path) -> None:
    one = prepare(tree, tmp_path / "one" / "train", workers=1)
    two = prepare(tree, tmp_path / "two" / "train", workers=2)
    assert tiny.tree(one.path) == tiny.tree(two.path)


def test_the_size_of_chunks_changes_nothing(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "train" / WNIDS[1] / "cut.JPEG").write_bytes(DAMAGED["cut.JPEG"])
    one = prepare(tree, tmp_path / "one" / "train")
    monkeypatch.setattr(_chunks, "CHUNK", 9)
    two = prepare(tree, tmp_path / "two" / "train")
    assert tiny.tree(one.path) == tiny.tree(two.path)


def test_unreadable_files_are_left_out_and_listed(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = prepare(tree, tmp_path / "whole" / "train")
    folder = tree / "train" / WNIDS[1]
    for name, content in DAMAGED.items():
        (folder / name).write_bytes(content)
    (folder / "gone.JPEG").symlink_to("nowhere")
    (folder / "folder.JPEG").mkdir()
    (folder / "notes.txt").write_text("no image by its name")
    made = prepare(tree, tmp_path / "damaged" / "train", workers=2)
    assert made.fingerprint == whole.fingerprint
    preparation = made.manifest["preparation"]
    assert preparation["files"] == 29
    listed = {entry["name"]: entry["reason"] for entry in preparation["skipped"]}
    names = sorted([*DAMAGED, "gone.JPEG", "folder.JPEG"])
    assert list(listed) == [f"train/{WNIDS[1]}/{name}" for name in names]
    assert "truncated" in listed[f"train/{WNIDS[1]}/cut.JPEG"]
    assert listed[f"train/{WNIDS[1]}/gone.JPEG"] == "is missing"
    for name, reason in listed.items():
        assert f"left out: {tree / name} ({reason})" in caplog.text


def test_hostile_files_are_left_out_in_little_memory(tree: Path, tmp_path: Path) -> None:
    folder = tree / "train" / WNIDS[0]
    for width in (130_000, 1_000_000):
        (folder / f"x{width}.png").write_bytes(encoded(Image.new("L", (width, 1))))
    os.mkfifo(folder / "xpipe.JPEG")
    (folder / "xzero.JPEG").symlink_to("/dev/zero")
    with open(folder / "xsparse.JPEG", "wb") as file:
        file.truncate(20 * 2**30)
    (folder / "x\x1b[2J.JPEG").write_bytes(b"no image")
    words = ["data", "--dataset", "imagenet64", "--source", tree, "--output", "out/train"]
    ended = tiny.ctm([*words, "--workers", "1"], tmp_path, [MemoryLimit()])
    assert ended.code == 0, ended.stderr
    assert "\x1b" not in ended.stderr and "x\\x1b[2J.JPEG" in ended.stderr
    manifest = read_json(tmp_path / "out/train/manifest.json")
    reasons = {Path(e["name"]).name: e["reason"] for e in manifest["preparation"]["skipped"]}
    assert manifest["count"] == 21 and reasons == {
        "x1000000.png": "its size of 1000000 x 1 pixels is not that of a picture",
        "x130000.png": "its size of 130000 x 1 pixels is not that of a picture",
        "xpipe.JPEG": "is a named pipe, not a file",
        "xzero.JPEG": "is a device, not a file",
        "xsparse.JPEG": "is larger than 256 MiB, which no file of this kind is",
        "x\x1b[2J.JPEG": "it is not a PNG or JPEG file",
    }


def test_hidden_files_are_passed_over(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = prepare(tree, tmp_path / "whole" / "train")
    for file in list(tree.glob("train/*/*.JPEG")):
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
    made = prepare(tree, tmp_path / "again" / "train")
    assert tiny.tree(made.path) == tiny.tree(whole.path)
    assert "left out below " in caplog.text and "21 macOS AppleDouble files" in caplog.text


def test_a_copy_with_too_many_damaged_files(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(11):
        (tree / "train" / WNIDS[0] / f"{number}.JPEG").write_bytes(b"")
    with pytest.raises(UserError, match=r"11 of 32 files under .*train are unreadable, too many"):
        prepare(tree, tmp_path / "train")
    assert not (tmp_path / "train").exists()
    monkeypatch.setattr(imagenet64, "LARGEST_LOSS", 0.5)
    assert len(prepare(tree, tmp_path / "train")) == 21


def test_a_failing_drive_is_no_damaged_file(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = prepare(tree, tmp_path / "one" / "train")
    read = _chunks.read_bytes

    def failing(path: Path, limit: int) -> bytes:
        if path.name == f"{WNIDS[2]}_0.JPEG":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path, limit)

    monkeypatch.setattr(_chunks, "read_bytes", failing)
    with pytest.raises(OSError, match="Input/output error"):
        prepare(tree, tmp_path / "two" / "train")
    monkeypatch.setattr(_chunks, "read_bytes", read)
    made: list[int] = []
    make = _chunks._make
    monkeypatch.setattr(_chunks, "_make", lambda *args: made.append(args[-1]) or make(*args))
    again = prepare(tree, tmp_path / "two" / "train")
    assert made == [3, 4, 5]  # chunks 0 … 2 were finished
    assert tiny.tree(undisturbed.path) == tiny.tree(again.path)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_preparation_continues(tree: Path, tmp_path: Path, workers: int) -> None:
    undisturbed = prepare(tree, tmp_path / "one" / "train")
    words = ["data", "--dataset", "imagenet64", "--source", tree, "--output", "two/train"]
    words += ["--workers", str(workers)]
    small = SetAt("ctm_core.data.readers._chunks:CHUNK", 4)
    ended = tiny.ctm(
        words, tmp_path, [small, KillAt("ctm_core.runtime.progress:Progress.advance", 3)]
    )
    assert ended.code == -signal.SIGKILL
    scratch = tmp_path / "two" / "downloads" / "imagenet64-train"
    finished = {path.name: path.stat().st_mtime_ns for path in scratch.glob("*.json")}
    assert len(finished) >= 4  # the plan and three chunks
    assert not (tmp_path / "two" / "train").exists()
    # Once more, now after the images are written.
    ended = tiny.ctm(words, tmp_path, [small, KillAt("ctm_core.data.dataset:save_array", 1)])
    assert ended.code == -signal.SIGKILL
    after = {path.name: path.stat().st_mtime_ns for path in scratch.glob("*.json")}
    assert len(after) == 7 and finished.items() <= after.items()
    ended = tiny.ctm(words, tmp_path, [small])
    assert ended.code == 0, ended.stderr
    assert tiny.tree(undisturbed.path) == tiny.tree(tmp_path / "two" / "train")
    assert not list((tmp_path / "two" / "downloads").iterdir())


def test_a_full_disk(tree: Path, tmp_path: Path) -> None:
    words = ["data", "--dataset", "imagenet64", "--source", tree, "--output", "out"]
    ended = tiny.ctm([*words, "--workers", "1"], tmp_path, [FileSizeLimit(100_000)])
    assert ended.code == 2 and "Traceback" not in ended.stderr
    assert "the limit on file sizes is reached" in ended.stderr.splitlines()[-1]


def test_other_files_start_anew(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    make = _chunks._collect
    monkeypatch.setattr(_chunks, "_collect", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(tree, tmp_path / "train")
    monkeypatch.setattr(_chunks, "_collect", make)
    (tree / "train" / WNIDS[0] / "a.JPEG").write_bytes(encoded(photograph(99), "JPEG"))
    made = prepare(tree, tmp_path / "train")
    assert len(made) == 22 and np.array_equal(
        made.images[0], shrink(encoded(photograph(99), "JPEG"))
    )


# -- layouts -----------------------------------------------------------------------------------


@pytest.fixture
def flat(tree: Path) -> Path:
    """A validation folder without folders of classes: file i is of class 2, 0, 2, 1."""
    (tree / "val").mkdir()
    for number in range(4):
        name = f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        (tree / "val" / name).write_bytes(encoded(photograph(50 + number), "JPEG"))
    return tree


FLAT = (2, 0, 2, 1)


def check_flat(made: dataset.Dataset) -> None:
    assert made.labels.tolist() == list(FLAT) and made.class_names == list(WNIDS)
    assert made.split == "test"
    for number, image in enumerate(made.images):
        assert np.array_equal(image, shrink(encoded(photograph(50 + number), "JPEG")))


@pytest.mark.parametrize("place", ["", "val", "../../.."])
def test_validation_with_kaggles_table(flat: Path, tmp_path: Path, place: str) -> None:
    root = Path(shutil.copytree(flat, tmp_path / "kaggle/ILSVRC/Data/CLS-LOC"))
    lines = ["ImageId,PredictionString"] + [
        f"ILSVRC2012_val_{number + 1:08d},{WNIDS[label]} 85 1 499 272 {WNIDS[label]} 1 2 3 4 "
        for number, label in reversed(list(enumerate(FLAT)))
    ]
    (root / place / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    check_flat(prepare(root, tmp_path / "test", split="test"))


def test_validation_with_a_table_of_ones_own(flat: Path, tmp_path: Path) -> None:
    lines = [
        f"ILSVRC2012_val_{number + 1:08d}.JPEG {WNIDS[label]}" for number, label in enumerate(FLAT)
    ]
    (flat / "val_labels.txt").write_text("\n".join(lines) + "\n\n")
    check_flat(prepare(flat, tmp_path / "test", split="test"))
    shutil.rmtree(flat / "train")  # then the table itself tells the classes
    check_flat(prepare(flat, tmp_path / "test", split="test"))


def test_validation_in_folders(flat: Path, tmp_path: Path) -> None:
    for path, label in zip(sorted((flat / "val").iterdir()), FLAT, strict=True):
        folder = flat / "val" / WNIDS[label]
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    made = prepare(flat, tmp_path / "test", split="test")
    assert made.labels.tolist() == [0, 1, 2, 2]
    (flat / "val" / "n99999999").mkdir()
    with pytest.raises(UserError, match="val has the class n99999999, which train lacks"):
        prepare(flat, tmp_path / "test", split="test")
    shutil.rmtree(flat / "val" / "n99999999")
    shutil.rmtree(flat / "val" / WNIDS[0])  # a class without validation keeps its number
    assert prepare(flat, tmp_path / "test", split="test").labels.tolist() == [1, 2, 2]


def test_tables_that_do_not_fit(flat: Path, tmp_path: Path) -> None:
    def refused(says: str) -> None:
        with pytest.raises(UserError, match=says):
            prepare(flat, tmp_path / "test", split="test")
        assert not (tmp_path / "test").exists()

    refused("no folders of classes and there is no LOC_val_solution.csv or val_labels.txt")
    table = flat / "val_labels.txt"
    table.write_text(f"ILSVRC2012_val_00000001.JPEG {WNIDS[0]}\n")
    refused("val_labels.txt has no line for ILSVRC2012_val_00000002.JPEG; correct the table")
    table.write_text("".join(f"ILSVRC2012_val_{n:08d}.JPEG n00000000\n" for n in range(5)))
    refused("gives the unknown class n00000000 to ILSVRC2012_val_00000001.JPEG")
    table.write_text("ILSVRC2012_val_00000001.JPEG 65\n")
    refused("entry 1 of .*val_labels.txt is not a name and a wnid")
    table.write_bytes(b"\xff\xfe\x00")
    refused("val_labels.txt is not a text file")
    table.unlink()
    (flat / "LOC_val_solution.csv").write_text(f"ImageId,Prediction\na,{'9' * 140_000}\n")
    refused("LOC_val_solution.csv is not a text file .field larger than field limit")
    with open(flat / "LOC_val_solution.csv", "wb") as file:
        file.truncate(20 * 2**30)
    refused("LOC_val_solution.csv is larger than 64 MiB")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda root: shutil.rmtree(root), "ILSVRC2012 does not exist; get ILSVRC2012 from https"),
        (lambda root: shutil.rmtree(root / "train"), "train has no folders of classes"),
        (
            lambda root: [p.unlink() for p in root.glob("train/*/*")],
            "train holds no images; get ILSVRC2012",
        ),
        (
            lambda root: [p.rename(root / p.name) for p in (root / "train").iterdir()],
            "itself holds the folders of the classes; they belong into .*train, and",
        ),
    ],
)
def test_no_tree(tree: Path, tmp_path: Path, harm: Callable[[Path], None], says: str) -> None:
    harm(tree)
    with pytest.raises(UserError, match=says):
        prepare(tree, tmp_path / "train")


def test_the_assets_folder_is_the_default(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTM_ASSETS", str(tmp_path))
    made = dataset.prepare("imagenet64", "train", None, tmp_path / "train", workers=1)
    assert len(made) == 21
