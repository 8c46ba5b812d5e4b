"""The curve has each logged step once, whatever cut the last line short."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ctm_core.runtime.scalars import Scalars, rewind


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "training.jsonl").open()]


def test_lines(tmp_path: Path) -> None:
    with Scalars(tmp_path, 0) as curve:
        curve.write(1, {"loss": 2.5, "ctm": 0.1})
        assert steps(tmp_path) == [1]  # at once, not at the end
        curve.write(2, {"loss": 1.5, "ctm": 0.2})
    with Scalars(tmp_path, 2) as curve:
        curve.write(3, {"loss": 1.0, "ctm": 0.3})
    lines = [json.loads(line) for line in (tmp_path / "training.jsonl").open()]
    assert lines[1] == {"step": 2, "loss": 1.5, "ctm": 0.2}
    assert steps(tmp_path) == [1, 2, 3]


def test_tensorboard_reads_the_same_and_the_speed(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with Scalars(tmp_path, 0) as curve:
        curve.write(1, {"loss": 2.5})
        curve.write(2, {"loss": 1.5, "ctm": 0.25}, images_per_second=8.0)
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:  # length, checksum, record, checksum
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert events[0].file_version == "brain.Event:2"
    assert events[1].step == 1 and events[1].session_log.status == 1
    seen = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert seen[:3] == [(1, "loss", 2.5), (2, "loss", 1.5), (2, "ctm", 0.25)]
    assert seen[3:] == [(2, "images_per_second", 8.0)]
    assert "images_per_second" not in (tmp_path / "training.jsonl").read_text()


@pytest.mark.parametrize(("step", "kept"), [(0, []), (3, [1, 2, 3]), (9, [1, 2, 3, 4])])
def test_rewind(tmp_path: Path, step: int, kept: list[int]) -> None:
    with Scalars(tmp_path, 0) as curve:
        for number in range(1, 5):
            curve.write(number, {"loss": 1.0})
    rewind(tmp_path, step)
    assert steps(tmp_path) == kept


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"loss": 1}\n', "[3]\n", "\n"])
def test_rewind_drops_a_torn_line(tmp_path: Path, torn: str) -> None:
    (tmp_path / "training.jsonl").write_text('{"step": 1}\n{"step": 2}\n' + torn)
    rewind(tmp_path, 9)
    assert steps(tmp_path) == [1, 2]


def test_a_kill_while_rewinding_keeps_the_old_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '{"step": 1}\n{"step": 2}\n'
    (tmp_path / "training.jsonl").write_text(text)

    class Killed(BaseException):
        pass

    def killed(source: Path, target: Path) -> None:
        raise Killed

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        rewind(tmp_path, 1)
    assert (tmp_path / "training.jsonl").read_text() == text


def test_nothing_to_rewind(tmp_path: Path) -> None:
    rewind(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []
