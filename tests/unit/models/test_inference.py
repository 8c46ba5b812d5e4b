"""Sizes of foreign networks from the names and shapes of their tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import foreign as made_by_others
from fixtures.edm_pickle import edm_pickle
from fixtures.foreign import OPENAI, saved

from ctm_core.models import foreign, weight_file
from ctm_core.models.foreign import Hints
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors
from ctm_core.verification.golden import Folder

GOLDEN = Path(__file__).parents[2] / "golden" / "data"


@pytest.mark.parametrize("name", ["edm_ddpmpp", "edm_ncsnpp", "edm_adm", "ctm_student_cifar"])
def test_edm_forms(name: str, tmp_path: Path) -> None:
    """Every architecture of the golden set, through the form of file that it comes in."""
    golden = Folder(GOLDEN).load(name)
    state, kwargs = golden.weights("net"), golden.meta["kwargs"]
    student = name == "ctm_student_cifar"
    if student:
        path = saved(tmp_path / "file", state)
    else:
        path = tmp_path / "file"
        path.write_bytes(edm_pickle(state, kwargs))
    made = foreign.convert(path, tmp_path / "made")
    assert load_tensors(tmp_path / "made/weights.safetensors")[0].keys() == state.keys()
    network = made["network"]
    for key in ("model_channels", "channel_mult", "num_blocks"):
        assert network[key] == kwargs[key]
    record = weight_file.read_record(tmp_path / "made/weights.safetensors")
    assert record["resolution"] == kwargs["img_resolution"]
    assert record["label_dim"] == kwargs["label_dim"]
    assert record["time_s"] is student


@pytest.mark.parametrize("student", [True, False])
def test_openai_form(student: bool, tmp_path: Path) -> None:
    golden = Folder(GOLDEN).load("ctm_student_sony")
    kwargs = golden.meta["kwargs"]
    state = golden.weights("net")
    if not student:
        state = {k: v for k, v in state.items() if "_s." not in k}
    path = saved(tmp_path / "file", state)
    hints = Hints(resolution=kwargs["image_size"], num_head_channels=kwargs["num_head_channels"])
    network = foreign.convert(path, tmp_path / "made", hints=hints)["network"]
    factors = [kwargs["image_size"] // side for side in network["attn_resolutions"]]
    assert sorted(factors) == sorted(kwargs["attention_resolutions"])
    assert network["channel_mult"] == kwargs["channel_mult"]
    assert network["num_blocks"] == kwargs["num_res_blocks"]
    with pytest.raises(UserError, match=r"heads of 64 do not divide; give the width .* --head-ch"):
        foreign.convert(path, tmp_path / "other", hints=Hints(resolution=16))


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("mults", [[1], [1, 1, 1], [2, 1, 2]])
def test_openai_levels(blocks: int, mults: list[int], tmp_path: Path) -> None:
    """Levels and blocks are told apart even where every width is the same."""
    sizes = OPENAI | {"channel_mult": mults, "num_blocks": blocks, "attn_resolutions": []}
    made = made_by_others.model(sizes | {"num_head_channels": 32}, resolution=16, time_s=True)
    path = saved(tmp_path / "file.pt", made_by_others.openai_names(made))
    hints = Hints(resolution=16, num_head_channels=32)
    network = foreign.convert(path, tmp_path / "made", hints=hints)["network"]
    assert (network["channel_mult"], network["num_blocks"]) == (mults, blocks)
