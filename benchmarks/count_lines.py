"""Lines of ``ctm_core`` by package: code, and all. ``python benchmarks/count_lines.py [FOLDER]``.

A line of code is not blank, not a comment, and not part of a docstring.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def docstrings(tree: ast.Module) -> set[int]:
    """Line numbers of docstrings."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        # Bare string expressions: docstrings, and those of attributes.
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def count(file: Path) -> tuple[int, int]:
    """Lines of code, and all lines, of one file."""
    text = file.read_text(encoding="utf-8")
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT and token.type != tokenize.ENDMARKER:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings(ast.parse(text))), len(text.splitlines())


def main(folder: Path) -> None:
    """Print a row per package, and the sum."""
    rows: dict[str, list[int]] = {}
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder).parts
        row = rows.setdefault(inside[0] if len(inside) > 1 else "(root)", [0, 0, 0])
        for place, number in enumerate((1, *count(file))):
            row[place] += number
    print(f"{'package':14} {'files':>6} {'code':>7} {'all':>7}")
    for name, row in sorted(rows.items(), key=lambda item: -item[1][1]):
        print(f"{name:14} {row[0]:6} {row[1]:7} {row[2]:7}")
    total = [sum(column) for column in zip(*rows.values(), strict=True)]
    print(f"{'sum':14} {total[0]:6} {total[1]:7} {total[2]:7}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "ctm_core"))
