"""External files: what the project uses but does not contain.

``config/assets.yaml`` lists them; this module reads that list, finds each file and compares it
with what is known of it. Nothing here fetches anything.

A file lies in the assets folder: the one given, else the one that the environment variable
``CTM_ASSETS`` names, else ``assets/`` of the project. Files that come inside an installed Python
package are looked up there.

==============  =================================================================
state           meaning
==============  =================================================================
``present``     there, and its hash is the known one (a folder: it holds what it must)
``unpinned``    there, but no hash is known to compare it with
``missing``     not there
``wrong hash``  there, but it is another file, or a part of it
==============  =================================================================

A hash is ``sha256:`` or ``md5:`` and hexadecimal digits. SHA-256 may be cut to a prefix of at
least eight digits, as in the names of torch hub's files: ``vgg16-397923af.pth``. A format that
executes code when it is loaded is handed out only if all 64 digits are known and match.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sysconfig
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ctm_core.config import read_yaml, validated
from ctm_core.errors import UserError
from ctm_core.files import write_text

__all__ = [
    "Asset",
    "State",
    "assets_folder",
    "check_names",
    "describe",
    "load",
    "problem",
    "require",
    "state",
    "table",
]

ROOT = Path(__file__).resolve().parents[1]
VARIABLE = "CTM_ASSETS"
LIST = Path("config") / "assets.yaml"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
PathLike = str | os.PathLike[str]


class State(StrEnum):
    """What is known of a file on this machine."""

    PRESENT = "present"
    UNPINNED = "unpinned"
    MISSING = "missing"
    WRONG = "wrong hash"


class Asset(BaseModel):
    """One external file or folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="how code and configs refer to it")
    title: str = Field(description="what it is, in a few words")
    kind: Literal["file", "folder", "package"] = Field(
        description="a file or folder of the assets folder, or a file of a Python package"
    )
    file: str = Field(description="its name in the assets folder; its path inside a package")
    package: str | None = Field(None, description="the Python package that contains it")
    contains: tuple[str, ...] = Field((), description="what a folder must hold to count as there")
    urls: tuple[Annotated[str, Field(pattern=r"^https?://\S+$")], ...] = Field(
        (), description="where it can be fetched, best first"
    )
    by_hand: str | None = Field(None, description="where a person gets what no program can fetch")
    size: int | None = Field(None, ge=1, description="in bytes")
    hash: str | None = Field(
        None,
        pattern=r"^(sha256:[0-9a-f]{8,64}|md5:[0-9a-f]{32})$",
        description="sha256:<8 to 64 hexadecimal digits> or md5:<32>; left out: none is known",
    )
    hash_from: str | None = Field(None, description="who says so")
    format: Literal["pickle", "torch", "torchscript", "npz", "tar", "images"]
    executes: bool = Field(False, description="loading it runs code that it contains")
    licence: str
    needed_by: tuple[Name, ...] = Field((), description="experiments that cannot do without it")
    note: str | None = None

    @field_validator("title", "by_hand", "hash_from", "licence", "note")
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        if value is not None and (not value or "\n" in value):
            raise ValueError("must be one line of text")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Asset:
        if (self.kind == "package") != (self.package is not None):
            raise ValueError("`package` belongs to kind package, and only there")
        if self.kind == "package" and (self.urls or self.by_hand):
            raise ValueError("a file of a package comes with it: leave urls and by_hand out")
        if self.kind != "package" and not (self.urls or self.by_hand):
            raise ValueError("say where it comes from: urls or by_hand")
        if self.kind != "package" and Path(self.file).name != self.file:
            raise ValueError(f"file must be a plain name, not {self.file!r}")
        if self.kind == "folder" and (self.hash or self.size or self.urls):
            raise ValueError("a folder has no hash, size or urls")
        if self.contains and self.kind != "folder":
            raise ValueError("`contains` belongs to kind folder, and only there")
        if (self.hash is None) != (self.hash_from is None):
            raise ValueError("hash and hash_from go together")
        if self.format == "torchscript" and not self.executes:
            raise ValueError("a TorchScript file executes: set executes: true")
        return self

    def path(self, folder: PathLike | None = None) -> Path:
        """Where it is, or belongs if it is missing.

        Parameters
        ----------
        folder
            The assets folder; None takes :func:`assets_folder`.
        """
        if self.package is None:
            return Path(assets_folder() if folder is None else folder) / self.file
        try:
            listed = importlib.metadata.distribution(self.package).files or []
        except importlib.metadata.PackageNotFoundError:
            listed = []
        for entry in listed:
            if entry.as_posix() == self.file:
                return Path(str(entry.locate()))
        return Path(sysconfig.get_path("purelib"), self.file)

    @property
    def sha256(self) -> str | None:
        """Its whole SHA-256, if that is known."""
        algorithm, _, digits = (self.hash or "").partition(":")
        return digits if algorithm == "sha256" and len(digits) == 64 else None


