"""Preparing and opening data sets, and what a user may get wrong about them."""

import gzip
import hashlib
import json
import os
import shutil
import struct
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import tiny
from fixtures.tiny import FileSizeLimit
from fixtures.web import serve
from hypothesis import given, settings
from hypothesis import strategies as st

from ctm_core.config import datasets
from ctm_core.data import dataset
from ctm_core.data.readers import fashion_mnist
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import CONTENT, sha256_file, write_record

IMAGES = 30


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return dataset.prepare("digits", "train", None, tmp_path_factory.mktemp("data") / "train")


@pytest.fixture
def copied(digits, tmp_path):
    """A prepared folder that a test may damage."""
    return Path(shutil.copytree(digits.path, tmp_path / "train"))


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def small_fashion(tmp_path, monkeypatch):
    """Files of Fashion-MNIST's format with few images, whose hashes the reader expects."""
    folder = tmp_path / "source"
    folder.mkdir()
    generator = np.random.default_rng(0)
    expected = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = generator.integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, IMAGES, dtype=np.uint8)
        entries = []
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            content = idx(array)
            (folder / f"{prefix}-{kind}.gz").write_bytes(gzip.compress(content))
            entries.append((f"{prefix}-{kind}", hashlib.md5(content).hexdigest()))
        expected[split] = tuple(entries)
    monkeypatch.setattr(fashion_mnist, "FILES", expected)
    return folder


def test_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    assert digits.images.shape == (1797, 1, 8, 8) and digits.images.dtype == np.uint8
    assert isinstance(digits.images, np.memmap) and not digits.images.flags.writeable
    assert np.array_equal(digits.images[:, 0], np.floor(bunch.images * 255 / 16 + 0.5))
    assert np.array_equal(digits.labels, bunch.target) and digits.labels.dtype == np.int64
    assert (digits.classes, digits.channels, digits.resolution) == (10, 1, 8)
    assert digits.flip is False and digits.class_names == list("0123456789")


def test_manifest_and_fingerprint(digits):
    manifest = json.loads((digits.path / "manifest.json").read_text())
    assert manifest.keys() == {*dataset.MANIFEST_TYPES, CONTENT}
    assert manifest["shape"] == [1797, 1, 8, 8] and manifest["count"] == 1797
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((digits.path / name).read_bytes()).hexdigest() == digest
    content = struct.pack("<4q", 1797, 1, 8, 8) + digits.images.tobytes() + digits.labels.tobytes()
    assert hashlib.sha256(content).hexdigest() == manifest["fingerprint"] == digits.fingerprint


def test_preparing_again_gives_the_same_bytes(digits, tmp_path):
    output = tmp_path / "train"
    for _ in range(2):
        dataset.prepare("digits", "train", None, output)
        for name in ("images.npy", "labels.npy", "manifest.json"):
            assert (output / name).read_bytes() == (digits.path / name).read_bytes()
    assert sorted(p.name for p in output.iterdir()) == [
        "images.npy",
        "labels.npy",
        "manifest.json",
    ]


def test_a_failed_source_leaves_the_prepared_folder_alone(copied, tmp_path):
    with pytest.raises(UserError):
        dataset.prepare("fashion-mnist", "train", str(tmp_path / "nowhere"), copied)
    assert dataset.open_dataset(copied, verify=True).name == "digits"


def test_batch_and_levels(digits):
    images, labels = digits.batch(torch.tensor([5, 0, 5]))
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert (
        torch.equal(images[0], images[2]) and labels.tolist() == digits.labels[[5, 0, 5]].tolist()
    )
    images[0] = 0  # a copy: the file behind is untouched
    assert digits.images[5].any()
    x = dataset.to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor([-1.0, -0.6, 1.0]))


def test_levels_survive_the_way_there_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    x = dataset.to_float(levels)
    assert torch.equal(((x + 1) * 127.5).round().to(torch.uint8), levels)


def test_every_dataset_has_traits_and_a_reader():
    assert {"digits", "fashion-mnist"} <= set(datasets.names())
    for name in datasets.names():
        module = import_module(f"ctm_core.data.readers.{name.replace('-', '_')}")
        assert callable(module.read)
        known = datasets.traits(name)
        assert known == datasets.DatasetTraits(**module.TRAITS)
        assert known.splits[0] == "train"


