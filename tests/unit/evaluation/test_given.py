"""Images that somebody gives: read, compared with the protocol, scored."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fixtures import tiny
from fixtures.tiny import FileSizeLimit, MemoryLimit, Trained
from PIL import Image

from ctm_core.config.protocols import load_protocol
from ctm_core.data.dataset import Dataset
from ctm_core.evaluation import evaluate
from ctm_core.evaluation.evaluation_file import read_evaluation
from ctm_core.evaluation.given import Images, score_files
from ctm_core.evaluation.metrics.reference import write_reference
from ctm_core.report.scores import aggregate, read_evaluations
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, save_tensors


@pytest.fixture
def array(digits: Dataset, tmp_path: Path) -> Path:
    """Thirty digits, a little darker than they are."""
    images = digits.batch(range(30))[0].numpy() // 2
    np.save(tmp_path / "mine.npy", images)
    return tmp_path / "mine.npy"


def protocol_reference(folder: Path, digits: Dataset, **changes: Any) -> Path:
    described = tiny.PROTOCOL | {"name": "p"} | changes
    (folder / "p.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    write_reference(folder / "p.safetensors", load_protocol(folder / "p.yaml"), digits)
    return folder / "p.safetensors"


def test_samples_of_the_command_score_as_the_evaluation_does(
    ctm: tiny.Ctm, student: Trained, references: list[Path], tmp_path: Path
) -> None:
    samples = tmp_path / "samples.npy"
    ended = ctm(
        "sample", student.weights, "--output", samples, "-n", 24, "--batch-size", 16, "--nfe", 2,
        "--gamma", 1, "--seed", 1,
    )  # fmt: skip
    assert ended.code == 0
    ended = ctm("evaluate", "--samples", samples, "--output", tmp_path / "out", references[0])
    assert ended.code == 0, ended.stderr
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert "tiny  fd_classifier_digits_24  " in ended.stdout
    evaluate.evaluate(
        tiny.experiment(), "ctm", student.weights, references, seed=0,
        output=tmp_path / "whole", runs=tmp_path / "runs",
    )  # fmt: skip
    whole = json.loads((tmp_path / "whole" / "evaluation.json").read_text())
    place = ("sample_seed", "sampler", "gamma", "nfe", "protocol", "metric", "n")

    def placed(record: dict[str, Any]) -> dict[tuple[Any, ...], float]:
        return {tuple(row[key] for key in place): row["value"] for row in record["rows"]}

    for key, value in placed(found).items():
        assert value == pytest.approx(placed(whole)[key], rel=1e-9)
    assert len(placed(found)) == 1
    for key in ("experiment", "model", "step", "checkpoint_sha256", "train_hash", "params_m"):
        assert found[key] == whole[key]
    assert "times" not in found["rows"][0]


def test_samples_between_times_of_their_own(
    student: Trained, references: list[Path], ctm: tiny.Ctm, tmp_path: Path
) -> None:
    samples = tmp_path / "samples.npy"
    words = ["sample", student.weights, "--output", samples, "-n", 24, "--gamma", 1, "--times"]
    ended = ctm(*words, "5,0.8")
    assert ended.code == 0, ended.stderr
    assert "80 → 0.002 + noise 5, 5 → 0.002 + noise 0.8, 0.8 → 0.002" in ended.stdout
    (row,) = score_files(samples, references[:1], tmp_path / "out")["rows"]
    assert (row["nfe"], row["times"]) == (3, [5.0, 0.8])
    assert read_evaluation(tmp_path / "out" / "evaluation.json").rows[0].cell.times == (5.0, 0.8)
    for times, sentence in (("0.8;0.5", "expected numbers separated"), ("0.8,5", "must decrease")):
        ended = ctm(*words, times)
        assert (ended.code, sentence in ended.stderr) == (2, True)


def test_arrays_and_folders_are_one(array: Path, digits: Dataset, tmp_path: Path) -> None:
    reference = protocol_reference(tmp_path, digits, metrics=["fd", "kid", "is"])
    images = np.load(array)
    np.savez(tmp_path / "mine.npz", labels=np.zeros(30), arr_0=images.transpose(0, 2, 3, 1))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / f"{number:05d}.png")
    found = [
        score_files(path, [reference], tmp_path / path.stem)["rows"]
        for path in (array, tmp_path / "mine.npz", folder)
    ]
    assert found[0] == found[1] == found[2]
    assert [row["metric"] for row in found[0]] == [
        "fd_classifier_digits_30",
        "kid_classifier_digits_30",
        "is_classifier_digits_30",
    ]
    assert found[0][0]["rank_deficient"] and found[0][0]["standard_error"] > 0
    [row] = aggregate(read_evaluations([tmp_path / "mine" / "evaluation.json"]))
    assert (row.experiment, row.model, row.cell.sampler) == ("samples", "mine", "file")


def test_every_picture_of_a_folder_counts(array: Path, digits: Dataset, tmp_path: Path) -> None:
    """Upper case, JPEG, sub-folders; what is left out is named. Grey saved as RGB is grey."""
    reference = protocol_reference(tmp_path, digits)
    right = score_files(array, [reference], tmp_path / "right")["rows"]
    folder = tmp_path / "pictures"
    for number, image in enumerate(np.load(array)[:, 0]):
        place = folder / f"{number // 10:03d}" / f"{number}.{'PNG' if number % 2 else 'png'}"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack([image] * 3, -1)).save(place)
        place.with_name(f"._{place.name}").write_bytes(b"\0\5\x16\7")
    (folder / "notes.txt").touch()
    words = ["evaluate", "--samples", folder, "--output", "out", reference]
    ended = tiny.ctm(words, tmp_path)
    assert ended.code == 0, ended.stderr
    assert "left out of " in ended.stderr and "30 macOS AppleDouble files" in ended.stderr
    assert "one of three channels is used, which must be equal" in ended.stderr
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"] == [
        row | {"model": "pictures"} if "model" in row else row for row in right
    ]
    Image.fromarray(np.load(array)[0, 0]).save(folder / "a.jpg")
    assert Images(folder).count == 31
    colours = np.load(array).repeat(3, axis=1)
    colours[7, 1, 2, 3] += 1
    np.save(tmp_path / "colours.npy", colours)
    with pytest.raises(UserError, match="holds colour images, but the protocol is for images of"):
        score_files(tmp_path / "colours.npy", [reference], tmp_path / "not")
    assert not (tmp_path / "not").exists()


def test_a_full_disk_ends_sampling_in_a_sentence(student: Trained, tmp_path: Path) -> None:
    words = ["sample", student.weights, "--output", "samples.npy", "-n", "24", "--nfe", "1"]
    ended = tiny.ctm(words, tmp_path, [FileSizeLimit(1000)])
    assert ended.code == 2 and "Traceback" not in ended.stderr
    assert "samples.npy: the limit on file sizes is reached" in ended.stderr
    assert not list(tmp_path.iterdir())


def hostile_samples(folder: Path, name: str) -> Path:
    path = folder / name
    if name == "pipe.npy":
        os.mkfifo(path)
    elif name == "zero.npy":
        path.symlink_to("/dev/zero")
    elif name == "bomb.npz":
        np.savez_compressed(path, arr_0=np.zeros((2**21, 1, 8, 8), np.uint8))
    elif name == "names.npz":
        np.savez(path, **{"\x1b[2Ja": np.zeros(3), "b": np.zeros(3)})
    elif name == "sparse.npy":
        np.save(path, np.zeros((4, 1, 8, 8), np.uint8))
        os.truncate(path, 2**34)
    else:
        path.mkdir()
        Image.new("L", (8, 8)).save(path / "0.png")
        if name == "pipes":
            os.mkfifo(path / "1.png")
        else:
            (path / "1\x1b[2J.png").touch()
            os.truncate(path / "1\x1b[2J.png", 2**34)
    return path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pipe.npy", "is a named pipe"),
        ("zero.npy", "is a device"),
        ("bomb.npz", "arr_0 of .*unpacks from .* to .* bytes"),
        ("names.npz", r"holds the arrays \\x1b\[2Ja, b; call"),
        ("sparse.npy", "is corrupt: its header announces"),
        ("pipes", r"1\.png is a named pipe"),
        ("sparse", "is larger than 256 MiB"),
    ],
)
def test_hostile_samples_are_refused(
    digits: Dataset, tmp_path: Path, name: str, says: str
) -> None:
    reference = protocol_reference(tmp_path, digits)
    samples = hostile_samples(tmp_path, name)
    words = ["evaluate", "--samples", samples, "--output", "out", reference]
    ended = tiny.ctm(words, tmp_path, [MemoryLimit()])
    assert ended.code == 2 and "Traceback" not in ended.stderr and "\x1b" not in ended.stderr
    assert re.search(says, ended.stderr), ended.stderr
    assert not (tmp_path / "out").exists()


def test_memorisation_of_given_images(array: Path, digits: Dataset, tmp_path: Path) -> None:
    held_out = {"held_out": "others", "images": 100}
    reference = protocol_reference(
        tmp_path, digits, metrics=["memorisation"], memorisation=held_out
    )
    with pytest.raises(UserError, match="needs the training images that its reference was made"):
        score_files(array, [reference], tmp_path)
    copies = tmp_path / "copies.npy"
    np.save(copies, digits.batch(range(9))[0].numpy())
    [row, ratio] = score_files(copies, [reference], tmp_path, [digits.path])["rows"]
    assert (row["metric"], row["value"], ratio["value"]) == ("memorisation_9", 1.0, 0.0)


def edited(array: Path, record: dict[str, Any]) -> None:
    import hashlib

    digest = hashlib.sha256(array.read_bytes()).hexdigest()
    made = {"kind": "samples", "array_sha256": digest, "dataset": "digits", "rounding": "truncate"}
    made |= {"experiment": "other", "model": "ctm"} | record
    array.with_suffix(".json").write_text(json.dumps(made))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"array_sha256": "0" * 64}, "mine.json describes another array than "),
        (
            {"dataset": "cifar10"},
            "from ctm of other, which was trained on cifar10, but p compares",
        ),
        ({"rounding": "round"}, "was rounded by round, but p says truncate"),
    ],
)
def test_samples_of_another_experiment(
    array: Path, digits: Dataset, tmp_path: Path, record: dict[str, Any], says: str
) -> None:
    reference = protocol_reference(tmp_path, digits)
    edited(array, {})
    score_files(array, [reference], tmp_path / "good")
    edited(array, record)
    with pytest.raises(UserError, match=says) as caught:
        score_files(array, [reference], tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metrics": ["trajectory", "fd"]}, "asks for trajectory, which is of a model"),
        (
            {
                "metrics": ["density_coverage"],
                "samples": 90,
                "neighbours": {"density_coverage": 30},
            },
            r"\(30 images\) cannot be scored by p: neighbours.density_coverage: the 30-th",
        ),
    ],
)
def test_protocols_that_images_cannot_be_scored_by(
    array: Path, digits: Dataset, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    reference = protocol_reference(tmp_path, digits, **changes)
    with pytest.raises(UserError, match=says):
        score_files(array, [reference], tmp_path / "out")


def test_too_few_for_fid_and_another_resolution(
    array: Path, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference that says Inception, but whose network is not reached."""
    reference = protocol_reference(tmp_path, digits)
    tensors, metadata = load_tensors(reference)
    published = {"asset": "edm-reference-cifar10", "images": 50000, "resolution": 8}
    fid = tiny.PROTOCOL | {
        "name": "p", "features": "inception", "resize": "inside", "metrics": ["fid"],
        "samples": 50000, "reference": published,
    }  # fmt: skip
    monkeypatch.setattr(
        "ctm_core.evaluation.metrics.reference.weights_sha256",
        lambda _: metadata["weights_sha256"],
    )
    save_tensors(reference, tensors, metadata | {"protocol": json.dumps(fid)})
    # Defaults that the file does not spell out are filled in when it is read.
    from ctm_core.config.protocols import Protocol

    whole = Protocol.model_validate(fid).model_dump_json()
    save_tensors(reference, tensors, metadata | {"protocol": whole})
    with pytest.raises(
        UserError, match="cannot be scored by p: metrics: too few samples for fid: 30, and"
    ):
        score_files(array, [reference], tmp_path / "out")
    save_tensors(reference, tensors, metadata | {"resolution": "16"})
    with pytest.raises(
        UserError, match="holds images of 8 pixels, but the reference of p is of 16"
    ):
        score_files(array, [reference], tmp_path / "out")


