"""Own images: every kind of source and every setting, from a few dozen drawn pictures."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures import tiny
from fixtures.sections import shows
from numpy.typing import NDArray
from PIL import Image

from ctm_core.config.datasets import Dataset as Section
from ctm_core.data.dataset import Dataset, open_dataset, prepare
from ctm_core.data.readers import _chunks
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json, sha256_file

Make = Callable[..., Dataset]
#: The names that drawn classes have, in order.
CLASSES = ("cats", "dogs")


def pixels(seed: int, size: tuple[int, int] = (8, 8)) -> NDArray[np.uint8]:
    """Random levels of an image (width, height)."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def write(path: Path, image: NDArray[np.uint8] | Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = image if isinstance(image, Image.Image) else Image.fromarray(image)
    made.save(path, **options)
    return path


def draw(folder: Path, count: int = 3, size: tuple[int, int] = (8, 8), first: int = 0) -> Path:
    """A folder with sub-folders of two classes of ``count`` pictures each."""
    for label, name in enumerate(CLASSES):
        for n in range(count):
            write(folder / name / f"{n}.png", pixels(first + 100 * label + n, size))
    return folder


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(source: Path, split: str = "train", workers: int = 1, **keys: Any) -> Dataset:
        section = Section(
            **{"name": "mine", "reader": "images", "source": str(source), "resolution": 8} | keys
        )
        output = tmp_path / "data" / split
        return prepare("mine", split, None, output, workers=workers, section=section)

    return made


def expected(*seeds: int) -> NDArray[np.uint8]:
    return np.stack([pixels(seed).transpose(2, 0, 1) for seed in seeds])


