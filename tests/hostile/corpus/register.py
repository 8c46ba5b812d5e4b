"""The list of hostile files; the other modules of this folder fill it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hostile:
    """A file to be refused: its name, its bytes for a canary's path, and why it is refused."""

    name: str
    make: Callable[[Path], bytes]
    reason: str


HOSTILE: dict[str, Hostile] = {}


def hostile(
    name: str, reason: str
) -> Callable[[Callable[[Path], bytes]], Callable[[Path], bytes]]:
    """Register a file; ``reason`` is a regular expression that its sentence must match."""

    def register(make: Callable[[Path], bytes]) -> Callable[[Path], bytes]:
        assert name not in HOSTILE
        HOSTILE[name] = Hostile(name, make, reason)
        return make

    return register


def fixed(name: str, reason: str, data: bytes) -> None:
    """A file without a payload."""
    hostile(name, reason)(lambda canary: data)
