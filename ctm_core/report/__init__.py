"""Rows into tables, figures, verdicts on the paper's claims, and one page."""
