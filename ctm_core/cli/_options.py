"""Types of options that several verbs share."""

from pathlib import Path

import click

__all__ = ["FILE", "FOLDER", "SEED"]

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
SEED = click.IntRange(min=0)
