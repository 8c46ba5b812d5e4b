"""What the pickle machine computes with: names that stay names, records that stay data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

#: What to do about a file that holds more than a network, or a network in another form.
SAVE = "save the network's own state dict, torch.save(network.state_dict(), FILE)"


class Refusal(Exception):
    """Why a file is not read; completes the sentence "FILE was refused: it …"."""


def shown(text: object, length: int = 80) -> str:
    """A foreign text fit for a message: one line, printable ASCII, cut to ``length``."""
    plain = str(text)[: length + 1].encode("unicode_escape").decode("ascii")
    return plain if len(plain) <= length else plain[: length - 1] + "…"


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a function or class, not looked up anywhere."""

    module: str
    name: str

    def __str__(self) -> str:
        return shown(f"{self.module}.{self.name}")


@dataclass(eq=False, slots=True)
class Record:
    """An object that was not made: its class's name, and the state it would have had."""

    name: str
    state: Any = None
    arguments: tuple[Any, ...] = ()


class Word(NamedTuple):
    """What a known global may do.

    ``call`` makes plain data of the arguments of a call, ``new`` of those of ``cls.__new__``;
    None: it is only ever named. Both raise :class:`Refusal` for arguments that they do not know.
    """

    call: Callable[..., Any] | None = None
    new: Callable[..., Any] | None = None


Vocabulary = Mapping[tuple[str, str], Word]


@dataclass(slots=True)
class Budget:
    """What one file may use, its nested pickles included."""

    opcodes: int = 1_000_000
    text: int = 64 << 20

    def spend_text(self, length: int) -> None:
        """Take ``length`` bytes of text; raises Refusal if they are not left."""
        self.text -= length
        if self.text < 0:
            raise Refusal("holds more text than any network file")


def kind_of(value: object) -> str:
    """What a value is, for messages; never its contents."""
    if isinstance(value, Global):
        return shown(value)
    name = type(value).__name__.lower()
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def as_key(value: Any) -> Any:
    """The value if it may be a key or an element of a set; raises Refusal if not."""
    # The hash of a nested tuple takes exponential time, long integers can be made to collide.
    if value is None or isinstance(value, str | float | bool):
        return value
    if isinstance(value, int) and value.bit_length() < 64:
        return value
    raise Refusal(f"has {kind_of(value)} as a key, where network files have names")
