"""JSON of this project that somebody edited: noticed by its hash, and impossible values anyway."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny
from fixtures.results_factory import Results
from hostile.corpus.edits import EVALUATION, SPEED, TRAINING, edited, every

from ctm_core.config import Cell
from ctm_core.evaluation.evaluation_file import read_evaluation
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import CONTENT, read_json, write_json, write_record
from ctm_core.training.training_file import read_speed, read_training

CELLS = {Cell("gamma", 2, 0.5): 9.0}


def refused(read: Callable[[Path], Any], path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path)) and sentence.isprintable(), sentence
    assert len(sentence) < len(str(path)) + 500, sentence
    return sentence


#: Each kind of record: how it is read, and values that it cannot have.
KINDS: dict[str, tuple[Callable[[Path], Any], dict[str, tuple[Any, ...]]]] = {
    "evaluation": (read_evaluation, EVALUATION),
    "training": (read_training, TRAINING),
    "speed": (read_speed, SPEED),
}


def record_of(kind: str, folder: Path) -> Path:
    results = Results(folder, sample_seeds=(0,))
    if kind == "evaluation":
        return results.evaluation("ctm", CELLS, previews=False)
    return results.training("ctm").with_name(f"{kind}.json")


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_cannot_be_are_named(kind: str, tmp_path: Path) -> None:
    """Even if the hash fits: an older version wrote none, and anybody can compute it."""
    path, (read, values) = record_of(kind, tmp_path), KINDS[kind]
    record = read_json(path)
    read(path)
    for key, value in every(values):
        write_record(path, edited(record, key, value))
        sentence = refused(read, path)
        assert key.split(".")[-1] in sentence or key.rpartition(".")[0] in sentence, sentence


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_of_any_value_is_noticed(kind: str, tmp_path: Path) -> None:
    path, (read, _) = record_of(kind, tmp_path), KINDS[kind]
    record = read_json(path)
    for key in record:
        write_json(path, record | {key: "x"})
        sentence = refused(read, path)
        assert "does not match its content_sha256" in sentence, key
        assert "make it again" in sentence
    write_json(path, record | {"another": 1})
    assert "does not match" in refused(read, path)
    write_json(path, dict(reversed(record.items())))
    read(path)  # an order of keys is no content


def test_a_file_without_a_hash_is_read_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctm_core.runtime.files._warned", set())
    results = Results(tmp_path, sample_seeds=(0,))
    for seed in (0, 1):
        path = results.evaluation("ctm", CELLS, train_seed=seed, previews=False)
        record = read_json(path)
        del record[CONTENT]
        write_json(path, record)
        assert read_evaluation(path).train_seed == seed
    (said,) = caplog.messages
    assert "seed-0/step-500/evaluation.json" in said and "cannot" not in said
    assert "no content_sha256" in said and "make it again with `ctm evaluate`" in said


@pytest.mark.parametrize("verb", ["table", "figures", "report"])
def test_the_command_refuses_an_edited_value(verb: str, tmp_path: Path) -> None:
    """Exit code 2, one line that names file and remedy, nothing written."""
    results = Results(tmp_path / "results", sample_seeds=(0,))
    path = results.evaluation("ctm", CELLS)
    words: dict[str, list[str | Path]] = {
        "table": ["table", "--output", tmp_path / "results", path],
        "figures": ["figures", "--output", tmp_path / "figures", path],
        "report": ["report", "--results", tmp_path / "results"],
    }
    if verb == "report":
        assert tiny.ctm(words["table"], tmp_path).code == 0
    text = path.read_text()
    assert text.count('"value": 9.0') == 1
    path.write_text(text.replace('"value": 9.0', '"value": 0.09'))
    before = tiny.tree(tmp_path)
    done = tiny.ctm(words[verb], tmp_path)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ctm: {path} was changed after it was written")
    assert "`ctm evaluate`" in done.stderr and done.stderr.count("\n") == 1
    assert tiny.tree(tmp_path) == before
