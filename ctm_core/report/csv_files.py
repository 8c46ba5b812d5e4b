"""``runs.csv``, ``table.csv`` and the paper's tables as CSV, written and read by pandas."""

from __future__ import annotations

import os

import pandas as pd


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV: ten significant digits, missing values empty, the same on every machine."""
    return frame.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def read_csv(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read such a file as text, so that no hash becomes a number and no number loses a digit."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)
