"""What the tensors of a file do not tell is said by somebody, or assumed aloud."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import foreign as made_by_others
from fixtures.edm_pickle import edm_pickle
from fixtures.foreign import DDPMPP, OPENAI
from fixtures.tiny import Ctm

from ctm_core.models import foreign, weight_file
from ctm_core.models.foreign import Hints
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json

#: Of OpenAI's form, whose tensors tell least.
LEVELS = {levels: OPENAI | {"channel_mult": [1] * (levels - 1) + [2]} for levels in range(2, 8)}


@pytest.fixture(scope="session")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Path]:
    """A teacher of so many levels in a file of this name."""
    folder = tmp_path_factory.mktemp("openai")

    def made(levels: int, name: str) -> Path:
        network = LEVELS[levels] | {"attn_resolutions": []}
        model = made_by_others.model(network, resolution=8 << (levels - 1))
        torch.save(made_by_others.openai_names(model), folder / name)
        return folder / name

    return made


@pytest.mark.parametrize(
    ("levels", "name", "side"),
    [
        (4, "mine.pt", 64),
        (5, "mine.pt", 128),
        (6, "mine.pt", 256),
        (7, "mine.pt", 512),
        (2, "mine.pt", 64),
        (6, "edm_bedroom256_ema.pt", 256),
        (6, "lsun_cat_256x256.pt", 256),
        (4, "ema_0.999_064000.pt", 64),
        (3, "lsun-32x32.pt", 32),
        (6, "mine64.pt", None),
        (4, "edm_bedroom256_ema.pt", None),
        (2, "from-256-to-64.pt", None),
    ],
)
def test_the_side_of_the_images(
    levels: int, name: str, side: int | None, openai: Any, ctm: Ctm, tmp_path: Path
) -> None:
    path = openai(levels, name)
    words = ("convert", path, "--kind", "teacher", "--output", tmp_path / "made")
    done = ctm(*words)
    if side is None:
        assert done.code == 2 and not (tmp_path / "made").exists()
        assert "pixels by its name and its" in done.stderr and "--resolution" in done.stderr
        done = ctm(*words, "--resolution", "128")
        side = 128
        assert "resolution" not in done.stdout
    else:
        assert f"assumed resolution {side} (" in done.stdout
        assert "pass --resolution if this is wrong" in done.stdout
    assert done.code == 0, done.stderr
    record = weight_file.read_record(tmp_path / "made/weights.safetensors")
    assert record["resolution"] == side


def test_all_that_is_assumed(openai: Any, ctm: Ctm, tmp_path: Path) -> None:
    done = ctm("convert", openai(4, "mine.pt"), "--output", tmp_path / "a")
    assert done.code == 0, done.stderr
    assert done.stdout.split("\n")[1:] == [
        "assumed resolution 64 (as in OpenAI's networks of 4 levels); pass --resolution if this "
        "is wrong",
        "assumed head_channels 64 (as in OpenAI's networks); pass --head-channels if this is "
        "wrong",
        "assumed sigma_min 0.002, sigma_max 80.0, rho 7.0, sigma_data 0.5 (EDM's values; the file "
        "holds none); pass --sigma-min, --sigma-max, --rho, --sigma-data if this is wrong",
        "assumed kind teacher (a consistency model has the same tensors, and only its origin can "
        "tell); pass --kind if this is wrong",
        "assumed dropout 0.0 (it matters for further training only); pass --dropout if this is "
        "wrong",
        "",
    ]
    document = read_json(tmp_path / "a/provenance.json")
    assert document["assumed"]["resolution"] == {
        "value": 64,
        "reason": "as in OpenAI's networks of 4 levels",
        "option": "--resolution",
    }
    assert len(document["assumed"]) == 8
    given = (
        "--resolution 128 --head-channels 32 --sigma-min 0.01 --sigma-max 50 --rho 5 "
        "--sigma-data 0.25 --kind teacher --dropout 0.1"
    )
    done = ctm("convert", openai(4, "mine.pt"), "--output", tmp_path / "b", *given.split())
    assert done.code == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert read_json(tmp_path / "b/provenance.json")["assumed"] == {}
    model, record = weight_file.load_weights(tmp_path / "b/weights.safetensors")
    assert record["diffusion"] == {
        "sigma_min": 0.01, "sigma_max": 50.0, "rho": 5.0, "sigma_data": 0.25,
    }  # fmt: skip
    assert (record["resolution"], record["network"]["num_head_channels"]) == (128, 32)
    assert (record["network"]["dropout"], model.sigma_data) == (0.1, 0.25)
    hints = Hints(sigma_data=0.25)
    assert foreign.load_foreign(openai(4, "mine.pt"), hints).sigma_data == 0.25


def pickled(folder: Path, **said: Any) -> Path:
    made = made_by_others.model(DDPMPP)
    kwargs = {"img_resolution": 8, "model_type": "SongUNet"} | DDPMPP | said
    (folder / "file.pkl").write_bytes(edm_pickle(made.state_dict(), kwargs))
    return folder / "file.pkl"


def test_what_a_pickle_tells_is_not_assumed(tmp_path: Path) -> None:
    assumed = foreign.convert(pickled(tmp_path, dropout=0.3), tmp_path)["assumed"]
    assert not {"dropout", "resolution", "num_head_channels", "role"} & assumed.keys()
    assert {"sigma_min", "sigma_max", "rho"} <= assumed.keys()
    assert "dropout" in foreign.convert(pickled(tmp_path), tmp_path)["assumed"]


@pytest.mark.parametrize(
    ("hints", "reason"),
    [
        (Hints(resolution=16), r"has resolution 8, not 16; leave out --resolution"),
        (Hints(num_head_channels=8), "whose heads are known; leave out --head-channels"),
        (Hints(dropout=0.5), r"has dropout 0\.3, not 0\.5; leave out --dropout"),
        (Hints(entry="model"), "has entry ema, not model; leave out --entry"),
        (Hints(sigma_max=1e-3), "sigma_min must be below sigma_max"),
        (Hints(rho=float("nan")), "rho: Input should be"),
        (Hints(sigma_min=-1), "sigma_min: Input should be"),
    ],
)
def test_an_option_that_cannot_be(hints: Hints, reason: str, tmp_path: Path) -> None:
    """What the user says is never dropped in silence."""
    with pytest.raises(UserError, match=reason):
        foreign.convert(pickled(tmp_path, dropout=0.3), tmp_path / "made", hints=hints)
    assert not (tmp_path / "made").exists()


def test_dropout_of_a_student(tmp_path: Path) -> None:
    made = made_by_others.model(DDPMPP, time_s=True)
    torch.save(made.state_dict(), tmp_path / "model000001.pt")
    assumed = foreign.convert(tmp_path / "model000001.pt", tmp_path)["assumed"]
    assert assumed["dropout"]["value"] == 0.13 and "role" not in assumed
    hints = Hints(dropout=1.5)
    with pytest.raises(UserError, match="dropout: Input should be less than 1"):
        foreign.convert(tmp_path / "model000001.pt", tmp_path, hints=hints)
