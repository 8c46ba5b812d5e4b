"""No verb ends in a traceback where a file cannot grow, whatever library writes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import tiny
from fixtures.results_factory import CTM, Results
from fixtures.tiny import FileSizeLimit, Trained

from ctm_core.data.dataset import Dataset


@pytest.mark.parametrize(
    ("verb", "size"),
    [
        ("figures", 3000),
        ("table", 300),
        ("report", 3000),
        ("sample", 700),
        ("likelihood", 700),
    ],
)
def test_a_file_that_cannot_grow_is_one_sentence(
    verb: str, size: int, tmp_path: Path, student: Trained, teacher: Trained, digits: Dataset
) -> None:
    folder, out = tmp_path / "results", tmp_path / "out"
    words: list[str | Path] = [verb, "--output", out]
    if verb in ("figures", "table", "report"):
        path = Results(folder, sample_seeds=(0,)).evaluation("ctm", CTM)
        words += [path]
        if verb == "report":
            assert tiny.ctm(["table", "--output", folder, path], tmp_path).code == 0
            words = ["report", "--results", folder, "--output", out / "report.html"]
    elif verb == "sample":
        words = ["sample", student.weights, "-n", "16", "--output", out / "samples.npy"]
    else:
        words = ["likelihood", teacher.weights, "--data", digits.path, "-n", "1"]
        words += ["--output", out / "likelihood.json"]
    # The captured messages are files as well: the limits leave room for them.
    done = tiny.ctm(words, tmp_path, [FileSizeLimit(size)])
    assert done.code == 2, done
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ctm: {out}") and "the limit on file sizes is reached" in last
    assert "Traceback" not in done.stderr
    assert not [path for path in out.rglob("*") if path.is_file() and path.stat().st_size > size]
    assert not list(out.rglob("*.tmp"))
