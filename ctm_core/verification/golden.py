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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, read_json

__all__ = [
    "DOUBLE",
    "FLOAT32_CALL",
    "FLOAT32_SOLVE",
    "FLOAT64_STORED32",
    "FLOAT64_STORED64",
    "SINGLE",
    "Check",
    "Folder",
    "Golden",
    "compare",
    "error",
    "exact",
    "likely",
]

SINGLE, DOUBLE = torch.float32, torch.float64

#: Relative errors allowed, per sample.
FLOAT32_CALL = 1e-5  # one network call
FLOAT32_SOLVE = 1e-4  # several calls in a row, gradients, weights after training steps, and
# single calls whose embedding has phases of hundreds of radians (Fourier, 250 ln t)
FLOAT64_STORED32 = 1e-6  # a float64 run against a value stored as float32
FLOAT64_STORED64 = 1e-9


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

    Raises
    ------
    UserError
        If the folder is absent or holds no golden file, or two files of one name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, Golden] = {}
        if not self.names():
            raise UserError(
                f"the golden folder {path} is absent or holds no golden file; give the folder "
                "that holds ctm_training.safetensors and its siblings"
            )
        if twice := {name for name in self.names() if self.names().count(name) > 1}:
            name = min(twice)
            raise UserError(
                f"the golden folder {path} holds {name}.safetensors and {name}.json, which are "
                "one file of a set; remove one"
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
    """One golden file: tensors by name, and metadata (JSON where it parses).

    A JSON file is read likewise: its leaves, named ``a/b/c``, stand in for tensors.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder = folder
        self.name = name
        self.meta: dict[str, Any] = {}
        self.tensors: dict[str, Any] = {}
        self.used: set[str] = set()
        document = folder.path / f"{name}.json"
        if document.is_file():
            self.path = document
            self.tensors = dict(_leaves(read_json(document)))
        else:
            self.path = folder.path / f"{name}.safetensors"
            self.tensors, meta = load_tensors(self.path)
            self.meta = {key: _parse(value) for key, value in meta.items()}

    def __getitem__(self, key: str) -> Any:
        if key not in self.tensors:
            raise UserError(f"{self.path} lacks {key}")
        self.used.add(key)
        return self.tensors[key]

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
        return self.folder.load(str(self.meta["net_file"]).removesuffix(".safetensors"))

    def input(self, key: str, dtype: torch.dtype) -> Tensor:
        """Tensor ``in/<key>`` in the dtype of the run."""
        return _tensor(self[f"in/{key}"]).to(dtype)

    def weights(self, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors below ``prefix/``, without it; upcast from float16, in which they are exact."""
        start = f"{prefix}/"
        return {
            key.removeprefix(start): _tensor(self[key]).to(dtype)
            for key in self.tensors
            if key.startswith(start)
        }

    def expected(self, key: str, precision: torch.dtype) -> Tensor:
        """What a run at ``precision`` is compared with.

        ``out32/<key>`` or ``out64/<key>``; where a value has one form only, that one:
        ``out64/<key>``, or ``<key>`` itself.
        """
        own = f"out{32 if precision == SINGLE else 64}/{key}"
        for name in (own, f"out64/{key}"):
            if name in self:
                return _tensor(self[name])
        return _tensor(self[key])

    def expects(self, key: str, precision: torch.dtype) -> bool:
        """Whether :meth:`expected` has something."""
        own = f"out{32 if precision == SINGLE else 64}/{key}"
        return any(name in self for name in (own, f"out64/{key}", key))

    def labels(self, dtype: torch.dtype, prefix: str = "") -> Tensor | None:
        """Class labels below ``<prefix>in/``: int64 (B,), or one-hot (B, label_dim) in ``dtype``.

        None in an unconditional set.
        """
        for key in self.keys(rf"{prefix}in/(y|y_.*|class(es)?|.*label.*)"):
            if "augment" not in key:
                labels = _tensor(self[key])
                return labels.to(dtype) if labels.ndim == 2 else labels.long()
        return None

    def augment_labels(self, dtype: torch.dtype) -> Tensor | None:
        """Augmentation labels (B, augment_dim), where the set has them."""
        return self.input("augment_labels", dtype) if "in/augment_labels" in self else None


def error(ours: Tensor, golden: Tensor, *, per_sample: bool = True) -> float:
    r"""The worst :math:`\|a - b\| / \max(\|b\|, 10^{-8}\sqrt n)` over samples (the first axis).

    A scalar, or any tensor with ``per_sample`` False (weights, gradients), is one sample. Tensors
    of different shapes, and values that are not finite, are infinitely wrong.
    """
    if ours.shape != golden.shape:
        return float("inf")
    rows = len(golden) if per_sample and golden.ndim else 1
    a, b = (v.detach().double().reshape(rows, -1) for v in (ours, golden))
    floor = 1e-8 * b.shape[1] ** 0.5
    # A norm of NaN or infinity must not pass through a comparison unnoticed.
    worst = ((a - b).norm(dim=1) / b.norm(dim=1).clamp(min=floor)).max()
    return float(worst) if torch.isfinite(a).all() else float("inf")


def compare(
    name: str,
    ours: Tensor | float,
    golden: Tensor,
    precision: torch.dtype,
    *,
    solve: bool = False,
    per_sample: bool = True,
) -> Check:
    """Compare ours with golden at the project's tolerance.

    Parameters
    ----------
    precision
        The dtype our networks ran in; with the stored dtype it decides the tolerance.
    solve
        Whether the value went through several network calls, or through an embedding of large
        phases (looser in float32 only).
    per_sample
        See :func:`error`.
    """
    if not isinstance(ours, Tensor):
        ours = torch.tensor(ours, dtype=torch.float64)
    if precision == SINGLE:
        tolerance = FLOAT32_SOLVE if solve else FLOAT32_CALL
    else:
        tolerance = FLOAT64_STORED64 if golden.dtype == DOUBLE else FLOAT64_STORED32
    return Check(name, error(ours, golden, per_sample=per_sample), tolerance)


def exact(name: str, ours: Any, golden: Any) -> Check:
    """Compare counts, names, shapes or integers: nothing but equality passes."""
    if isinstance(golden, Tensor) or isinstance(ours, Tensor):
        same = torch.equal(torch.as_tensor(ours), torch.as_tensor(golden))
    else:
        same = ours == golden
    return Check(name, 0.0 if same else float("inf"), 0.0)


def likely(name: str, p_value: float) -> Check:
    """A statistical test of our own draws, passed at p ≥ 1e-4; the error shown is -lg p."""
    return Check(name, -math.log10(p_value) if p_value > 0 else float("inf"), 4.0)


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def _parse(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}/{key}" if prefix else str(key))
    else:
        yield prefix, value
