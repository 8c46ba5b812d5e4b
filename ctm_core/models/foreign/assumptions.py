"""What the tensors of a file do not tell: said by the file or the user, else assumed aloud."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, NamedTuple

from ctm_core.models.foreign.values import Refusal, shown

Role = Literal["teacher", "ctm"]


@dataclass(frozen=True)
class Hints:
    """What a user says of a file; the options of ``ctm convert``."""

    role: Role | None = None  #: what it is taken for; None: by its tensors and name
    entry: str | None = None  #: which of several networks in it
    resolution: int | None = None
    num_head_channels: int | None = None
    sigma_data: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None
    dropout: float | None = None


class Assumption(NamedTuple):
    """A value that neither the file nor the user gave."""

    key: str
    value: Any
    reason: str


OPTIONS = {"role": "--kind", "num_head_channels": "--head-channels"}


def option(key: str) -> str:
    """The option of ``ctm convert`` for a field of :class:`Hints`."""
    return OPTIONS.get(key, f"--{key.replace('_', '-')}")


@dataclass
class Settled:
    """Decides each value once, and keeps the assumptions."""

    hints: Hints
    assumed: list[Assumption] = field(default_factory=list)

    def value(self, key: str, told: Any, default: Any, reason: str) -> Any:
        """What the file tells; else what the user says; else the default, which is noted.

        Raises Refusal if the user contradicts the file.
        """
        given = getattr(self.hints, key)
        if told is not None:
            if given not in (None, told):
                raise Refusal(
                    f"has {key} {shown(told)}, not {shown(given)}; leave out {option(key)}"
                )
            return told
        if given is None:
            self.assumed.append(Assumption(key, default, reason))
            return default
        return given


def sentences(assumed: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each reason in what ``provenance.json`` holds as assumed."""
    lines = []
    for reason, group in groupby(assumed.values(), key=lambda entry: entry["reason"]):
        entries = list(group)
        values = ", ".join(f"{e['option'][2:].replace('-', '_')} {e['value']}" for e in entries)
        options = ", ".join(e["option"] for e in entries)
        lines.append(f"assumed {values} ({reason}); pass {options} if this is wrong")
    return lines
