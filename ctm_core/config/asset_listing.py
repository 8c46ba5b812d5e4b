"""The list of external files, ``config/assets.yaml``: what each is and where it comes from.

A hash is ``sha256:`` or ``md5:`` and hexadecimal digits. SHA-256 may be cut to a prefix of at
least eight digits, as in the names of torch hub's files: ``vgg16-397923af.pth``. Where the list
has no hash or a prefix, ``assets.lock`` next to it may pin the full one (:mod:`.asset_pins`).
"""

from __future__ import annotations

import importlib.metadata
import os
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ctm_core.config import asset_pins, read_yaml, validated
from ctm_core.config._section import Positive, Section, Text
from ctm_core.runtime.errors import UserError

VARIABLE = "CTM_ASSETS"
LIST = Path("config") / "assets.yaml"
CHECKOUT = Path(__file__).resolve().parents[2]
#: Where config/ stands: in a checkout, or where `pip install` has put it (pyproject.toml).
INSTALLED = not (CHECKOUT / LIST).is_file()
ROOT = Path(sysconfig.get_path("data"), "share", "ctm_core") if INSTALLED else CHECKOUT

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)]
Url = Annotated[str, Field(pattern=r"^https?://[!-~]+$", max_length=4096)]
PathLike = str | os.PathLike[str]


class Asset(Section):
    """One external file or folder."""

    name: Name = Field(description="how code and configs refer to it")
    title: Text = Field(description="what it is, in a few words")
    kind: Literal["file", "folder", "package"] = Field(
        description="a file or folder of the assets folder, or a file of a Python package"
    )
    file: Text = Field(description="its name in the assets folder; its path inside a package")
    package: Text | None = Field(None, description="the Python package that contains it")
    contains: tuple[Text, ...] = Field(
        (), max_length=100, description="what a folder must hold to count as there"
    )
    urls: tuple[Url, ...] = Field(
        (), max_length=100, description="where it can be fetched, best first"
    )
    by_hand: Text | None = Field(None, description="where a person gets what no program can fetch")
    size: int | None = Field(None, ge=1, le=2**60, description="in bytes")
    hash: str | None = Field(
        None,
        max_length=71,
        pattern=r"^(sha256:[0-9a-f]{8,64}|md5:[0-9a-f]{32})$",
        description="sha256:<8 to 64 hexadecimal digits> or md5:<32>; left out: none is known",
    )
    hash_from: Text | None = Field(None, description="who says so")
    format: Literal["pickle", "torch", "torchscript", "npz", "tar", "images"]
    executes: bool = Field(False, description="loading it runs code that it contains")
    images: dict[Literal["train", "test"], Positive] = Field(
        default_factory=dict, max_length=2, description="of own images: how many, by split"
    )
    classes: Positive | None = Field(None, description="of own images: how many")
    licence: Text
    needed_by: tuple[Name, ...] = Field(
        (), max_length=100, description="experiments that cannot do without it"
    )
    note: Text | None = None

    @field_validator("title", "file", "by_hand", "hash_from", "licence", "note")
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        if value is not None and not (value and value.isprintable()):
            raise ValueError("must be one line of text")
        return value

    def _problems(self) -> Iterator[str]:
        if (self.kind == "package") != (self.package is not None):
            yield "`package` belongs to kind package, and only there"
        if self.kind == "package" and (self.urls or self.by_hand):
            yield "a file of a package comes with it: leave urls and by_hand out"
        if self.kind != "package" and not (self.urls or self.by_hand):
            yield "say where it comes from: urls or by_hand"
        if self.kind != "package" and Path(self.file).name != self.file:
            yield f"file must be a plain name, not {self.file!r}"
        if self.kind == "folder" and (self.hash or self.size or self.urls):
            yield "a folder has no hash, size or urls"
        if self.contains and self.kind != "folder":
            yield "`contains` belongs to kind folder, and only there"
        if (self.hash is None) != (self.hash_from is None):
            yield "hash and hash_from go together"
        if self.format == "torchscript" and not self.executes:
            yield "a TorchScript file executes: set executes: true"

    def path(self, folder: PathLike | None = None) -> Path:
        """Where it is, or belongs if it is missing; in :func:`assets_folder` by default."""
        if self.package is None:
            return Path(assets_folder() if folder is None else folder) / self.file
        try:
            distribution = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError:
            return Path(sysconfig.get_path("purelib"), self.file)
        return Path(str(distribution.locate_file(self.file)))

    def pinned(self, pin: asset_pins.Pin, lock: Path) -> Asset:
        """A copy with the hash and size that a lock file pins."""
        source = f"{lock}, {pin.by} on {pin.on}"
        known = {"hash": f"sha256:{pin.sha256}", "hash_from": source}
        return self.model_copy(update=known | {"size": self.size or pin.size})

    @property
    def runs_code(self) -> bool:
        """Whether its format can run code: then no unknown hash is ever pinned at first use.

        This includes pickles: this project reads them without running anything, but other programs
        run them; ``torch`` files are read with ``weights_only``.
        """
        return self.executes or self.format in ("pickle", "torchscript")

    @property
    def downloadable(self) -> bool:
        """Whether it has an address and, where its format can run code, a known hash."""
        return bool(self.urls) and (self.sha256 is not None or not self.runs_code)

    @property
    def sha256(self) -> str | None:
        """Its whole SHA-256, if that is known."""
        algorithm, _, digits = (self.hash or "").partition(":")
        return digits if algorithm == "sha256" and len(digits) == 64 else None


