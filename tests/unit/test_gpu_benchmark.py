"""The one command for a GPU, rehearsed on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks/gpu.py"


@pytest.fixture(scope="module", autouse=True)
def _benchmarks() -> Any:
    before = list(sys.path)
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "docs")]
    yield
    sys.path[:] = before


def run(folder: Path, *words: str) -> tuple[int, str, list[dict[str, Any]]]:
    output = folder / "gpu.jsonl"
    call = [sys.executable, str(SCRIPT), "--output", str(output), *words]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    lines = output.read_text(encoding="utf-8").splitlines() if output.exists() else []
    return done.returncode, done.stdout + done.stderr, [json.loads(line) for line in lines]


def test_every_part_is_rehearsed(tmp_path: Path) -> None:
    import gpu
    import gpu_steps
    import gpu_table

    code, printed, rows = run(tmp_path, "--device", "cpu", "--tiny")
    assert code == 0, printed
    outcomes = {row["part"]: row["outcome"] for row in rows if "outcome" in row}
    assert outcomes == dict.fromkeys(gpu.PARTS, "done")
    of = {part: [row for row in rows if row["part"] == part] for part in gpu.PARTS}
    assert [row["way"] for row in of["keys"] if "seconds" in row] == list(
        gpu_steps.tried_keys(True)
    )
    assert {"ours", "bf16", "frozen_precision: bf16"} <= set(gpu_steps.tried_keys(True))
    assert [row["passed"] for row in of["verify"] if "passed" in row] == [True] * 3
    assert [row["same_bits"] for row in of["resume"] if "same_bits" in row] == [True]
    [furthest] = [row["furthest"] for row in of["processes"] if "furthest" in row]
    assert 0 <= furthest < 1e-4
    [compared] = [row for row in of["smoke"] if "cells" in row]
    assert compared["equal"] == compared["values"] == len(compared["cells"]) > 10
    trained = [row["job"].split()[1] for row in of["hour"] if "seed 0" in row.get("job", "")]
    assert sorted(trained) == sorted(2 * ["teacher", "ctm", "ctm_gan", "cd"])
    scored = {row["model"] for row in of["hour"] if row.get("metric") == "fd_efficientnet_lite0_8"}
    assert scored == set(trained)
    text = gpu_table.text([tmp_path / "gpu.jsonl"])
    assert "Its table:" in text and "| ctm_gan | gamma |" in text
    # A part that is run again replaces what there was of it.
    last = [row | {"run": row["run"] + 1, "seconds": 77.0} for row in of["scoring"]]
    with (tmp_path / "gpu.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in last)
    again = gpu_table.text([tmp_path / "gpu.jsonl"])
    assert again.count("scoring") == text.count("scoring") and "| 77 |" in again
    assert "| tiny | D step |" in text and "the same bytes" in text and "Not measured" not in text


def test_a_part_that_is_cut_off_or_fails_leaves_its_rows_and_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu
    import gpu_table

    def endless(bench: Any) -> None:
        bench.record("imagenet", size="tiny", seconds=1.0)
        while True:
            pass

    def failing(bench: Any) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(gpu, "PARTS", {"imagenet": endless, "gan": failing, "last": print})
    monkeypatch.setattr(gpu, "LIMITS", dict.fromkeys(gpu.PARTS, 0.2))
    file = tmp_path / "gpu.jsonl"
    assert not gpu.run(gpu.Bench("cpu", False, file, tmp_path), list(gpu.PARTS), 300)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    outcomes = {row["part"]: row["outcome"] for row in rows if "outcome" in row}
    assert outcomes == {"imagenet": "cut off", "gan": "RuntimeError: no kernel", "last": "done"}
    text = gpu_table.markdown(rows)
    assert "| tiny | 1 |" in text and "* imagenet: cut off" in text and "no kernel" in text


def test_all_parts_fit_into_five_minutes() -> None:
    import gpu

    # The last part takes the minutes that it is given.
    assert [*gpu.LIMITS, "hour"] == [*gpu.PARTS] and sum(gpu.LIMITS.values()) <= 300


def test_the_hour_is_cut_to_the_speed_of_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu
    import gpu_trainings

    monkeypatch.setenv("CTM_ASSETS", "nowhere")
    bench = gpu.Bench("cpu", False, tmp_path / "gpu.jsonl", tmp_path, minutes=60)
    place = tmp_path / "hour/results/cifar10-hour/teacher/seed-0"
    place.mkdir(parents=True)
    monkeypatch.setattr(bench, "child", lambda *words: None)
    sizes = []
    for seconds in (20, 40, 4000):  # of 40 steps
        (place / "speed.json").write_text(json.dumps({"seconds": seconds}))
        sizes.append(gpu_trainings._size(bench, time.monotonic()))
    (fast, samples), (slow, fewer), (least, fewest) = sizes
    assert fast == pytest.approx(2 * slow, rel=0.01) and 0.1 < slow < fast < 2
    assert samples == min(10_000, round(10_000 * fast)) and fewer == round(10_000 * slow)
    assert least == pytest.approx(slow / 100, rel=0.01) and fewest == 500


def test_a_missing_gpu_is_one_sentence(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    code, printed, rows = run(tmp_path, "--parts", "machine")
    assert (code, rows) == (2, []) and printed.startswith("gpu: torch finds no GPU")


def test_the_page_is_made_from_the_committed_rows() -> None:
    import gpu_table
    import rows

    page = rows.PAGE.read_text(encoding="utf-8")
    begin, end = (mark.format("GPU") for mark in rows.MARKS)
    shown = page.partition(begin)[2].partition(end)[0].strip("\n")
    assert shown == gpu_table.text(gpu_table.kept())
