"""CIFAR-10 from files of its form: archive, folder, URL, and everything that is none of these."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fixtures import cifar
from fixtures.web import serve

from ctm_core.data import dataset
from ctm_core.data.readers import cifar10
from ctm_core.models import torchvision_shim
from ctm_core.runtime.errors import UserError

COUNT = 8
UNPATCHED, PUBLISHED_ARCHIVE = cifar10.BATCHES, cifar10.ARCHIVE_MD5
NAMES = [f"data_batch_{number}" for number in range(1, 6)]


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, cifar.Arrays]:
    """Small batches in ``tmp_path/source``, as a folder and as an archive, with their MD5."""
    drawn = {name: cifar.draw(COUNT, seed) for seed, name in enumerate([*NAMES, "test_batch"])}
    md5 = cifar.write_folder(tmp_path / "source" / cifar10.FOLDER, drawn)
    archive = cifar.pack(tmp_path / "source" / cifar10.FOLDER, tmp_path / "source/archive.tar.gz")
    batches = {
        "train": {name: md5[name] for name in NAMES},
        "test": {"test_batch": md5["test_batch"]},
    }
    monkeypatch.setattr(cifar10, "BATCHES", batches)
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", archive)
    return drawn


@pytest.fixture
def source(arrays: object, tmp_path: Path) -> Path:
    return tmp_path / "source"


def expected(drawn: dict[str, cifar.Arrays], split: str) -> cifar.Arrays:
    chosen = [drawn[name] for name in (NAMES if split == "train" else ["test_batch"])]
    return np.concatenate([i for i, _ in chosen]), np.concatenate([labels for _, labels in chosen])


def check(dataset: dataset.Dataset, drawn: dict[str, cifar.Arrays], split: str) -> None:
    images, labels = expected(drawn, split)
    assert np.array_equal(dataset.images, images)
    assert np.array_equal(dataset.labels, labels)


@pytest.mark.parametrize("place", [f"{cifar10.FOLDER}/data_batch_2", "archive.tar.gz"])
def test_sparse_files_are_not_read_whole(source: Path, tmp_path: Path, place: str) -> None:
    os.truncate(source / place, 20 * 2**30)
    given = source / place if "tar" in place else source
    with pytest.raises(UserError, match=r"is larger than (64 MiB|CIFAR-10's archive)"):
        dataset.prepare("cifar10", "train", str(given), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("place", ["", cifar10.FOLDER, "archive.tar.gz"])
def test_folder_parent_and_archive_give_the_same(
    arrays: dict[str, cifar.Arrays], source: Path, tmp_path: Path, place: str, split: str
) -> None:
    made = dataset.prepare("cifar10", split, str(source / place), tmp_path / split)
    check(made, arrays, split)
    assert made.flip and made.classes == 10 and made.class_names[3] == "cat"
    named = ["archive.tar.gz"] if "tar" in place else list(cifar10.BATCHES[split])
    assert [file["name"] for file in made.manifest["source_files"]] == named
    for file in made.manifest["source_files"]:
        path = source / file["name"] if "tar" in place else source / cifar10.FOLDER / file["name"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]
    assert made.manifest.keys() == dataset.MANIFEST_TYPES.keys()


def test_the_assets_folder_is_the_default(
    arrays: dict[str, cifar.Arrays],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CTM_ASSETS", str(tmp_path / "assets"))
    with pytest.raises(UserError, match=r"assets/cifar-10-python\.tar\.gz nor .* exists; give"):
        dataset.prepare("cifar10", "train", None, tmp_path / "train")
    (tmp_path / "assets").mkdir()
    shutil.copy(source / "archive.tar.gz", tmp_path / "assets" / cifar10.ARCHIVE)
    check(dataset.prepare("cifar10", "train", None, tmp_path / "train"), arrays, "train")


def test_from_a_url(arrays: dict[str, cifar.Arrays], source: Path, tmp_path: Path) -> None:
    whole = (source / "archive.tar.gz").read_bytes()
    (source / "archive.tar.gz").write_bytes(whole[:-9])
    with serve(source) as url:
        with pytest.raises(UserError, match="is truncated or is not CIFAR-10's archive"):
            dataset.prepare("cifar10", "train", f"{url}/archive.tar.gz", tmp_path / "train")
        (source / "archive.tar.gz").write_bytes(whole)  # what was fetched is not kept
        made = dataset.prepare("cifar10", "train", f"{url}/archive.tar.gz", tmp_path / "train")
    check(made, arrays, "train")


def test_the_form_is_the_one_that_torchvision_reads(
    arrays: dict[str, cifar.Arrays], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision_shim.apply()
    from torchvision.datasets import CIFAR10

    listed = dict(CIFAR10.train_list) | dict(CIFAR10.test_list)
    assert listed == UNPATCHED["train"] | UNPATCHED["test"]
    assert CIFAR10.tgz_md5 == PUBLISHED_ARCHIVE

    for split, attribute in (("train", "train_list"), ("test", "test_list")):
        monkeypatch.setattr(CIFAR10, attribute, list(cifar10.BATCHES[split].items()))
    names = pickle.dumps({"label_names": list(cifar10.TRAITS["class_names"])}, protocol=2)
    (source / cifar10.FOLDER / "batches.meta").write_bytes(names)
    meta = {"filename": "batches.meta", "key": "label_names", "md5": None}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    theirs = CIFAR10(source, train=True)
    images, labels = expected(arrays, "train")
    assert np.array_equal(theirs.data.transpose(0, 3, 1, 2), images)
    assert theirs.targets == labels.tolist()


def remove(folder: Path) -> None:
    (folder / "data_batch_3").unlink()


def cut(folder: Path) -> None:
    path = folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-100])


def change(folder: Path) -> None:
    path = folder / "data_batch_3"
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (remove, "has no data_batch_3; give --source https://www.cs.toronto.edu"),
        (cut, r"data_batch_3 is truncated or is not CIFAR-10's batch: its MD5 is \w{32}, exp"),
        (change, r"data_batch_3 is truncated or is not CIFAR-10's batch: its MD5 is \w{32}, exp"),
    ],
)
def test_a_damaged_folder(
    source: Path, tmp_path: Path, harm: Callable[[Path], None], says: str
) -> None:
    harm(source / cifar10.FOLDER)
    with pytest.raises(UserError, match=says):
        dataset.prepare("cifar10", "train", str(source), tmp_path / "train")
    assert not (tmp_path / "train").exists()
    dataset.prepare("cifar10", "test", str(source), tmp_path / "test")  # the other split is whole


def test_an_archive_of_something_else(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one whose MD5 is the expected one ends in a sentence."""
    archive = source / "archive.tar.gz"
    whole = archive.read_bytes()
    for content, says in (
        (whole[: len(whole) // 2], "is not a complete tar.gz archive"),
        (b"no archive at all", "is not a complete tar.gz archive"),
        (b"", "is not a complete tar.gz archive|has no data_batch_1"),
    ):
        archive.write_bytes(content)
        monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(content).hexdigest())
        with pytest.raises(UserError, match=says):
            dataset.prepare("cifar10", "train", str(archive), tmp_path / "train")
    (source / cifar10.FOLDER / "data_batch_2").unlink()
    monkeypatch.setattr(
        cifar10, "ARCHIVE_MD5", cifar.pack(source / cifar10.FOLDER, source / "archive.tar.gz")
    )
    with pytest.raises(UserError, match=r"archive\.tar\.gz has no data_batch_2"):
        dataset.prepare("cifar10", "train", str(archive), tmp_path / "train")


def test_places_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist; give --source https"):
        dataset.prepare("cifar10", "train", str(tmp_path / "nowhere"), tmp_path / "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds neither cifar-10-python"):
        dataset.prepare("cifar10", "train", str(tmp_path / "empty"), tmp_path / "train")


MEASURED = """
import sys
from pathlib import Path
from ctm_core import cli
from ctm_core.data.readers import cifar10

names = sorted(cifar10.BATCHES["train"])
cifar10.BATCHES = {"train": dict(zip(names, sys.argv[1].split(","), strict=True))}
sys.argv = ["ctm", "data", "--dataset", "cifar10", "--source", sys.argv[2], "--output", "made"]
cli.main()
[peak] = [l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l]
print(int(peak.split()[1]) // 1024, "MB")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_at_full_size(tmp_path: Path) -> None:
    """154 MB of images, one batch of 31 MB twice more, and Python with its libraries."""
    drawn = cifar.draw(10000, 0)
    md5 = cifar.write_folder(tmp_path / cifar10.FOLDER, dict.fromkeys(NAMES, drawn))
    words = [",".join(md5[name] for name in NAMES), str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, *words],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120},
    )
    assert ended.returncode == 0, ended.stderr
    assert "50000 images of (3, 32, 32)" in ended.stdout
    assert int(ended.stdout.split()[-2]) < 400
    made = dataset.open_dataset(tmp_path / "made")
    assert np.array_equal(made.images[-10000:], drawn[0])


# -- pickles that are programs -----------------------------------------------------------------


def call(function: str, argument: str) -> bytes:
    """A pickle that calls a function with a text."""
    module, _, name = function.rpartition(".")
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


ARRAY = b"\x80\x02}(U\x04data" + cifar.batch(*cifar.draw(1, 0)).split(b"U\x04data")[1]
HOSTILE = {
    "os.system": lambda file: call("os.system", f"touch {file}"),
    "builtins.eval": lambda file: call("builtins.eval", f"open({str(file)!r}, 'w')"),
    "nt and posix": lambda file: call("posix.system", f"touch {file}"),
    "by stack": lambda file: (
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c"
        + bytes([len(f"touch {file}")])
        + f"touch {file}".encode()
        + b"\x85R."
    ),
    "nested name": lambda file: b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93\x85R.",
    "instance": lambda file: f"(Vtouch {file}\nios\nsystem\n.".encode(),
    "numpy's loader": lambda file: call("numpy.load", str(file)),
    "an array of objects": lambda file: ARRAY.replace(b"U\x02u1", b"U\x02O8"),
    "an extension": lambda file: b"\x80\x02\x82\x01.",
    "a persistent name": lambda file: b"Vname\nQ.",
    "no pickle": lambda file: b"hello",
    "nothing": lambda file: b"",
    "a list": lambda file: b"].",
    "no data": lambda file: b"}.",
    "a number for data": lambda file: b"}(U\x04dataK\x01u.",
    "a huge text": lambda file: b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b".",
    "text for labels": lambda file: cifar.batch(*cifar.draw(1, 0)).replace(
        b"]q\x05(K", b"]q\x05(U\x00K"
    ),
    "a label too many": lambda file: cifar.batch(
        cifar.draw(1, 0)[0], np.array([1, 2], dtype=np.int64)
    ),
    "a label of no class": lambda file: cifar.batch(
        cifar.draw(1, 0)[0], np.array([10], dtype=np.int64)
    ),
    "rows too short": lambda file: cifar.batch(*cifar.draw(1, 0)).replace(
        b"M\x00\x0c", b"M\x00\x0b"
    ),
}


@pytest.mark.parametrize("form", HOSTILE)
def test_nothing_is_executed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Not even from a file whose MD5 is the expected one."""
    trace = tmp_path / "trace"
    content = HOSTILE[form](trace)
    (source / cifar10.FOLDER / "test_batch").write_bytes(content)
    md5 = {"test_batch": hashlib.md5(content).hexdigest()}
    monkeypatch.setattr(cifar10, "BATCHES", cifar10.BATCHES | {"test": md5})
    with pytest.raises(UserError, match=r"test_batch is not a batch of CIFAR-10 \(.+\); give"):
        dataset.prepare("cifar10", "test", str(source), tmp_path / "test")
    assert not trace.exists()


def test_the_hostile_files_would_work_elsewhere(tmp_path: Path) -> None:
    for form in ("os.system", "builtins.eval", "by stack", "instance"):
        trace = tmp_path / form.replace(" ", "-")
        pickle.loads(HOSTILE[form](trace))  # noqa: S301 - ours
        assert trace.exists(), form