class _List(Section):
    assets: dict[Name, Asset] = Field(max_length=1000)

    @field_validator("assets", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: {"name": name} | entry if isinstance(entry, dict) else entry
            for name, entry in value.items()
        }

    def _problems(self) -> Iterator[str]:
        seen: dict[str, str] = {}
        for name, asset in self.assets.items():
            if name != asset.name:
                yield f"{name} must not name itself {asset.name!r}"
            other = seen.setdefault(asset.file, name)
            if other != name:
                yield f"{other} and {name} are both called {asset.file}"


def assets_folder() -> Path:
    """The folder for external files: ``$CTM_ASSETS``, or ``assets`` in the project's root.

    Without a checkout, ``assets`` in the working directory.
    """
    given = os.environ.get(VARIABLE)
    default = "assets" if INSTALLED else ROOT / "assets"
    folder = Path(os.path.expanduser(given or default))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{VARIABLE}: {folder} is not a folder; correct or unset {VARIABLE}")
    return folder


def list_path() -> Path:
    """``config/assets.yaml`` of the working directory or, if there is none, of the project."""
    return LIST if LIST.is_file() else ROOT / LIST


def load(path: PathLike | None = None, *, pinned: bool = True) -> dict[str, Asset]:
    """The list of external files, by name: a YAML file, by default :func:`list_path`.

    If ``pinned``, it is completed with the hashes in the ``assets.lock`` next to it.
    """
    path = Path(list_path() if path is None else path)
    listed = dict(validated(_List, read_yaml(path), path).assets)
    if not pinned:
        return listed
    known = asset_pins.read(path.with_name(asset_pins.NAME))
    return {name: _completed(asset, known.get(name), path) for name, asset in listed.items()}


def _completed(asset: Asset, pin: asset_pins.Pin | None, path: Path) -> Asset:
    """The asset with the pinned hash, unless the list knows better or says otherwise."""
    prefix = asset.hash or "sha256:"
    if pin is None or asset.sha256 or not f"sha256:{pin.sha256}".startswith(prefix):
        return asset
    if asset.runs_code and pin.by == "first use":
        return asset
    return asset.pinned(pin, path.with_name(asset_pins.NAME))


def named(name: str) -> Asset:
    """The external file of a name."""
    known = load()
    if name not in known:
        raise UserError(f"unknown asset {name!r}; known are {', '.join(known)}")
    return known[name]


def check_names(keys: Mapping[str, str], known: Mapping[str, Asset], path: PathLike) -> None:
    """Refuse names, by their keys in the config ``path``, that the list has not."""
    for key, name in keys.items():
        if name not in known:
            raise UserError(
                f"{path}: {key}: there is no asset {name!r}; {LIST} has {', '.join(known)}"
            )


def table(assets: dict[str, Asset]) -> str:
    """The list as a Markdown table, as docs/assets.md shows it."""
    rows = ["| name | what | file | from | hash | licence |", "|---|---|---|---|---|---|"]
    for asset in assets.values():
        origins = [f"<{url}>" for url in asset.urls] + [asset.by_hand or ""]
        if asset.package is not None:
            origins = [f"Python package `{asset.package}`"]
        origin = ", ".join(filter(None, origins))
        known = asset.hash or "none known"
        if asset.hash_from is not None:
            known = f"`{known.replace(':', ' ')[:15]}…` ({asset.hash_from})"
        title = asset.title + (f"; {asset.note}" if asset.note else "")
        cells = (f"`{asset.name}`", title, f"`{asset.file}`", origin, known, asset.licence)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"