def packed(folder: Path, path: Path) -> Path:
    """A folder as the archive that the suffix says."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(folder))
    else:
        kind = path.suffix.removeprefix(".")
        with tarfile.open(path, f"w:{'' if kind == 'tar' else kind}") as archive:
            for file in files:
                archive.add(file, str(file.relative_to(folder)))
    return path


# -- sources -------------------------------------------------------------------------------------


@shows("Dataset.reader")
def test_a_folder_of_classes(make: Make, tmp_path: Path) -> None:
    made = make(draw(tmp_path / "source"))
    assert np.array_equal(made.images, expected(0, 1, 2, 100, 101, 102))
    assert made.labels.tolist() == [0, 0, 0, 1, 1, 1] and made.class_names == [*CLASSES]
    assert made.manifest["preparation"]["counts"] == [3, 3]
    assert made.name == "mine" and not made.flip
    left = {path.name for path in (tmp_path / "data").rglob("*")}
    assert left == {
        "train", "downloads", "images.npy", "labels.npy", "manifest.json", "mean.png",
        "contact.png",
    }  # fmt: skip


def test_mean_and_contact_sheet(make: Make, tmp_path: Path) -> None:
    made = make(draw(tmp_path / "source"))
    mean = np.asarray(Image.open(made.path / "mean.png"))[::6, ::6]
    assert np.abs(mean - made.images.mean(0).transpose(1, 2, 0)).max() <= 0.5
    sheet = np.asarray(Image.open(made.path / "contact.png"))
    assert np.array_equal(sheet[:48:6, 48:96:6], pixels(1))


def test_a_flat_folder_is_one_class(make: Make, tmp_path: Path) -> None:
    made = make(draw(tmp_path / "source") / "dogs")
    assert np.array_equal(made.images, expected(100, 101, 102))
    assert made.class_names == ["all"] and not made.labels.any()


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("above", ["", "top"])
def test_an_archive_is_the_folder_that_was_packed(
    make: Make, tmp_path: Path, suffix: str, above: str
) -> None:
    draw(tmp_path / "source" / above / "train")
    draw(tmp_path / "source" / above / "test", count=2, first=50)
    source = packed(tmp_path / "source", tmp_path / f"mine.{suffix}")
    made = make(source)
    assert np.array_equal(made.images, expected(0, 1, 2, 100, 101, 102))
    assert made.manifest["source_files"] == [{"name": source.name, "sha256": sha256_file(source)}]
    made = make(source, "test")
    assert np.array_equal(made.images, expected(50, 51, 150, 151))
    assert made.class_names == [*CLASSES]
    assert not any((tmp_path / "data/downloads").iterdir())


@pytest.mark.parametrize("labelled", [True, False])
def test_the_zip_of_edm_and_stylegan(make: Make, tmp_path: Path, labelled: bool) -> None:
    for n in range(4):
        write(tmp_path / f"source/00000/img{n:08d}.png", pixels(n))
    labels = [[f"00000/img{n:08d}.png", (n + 1) % 2] for n in range(4)] if labelled else None
    (tmp_path / "source/dataset.json").write_text(json.dumps({"labels": labels}))
    made = make(packed(tmp_path / "source", tmp_path / "edm.zip"))
    assert np.array_equal(made.images, expected(0, 1, 2, 3))
    assert made.labels.tolist() == ([1, 0, 1, 0] if labelled else [0] * 4)
    assert made.class_names == (["0", "1"] if labelled else ["all"])


def test_the_npz_of_guided_diffusion(make: Make, tmp_path: Path) -> None:
    stack = np.stack([pixels(n) for n in range(4)])
    np.savez(tmp_path / "adm.npz", stack, np.array([0, 1, 1, 0]))
    made = make(tmp_path / "adm.npz")
    assert np.array_equal(made.images, expected(0, 1, 2, 3))
    assert made.labels.tolist() == [0, 1, 1, 0] and made.class_names == ["0", "1"]
    assert make(tmp_path / "adm.npz", classes="none").class_names == ["all"]


@pytest.mark.parametrize("form", ["NHWC", "NCHW", "NHW", "NHW1"])
def test_an_npy(make: Make, tmp_path: Path, form: str) -> None:
    stack = np.stack([pixels(n) for n in range(600)])  # more than a chunk
    grey = stack[..., 0]
    given = {
        "NHWC": stack, "NCHW": stack.transpose(0, 3, 1, 2), "NHW": grey, "NHW1": grey[..., None]
    }  # fmt: skip
    np.save(tmp_path / "mine.npy", given[form])
    made = make(tmp_path / "mine.npy")
    levels = stack if form in ("NHWC", "NCHW") else np.repeat(grey[..., None], 3, 3)
    assert np.array_equal(made.images, levels.transpose(0, 3, 1, 2))


def test_an_asset(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = packed(draw(tmp_path / "source"), tmp_path / "mine.zip")
    monkeypatch.setattr("ctm_core.data.assets.require", {"some": source}.__getitem__)
    section = Section(name="mine", reader="images", source="asset:some", resolution=8)
    assert section.assets == ("some",)
    assert len(make(Path("asset:some"))) == 6


# -- settings ------------------------------------------------------------------------------------


@shows("Dataset.resolution")
def test_resolution(make: Make, tmp_path: Path) -> None:
    flat = np.full((40, 40, 3), (10, 20, 30), np.uint8)
    for n in range(2):
        write(tmp_path / f"source/{n}.png", flat)
    made = make(tmp_path / "source", resolution=16)
    assert made.images.shape == (2, 3, 16, 16)
    assert (made.images == np.array([10, 20, 30])[:, None, None]).all()
    assert made.manifest["preparation"]["settings"]["resolution"] == 16


@shows("Dataset.channels")
def test_channels(make: Make, tmp_path: Path) -> None:
    source = draw(tmp_path / "source")
    grey = np.asarray(Image.fromarray(pixels(0)).convert("L"))
    assert np.array_equal(make(source, channels=1).images[0], grey[None])
    assert make(source, channels=3).images.shape[1] == 3


@shows("Dataset.crop")
def test_crop(make: Make, tmp_path: Path) -> None:
    source = draw(tmp_path / "source", size=(12, 8))
    assert np.array_equal(make(source).images[0], pixels(0, (12, 8))[:, 2:10].transpose(2, 0, 1))
    with pytest.raises(UserError, match=r"6 of 6 images .* cats/0.png of .* has 12 x 8 pixels"):
        make(source, crop="none")
    mixed = draw(tmp_path / "mixed")
    assert len(make(mixed, crop="none")) == 6
    write(mixed / "dogs/2.png", pixels(0, (9, 9)))
    with pytest.raises(UserError, match=r"1 of 6 images .* dogs/2.png .* not 8 x 8 as the first"):
        make(mixed, crop="none")
    assert len(make(mixed)) == 6


@shows("Dataset.filter")
@pytest.mark.parametrize("name", ["box-bicubic", "lanczos", "area"])
def test_filter(make: Make, tmp_path: Path, name: str) -> None:
    source = draw(tmp_path / "source", size=(32, 32))
    whole = Image.fromarray(pixels(0, (32, 32)))
    steps = {
        "box-bicubic": [(16, Image.Resampling.BOX), (8, Image.Resampling.BOX)],
        "lanczos": [(8, Image.Resampling.LANCZOS)],
        "area": [(8, Image.Resampling.BOX)],
    }[name]
    for side, resample in steps:
        whole = whole.resize((side, side), resample=resample)
    assert np.array_equal(
        make(source, filter=name).images[0], np.asarray(whole).transpose(2, 0, 1)
    )


@shows("Dataset.classes")
def test_classes(make: Make, tmp_path: Path) -> None:
    source = draw(tmp_path / "source")
    assert make(source, classes="names").class_names == [*CLASSES]
    write(source / "loose.png", pixels(7))
    with pytest.raises(UserError, match=r"beside folders of classes, such as loose\.png"):
        make(source)
    made = make(source, classes="none")
    assert made.class_names == ["all"] and len(made) == 7


@shows("Dataset.test_fraction")
def test_held_out_by_content(make: Make, tmp_path: Path) -> None:
    source = draw(tmp_path / "source", count=20)
    held = {}
    for split in ("train", "test"):
        held[split] = {image.tobytes() for image in make(source, split, test_fraction=0.3).images}
    assert not held["train"] & held["test"] and len(held["train"] | held["test"]) == 40
    assert 4 <= len(held["test"]) <= 20
    for n in range(20):  # names do not matter
        (source / f"cats/{n}.png").rename(source / f"cats/x{99 - n}.png")
    again = {image.tobytes() for image in make(source, "test", test_fraction=0.3).images}
    assert again == held["test"]
    with pytest.raises(UserError, match=r"no folder test; set dataset\.test_fraction of mine"):
        make(source, "test")
    np.save(tmp_path / "mine.npy", np.stack([pixels(n) for n in range(20)]))
    sides = [make(tmp_path / "mine.npy", s, test_fraction=0.5) for s in ("train", "test")]
    assert sum(map(len, sides)) == 20 and all(map(len, sides))


@shows("Dataset.flip")
@pytest.mark.parametrize("flip", [True, False])
def test_flip(make: Make, tmp_path: Path, flip: bool) -> None:
    assert make(draw(tmp_path / "source"), flip=flip).flip is flip


# -- the same bytes ------------------------------------------------------------------------------


def test_any_number_of_workers_gives_the_same(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_chunks, "CHUNK", 4)
    source = draw(tmp_path / "source")
    files = ("images.npy", "labels.npy", "manifest.json", "mean.png", "contact.png")
    one, two = (
        {f: (make(source, workers=n).path / f).read_bytes() for f in files} for n in (1, 2)
    )
    assert one == two


def test_it_continues_after_a_kill(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_chunks, "CHUNK", 2)
    source = packed(draw(tmp_path / "source"), tmp_path / "mine.zip")
    first, done = _chunks._make, []

    def killed(*arguments: Any) -> int:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments[-1])
        return first(*arguments)

    monkeypatch.setattr(_chunks, "_make", killed)
    with pytest.raises(KeyboardInterrupt):
        make(source)
    assert not (tmp_path / "data/train").exists()
    done.clear()
    made = make(source)
    assert done == [2] and np.array_equal(made.images, expected(0, 1, 2, 100, 101, 102))


def test_a_changed_file_is_read_anew(make: Make, tmp_path: Path) -> None:
    source = draw(tmp_path / "source")
    before = make(source)
    write(source / "cats/0.png", pixels(9))
    made = make(source)
    assert made.fingerprint != before.fingerprint
    assert np.array_equal(made.images[0], expected(9)[0])


def test_orientation_is_applied(make: Make, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    for n in range(2):
        write(tmp_path / f"source/{n}.png", pixels(n), exif=exif)
    made = make(tmp_path / "source")
    assert np.array_equal(made.images[0], np.rot90(pixels(0), -1).transpose(2, 0, 1))


def test_sixteen_bits_palettes_and_cmyk(make: Make, tmp_path: Path) -> None:
    source = tmp_path / "source"
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    write(source / "a.png", Image.fromarray(levels))
    palette = Image.fromarray(pixels(0)).quantize(16)
    write(source / "b.png", palette)
    write(source / "c.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    made = make(source)
    assert np.array_equal(made.images[0], np.repeat((levels[None] + 128.0) // 257, 3, 0))
    assert np.array_equal(made.images[1].transpose(1, 2, 0), np.asarray(palette.convert("RGB")))
    assert (made.images[2][0] > 200).all() and (made.images[2][1:] < 60).all()
    assert read_json(made.path / "manifest.json")["count"] == 3


def test_the_command_reads_the_experiment(
    ctm: Callable[..., tiny.Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "photographs")
    own = {"name": "mine", "reader": "images", "source": "photographs", "resolution": 8}
    tiny.write_experiment(tmp_path / "mine.yaml", {"dataset": own})
    words = ["data", "--config", "mine.yaml", "--output", "results/data/mine/train", "--dataset"]
    ended = ctm(*words, "mine")
    assert ended.code == 0, ended.stderr
    made = open_dataset(tmp_path / "results/data/mine/train")
    assert np.array_equal(made.images, expected(0, 1, 2, 100, 101, 102))
    ended = ctm(*words, "other")
    assert ended.code == 2 and "the experiment's dataset is mine, not other" in ended.stderr
    ended = ctm("data", "--dataset", "images", "--output", "out")
    assert ended.code == 2 and "reads your own images: describe them" in ended.stderr
