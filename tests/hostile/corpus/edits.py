"""Values that no evaluation or training has, by the key that a sentence must name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["EVALUATION", "SPEED", "TRAINING", "edited", "every"]

NUMBERS = ("NaN", 10**400, 1e300, -1e300, "many", None, [], {}, "yes")
NAMES = (
    "../outside", "/etc/passwd", "a/b", "", "a|b", "a\nb", "=1+1", "+1", "@sum", "-1", "\t=1",
    "<script>alert(1)</script>", "\x1b[31mred", "`id`", "a" * 5 + "\u202e", "../../../x", 7, None,
)  # fmt: skip
TEXTS = ("a\nb", "\x1b[31mred", "\u202eabc", "x" * 10_000, 7, None, {})

#: Dotted keys of an ``evaluation.json``, and what is edited into each.
EVALUATION: dict[str, tuple[Any, ...]] = {
    "experiment": NAMES,
    "dataset": NAMES,
    "model": NAMES,
    "objective": TEXTS,
    "code_version": TEXTS,
    "train_hash": TEXTS,
    "checkpoint_sha256": TEXTS,
    "step": (-1, 0.5, *NUMBERS),
    "train_seed": (-1, 0.5, *NUMBERS[3:]),
    "params_m": (-1.0, *NUMBERS),
    "protocols": ({"a|b": {}}, {"../x": {}}, {"p": 3}, [], None, 7),
    "rows": ({}, 7, None, [7], [{}]),
    "rows.0.protocol": NAMES,
    "rows.0.sampler": NAMES,
    "rows.0.metric": (
        *NAMES, "fd", "fd_64", "fd_classifier", "loss_64", "fd_a|b_64", "fd_<script>_64",
        "fd_classifier_digits_-1", "fid_classifier_64", "kid_x_0",
    ),
    "rows.0.value": (-0.1, *NUMBERS),
    "rows.0.nfe": (-1, 0.5, *NUMBERS),
    "rows.0.n": (-1, 0, 0.5, *NUMBERS),
    "rows.0.gamma": (7, -0.1, 1e300, "NaN", []),
    "rows.0.sample_seed": (-1, 0.5, "0+", "+1", "a", "=1", [], None),
    "rows.0.standard_error": (-1.0, 1e300, "x", 1.0),  # 1.0: without its freedom
    "rows.0.freedom": (-1, 0, 3),  # 3: without its standard error
    "trajectory.0.t": (-1.0, *NUMBERS),
    "trajectory.0.s": (-1.0, *NUMBERS),
    "trajectory.0.error": (-1.0, *NUMBERS),
    "trajectory": ({}, 7, None),
}  # fmt: skip
#: The same of a ``training.json``.
TRAINING: dict[str, tuple[Any, ...]] = {
    "experiment": NAMES,
    "model": NAMES,
    "seed": (-1, 0.5, *NUMBERS[3:]),
    "steps": (-1, 0.5, *NUMBERS),
    "parameters": (-1, 0.5, *NUMBERS),
    "forward_passes": ({"student": -1}, {"student": "x"}, [], 7, None),
    "init_from": ({"model": "../x", "step": 1}, {"model": "ctm", "step": -1}, {"step": 1}, [], 7),
    "exact": (None, "maybe", 7, []),
}
#: The same of a ``speed.json``.
SPEED: dict[str, tuple[Any, ...]] = {
    "seconds": (-0.1, *NUMBERS),
    "hardware": ([], 7, None),
}


def edited(record: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a record with one value replaced."""

    def replaced(inside: Any, path: list[str]) -> Any:
        if not path:
            return value
        if isinstance(inside, list):
            index = int(path[0])
            return [*inside[:index], replaced(inside[index], path[1:]), *inside[index + 1 :]]
        return inside | {path[0]: replaced(inside.get(path[0]), path[1:])}

    made: dict[str, Any] = replaced(record, key.split("."))
    return made


def every(table: dict[str, tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
    """Each key with each of its values."""
    for key, values in table.items():
        for value in values:
            yield key, value
