"""Measured speeds and those of other devices."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from fixtures.plan import SPEED

from ctm_core.plan import SPEED as OURS
from ctm_core.plan.speeds import parse_device_speed, read_speed
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import write_json


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_json(tmp_path / "speed.json", SPEED)
    return tmp_path / "speed.json"


def test_rates_lie_between_those_that_were_measured(file: Path) -> None:
    speed = read_speed(file)
    how: dict[str, Any] = {"precision": "fp32", "backward": False}
    assert speed.rate(1e6, **how) == pytest.approx(1e9)
    assert speed.rate(1e8, **how) == pytest.approx(1e10), "halfway by orders of magnitude"
    assert speed.rate(1e3, **how) == pytest.approx(1e9), "smaller than all"
    assert speed.rate(1e15, **how) == pytest.approx(1e11), "larger than all"
    assert speed.rate(1e6, precision="bf16", backward=True) == pytest.approx(4e9)


def test_time_is_work_over_speed(file: Path) -> None:
    speed = read_speed(file)

    def seconds(device: str | None) -> float:
        other = parse_device_speed(device)
        return speed.seconds(1e6, 5e9, precision="fp32", backward=False, device=other)

    assert seconds(None) == pytest.approx(5)
    assert seconds("10x") == pytest.approx(0.5)
    assert seconds("2.5TFLOP/s") == seconds(" 2.5 TFLOPS ") == pytest.approx(5e9 / 2.5e12)


def test_a_likelihood_takes_more_at_a_smaller_tolerance(file: Path) -> None:
    speed = read_speed(file)
    assert speed.likelihood(1e-2) == pytest.approx(40)
    assert speed.likelihood(1e-4) == pytest.approx(80)
    assert 40 < speed.likelihood(1e-3) < 80


@pytest.mark.parametrize(
    "text", ["", "fast", "40", "0x", "-3x", "nanx", "infTFLOP/s", "40 x 2", "1e30TFLOP/s", "4GB"]
)
def test_nonsensical_device_speeds_are_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"--device-speed .*: give a factor .* such as 40x, or"):
        parse_device_speed(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("networks", []),
        ("networks", [{"mode": "forward"}]),
        ("networks", [SPEED["networks"][0] | {"operations_per_second": 0}]),
        ("likelihood", []),
        ("likelihood", [{"tolerance": 0, "evaluations": 3}]),
        ("hardware", None),
        ("update_seconds_per_weight", "quick"),
    ],
)
def test_other_files_are_refused(file: Path, key: str, value: Any) -> None:
    write_json(file, copy.deepcopy(SPEED) | {key: value})
    with pytest.raises(UserError, match=r"speed\.json does not hold measured.*benchmarks/plan"):
        read_speed(file)


def test_a_missing_file_says_how_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json is missing; make it by `python benchmarks/"):
        read_speed(tmp_path / "none.json")


def test_the_committed_speeds_are_whole() -> None:
    speed = read_speed(OURS)
    for sizes, rates in speed.rates.values():
        assert len(sizes) >= 3 and list(sizes) == sorted(sizes)
        assert all(1e8 < rate < 1e15 for rate in rates)
    _, counts = speed.evaluations
    assert list(counts) == sorted(counts, reverse=True), "fewer at a larger tolerance"
    assert 1e7 < speed.process < 1e10 and speed.threads >= 1
