"""Types of options that several verbs share, and how they print."""

from pathlib import Path
from typing import Any

import click

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.untrusted import printable_lines

__all__ = ["EITHER", "FILE", "FOLDER", "SEED", "WEIGHTS", "echo"]


class _Path(click.Path):
    """A path; ``~`` stands for the home folder, in ``--output=~/x`` too, which shells leave."""

    def convert(self, value: Any, *context: Any) -> Any:
        try:
            value = Path(value).expanduser()
        except RuntimeError:
            raise UserError(f"{value}: there is no such home folder; correct the path") from None
        return super().convert(value, *context)


class _Weights(_Path):
    """A weight file, or ``zoo:NAME``."""

    def convert(self, value: Any, *context: Any) -> Any:
        from ctm_core.models import zoo

        return super().convert(zoo.locate(value), *context)


EITHER = _Path(path_type=Path)
FILE = _Path(dir_okay=False, path_type=Path)
FOLDER = _Path(file_okay=False, path_type=Path)
WEIGHTS = _Weights(dir_okay=False, path_type=Path)
SEED = click.IntRange(min=0)


def echo(text: object, err: bool = False) -> None:
    """Print lines; what names and texts of foreign files would do to a terminal is escaped."""
    click.echo(printable_lines(str(text)), err=err)
