"""Files of other projects become weight files of this one, and say what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures import foreign as made_by_others
from fixtures import tiny
from fixtures.foreign import DDPMPP, OPENAI, equal, saved, two_commands
from fixtures.tiny import Ctm

import ctm_core
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import foreign, weight_file
from ctm_core.models.networks.layers import channels_last
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json

# -- from file to samples with two commands ------------------------------------------------------


def test_edm_pickle(edm: tuple[Path, Trajectory, Path], ctm: Ctm, tmp_path: Path) -> None:
    path, made, canary = edm
    done = two_commands(ctm, path, tmp_path)
    assert "EDM teacher (DDPM++)" in done.stdout
    assert equal(tmp_path / "made/weights.safetensors", made)
    assert not canary.exists()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 20.0])
    y = torch.tensor([3, 7])
    loaded = ctm_core.load(tmp_path / "made/weights.safetensors")
    channels_last(made)  # as it is loaded: another layout would round differently
    with torch.no_grad():
        assert torch.equal(loaded.denoise(x, t, y), made.denoise(x, t, y))
    assert loaded.record["network"]["dropout"] == 0.13
    assert loaded.record["network"]["augment_dim"] == 9
    assert loaded.record["class_names"] == [str(n) for n in range(10)]


def test_the_canary_is_alive(edm: tuple[Path, Trajectory, Path]) -> None:
    """The pickle holds source text that would create the file, were it run."""
    path, _, canary = edm
    assert f"open({str(canary)!r}, 'w')".encode() in path.read_bytes()


def test_student_of_ctm_cifar10(ctm: Ctm, tmp_path: Path) -> None:
    made = made_by_others.model(DDPMPP, label_dim=10, time_s=True)
    path = saved(tmp_path / "ema_0.999_043000.pt", made.state_dict())
    done = two_commands(ctm, path, tmp_path)
    assert "CTM student (DDPM++)" in done.stdout
    assert equal(tmp_path / "made/weights.safetensors", made)
    record = weight_file.read_record(tmp_path / "made/weights.safetensors")
    assert (record["model"], record["step"], record["label_dim"]) == ("ctm", 43000, 10)
    assert record["network"]["dropout"] == 0.13  # active in training, whatever its flags say


def test_student_of_sony(ctm: Ctm, tmp_path: Path) -> None:
    made = made_by_others.model(OPENAI, resolution=64, label_dim=7, time_s=True)
    path = saved(tmp_path / "model000500.pt", made_by_others.openai_names(made))
    done = two_commands(ctm, path, tmp_path)
    assert "CTM student (OpenAI's ADM)" in done.stdout
    assert equal(tmp_path / "made/weights.safetensors", made)
    record = weight_file.read_record(tmp_path / "made/weights.safetensors")
    assert (record["resolution"], record["label_dim"], record["step"]) == (64, 7, 500)


def test_teacher_of_openai(ctm: Ctm, tmp_path: Path) -> None:
    made = made_by_others.model(OPENAI, resolution=16, label_dim=7)
    path = saved(tmp_path / "edm_imagenet64_ema.pt", made_by_others.openai_names(made))
    done = two_commands(ctm, path, tmp_path, "--resolution", "16")
    assert "EDM teacher (OpenAI's ADM)" in done.stdout
    assert "only its origin can tell" in done.stdout  # the tensors do not
    assert equal(tmp_path / "made/weights.safetensors", made)
    source = read_json(tmp_path / "made/provenance.json")["source"]
    assert source["url"].endswith("/consistency/edm_imagenet64_ema.pt")
    assert (source["url_from"], source["licence"]) == ("file name", "MIT")


# -- the same file, and one that is refused ------------------------------------------------------


def test_the_same_file_gives_the_same_bytes(
    edm: tuple[Path, Trajectory, Path], tmp_path: Path
) -> None:
    made = [foreign.convert(edm[0], tmp_path / name)["weights"] for name in "ab"]
    assert made[0] == made[1]


def test_nothing_earlier_is_lost(tmp_path: Path) -> None:
    """A refused file leaves what an earlier conversion wrote."""
    good = saved(tmp_path / "good.pt", made_by_others.model(DDPMPP).state_dict())
    foreign.convert(good, tmp_path / "made")
    before = tiny.tree(tmp_path / "made")
    (tmp_path / "bad.pt").write_bytes(good.read_bytes()[:-100])
    with pytest.raises(UserError):
        foreign.convert(tmp_path / "bad.pt", tmp_path / "made")
    assert tiny.tree(tmp_path / "made") == before
