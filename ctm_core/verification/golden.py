"""Golden files: tensors that the reference implementations computed, and how ours compare.

A set is a folder of safetensors files (and ``discriminator.json``) whose metadata holds sizes,
seeds and choices, so nothing about a set is known in advance. Every read of a tensor is
remembered: a tensor that no case has read is a number that nothing was checked against.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, read_json

SINGLE, DOUBLE = torch.float32, torch.float64

#: Relative errors allowed, per sample.
FLOAT32_CALL = 1e-5  # one network call
FLOAT32_SOLVE = 1e-4  # several calls in a row, gradients, weights after training steps, and
# single calls whose embedding has phases of hundreds of radians (Fourier, 250 ln t)
FLOAT64_STORED32 = 1e-6  # a float64 run against a value stored as float32
FLOAT64_STORED64 = 1e-9
#: Under bf16 autocast, in place of the two of float32.
BFLOAT16 = {FLOAT32_CALL: 0.05, FLOAT32_SOLVE: 0.2}
#: In float32: gradients and weights after training steps of the methods' set, relative to the
#: whole gradient's norm.
METHOD_GRADIENT = 1e-3
#: A sample's consistency loss compares images that hardly differ: bf16 does not resolve it.
UNRESOLVED = "/consistency_loss"


@dataclass(frozen=True)
class Check:
    """One comparison: the error and its tolerance."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.error <= self.tolerance

    @property
    def ratio(self) -> float:
        """The error as a share of its tolerance; 0 or infinity where nothing is tolerated."""
        if self.tolerance == 0:
            return 0.0 if self.passed else math.inf
        return math.inf if math.isnan(self.error) else self.error / self.tolerance

    def __str__(self) -> str:
        relation = "within" if self.passed else "exceeds"
        return f"{self.name}: relative error {self.error:.3g} {relation} {self.tolerance:g}"


class Folder:
    """A golden set; each file is read once and remembers what was read of it.

    Raises UserError if the folder is absent or holds no golden file, or two files of one name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, Golden] = {}
        names = self.names()
        if not names:
            raise UserError(
                f"the golden folder {path} is absent or holds no golden file; give the folder "
                "that holds ctm_training.safetensors or ect.safetensors, and its siblings"
            )
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"the golden folder {path} holds {twice[0]}.safetensors and {twice[0]}.json, "
                "which are one file of a set; remove one"
            )

    def names(self) -> list[str]:
        """Names of its files without their suffix, sorted."""
        paths = [*self.path.glob("*.safetensors"), *self.path.glob("*.json")]
        return sorted(path.stem for path in paths)

    def load(self, name: str) -> Golden:
        """The file called ``name``; raises UserError if it is missing or damaged."""
        if name not in self._files:
            self._files[name] = Golden(self, name)
        return self._files[name]


class Golden:
    """A golden file for runs at one precision: tensors by name, and metadata (JSON if it parses).

    A JSON file is read likewise: its leaves, named ``a/b/c``, stand in for tensors.
    """

    precision = SINGLE
    device = torch.device("cpu")

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = {}
        self.tensors: dict[str, Any] = {}
        self.used: set[str] = set()
        self.path = folder.path / f"{name}.json"
        if self.path.is_file():
            self.tensors = dict(leaves(read_json(self.path)))
        else:
            self.path = folder.path / f"{name}.safetensors"
            self.tensors, meta = load_tensors(self.path)
            self.meta = {key: _parse(value) for key, value in meta.items()}

    def at(self, precision: torch.dtype, device: torch.device | None = None) -> Golden:
        """The same file for a run at another precision, its tensors on a device.

        What is read of either counts for both.
        """
        other = copy(self)
        other.precision, other.device = precision, device or self.device
        return other

    def __getitem__(self, key: str) -> Any:
        if key not in self.tensors:
            raise UserError(f"{self.path} lacks {key}")
        self.used.add(key)
        value = self.tensors[key]
        return value.to(self.device) if isinstance(value, Tensor) else value

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def keys(self, pattern: str = ".*") -> list[str]:
        """Names that match a whole regular expression, in the file's order."""
        return [key for key in self.tensors if re.fullmatch(pattern, key)]

    def unused(self) -> list[str]:
        """Names that were never read."""
        return [key for key in self.tensors if key not in self.used]

    def sibling(self) -> Golden:
        """The file that ``net_file`` of the metadata names: it holds the network."""
        name = str(self.meta["net_file"]).removesuffix(".safetensors")
        return self.folder.load(name).at(self.precision, self.device)

    def tensor(self, key: str) -> Tensor:
        """A tensor in the dtype of the run."""
        value: Tensor = self[key].to(self.precision)
        return value

    def input(self, key: str) -> Tensor:
        """Tensor ``in/<key>`` in the dtype of the run."""
        return self.tensor(f"in/{key}")

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below ``prefix/``, without it; upcast from float16, in which they are exact."""
        keys = [key for key in self.tensors if key.startswith(f"{prefix}/")]
        return {key.removeprefix(f"{prefix}/"): self.tensor(key) for key in keys}

    @property
    def out(self) -> str:
        """Where a run's own values are: ``out32/`` or ``out64/``."""
        return f"out{32 if self.precision == SINGLE else 64}/"

    def _forms(self, key: str) -> list[str]:
        own = f"{self.out}{key}"
        return [name for name in (own, f"out64/{key}", key) if name in self]

    def expected(self, key: str) -> Tensor:
        """What a run is compared with.

        ``out32/<key>`` or ``out64/<key>``; where a value has one form only, that one:
        ``out64/<key>``, or ``<key>`` itself.
        """
        value: Tensor = self[next(iter(self._forms(key)), key)]
        return value

    def expects(self, key: str) -> bool:
        """Whether :meth:`expected` has something."""
        return bool(self._forms(key))

    def check(
        self,
        key: str,
        ours: Tensor | float,
        *,
        name: str | None = None,
        **options: Any,
    ) -> Check:
        """Compare ours with :meth:`expected`; options as :func:`compare`."""
        return compare(name or key, ours, self.expected(key), self.precision, **options)

    def labels(self, prefix: str = "") -> Tensor | None:
        """Class labels below ``<prefix>in/``: int64 (B,), or one-hot (B, label_dim) floats.

        None in an unconditional set.
        """
        for key in self.keys(rf"{prefix}in/(y|y_.*|class(es)?|.*label.*)"):
            if "augment" not in key:
                labels: Tensor = self[key]
                return labels.to(self.precision) if labels.ndim == 2 else labels.long()
        return None

    def augment_labels(self) -> Tensor | None:
        """Augmentation labels (B, augment_dim), where the set has them."""
        return self.input("augment_labels") if "in/augment_labels" in self else None