@pytest.mark.parametrize(
    ("name", "split", "source", "says"),
    [
        ("cifar11", "train", None, "unknown dataset 'cifar11'; known are .*digits"),
        ("digits", "test", None, "digits has no split 'test'; it has train"),
        ("digits", "train", "/somewhere", "takes no source"),
        ("fashion-mnist", "valid", None, "it has train and test"),
        ("fashion-mnist", "train", "/no/such/folder", "/no/such/folder does not exist; install"),
    ],
)
def test_wrong_wishes(tmp_path, name, split, source, says):
    with pytest.raises(UserError, match=says):
        dataset.prepare(name, split, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def remove(path):
    path.unlink()


def garble(path):
    path.write_bytes(b"not what it was")


@pytest.mark.parametrize("harm", [truncate, remove, garble])
@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "manifest.json"])
def test_damaged_folders_are_refused(copied, name, harm):
    harm(copied / name)
    with pytest.raises(UserError, match=str(copied)):
        dataset.open_dataset(copied)


def test_a_changed_pixel_is_found_by_hash_only(copied):
    content = bytearray((copied / "images.npy").read_bytes())
    content[-1] ^= 1
    (copied / "images.npy").write_bytes(bytes(content))
    dataset.open_dataset(copied, verify=False)
    with pytest.raises(UserError, match=r"images\.npy is not the file its manifest describes"):
        dataset.open_dataset(copied)


def test_a_file_is_hashed_once(copied, monkeypatch):
    hashed = []
    real = dataset.sha256_file
    monkeypatch.setattr(dataset, "sha256_file", lambda path: hashed.append(path) or real(path))
    for _ in range(3):
        dataset.open_dataset(copied)
    assert hashed == [str(copied / name) for name in dataset.FILES]
    (copied / "labels.npy").write_bytes((copied / "labels.npy").read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match=r"labels\.npy is not the file"):
        dataset.open_dataset(copied)


def test_every_command_notices_a_damaged_set(copied, tmp_path):
    content = (copied / "images.npy").read_bytes()
    (copied / "images.npy").write_bytes(content[:128] + bytes(len(content) - 128))
    protocol = Path(__file__).parents[3] / "config/protocols/desk-smoke.yaml"
    ended = tiny.ctm(
        ["features", "reference", "--protocol", protocol, "--data", copied, "--output", "out"],
        tmp_path,
    )
    assert ended.code == 2 and "Traceback" not in ended.stderr
    assert (
        "images.npy is not the file its manifest describes; run `ctm data` again" in ended.stderr
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_out_of_range_are_refused(copied, label):
    labels = np.load(copied / "labels.npy")
    labels[3] = label
    np.save(copied / "labels.npy", labels)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"]["labels.npy"] = sha256_file(copied / "labels.npy")
    write_record(copied / "manifest.json", manifest)
    with pytest.raises(
        UserError, match=r"labels\.npy holds labels outside 0 … 9; run `ctm data` again"
    ):
        dataset.open_dataset(copied)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "\x1b[2Jdigits"),
        ("split", 3),
        ("files", []),
        ("classes", "10"),
        ("class_names", ["a"]),
        ("class_names", ["\n"] * 10),
        ("shape", None),
    ],
)
def test_a_manifest_of_other_types_is_refused(copied, key, value):
    manifest = json.loads((copied / "manifest.json").read_text()) | {key: value}
    write_record(copied / "manifest.json", manifest)
    with pytest.raises(UserError, match=r"manifest\.json (has no valid|does not)") as caught:
        dataset.open_dataset(copied)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "manifest.json"])
def test_a_pipe_is_not_waited_for(copied, name):
    (copied / name).unlink()
    os.mkfifo(copied / name)
    with pytest.raises(UserError, match=r"is a named pipe|no manifest\.json"):
        dataset.open_dataset(copied)


def test_a_full_disk_is_one_sentence(tmp_path):
    words = ["data", "--dataset", "digits", "--output", "out"]
    ended = tiny.ctm(words, tmp_path, [FileSizeLimit(60_000)])
    assert ended.code == 2 and "Traceback" not in ended.stderr
    assert "images.npy: the limit on file sizes is reached" in ended.stderr
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("key", sorted(dataset.MANIFEST_TYPES))
def test_an_edited_manifest_is_refused(copied, key):
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {key: ["edited"]}))
    with pytest.raises(UserError, match=r"manifest\.json was changed after .*`ctm data` again"):
        dataset.open_dataset(copied)


