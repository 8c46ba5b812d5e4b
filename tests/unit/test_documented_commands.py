"""Every command line that README, docs and `--help` promise works, or says why it cannot."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest
import test_readme as readme
from fixtures import documented, documented_folder, tiny
from fixtures.documented import FORMS, LINES, OTHERS, Case
from fixtures.project import ROOT
from fixtures.tiny import Trained

from ctm_core.cli.command import cli
from ctm_core.data.dataset import Dataset

#: Words of a help text that leave a choice.
CHOICE = re.compile(r"\bor\b|^Data sets:")


@pytest.fixture(scope="module")
def folder(
    digits: Dataset, teacher: Trained, student: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the lines read and write: they share it, each being run once."""
    folder = documented_folder.lay_out(
        tmp_path_factory.mktemp("documented"), digits, teacher, student
    )
    run(
        Case(),
        "ctm features reference --protocol tiny.yaml --data data/train --output tiny.safetensors",
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def done() -> set[str]:
    """Lines that have been run."""
    return set()


def run(case: Case, line: str, folder: Path) -> None:
    """Run a line, and look for what its options say that it writes."""
    words = shlex.split(line)[1:]
    ended = tiny.ctm(words, folder, [documented_folder.away])
    assert "Traceback" not in ended.stderr, ended.stderr
    if case.refused:
        assert (ended.code, case.refused in ended.stderr) == (2, True), ended
        return
    assert ended.code == 0, f"{line}: {ended}"
    for option, value in pairwise(words):
        if option in ("--output", "--json", "--log") and not value.startswith("-"):
            assert (folder / value).exists(), f"{line} wrote no {value}"


# -- lines ---------------------------------------------------------------------------------------


def lines(page: Path, *programs: str) -> list[str]:
    """A page's command lines of some programs: those of blocks, and inline ones with arguments."""
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"`((?:[A-Z_]+=\S+ )?(?:ctm|snakemake|make|dvc) [^`]+)`", text)
    found = [shlex.split(line, comments=True) for line in readme.block_lines(text)]
    for words in map(shlex.split, inline):
        if words[0] != "ctm" or readme.verb(words[1:])[1]:
            found.append(words)
    commands = (part.split() for words in found for part in " ".join(words).split(" && "))
    return [" ".join(words) for words in commands if words and words[0] in programs]


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_every_line_does_what_it_says(page: Path, folder: Path, done: set[str]) -> None:
    """In the order of the page, since one command reads what an earlier one wrote."""
    for line in lines(page, "ctm"):
        assert line in LINES, f"{page.name}: say in {documented.__file__} how to try `{line}`"
        if not LINES[line].test and line not in done:
            run(LINES[line], LINES[line].instead or line, folder)
            done.add(line)


def test_no_line_is_tried_that_nobody_reads() -> None:
    written = {line for page in readme.PAGES for line in lines(page, "ctm")}
    assert not LINES.keys() - written
    others = {line for page in readme.PAGES for line in lines(page, "snakemake", "make", "dvc")}
    assert not OTHERS.keys() - others


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_every_line_of_the_workflow_has_its_test(page: Path) -> None:
    for line in lines(page, "snakemake", "make", "dvc"):
        assert line in OTHERS, f"{page.name}: name in {documented.__file__} a test of `{line}`"


def test_the_tests_that_are_named_exist() -> None:
    named = [case.test for case in LINES.values() if case.test]
    named += [form for forms in FORMS.values() for form in forms if not form.startswith("ctm ")]
    for test in {*named, *OTHERS.values()}:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{file} has no {name}"


# -- help ----------------------------------------------------------------------------------------


def choices() -> Iterator[str]:
    """Every sentence of `--help` that leaves a choice."""
    commands: list[click.Command] = [cli]
    for command in commands:
        commands += command.commands.values() if isinstance(command, click.Group) else []
        context = click.Context(command)
        for parameter in command.params:
            text = " ".join((getattr(parameter, "help", None) or "").split())
            if CHOICE.search(text) or isinstance(parameter.type, click.Choice):
                yield text or f"{parameter.opts[0]} {parameter.make_metavar(context)}"
        epilog = click.HelpFormatter()
        command.format_epilog(context, epilog)
        texts = [*(command.help or "").split("\n\n"), epilog.getvalue()]
        yield from (" ".join(text.split()) for text in texts if CHOICE.search(text.strip()))


def test_every_choice_of_the_help_is_tried() -> None:
    assert set(choices()) == FORMS.keys()


@pytest.mark.parametrize("text", FORMS)
def test_every_form_works(text: str, folder: Path, done: set[str]) -> None:
    for line in FORMS[text]:
        if line.startswith("ctm ") and line not in done:
            shutil.rmtree(folder / "forms", ignore_errors=True)
            run(Case(), line, folder)
            done.add(line)
