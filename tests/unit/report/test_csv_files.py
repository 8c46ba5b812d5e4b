"""What pandas writes as CSV is read back as it was."""

from pathlib import Path

import pandas as pd
import pytest

from ctm_core.report.csv_files import csv_text, read_csv


def test_texts_stay_texts_and_empty_cells_empty(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "experiment": ["NA", "null"],  # names that pandas would take for missing values
            "checkpoint_sha256": ["0012345678901234", "1e5;2e6"],  # and hashes for numbers
            "seed": [0, "0+1+2"],
            "gamma": [None, 0.5],
            "source": ["Kim et al., table 1", None],
        }
    )
    path = tmp_path / "table.csv"
    path.write_text(csv_text(frame), encoding="utf-8")
    assert read_csv(path).to_dict("list") == {
        "experiment": ["NA", "null"],
        "checkpoint_sha256": ["0012345678901234", "1e5;2e6"],
        "seed": ["0", "0+1+2"],
        "gamma": ["", "0.5"],
        "source": ["Kim et al., table 1", ""],
    }
    assert csv_text(read_csv(path)) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-300, 123456789.987654321, -2.0, 5e15 / 3])
def test_numbers_keep_ten_digits_on_every_machine(tmp_path: Path, value: float) -> None:
    path = tmp_path / "table.csv"
    path.write_text(csv_text(pd.DataFrame({"value": [value, None]})))
    (text, empty) = read_csv(path)["value"]
    assert (text, empty) == (f"{value:.10g}", "")
    assert float(text) == pytest.approx(value, rel=1e-9)


def test_a_table_without_rows_has_its_heading(tmp_path: Path) -> None:
    assert csv_text(pd.DataFrame([], columns=["a", "b"])) == "a,b\n"


def test_tables_of_earlier_versions_have_no_times(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("gamma,nfe,protocol\n0,2,desk-digits\n")
    assert csv_text(read_csv(path)) == "gamma,nfe,times,protocol\n0,2,,desk-digits\n"
