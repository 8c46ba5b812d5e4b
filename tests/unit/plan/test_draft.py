"""`ctm new`: experiments on own images that fit into the hours, or one sentence and no file."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fixtures.drawn import draw
from fixtures.tiny import Ended
from PIL import Image

from ctm_core.config import load_experiment
from ctm_core.config.protocols import load_protocol
from ctm_core.data.readers import images
from ctm_core.plan import draft as module
from ctm_core.plan import plan
from ctm_core.plan.draft import Draft, draft
from ctm_core.plan.speeds import FURTHER_THREAD, DeviceSpeed, Machine, Speed
from ctm_core.runtime import devices

Run = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "NETWORKS", ((64, 1), (32, 1)))


def written(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*.yaml"))


def test_the_command_writes_three_files_and_says_what_they_take(ctm: Run, tmp_path: Path) -> None:
    draw(tmp_path / "pictures", 60)
    (tmp_path / "cats").mkdir()  # of another use
    ended = ctm("new", "cats", "--images", "pictures", "--cores", "2", "--hours", "1")
    assert (ended.code, ended.stderr) == (0, "")
    assert written(tmp_path) == [
        "config/cats.yaml", "config/experiments/cats.yaml", "config/protocols/cats.yaml",
    ]  # fmt: skip
    [run] = [line for line in ended.stdout.splitlines() if line.startswith("Run: ")]
    assert run.endswith("/Snakefile --cores 2 --configfile config/cats.yaml")
    assert run.removeprefix("Run: ") in (tmp_path / "config/cats.yaml").read_text()
    experiment = load_experiment("config/experiments/cats.yaml")
    assert experiment.dataset.source == str(tmp_path / "pictures")
    assert (experiment.dataset.resolution, experiment.dataset.channels) == (16, 3)
    assert experiment.conditional and [*experiment.models] == ["ctm", "cd"]
    assert load_protocol("config/protocols/cats.yaml").memorisation.held_out == "others"
    assert "$" not in (tmp_path / "config/experiments/cats.yaml").read_text()
    # Planned again, before any data exist.
    again = plan(Path("config/cats.yaml"), target="all")
    # One job at a time, on two threads, in four fifths of the hour.
    assert 0.7 < sum(again.hours.values()) / (1 + FURTHER_THREAD) < 0.81


@pytest.mark.parametrize("there", ["config/mine.yaml", "config/protocols/mine.yaml"])
def test_nothing_is_overwritten(ctm: Run, tmp_path: Path, there: str) -> None:
    draw(tmp_path / "pictures", 4)
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).write_text("mine")
    ended = ctm("new", "mine", "--images", "pictures")
    assert ended.code == 2 and f"{there} exists and is not overwritten" in ended.stderr
    assert written(tmp_path) == [there] and (tmp_path / there).read_text() == "mine"


def test_files_of_the_project_are_not_shadowed(ctm: Run, tmp_path: Path) -> None:
    draw(tmp_path / "pictures", 4)
    ended = ctm("new", "smoke", "--images", "pictures")
    assert ended.code == 2 and "smoke.yaml exists" in ended.stderr


def _one_picture(folder: Path) -> None:
    draw(folder, 2)
    (folder / "lone").mkdir()
    (folder / "red/0.png").rename(folder / "lone/0.png")


def _missing_labels(folder: Path) -> None:
    draw(folder, 2)
    labels = [["red/0.png", 0], ["red/1.png", 0], ["gone.png", 1]]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def _outside(folder: Path) -> None:
    folder.rmdir()
    with zipfile.ZipFile(folder, "w") as archive:
        archive.writestr("../outside.png", b"")


def _truncated(folder: Path) -> None:
    draw(folder, 2)
    content = (folder / "red/0.png").read_bytes()
    (folder / "red/0.png").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (lambda folder: None, (), "pictures holds no PNG or JPEG files"),
        (_one_picture, (), "the class lone of .*pictures has only one picture"),
        (_missing_labels, (), "labels 1 files that are missing, the first is gone.png"),
        (_outside, (), "../outside.png leads outside the archive"),
        (_truncated, (), "1 of 4 images cannot be taken; the first is red/0.png"),
        (lambda folder: folder.rmdir(), (), "pictures does not exist; correct the path"),
        (lambda folder: draw(folder, 2), ("--resolution", "30"), "a multiple of 4, such as 32"),
        (lambda folder: draw(folder, 2), ("--resolution", "4"), "4 is not in the range 8<=x"),
        (lambda folder: draw(folder, 2), ("--hours", "nan"), "give a number of hours"),
        (lambda folder: draw(folder, 2), ("--device-speed", "fast"), "--device-speed fast: give"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    ctm: Run,
    tmp_path: Path,
    make: Callable[[Path], None],
    options: tuple[str, ...],
    sentence: str,
) -> None:
    (tmp_path / "pictures").mkdir()
    make(tmp_path / "pictures")
    ended = ctm("new", "mine", "--images", "pictures", *options)
    assert ended.code == 2 and ended.stderr.count("\n") == 1
    assert re.search(sentence, ended.stderr), ended.stderr
    assert not (tmp_path / "config").exists()


@pytest.mark.parametrize("name", ["Mine", "../mine", "digits", ""])
def test_a_name_that_cannot_be_one(ctm: Run, tmp_path: Path, name: str) -> None:
    draw(tmp_path / "pictures", 2)
    ended = ctm("new", name, "--images", "pictures")
    assert ended.code == 2 and ended.stderr.count("\n") == 1
    assert not (tmp_path / "config").exists()


def test_a_source_that_changes_while_it_is_read(
    ctm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "pictures", 2)
    original = images.decode

    def late(content: bytes) -> Image.Image:
        os.utime(tmp_path / "pictures/red/1.png", (1, 1))
        return original(content)

    monkeypatch.setattr(images, "decode", late)
    ended = ctm("new", "mine", "--images", "pictures")
    assert ended.code == 2 and "changed while it was read" in ended.stderr
    assert not (tmp_path / "config").exists()


def test_a_full_disk_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.write_text

    def full(path: str, text: str) -> None:
        original(path, text)
        if path.startswith("config/experiments"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_text", full)
    texts = {f"config/{folder}mine.yaml": "a: 1" for folder in ("protocols/", "experiments/", "")}
    with pytest.raises(OSError, match="No space"):
        Draft("mine", texts, None, Machine(1, DeviceSpeed()), 1.0, "").write()  # type: ignore[arg-type]
    assert written(tmp_path) == []


@pytest.mark.parametrize("form", ["npy", "npz", "zip"])
def test_other_sources(tmp_path: Path, form: str) -> None:
    source = tmp_path / f"pictures.{form}"
    stack = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 1), dtype=np.uint8)
    if form == "npy":
        np.save(source, stack)
    elif form == "npz":
        np.savez(source, stack, np.arange(20) % 2)
    else:
        draw(tmp_path / "pictures", 10, mode="L", size=(12, 12))
        with zipfile.ZipFile(source, "w") as archive:
            for file in sorted((tmp_path / "pictures").rglob("*.png")):
                archive.write(file, f"train/{file.relative_to(tmp_path / 'pictures')}")
                archive.write(file, f"test/{file.relative_to(tmp_path / 'pictures')}")
    made = draft("mine", str(source), hours=0.1, cores=1)
    assert made.shape.image == (1, 12, 12)  # nothing is enlarged
    assert made.shape.classes == (1 if form == "npy" else 2)
    assert made.shape.counts["train"] == 20
    assert ("held_out: test" in made.texts["config/protocols/mine.yaml"]) == (form == "zip")


def test_an_asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "pictures", 4)
    looked: list[str] = []

    def require(name: str) -> Path:
        looked.append(name)
        return tmp_path / "pictures"

    monkeypatch.setattr(images.assets, "require", require)
    made = draft("mine", "asset:cifar10-jpeg", hours=0.1, resolution=8)
    assert looked == ["cifar10-jpeg"]
    assert 'source: "asset:cifar10-jpeg"' in made.texts["config/experiments/mine.yaml"]


def sizes(made: Draft) -> tuple[int, int, int]:
    made.write()
    experiment = load_experiment("config/experiments/mine.yaml")
    for file in made.texts:
        Path(file).unlink()
    assert experiment.resources.training.gpus == made.machine.gpu
    steps = [experiment.training(name).steps for name in ("teacher", "ctm", "cd")]
    assert min(steps) >= 10 and experiment.dataset.resolution is not None
    return steps[0], experiment.dataset.resolution, experiment.network.model_channels


def test_more_hours_and_a_gpu_make_more(tmp_path: Path) -> None:
    draw(tmp_path / "pictures", 4, size=(70, 80))
    short = sizes(draft("mine", "pictures", cores=2, hours=0.5))
    longer = sizes(draft("mine", "pictures", cores=2, hours=4))
    gpu = draft("mine", "pictures", cores=2, hours=4, device_speed="60TFLOP/s")
    assert "--resources gpu=1" in gpu.command
    assert short[0] < longer[0] and short[1:] == longer[1:] == (16, 32)
    assert sizes(gpu)[1:] == (64, 64)


def test_too_few_hours_make_the_smallest_run_and_a_remark(ctm: Run, tmp_path: Path) -> None:
    draw(tmp_path / "pictures", 4)
    ended = ctm("new", "mine", "--images", "pictures", "--hours", "1e-6", "--resolution", "8")
    assert ended.code == 0 and "Even the smallest run takes" in ended.stdout
    experiment = load_experiment("config/experiments/mine.yaml")
    assert [experiment.training(m).steps for m in ("teacher", "ctm", "cd")] == [20, 10, 10]


@pytest.mark.parametrize(
    "units, rates, device, expected",
    [
        ("amx_bf16", (1.0, 2.0), None, ("auto", "bf16 where")),
        ("amx_bf16", (2.0, 1.0), None, ("fp32", "Measured faster")),
        (None, (1.0, 2.0), None, ("fp32", "No instructions for bf16 here")),
        (None, (2.0, 1.0), "60TFLOP/s", ("auto", "bf16 where")),
    ],
)
def test_precision_is_what_the_machine_does_faster(
    units: str | None,
    rates: tuple[float, float],
    device: str | None,
    expected: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = dict(zip(("fp32", "bf16"), rates, strict=True))
    monkeypatch.setattr(Speed, "rate", lambda self, operations, precision, backward: of[precision])
    monkeypatch.setattr(devices, "bf16_units", lambda: units)
    draw(tmp_path / "pictures", 30)
    made = draft("mine", "pictures", cores=2, hours=0.1, resolution=8, device_speed=device)
    precision, why = expected
    text = made.texts["config/experiments/mine.yaml"]
    assert text.count(f"precision: {precision}\n") == 3 and f"# {why}" in text