class _List(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    assets: dict[Name, Asset]

    @field_validator("assets", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: {"name": name} | entry if isinstance(entry, dict) else entry
            for name, entry in value.items()
        }

    @model_validator(mode="after")
    def _distinct(self) -> _List:
        seen: dict[str, str] = {}
        for name, asset in self.assets.items():
            if name != asset.name:
                raise ValueError(f"{name} must not name itself {asset.name!r}")
            other = seen.setdefault(asset.file, name)
            if other != name:
                raise ValueError(f"{other} and {name} are both called {asset.file}")
        return self


def assets_folder() -> Path:
    """The folder for external files: ``$CTM_ASSETS``, or ``assets`` in the project's root."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else ROOT / "assets"


def load(path: PathLike | None = None) -> dict[str, Asset]:
    """The list of external files, by name, in the order of the file.

    Parameters
    ----------
    path
        The YAML file; None takes ``config/assets.yaml`` of the working directory or, if there is
        none, of the project.

    Raises
    ------
    UserError
        If it is missing or a key in it is wrong.
    """
    if path is None:
        path = LIST if LIST.is_file() else ROOT / LIST
    return dict(validated(_List, read_yaml(Path(path)), path).assets)


def state(asset: Asset, folder: PathLike | None = None) -> State:
    """Look at the file on disk; a known hash is computed and compared each time."""
    return _look(asset, asset.path(folder))[0]


def describe(asset: Asset, folder: PathLike | None = None) -> dict[str, Any]:
    """Everything that is known of a file, with its state, path and problem, ready for JSON."""
    path = asset.path(folder)
    found, got = _look(asset, path)
    return asset.model_dump(mode="json") | {
        "state": found.value,
        "path": str(path.absolute()),
        "problem": _sentence(asset, path, found, got),
    }


def problem(asset: Asset, folder: PathLike | None = None) -> str | None:
    """Why the file cannot be used, as one sentence with the fix; None if it can.

    The sentence says what the file is, where it comes from, its hash, and where to put it. A file
    without a known hash can be used, unless its format executes.
    """
    path = asset.path(folder)
    return _sentence(asset, path, *_look(asset, path))


def require(name: str, folder: PathLike | None = None) -> Path:
    """The path of a file that is there and is what it should be.

    Raises
    ------
    UserError
        With the sentence of :func:`problem`, or if there is no asset of that name.
    """
    known = load()
    if name not in known:
        raise UserError(f"unknown asset {name!r}; known are {', '.join(known)}")
    if sentence := problem(known[name], folder):
        raise UserError(sentence)
    return known[name].path(folder)


def check_names(keys: Mapping[str, str], known: Mapping[str, Asset], path: PathLike) -> None:
    """Check that a config names files that the list has.

    Parameters
    ----------
    keys
        The names, by the keys of the config under which they stand.
    known
        The list, from :func:`load`.
    path
        The config, for the sentence.

    Raises
    ------
    UserError
        Naming the first that is not listed.
    """
    for key, name in keys.items():
        if name not in known:
            raise UserError(
                f"{path}: {key}: there is no asset {name!r}; {LIST} has {', '.join(known)}"
            )


def table(assets: dict[str, Asset]) -> str:
    """The list as a Markdown table, as docs/assets.md shows it."""
    rows = ["| name | what | file | from | hash | licence |", "|---|---|---|---|---|---|"]
    for asset in assets.values():
        if asset.package is not None:
            origin = f"Python package `{asset.package}`"
        else:
            origin = ", ".join([f"<{url}>" for url in asset.urls] + [asset.by_hand or ""]).strip(
                ", "
            )
        known = asset.hash or "none known"
        if asset.hash_from is not None:
            known = f"`{known.replace(':', ' ')[:15]}…` ({asset.hash_from})"
        title = asset.title + (f"; {asset.note}" if asset.note else "")
        cells = (f"`{asset.name}`", title, f"`{asset.file}`", origin, known, asset.licence)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _look(asset: Asset, path: Path) -> tuple[State, str]:
    """The state of ``path``, and what was found where it differs."""
    if asset.kind == "folder":
        whole = path.is_dir() and all((path / name).exists() for name in asset.contains)
        return (State.UNPINNED if whole else State.MISSING), ""
    if not path.is_file():
        return State.MISSING, ""
    size = path.stat().st_size
    if asset.size is not None and size != asset.size:
        return State.WRONG, f"{size:,} bytes"
    if asset.hash is None:
        return State.UNPINNED, ""
    algorithm, _, digits = asset.hash.partition(":")
    with open(path, "rb") as file:
        found = hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()
    if found[: len(digits)] != digits:
        return State.WRONG, f"{_printed(algorithm)} {found}"
    return State.PRESENT, ""


def _sentence(asset: Asset, path: Path, found: State, got: str) -> str | None:
    shown = _shown(path)
    if asset.executes and asset.sha256 is None:
        return (
            f"{asset.title} ({asset.name}) runs code when it is loaded and is refused, for its "
            f"SHA-256 is not known: write it as `hash` of {asset.name} into {LIST}"
        )
    if found is State.WRONG:
        return (
            f"{shown} is not {asset.title} ({asset.name}): it has {got}, expected "
            f"{_expected(asset)}; delete it and {_remedy(asset, shown)}"
        )
    if found is State.MISSING:
        return f"{asset.title} ({asset.name}) is missing: {_remedy(asset, shown)}"
    return None


def _expected(asset: Asset) -> str:
    parts = [] if asset.size is None else [f"{asset.size:,} bytes"]
    if asset.hash is not None:
        algorithm, _, digits = asset.hash.partition(":")
        cut = "…" if algorithm == "sha256" and len(digits) < 64 else ""
        parts.append(f"{_printed(algorithm)} {digits}{cut}")
    return " and ".join(parts)


def _remedy(asset: Asset, shown: str) -> str:
    """Where to get a file and where to put it."""
    if asset.package is not None:
        return f"install the Python package {asset.package} (`make setup` does), which has {shown}"
    expected = _expected(asset) or ("" if asset.kind == "folder" else "no hash is known")
    facts = "; ".join(part for part in (expected, f"licence: {asset.licence}") if part)
    if asset.urls:
        return f"fetch {' or '.join(asset.urls)} ({facts}) and put it at {shown}"
    return f"get it by hand from {asset.by_hand} ({facts}) and put it at {shown}"


def _printed(algorithm: str) -> str:
    return {"sha256": "SHA-256", "md5": "MD5"}[algorithm]


def _shown(path: Path) -> str:
    """The path, relative where it lies below the working directory."""
    absolute = path.absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(path)


if __name__ == "__main__":
    page = ROOT / "docs" / "assets.md"
    head, start, rest = page.read_text(encoding="utf-8").partition("<!-- table -->\n")
    _, end, tail = rest.partition("<!-- end -->\n")
    write_text(page, head + start + table(load(ROOT / LIST)) + end + tail)
