"""Data sets, pictures and external files."""
