"""Precision and memory layout: what `auto` becomes, and what of it is hashed."""

from __future__ import annotations

import pytest
from fixtures import tiny
from fixtures.experiments import CTM

from ctm_core.config.optimization import suits_channels_last


def test_precision_auto_is_resolved_before_hashing() -> None:
    auto = tiny.experiment({f"{CTM}.training.precision": "auto"})
    resolved = auto.resolved("bf16")
    assert resolved.models["ctm"].training.precision == "bf16"
    assert resolved.teacher.training.precision == "fp32"
    fp32 = auto.resolved("fp32").train_hash("ctm")
    assert fp32 == tiny.experiment().train_hash("ctm") != resolved.train_hash("ctm")


@pytest.mark.parametrize(
    ("width", "precision", "expected"),
    [(8, "fp32", True), (128, "fp32", True), (8, "bf16", False), (128, "bf16", False)],
)
def test_channels_last_auto_is_resolved_by_size_and_precision(
    width: int, precision: str, expected: bool
) -> None:
    keys = {f"{CTM}.training.channels_last": "auto", f"{CTM}.training.precision": "auto"}
    made = tiny.experiment(keys | {"network.model_channels": width}).resolved(precision)
    assert made.models["ctm"].training.channels_last is expected
    assert made.teacher.training.channels_last is False
    explicit = {f"{CTM}.training.channels_last": expected, f"{CTM}.training.precision": precision}
    same = tiny.experiment(explicit | {"network.model_channels": width})
    assert made.train_hash("ctm") == same.train_hash("ctm")


@pytest.mark.parametrize(
    ("width", "side", "expected"),
    [(128, 32, True), (128, None, True), (64, 32, False), (128, 16, False)],
)
def test_channels_last_auto_in_bf16_is_for_wide_networks_and_large_images(
    width: int, side: int | None, expected: bool
) -> None:
    assert suits_channels_last(width, side, "bf16") is expected


def test_text_is_no_memory_layout() -> None:
    for value in ("yes", "Auto", 1):
        with pytest.raises(ValueError, match="channels_last"):
            tiny.experiment({f"{CTM}.training.channels_last": value})


def test_frozen_precision_is_hashed_unless_it_is_what_bf16_does_anyway() -> None:
    lower = {f"{CTM}.training.frozen_precision": "bf16"}
    assert tiny.experiment(lower).train_hash("ctm") != tiny.experiment().train_hash("ctm")
    both = tiny.experiment(lower | {f"{CTM}.training.precision": "auto"}).resolved("bf16")
    plain = tiny.experiment({f"{CTM}.training.precision": "bf16"})
    assert both.train_hash("ctm") == plain.train_hash("ctm")
    with pytest.raises(ValueError, match="leave frozen_precision out"):
        tiny.experiment(lower | {f"{CTM}.training.precision": "bf16"})
    with pytest.raises(ValueError, match="has no frozen networks"):
        tiny.experiment({"teacher.training.frozen_precision": "bf16"})