def error(
    ours: Tensor, golden: Tensor, *, per_sample: bool = True, norm: Tensor | float | None = None
) -> float:
    r"""The worst :math:`\|a - b\| / \max(\|b\|, 10^{-8}\sqrt n)` over samples (the first axis).

    A scalar, or any tensor with ``per_sample`` False (weights, gradients), is one sample. ``norm``
    takes the place of :math:`\|b\|`. Tensors of different shapes, and values that are not finite,
    are infinitely wrong.
    """
    if ours.shape != golden.shape:
        return float("inf")
    rows = len(golden) if per_sample and golden.ndim else 1
    a, b = (v.detach().cpu().double().reshape(rows, -1) for v in (ours, golden))
    floor = 1e-8 * b.shape[1] ** 0.5
    # A norm of NaN or infinity must not pass through a comparison unnoticed.
    size = b.norm(dim=1) if norm is None else torch.as_tensor(norm).detach().cpu().double()
    worst = ((a - b).norm(dim=1) / size.clamp(min=floor)).max()
    return float(worst) if torch.isfinite(a).all() else float("inf")


def compare(
    name: str,
    ours: Tensor | float,
    golden: Tensor,
    precision: torch.dtype,
    *,
    solve: bool = False,
    per_sample: bool = True,
    single: float | None = None,
    double: float | None = None,
    norm: Tensor | float | None = None,
    times: Tensor | None = None,
) -> Check:
    """Compare ours with golden at the project's tolerance.

    The tolerance depends on ``precision``, the dtype that our networks ran in, and on the stored
    dtype; with ``solve``, for values that went through several network calls or through an
    embedding of large phases, it is looser in float32; ``single`` and ``double`` are other
    tolerances of the two precisions. ``per_sample`` and ``norm`` as in :func:`error`; both sides
    are multiplied by ``times`` first.
    """
    if not isinstance(ours, Tensor):
        ours = torch.tensor(ours, dtype=torch.float64)
    if precision == SINGLE:
        tolerance = (FLOAT32_SOLVE if solve else FLOAT32_CALL) if single is None else single
    else:
        stored = FLOAT64_STORED64 if golden.dtype == DOUBLE else FLOAT64_STORED32
        tolerance = stored if double is None else double
    if times is not None and ours.shape == golden.shape:
        ours, golden = ours * times, golden * times
    return Check(name, error(ours, golden, per_sample=per_sample, norm=norm), tolerance)


def exact(name: str, ours: Any, golden: Any) -> Check:
    """Compare counts, names, shapes or integers: nothing but equality passes."""
    if isinstance(golden, Tensor) or isinstance(ours, Tensor):
        same = torch.equal(*(torch.as_tensor(value).cpu() for value in (ours, golden)))
    else:
        same = ours == golden
    return Check(name, 0.0 if same else float("inf"), 0.0)


def lowered_check(check: Check) -> Check | None:
    """A check of a float32 run as one under bf16 autocast; None for what bf16 does not resolve."""
    if check.name.endswith(UNRESOLVED):
        return None
    return replace(check, tolerance=BFLOAT16.get(check.tolerance, check.tolerance))


def likely(name: str, p_value: float) -> Check:
    """A statistical test of our own draws, passed at p ≥ 1e-4; the error shown is -lg p."""
    return Check(name, -math.log10(p_value) if p_value > 0 else float("inf"), 4.0)


def _parse(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested dicts that is no dict, by its path ``a/b/c``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{prefix}/{key}" if prefix else str(key))
    else:
        yield prefix, value