def test_a_manifest_of_another_dataset_is_refused(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["shape"] = [1797, 3, 8, 8]
    write_record(copied / "manifest.json", manifest)
    with pytest.raises(UserError, match="its manifest says"):
        dataset.open_dataset(copied)


def test_a_pickled_array_is_not_loaded(copied):
    np.save(copied / "labels.npy", np.array([{"a": 1}] * 1797, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"labels\.npy holds Python objects"):
        dataset.open_dataset(copied)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_fashion_from_a_folder(small_fashion, tmp_path, split, packed):
    if not packed:
        for path in small_fashion.iterdir():
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    made = dataset.prepare("fashion-mnist", split, str(small_fashion), tmp_path / split)
    generator = np.random.default_rng(0)
    drawn = {}
    for name in ("train", "test"):
        drawn[name] = (
            generator.integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8),
            generator.integers(0, 10, IMAGES, dtype=np.uint8),
        )
    assert np.array_equal(made.images[:, 0], drawn[split][0])
    assert np.array_equal(made.labels, drawn[split][1])
    assert made.split == split and made.flip is False and len(made.class_names) == 10


def test_fashion_with_a_truncated_file(small_fashion, tmp_path):
    truncate(small_fashion / "train-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is truncated"):
        dataset.prepare("fashion-mnist", "train", str(small_fashion), tmp_path / "out")


def test_fashion_with_a_changed_content(small_fashion, tmp_path):
    path = small_fashion / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(UserError, match="is not Fashion-MNIST's file: the MD5"):
        dataset.prepare("fashion-mnist", "test", str(small_fashion), tmp_path / "out")
    dataset.prepare("fashion-mnist", "train", str(small_fashion), tmp_path / "out")


def test_fashion_with_bombs_and_sparse_files(small_fashion, tmp_path):
    """Gigabytes of zeros, packed or as a hole in a file: neither is taken into memory."""
    path = small_fashion / "train-images-idx3-ubyte.gz"
    member = gzip.compress(bytes(2**24))
    path.write_bytes(member * 640)  # 10 GiB
    for says in ("unpacks to more than any file", "is larger than 64 MiB"):
        with pytest.raises(UserError, match=says):
            dataset.prepare("fashion-mnist", "train", str(small_fashion), tmp_path / "out")
        os.truncate(path, 20 * 2**30)
    assert not (tmp_path / "out").exists()


def test_fashion_with_a_missing_file(small_fashion, tmp_path):
    (small_fashion / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        UserError, match=r"train-labels-idx1-ubyte\.gz nor .* dataset-fashion-mnist"
    ):
        dataset.prepare("fashion-mnist", "train", str(small_fashion), tmp_path / "out")


@pytest.fixture
def mirror(small_fashion):
    with serve(small_fashion) as url:
        yield url


def test_fashion_from_a_url_is_fetched_once(mirror, small_fashion, tmp_path):
    first = dataset.prepare("fashion-mnist", "train", mirror, tmp_path / "train")
    names = sorted(p.name for p in (tmp_path / "downloads").iterdir())
    assert names == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    for path in small_fashion.iterdir():
        path.unlink()
    again = dataset.prepare("fashion-mnist", "train", mirror + "/", tmp_path / "train")
    assert again.fingerprint == first.fingerprint


def test_a_broken_download_is_refused_and_fetched_anew(mirror, small_fashion, tmp_path):
    path = small_fashion / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    truncate(path)
    with pytest.raises(UserError, match="truncated"):
        dataset.prepare("fashion-mnist", "train", mirror, tmp_path / "train")
    path.write_bytes(whole)
    assert len(dataset.prepare("fashion-mnist", "train", mirror, tmp_path / "train")) == IMAGES


def test_a_missing_page_is_one_sentence(mirror, tmp_path):
    with pytest.raises(UserError, match=r"nowhere/train-images-idx3-ubyte\.gz cannot be fetched"):
        dataset.prepare("fashion-mnist", "train", f"{mirror}/nowhere", tmp_path / "train")


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_idx_round_trip(shape, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(fashion_mnist.parse_idx(idx(array)), array)


@pytest.mark.parametrize("cut", [2, 6, 15, 17])
def test_cut_idx_is_refused(cut):
    with pytest.raises(ValueError, match=r"IDX header|bytes of data"):
        fashion_mnist.parse_idx(idx(np.zeros((2, 3, 1), dtype=np.uint8))[:cut])


@pytest.mark.skipif(
    not fashion_mnist.DEBIAN_FOLDER.is_dir(),
    reason="Debian's dataset-fashion-mnist is not installed",
)
def test_the_real_fashion_mnist(tmp_path):
    test = dataset.prepare("fashion-mnist", "test", None, tmp_path / "test")
    assert test.images.shape == (10000, 1, 28, 28)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    for split, prefixes in (("train", "f4a8712d 9018921c"), ("test", "8181f547 15d48437")):
        assert [md5[:8] for _, md5 in fashion_mnist.FILES[split]] == prefixes.split()
