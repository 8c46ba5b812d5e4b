"""table.tex: well-formed, escaped, and emphasis within one protocol only."""

import re
from pathlib import Path

import pytest
from fixtures.results_factory import Results

from ctm_core.config import Cell
from ctm_core.report.tables import write_tables
from ctm_core.report.typeset import SPECIAL, escape
from ctm_core.runtime.files import read_json, write_record


def check_structure(text: str) -> int:
    """Environments nest, braces and dollars pair, every line of a tabular has all its cells.

    Returns the number of tables.
    """
    bare = re.sub(r"\\[\\{}&%$#_]", "", re.sub(r"^%.*$", "", text, flags=re.M))
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    assert not re.search(r"[#_^~]", bare)
    assert text.isascii() or not set(text) & set(SPECIAL) - set("\\&%$#_{}~^")
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    tables = re.findall(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\end\{tabular\}", text, flags=re.S)
    for columns, body in tables:
        rules = [line for line in body.splitlines() if line.endswith("rule")]
        assert rules == ["\\toprule", "\\midrule", "\\bottomrule"]
        lines = [line for line in body.splitlines() if not line.endswith("rule")]
        assert len(lines) >= 2
        for line in lines:
            assert line.endswith(" \\\\")
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1, line
    return len(tables)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    made = Results(tmp_path).default()
    write_tables(made.evaluations, tmp_path)
    return made


def test_every_protocol_is_a_table_of_its_own_with_its_own_winners(results: Results) -> None:
    text = (results.root / "table.tex").read_text()
    assert check_structure(text) == 2
    main, lite = text.split("\\begin{table}")[1:]
    assert main.count("\\textbf{") == main.count("\\underline{") == 1
    assert (
        "teacher & heun &  & 35 & \\textbf{3.80} {\\scriptsize $\\pm$ 0.25}\\ddag{} \\\\" in main
    )
    assert (
        "teacher & heun &  & 17 & \\underline{5.00} {\\scriptsize $\\pm$ 0.25}\\ddag{} \\\\"
        in main
    )
    assert "ctm\\_nodsm & gamma & 0 & 4 & 11.00" in main
    assert "protocol desk-digits. Features classifier\\_digits" in main
    assert lite.count("\\textbf{") == lite.count("\\underline{") == 1
    assert "\\dag{}" in lite and "\\dag{}" not in main


def test_many_metrics_are_dealt_to_tables(tmp_path: Path) -> None:
    results = Results(tmp_path)
    path = results.evaluation("ctm", {Cell("gamma", 1, None): 9.0, Cell("gamma", 2, 0.0): 8.0})
    add_metrics(path)
    write_tables([path], tmp_path)
    text = (tmp_path / "table.tex").read_text()
    assert check_structure(text) == 5
    parts = text.split("\\begin{table}")[1:]
    assert "FD (x, 512 samples) & FD$\\infty$ \\\\" in parts[1]
    assert "KID & IS \\\\" in parts[2]
    assert "Precision & Recall" in parts[3]
    # Of IS and recall the higher is better, of KID the lower; memorisation has no winner.
    first, second = (line for line in parts[2].splitlines() if line.startswith("ctm & gamma"))
    assert "& 1 & \\textbf{0.2500} {" in first and "& \\underline{0.2500} {" in first
    assert "& 2 & \\underline{0.5000} {" in second and "& \\textbf{0.5000} {" in second
    assert "\\textbf" not in parts[4]


def add_metrics(path: Path) -> None:
    """Beside every value of the first metric, values of others that grow with NFE."""
    record = read_json(path)
    others = (
        "fd_x_512", "fd_x_inf", "kid_x_1024", "is_x_1024", "precision_x_1024", "recall_x_1024",
        "memorisation_1024",
    )  # fmt: skip
    rows = record["rows"]
    record["rows"] = rows + [
        row | {"metric": metric, "value": row["nfe"] / 4} for row in rows for metric in others
    ]
    write_record(path, record)


def test_special_characters_are_escaped() -> None:
    assert escape("a_b & 5% {γ} \\ ~^#$") == (
        r"a\_b \& 5\% \{$\gamma$\} \textbackslash{} \textasciitilde{}\textasciicircum{}\#\$"
    )
    assert all(not set(value) & set("γσΔ×±∞†‡·–−") for value in SPECIAL.values())


@pytest.mark.parametrize("name", ["table.tex", "paper/table1.tex"])
def test_the_structure_check_can_fail(results: Results, name: str) -> None:
    text = (results.root / name).read_text()
    check_structure(text)
    for damage in (" &", "{", "$", "\\begin{table}", "\nx_y"):
        with pytest.raises(AssertionError):
            check_structure(text.replace("\\midrule\n", f"\\midrule\n{damage} ", 1))
