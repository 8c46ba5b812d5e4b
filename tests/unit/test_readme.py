"""README and docs name only commands, files and links that exist; and the README's table."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from fixtures.results_factory import Results

from ctm_core.cli.command import cli
from ctm_core.report.csv_files import read_csv
from ctm_core.report.statistics import MARKED
from ctm_core.report.tables import write_tables
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import write_record

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
#: Programs that are not ours, nor of the packages we install.
FOREIGN = {
    *("git", "cd", ".", "mkdir", "sed", "echo", "export", "find", "pip", "tensorboard"),
    *("$EDITOR", "tmux", "apptainer"),
}


@pytest.fixture(scope="module")
def updater() -> ModuleType:
    """docs/update_readme.py as a module."""
    return script("update_readme")


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- commands ------------------------------------------------------------------------------------


def block_lines(text: str) -> list[str]:
    """The lines of the ``sh`` blocks, those that continue joined."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, flags=re.M | re.S)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def commands(text: str) -> Iterator[list[str]]:
    """Every command of the ``sh`` blocks, and of inline code that starts like one of ours."""
    inline = re.findall(r"`((?:make|ctm|snakemake|dvc|python) [^`]+)`", text)
    for line in [*block_lines(text), *inline]:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]  # set for this command
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def verb(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words name, and its own words."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        if command.invoke_without_command and (not words or words[0].startswith("-")):
            break
        options = {name for parameter in command.params for name in parameter.opts}
        while words and words[0] in options:
            words = words[2:]  # an option of the group and its value
        assert words, f"{command.name} needs a verb"
        assert words[0] in command.commands, f"no verb {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def check_ctm(words: list[str]) -> None:
    command, words = verb(words)
    options = {name for parameter in command.params for name in parameter.opts}
    for word in words:
        if word.startswith("-"):
            assert word in options, f"{command.name} has no option {word}"


def check_ctm_whole(words: list[str]) -> None:
    """As :func:`check_ctm`, and the values and required options fit, too."""
    check_ctm(words)
    command, words = verb(words)
    command.make_context(command.name, list(words))


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY:(.*)$", makefile, flags=re.M)
    assert phony is not None
    for word in words:
        if "=" in word:
            assert re.search(rf"\$\({word.split('=')[0]}\)", makefile), f"make reads no {word}"
        else:
            assert word in phony[1].split() and re.search(rf"^{word}:", makefile, flags=re.M)


def check_snakemake(words: list[str]) -> None:
    from snakemake.cli import get_argument_parser

    arguments, unknown = get_argument_parser().parse_known_args(words)
    assert not unknown
    for file in arguments.configfile or ():
        # What the reader is told to make is called so.
        assert "mine" in file.with_suffix("").parts or (ROOT / file).is_file(), file


def check_dvc(words: list[str]) -> None:
    from dvc.cli import DvcParserError
    from dvc.cli.parser import get_main_parser

    try:
        arguments = get_main_parser().parse_args(words)
    except DvcParserError:
        raise AssertionError("dvc does not take this") from None
    for change in getattr(arguments, "set_param", None) or ():
        file, _, key = change.rpartition(":")
        assert (ROOT / file).is_file(), file
        check_key(ROOT / file, key.split("=")[0])


def check_key(file: Path, key: str) -> None:
    import yaml

    section: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    for part in key.split("."):
        assert part in section, f"{file.name} has no key {key}"
        section = section[part]


def check(words: list[str]) -> None:
    program, rest = words[0], words[1:]
    if program in FOREIGN:
        return
    if program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]) is not None, rest[1]
    elif program == "python":
        assert (ROOT / rest[0]).is_file(), rest[0]
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in rest)
    else:
        known = {
            "ctm": check_ctm,
            "make": check_make,
            "snakemake": check_snakemake,
            "dvc": check_dvc,
        }
        assert program in known, f"unknown program {program!r}"
        known[program](rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_exists(page: Path) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        try:
            check(words)
        except (AssertionError, SystemExit) as error:
            pytest.fail(f"{' '.join(words)}: {error}")


def test_readme_shows_the_two_commands_first() -> None:
    found = [" ".join(words) for words in commands((ROOT / "README.md").read_text("utf-8"))]
    assert found[0].startswith("git clone")
    assert found[2:4] == ["make table", "make test"]


def test_commands_of_blocks_are_complete() -> None:
    """Those of a block can be typed as they stand: values and required options fit."""
    whole = 0
    for page in PAGES:
        for line in block_lines(page.read_text("utf-8")):
            words = shlex.split(line, comments=True)
            if words and words[0] == "ctm":
                check_ctm_whole(words[1:])
                whole += 1
    assert whole


@pytest.mark.parametrize(
    "line",
    [
        "ctm paint",
        "ctm assets paint",
        "ctm assets --colour red",
        "ctm features",
        "ctm sample weights.safetensors --colour red",
        "make coffee",
        "make table FLAVOUR=sweet",
        "snakemake --cores all --configfile config/none.yaml",
        "dvc exp run -S 'config/experiments/digits.yaml:teacher.training.stpes=5'",
        "dvc paint",
        "python docs/none.py",
        "whatever --now",
    ],
)
def test_commands_that_do_not_exist_are_found(line: str) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check(shlex.split(line))


# -- files and links -----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    roots = r"(?:ctm_core|config|docs|workflow|profiles|tests|benchmarks)"
    named = re.findall(rf"`({roots}/[\w./-]*)`", page.read_text(encoding="utf-8"))
    for name in named:
        # Generated by the packaging or by the user, not in the repository.
        assert (ROOT / name).exists(), f"{page.name} names {name}"


# -- the table -----------------------------------------------------------------------------------


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_table_is_that_of_the_committed_results(updater: ModuleType) -> None:
    """Every row of the README stands in the copy of results/table.md beside the picture."""
    block = updater.block((ROOT / "README.md").read_text(encoding="utf-8"))
    rows = [cells(line) for line in block.splitlines() if line.startswith("| ")][1:]
    again = "run `make table`, then `python docs/update_readme.py`"
    assert rows, f"the README has no table; {again}"
    copy = ROOT / updater.TABLE
    assert copy.is_file(), f"{updater.TABLE} is missing; {again}"
    text = copy.read_text(encoding="utf-8")
    protocol = re.search(r"protocol `([^`]+)`", block)
    assert protocol is not None
    (section,) = [
        part for part in text.split("\n## ") if part.split("\n")[0].endswith(protocol[1])
    ]
    lines = [cells(line) for line in section.splitlines() if line.startswith("| ")]
    head, found = lines[0], lines[1:]
    assert head[0] == "model" and "step" not in head
    committed = [[*row[:4], row[4].strip("*").removesuffix(" †")] for row in found]
    assert [row for row in rows if row[:5] not in committed] == [], f"the README differs; {again}"
    assert (ROOT / updater.PICTURE).stat().st_size < 1_000_000


@pytest.fixture
def results(tmp_path: Path) -> Path:
    made = Results(tmp_path / "results").default()
    write_tables(made.evaluations, made.root)
    (made.root / "figures").mkdir()
    (made.root / "figures" / "digits-hero.png").write_bytes(b"a picture")
    return made.root


def test_update_fills_the_block(updater: ModuleType, results: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    (tmp_path / "docs" / "images").mkdir(parents=True)
    updater.update(results, tmp_path)
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    block = updater.block(readme)
    assert "| teacher | heun |  | 35 | 3.80 [3.55, 4.05] ‡ |" in block
    assert "| ctm | gamma | 1 | 8 | 8.80 [8.55, 9.05] ‡ |" in block
    assert "| 0.5 |" not in block, "γ between its ends is left to the whole table"
    assert "efficientnet" not in block, "one protocol only"
    assert "sampling alone: 3 sampling seeds, 1 training run |" in block and MARKED in block
    before = (ROOT / "README.md").read_text(encoding="utf-8")
    assert updater.filled(readme, "") == updater.filled(before, ""), "nothing else changed"
    assert (tmp_path / updater.TABLE).read_bytes() == (results / "table.md").read_bytes()
    assert (tmp_path / updater.PICTURE).read_bytes() == b"a picture"
    updater.update(results, tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == readme


def test_update_needs_results(updater: ModuleType, results: Path, tmp_path: Path) -> None:
    (results / "figures" / "digits-hero.png").unlink()
    with pytest.raises(UserError, match=r"digits-hero\.png is missing; run `make table`"):
        updater.update(results, tmp_path)
    other = read_csv(results / "table.csv").replace("digits", "other")
    with pytest.raises(UserError, match="no rows of digits"):
        updater.excerpt(other)


# -- the page of digits-full ---------------------------------------------------------------------


def test_the_page_of_digits_full_is_made_of_its_results(tmp_path: Path) -> None:
    digits_full = script("digits_full")
    results = tmp_path / "full"
    for name in digits_full.FIGURES:
        figure = results / f"figures/digits-full-{name}.png"
        figure.parent.mkdir(parents=True, exist_ok=True)
        figure.write_bytes(name.encode())
    (results / "claims.md").write_text("# Does it reproduce?\n\n## digits-full\n\nOf 2 claims.\n")
    seed = results / "digits-full/ctm/seed-0"
    for place, seconds in ((seed, 3000), (seed / "step-2", 300), (seed / "step-4", 300)):
        write_record(place / "speed.json", {"seconds": seconds})
    (tmp_path / "docs/images").mkdir(parents=True)
    digits_full.update(results, tmp_path)
    page = (tmp_path / digits_full.PAGE).read_text(encoding="utf-8")
    assert "1 training runs and 2 evaluations took 1.0 hours in total" in page
    assert "\n## Does it reproduce?\n\n### digits-full\n\nOf 2 claims.\n" in page
    assert page.count("\n# ") + page.startswith("# ") == 1
    for name in digits_full.FIGURES:
        assert f"](images/digits-full-{name}.png)" in page
        copy = tmp_path / f"docs/images/digits-full-{name}.png"
        assert copy.read_bytes() == name.encode()

    (results / "claims.md").unlink()
    with pytest.raises(UserError, match=r"claims\.md is missing; run `snakemake .*digits-full"):
        digits_full.update(results, tmp_path)


def test_the_page_of_own_images_is_made_of_its_results(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    own = script("own_images")
    monkeypatch.setattr(own, "EXPERIMENT", "digits")
    for name in own.FIGURES:
        (results / f"figures/digits-{name}.png").write_bytes(name.encode())
    (results / "claims.md").write_text("# Does it reproduce?\n\n## Not testable\n\n* GAN\n")
    (tmp_path / "docs/images").mkdir(parents=True)
    page = tmp_path / own.PAGE
    page.write_text("# Own\n\n<!-- table:begin -->\nNone yet.\n<!-- table:end -->\n")
    readme = tmp_path / "README.md"
    readme.write_text("\nNone yet.\n".join(own.README))
    monkeypatch.setattr(own, "NAMED", (("teacher", "35", ""), ("ctm", "8", "1")))
    own.update(results, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Own\n") and "None yet" not in text
    assert "\n## Does it reproduce?\n<!-- table:end -->" in text and "GAN" not in text
    assert "| teacher | heun |" in text
    assert "[The full table](images/photographs-table.md)" in text
    begin, end = own.README
    shown = readme.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    assert "docs/images/digits-hero.png" in shown and "None yet" not in shown
    values = r"3\.80 .* for `teacher` \(NFE 35\), 8\.80 .* for `ctm` \(NFE 8, γ 1\)\."
    assert re.search(rf"`fd_\w+`, lower is better: {values}", shown)
    for name in own.FIGURES:
        assert (tmp_path / f"docs/images/digits-{name}.png").read_bytes() == name.encode()
    (results / "table.md").unlink()
    with pytest.raises(UserError, match=r"table\.md is missing; run the study"):
        own.update(results, tmp_path)
