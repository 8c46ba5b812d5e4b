"""docs/ground-truth.md: its script works, its numbers are those of the claims, its code runs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "ground-truth.md").read_text(encoding="utf-8")


def cells(row: str) -> list[str]:
    """The numbers of a row of the page's tables."""
    [line] = [line for line in PAGE.splitlines() if line.startswith(f"| {row}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_page_holds_the_claims() -> None:
    assert float(cells("order of Euler")[2].split()[0]) == pytest.approx(1, abs=0.1)
    assert float(cells("order of Heun")[2].split()[0]) == pytest.approx(2, abs=0.1)
    assert float(cells("order of its square root")[2]) == pytest.approx(2, abs=0.1)
    assert float(cells("CTM loss (l2)")[2]) < 1e-10
    for name in "ab":
        best, error = map(float, cells(f"{name} of the best")[2].split(" ± "))
        assert abs(best) < 4 * error < 0.1
    for nfe in (1, 2, 4, 8):
        assert all(float(p) > 1e-4 for p in cells(f"NFE {nfe}")[1:])
    assert all(float(p) < 1e-4 for p in cells("wrong G")[1:])


def test_code_of_the_page_runs() -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    made: dict[str, Any] = {}
    exec(code, made)
    assert made["images"].shape == (1000, 1, 1, 2)


def test_script_writes_page_and_picture(tmp_path: Path) -> None:
    script = runpy.run_path(str(DOCS / "ground_truth.py"))
    # Few cells, few samples: every part of it runs. Its functions share one namespace.
    shared = script["measure"].__globals__
    shared |= {"GAMMAS": (0.0, 0.5), "COUNTS": (1, 2), "STEPS": (8, 16, 32, 64)}
    shared |= {"REFINEMENTS": (1, 2, 3)}
    script["write"](tmp_path, script["measure"](200))
    page = (tmp_path / "ground-truth.md").read_text(encoding="utf-8")
    before, after = (PAGE.split("<!-- numbers:")[i] for i in (0, 2))
    assert page.startswith(before) and page.endswith(after)
    assert "| NFE 2 |" in page and "| order of Heun, to σ_min | 2 |" in page
    with Image.open(tmp_path / "images" / "ground-truth.png") as picture:
        assert picture.size[0] > 1000
