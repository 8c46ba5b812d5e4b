"""What a foreign file is taken for: its names and shapes decide, and must fit exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import foreign as made_by_others
from fixtures.edm_pickle import edm_pickle
from fixtures.foreign import DDPMPP, OPENAI, edm_kwargs, saved
from fixtures.tiny import Ctm

from ctm_core.models import foreign
from ctm_core.models.foreign import Hints
from ctm_core.runtime.errors import UserError


@pytest.mark.parametrize("form", ["cifar", "openai"])
def test_a_consistency_model_is_no_student(form: str, ctm: Ctm, tmp_path: Path) -> None:
    if form == "cifar":
        state: Any = made_by_others.model(DDPMPP).state_dict()
    else:
        state = made_by_others.openai_names(made_by_others.model(OPENAI, resolution=64))
    sentence = "it is a consistency model or a teacher, not a CTM student"
    for name, more in (("ct_imagenet64.pt", ("--kind", "ctm")), ("ema_0.999_000100.pt", ())):
        path = saved(tmp_path / name, state)
        done = ctm("convert", path, "--output", tmp_path / "made", *more)
        assert (done.code, sentence in done.stderr) == (2, True), done.stderr
        assert done.stderr.count("\n") == 1
    path = saved(tmp_path / "cd_imagenet64_lpips.pt", state)
    done = ctm("convert", path, "--output", tmp_path / "made")
    assert done.code == 2 and "is a consistency model by its name" in done.stderr
    assert not (tmp_path / "made").exists()
    assert ctm("convert", path, "--output", tmp_path / "made", "--kind", "teacher").code == 0


def test_a_student_is_no_teacher(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.pt", made_by_others.model(DDPMPP, time_s=True).state_dict())
    with pytest.raises(UserError, match=r"is a CTM student .*, not a teacher"):
        foreign.convert(path, tmp_path / "made", hints=Hints(role="teacher"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("model.map_layer1_s.weight"), r"it lacks model\.map_layer1_s\.weight$"),
        (lambda s: s.pop("model.enc.8x8_conv.weight"), r"lacks the tensor model\.enc\.8x8_conv\."),
        (
            # All of them would leave the tensors of IMM's network.
            lambda s: [s.pop(k) for k in list(s) if "_block0.affine_s" in k],
            r"it lacks model\.enc\.8x8_block0\.affine_s\.weight \(and \d+ more\)",
        ),
        (lambda s: s.update(extra=torch.ones(1)), r"holds the unknown extra"),
        (
            lambda s: s.update({"model.map_layer1.bias": torch.ones(5)}),
            r"holds model\.map_layer1\.bias of shape \(5,\), not \(32,\)",
        ),
        (
            lambda s: s.update(
                {"model.enc.4x4_down.conv0.resample_filter": torch.ones(1, 1, 2, 2)}
            ),
            "resamples by another filter",
        ),
        (
            lambda s: s.update({"model.map_layer1.bias": torch.ones(32, dtype=torch.float64)}),
            "as float64; networks hold float32",
        ),
    ],
)
def test_strict_keys(change: Callable[[Any], Any], reason: str, tmp_path: Path) -> None:
    state = dict(made_by_others.model(DDPMPP, time_s=True).state_dict())
    change(state)
    with pytest.raises(UserError, match=reason):
        foreign.convert(saved(tmp_path / "file.pt", state), tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"label_dim": 10}, "label_dim = 10 in its constructor arguments, but its tensors .* 0$"),
        ({"channel_mult": [1, 2, 2]}, "channel_mult"),
        ({"embedding_type": "fourier"}, "embedding_type"),
        ({"encoder_type": "residual"}, "encoder_type"),
        ({"resample_filter": [1, 3, 3, 1]}, "resample_filter"),
        ({"attn_resolutions": [8]}, r"attn_resolutions = \[8\] .* attend at \[4\]"),
        ({"dropout": "much"}, "dropout = much"),
    ],
)
def test_arguments_must_agree(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    made = made_by_others.model(DDPMPP)
    path = tmp_path / "file.pkl"
    path.write_bytes(edm_pickle(made.state_dict(), edm_kwargs(made, **changes)))
    with pytest.raises(UserError, match=reason):
        foreign.convert(path, tmp_path / "made")
