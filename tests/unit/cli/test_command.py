"""Every verb is listed and works with the others; what ends a command is one sentence."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from fixtures import tiny
from fixtures.desk import Desk, refused, said
from fixtures.tiny import Ctm

from ctm_core.cli.command import cli
from ctm_core.data.dataset import Dataset

VERBS = (
    "assets",
    "compare",
    "convert",
    "data",
    "evaluate",
    "features",
    "figures",
    "likelihood",
    "new",
    "plan",
    "report",
    "sample",
    "table",
    "teacher",
    "train",
    "verify",
)


def test_help(ctm: Ctm) -> None:
    ended = ctm("--help")
    assert ended.code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in ended.stdout
        assert ctm(verb, "--help").code == 0
    assert ctm("--version").stdout.startswith("ctm, version ")


def test_the_group_lists_every_verb() -> None:
    context = click.Context(cli)
    assert sorted(cli.list_commands(context)) == sorted(VERBS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "--modle", "x"], "No such option '--modle'"),
        (["train"], "Missing option '--config'"),
        (["sample", "w.safetensors", "--nfe", "0"], "0 is not in the range x>=1"),
        (["sample", "w.safetensors", "--gamma", "1.5"], "1.5 is not in the range 0<=x<=1"),
        (["sample", "w.safetensors", "-n", "many"], "'many' is not a valid integer"),
        (["sample"], "Missing argument 'WEIGHTS'"),
    ],
)
def test_words_that_are_none(ctm: Ctm, words: list[str], expected: str) -> None:
    assert expected in refused(ctm(*words))


def test_ctrl_c_can_be_resumed(ctm: Ctm, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ctm_core.data.dataset.prepare", pressed)
    sentence = said(ctm("data", "--dataset", "digits", "--output", "x"), 75)
    assert sentence == "interrupted; run the same command again to continue"


def test_a_mistake_of_ours_is_not_hidden(ctm: Ctm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the user can mend becomes a sentence."""
    for error in (ZeroDivisionError(), OSError(errno.EIO, "Input/output error")):

        def fail(*arguments: Any, error: Exception = error, **options: Any) -> None:
            raise error

        monkeypatch.setattr("ctm_core.data.dataset.prepare", fail)
        with pytest.raises(type(error)):
            ctm("data", "--dataset", "digits", "--output", "x")


def test_the_verbs_work_together(desk: Desk, digits: Dataset, references: list[Path]) -> None:
    folder = desk.folder
    ended = desk.run("data", "--dataset", "digits", "--output", folder / "data")
    assert ended.code == 0
    assert digits.fingerprint[:12] in ended.stdout
    ended = desk.teach(data=folder / "data")
    assert (ended.code, ended.stdout) == (0, f"{folder / 'out' / 'teacher.safetensors'}\n")
    ended = desk.train(teacher=folder / "out" / "teacher.safetensors")
    assert (ended.code, ended.stdout) == (0, f"{folder / 'out' / 'student.safetensors'}\n")
    made = (folder / "out" / "student.safetensors").read_bytes()
    assert made == desk.student.weights.read_bytes()
    protocol = folder / "tiny.yaml.d" / "tiny.yaml"
    protocol.parent.mkdir()
    protocol.write_text(yaml.safe_dump(tiny.PROTOCOL))
    reference = folder / "features" / "tiny.safetensors"
    ended = desk.run(
        *("features", "reference", "--protocol", protocol),
        *("--data", folder / "data", "--output", reference),
    )
    assert ended.code == 0
    assert reference.read_bytes() == references[0].read_bytes()
    for model, name in (("teacher", "teacher"), ("ctm", "student")):
        ended = desk.run(
            *("evaluate", "--config", desk.config, "--model", model, "--step", "12"),
            *("--weights", folder / "out" / f"{name}.safetensors", "--runs", folder / "runs"),
            *("--output", folder / model, reference, references[1]),
        )
        assert ended.code == 0, ended
    evaluations = [folder / model / "evaluation.json" for model in ("teacher", "ctm")]
    ended = desk.run("table", "--output", folder, *evaluations)
    assert ended.code == 0
    assert (folder / "table.csv").read_text().count("\n") == 6  # a head, and five cells