def no_images(path: Path) -> Path:
    path.mkdir()
    return path


def pictures(path: Path, *sizes: tuple[int, int]) -> Path:
    path.mkdir()
    for number, size in enumerate(sizes):
        Image.new("L", size).save(path / f"{number}.png")
    return path


def saved(path: Path, array: Any) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "none.npy", r"none\.npy is missing"),
        (lambda p: no_images(p / "empty"), "empty holds no PNG or JPEG files"),
        (lambda p: saved(p / "a.npy", np.zeros((4, 1, 8, 8))), "is float64 of shape"),
        (lambda p: saved(p / "a.npy", np.zeros((4, 8, 8), np.uint8)), r"\(4, 8, 8\); images are"),
        (lambda p: saved(p / "a.npy", np.zeros((4, 2, 8, 8), np.uint8)), "one or three channels"),
        (lambda p: saved(p / "a.npy", np.zeros((4, 1, 8, 9), np.uint8)), "must be square"),
        (lambda p: saved(p / "a.npy", np.zeros((1, 1, 8, 8), np.uint8)), "holds 1 images; scores"),
        (lambda p: saved(p / "a.npy", np.array([{}], dtype=object)), "holds Python objects"),
        (lambda p: pictures(p / "b", (8, 8), (9, 9)), r"1\.png is of shape \(1, 9, 9\), the im"),
        (
            lambda p: pictures(p / "b", (8, 9), (8, 9)),
            r"b holds images of \(9, 8\); they must be square",
        ),
    ],
)
def test_other_files_are_one_sentence(tmp_path: Path, make: Any, says: str) -> None:
    path = make(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        for _ in Images(path).batches():
            pass
    assert "\n" not in str(caught.value)


def test_damaged_pictures_and_archives(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "b", (8, 8), (8, 8))
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(
        UserError, match=r"1\.png cannot be read as a picture: it is not a PNG or JPEG"
    ):
        list(Images(folder).batches())
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"a\.npz is not a valid \.npz file"):
        Images(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="holds no array of images; give a"):
        Images(tmp_path / "a.npz")
    np.savez(tmp_path / "c.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(UserError, match="holds the arrays a, b; call the images arr_0"):
        Images(tmp_path / "c.npz")


def test_the_command_wants_a_model_or_images(ctm: tiny.Ctm, array: Path, tmp_path: Path) -> None:
    ended = ctm("evaluate", "--output", tmp_path, array)
    assert ended.code == 2 and "give --config, --model and --weights" in ended.stderr
    ended = ctm("evaluate", "--samples", array, "--model", "ctm", "--output", tmp_path, array)
    assert ended.code == 2 and "leave its options out" in ended.stderr
    ended = ctm("evaluate", "--samples", array, "--output", tmp_path, array)
    assert ended.code == 2 and "Traceback" not in ended.stderr


def test_batches_are_in_order(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 3, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    found = list(Images(tmp_path / "a.npy").batches())
    assert [len(batch) for batch in found] == [256, 44]
    assert torch.equal(torch.cat(found), torch.from_numpy(images))
