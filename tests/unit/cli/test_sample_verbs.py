"""`ctm sample` writes arrays and pictures, or says why there are no samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fixtures.desk import Desk, refused
from PIL import Image

from ctm_core.models import weight_file


def test_sample(desk: Desk) -> None:
    output = desk.folder / "a" / "samples.npy"
    weights = desk.student.weights
    ended = desk.run("sample", weights, "--output", output, "-n", "5", "--class", "3")
    assert ended.code == 0
    assert "80 → 0.002" in ended.stdout
    images = np.load(output, allow_pickle=False)
    assert images.shape == (5, 1, 8, 8) and images.dtype == np.uint8
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.size == (3 * 48, 2 * 48)
    again = desk.folder / "again.npy"
    words = ["--class", "3", "--sampler", "gamma", "--nfe", "1", "--gamma", "0", "--seed", "0"]
    assert desk.run("sample", weights, "--output", again, "-n", "9", *words).code == 0
    assert (np.load(again)[:5] == images).all()
    words = ["--nfe", "3", "-n", "2", "--output", again]
    assert desk.run("sample", desk.teacher.weights, *words).code == 0


@pytest.mark.parametrize(
    ("model", "words", "expected"),
    [
        ("teacher", ["--gamma", "0.5"], "sampler heun has no gamma; leave it out"),
        ("teacher", ["--sampler", "gamma"], "needs a model that jumps"),
        ("teacher", ["--nfe", "4"], "so nfe must be 1, 3, 5, …, not 4"),
        ("student", ["--sampler", "heun", "--gamma", "0"], "sampler heun has no gamma"),
        (
            "student",
            ["--sampler", "ddim"],
            "unknown sampler 'ddim'; allowed: gamma, heun, euler, gamma_paper",
        ),
        ("student", ["--class", "10"], "there is no class '10'; classes are 0, 1, 2"),
        ("student", ["--class", "-1"], "there is no class '-1'"),
        ("student", ["--class", "²"], "there is no class '²'"),
        ("student", ["--class", "cat"], "there is no class 'cat'"),
        ("student", ["--output", "picture.png"], "must end in .npy"),
    ],
)
def test_samples_that_cannot_be(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, model: str, words: list[str], expected: str
) -> None:
    monkeypatch.chdir(desk.folder)
    assert expected in refused(desk.run("sample", getattr(desk, model).weights, *words))
    assert [path.name for path in desk.folder.iterdir()] == ["tiny.yaml"]


def test_weights_of_nan(desk: Desk) -> None:
    model, record = weight_file.load_weights(desk.student.weights)
    with torch.no_grad():
        model.output_weight.fill_(math.nan)
    spoilt = desk.folder / "spoilt.safetensors"
    weight_file.export(spoilt, model, record)
    ended = desk.run("sample", spoilt, "--output", desk.folder / "s.npy")
    assert "gives NaN or infinity by gamma at nfe 1; its weights are unusable" in refused(ended)
    assert not (desk.folder / "s.npy").exists()
