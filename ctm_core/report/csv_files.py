"""``runs.csv``, ``table.csv`` and the paper's tables as CSV, written and read by pandas."""

from __future__ import annotations

from io import BytesIO

import pandas as pd

from ctm_core.runtime.untrusted import PathLike, csv_cell, read_bytes


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV: ten significant digits, missing values empty, the same on every machine."""
    safe = frame.map(lambda cell: csv_cell(cell) if isinstance(cell, str) else cell)
    return safe.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def read_csv(path: PathLike) -> pd.DataFrame:
    """Read such a file as text, so that no hash becomes a number and no number loses a digit.

    The column ``times``, which earlier versions did not write, is empty where it is missing.

    Raises
    ------
    UserError
        If it is missing, no regular file, or far too large.
    ValueError
        If it is not CSV.
    """
    frame = pd.read_csv(BytesIO(read_bytes(path)), dtype=str, keep_default_na=False)
    if "nfe" in frame and "times" not in frame:
        frame.insert(list(frame).index("nfe") + 1, "times", "")
    return frame
