"""A pickle machine that executes nothing.

A pickle is a program for a stack machine, two of whose instructions look up and call any Python
function. This machine runs the program with the values of :mod:`ctm_core.models.foreign.values`
only: a global is looked up in a vocabulary and stays a name; calling one applies the vocabulary's
own function, which makes plain data of the arguments; an object becomes a record of its class's
name and state. Nothing is imported, no attribute is set, no method of a value is called, and
:mod:`pickle` takes no part. Whatever the vocabulary lacks is refused by its name.

Work and memory are bounded: so many opcodes, so many bytes of text, byte strings as views of the
file. The machine has no recursion, and keys are short scalars, so neither deep nor shared
structures cost more than their opcodes.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ctm_core.models.foreign.values import (
    SAVE,
    Budget,
    Global,
    Record,
    Refusal,
    Vocabulary,
    as_key,
    kind_of,
)

#: A line of protocol 0: a number, a name or a text.
LINE = 4096
#: Bytes of an integer; torch's magic number has ten.
INTEGER = 32
HIGHEST_PROTOCOL = 5


@dataclass(slots=True)
class Machine:
    """Runs one pickle."""

    data: memoryview
    vocabulary: Vocabulary
    budget: Budget  #: shared by all machines of one file
    persistent: Callable[[Any], Any] | None = None  #: makes a value of a persistent id
    position: int = 0  #: where the pickle starts; after :meth:`run`, where it ended
    _stack: list[Any] = field(default_factory=list)
    _marks: list[list[Any]] = field(default_factory=list)
    _memo: dict[int, Any] = field(default_factory=dict)

    def run(self) -> Any:
        """The value that the pickle describes.

        Raises Refusal for an unknown global or opcode, damage, truncation, a spent budget.
        """
        self._stack, self._marks, self._memo = [], [], {}
        while True:
            self.budget.opcodes -= 1
            if self.budget.opcodes < 0:
                raise Refusal("has more pickle instructions than any network file")
            start = self.position
            opcode = self._take(1)[0]
            if opcode == STOP:
                value = self._pop()
                if self._stack or self._marks:
                    raise Refusal("is damaged: its pickle ends with values left over")
                return value
            if opcode in REFUSED:
                raise Refusal(
                    f"uses the pickle opcode {REFUSED[opcode]}, which no network file needs"
                )
            if opcode not in ACTIONS:
                raise Refusal(f"is damaged or not a pickle: byte {start} is not a known opcode")
            ACTIONS[opcode](self)

    # -- input ---------------------------------------------------------------------------------

    def _take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise Refusal("is truncated: its pickle goes on beyond the end of the file")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _line(self) -> bytes:
        window = bytes(self.data[self.position : self.position + LINE])
        length = window.find(b"\n")
        if length < 0:
            raise Refusal("is damaged or not a pickle: a line of text has no end")
        self.position += length + 1
        return window[:length]

    def _text(self, count: int) -> str:
        taken = self._take(count)
        self.budget.spend_text(count)
        return self._decoded(bytes(taken))

    def _decoded(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise Refusal("is damaged or not a pickle: a text is not UTF-8") from None

    # -- stack ---------------------------------------------------------------------------------

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise Refusal("is damaged or not a pickle: a value is missing on its stack")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise Refusal("is damaged or not a pickle: a mark is missing on its stack")
        values, self._stack = self._stack, self._marks.pop()
        return values

    def _discard(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _tuple(self, count: int) -> None:
        self._push(tuple([self._pop() for _ in range(count)][::-1]))

    # -- memo ----------------------------------------------------------------------------------

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise Refusal("is damaged or not a pickle: it recalls a value that it never stored")
        self._push(self._memo[index])

    # -- containers ----------------------------------------------------------------------------

    def _container(self, kind: type, deed: str) -> Any:
        target = self._top()
        if not isinstance(target, kind):
            raise Refusal(f"{deed} {kind_of(target)}, which is not a {kind.__name__}")
        return target

    def _append(self, values: list[Any]) -> None:
        self._container(list, "appends to").extend(values)

    def _add(self, values: list[Any]) -> None:
        self._container(set, "adds to").update(as_key(value) for value in values)

    def _set_items(self, values: list[Any]) -> None:
        self._container(dict, "sets items of").update(_pairs(values))

    # -- globals and objects -------------------------------------------------------------------

    def _global(self, module: object, name: object) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Refusal("is damaged or not a pickle: the name of a global is not text")
        named = Global(module, name)
        if (module, name) not in self.vocabulary:
            if not all(part.isidentifier() for part in f"{module}.{name}".split(".")):
                # Most texts that begin with a c end here.
                raise Refusal(f"is not a network file, or names the impossible global {named}")
            raise Refusal(f"names the global {named}, which no network file needs; {SAVE}")
        self._push(named)

    def _global_lines(self) -> None:
        module = self._decoded(self._line())
        self._global(module, self._decoded(self._line()))

    def _instance(self) -> None:
        self._global_lines()
        raise Refusal("uses the pickle opcode INST, which no network file needs")

    def _call(self, how: str) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Global):
            raise Refusal(f"calls {kind_of(function)}, which is not a function")
        known = self.vocabulary[function.module, function.name]
        maker = known.call if how == "call" else known.new
        if maker is None or not isinstance(arguments, tuple):
            raise Refusal(f"calls {function}, which network files only name")
        self._push(maker(*arguments))

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):  # attributes of a dict (a state dict's versions)
            raise Refusal(f"sets the state of {kind_of(target)}, which has none")

    def _persistent(self, identity: Any) -> None:
        if self.persistent is None:
            raise Refusal("uses a persistent id where network files have none")
        self._push(self.persistent(identity))

    # -- numbers and texts ---------------------------------------------------------------------

    def _long(self, length: int) -> None:
        if not 0 <= length <= INTEGER:
            raise Refusal(f"holds an integer of {length} bytes, more than any network file needs")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def _integer_line(self) -> None:
        line = self._line()
        boolean = line in (b"00", b"01")
        self._push(line == b"01" if boolean else self._parsed(int, line.rstrip(b"L")))

    def _parsed(self, read: Callable[[bytes], Any], line: bytes) -> Any:
        try:
            if len(line) > 4 * INTEGER:
                raise ValueError
            return read(line)
        except ValueError:
            raise Refusal("is damaged or not a pickle: a number is not readable") from None

    def _index_line(self) -> int:
        index = int(self._parsed(int, self._line()))
        if not 0 <= index < 1 << 32:  # longer integers can be made to collide
            raise Refusal("is damaged or not a pickle: a place in its memo is not readable")
        return index

    def _unicode_line(self) -> None:
        line = self._line()
        self.budget.spend_text(len(line))
        try:
            self._push(line.decode("raw_unicode_escape"))
        except UnicodeDecodeError:
            raise Refusal("is damaged or not a pickle: a text is not readable") from None

    def _string_line(self) -> None:
        line = self._line()
        self.budget.spend_text(len(line))
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise Refusal("is damaged or not a pickle: a string has no quotes")
        try:
            self._push(codecs.escape_decode(line[1:-1])[0].decode("latin-1"))
        except ValueError:
            raise Refusal("is damaged or not a pickle: a string is not readable") from None

    def _protocol(self) -> None:
        if (version := self._take(1)[0]) > HIGHEST_PROTOCOL:
            raise Refusal(f"is damaged or not a pickle: there is no pickle protocol {version}")

    def _frame(self) -> None:
        length = self._number("<Q")
        if self.position + length > len(self.data):
            raise Refusal("is truncated: a frame goes on beyond the end of the file")


def _pairs(values: list[Any]) -> dict[Any, Any]:
    if len(values) % 2:
        raise Refusal("is damaged or not a pickle: a key has no value")
    return {as_key(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


STOP = ord(".")

#: What each opcode does, in the order of the protocols that brought them.
ACTIONS: dict[int, Callable[[Machine], object]] = {
    ord("("): Machine._mark,
    ord("0"): Machine._discard,
    ord("1"): Machine._since_mark,
    ord("2"): lambda m: m._push(m._top()),
    ord("N"): lambda m: m._push(None),
    ord("I"): Machine._integer_line,
    ord("L"): lambda m: m._push(m._parsed(int, m._line().rstrip(b"L"))),
    ord("F"): lambda m: m._push(m._parsed(float, m._line())),
    ord("S"): Machine._string_line,
    ord("V"): Machine._unicode_line,
    ord("J"): lambda m: m._push(m._number("<i")),
    ord("K"): lambda m: m._push(m._number("<B")),
    ord("M"): lambda m: m._push(m._number("<H")),
    ord("G"): lambda m: m._push(m._number(">d")),
    ord("T"): lambda m: m._push(m._take(m._number("<i") & 0xFFFFFFFF)),
    ord("U"): lambda m: m._push(m._take(m._number("<B"))),
    ord("X"): lambda m: m._push(m._text(m._number("<I"))),
    ord("]"): lambda m: m._push([]),
    ord("l"): lambda m: m._push(m._since_mark()),
    ord("a"): lambda m: m._append([m._pop()]),
    ord("e"): lambda m: m._append(m._since_mark()),
    ord(")"): lambda m: m._push(()),
    ord("t"): lambda m: m._push(tuple(m._since_mark())),
    ord("}"): lambda m: m._push({}),
    ord("d"): lambda m: m._push(_pairs(m._since_mark())),
    ord("s"): lambda m: m._set_items([m._pop(), m._pop()][::-1]),
    ord("u"): lambda m: m._set_items(m._since_mark()),
    ord("p"): lambda m: m._put(m._index_line()),
    ord("q"): lambda m: m._put(m._number("<B")),
    ord("r"): lambda m: m._put(m._number("<I")),
    ord("g"): lambda m: m._get(m._index_line()),
    ord("h"): lambda m: m._get(m._number("<B")),
    ord("j"): lambda m: m._get(m._number("<I")),
    ord("c"): Machine._global_lines,
    ord("i"): Machine._instance,
    ord("R"): lambda m: m._call("call"),
    ord("b"): Machine._build,
    ord("P"): lambda m: m._persistent(m._decoded(m._line())),
    ord("Q"): lambda m: m._persistent(m._pop()),
    0x80: Machine._protocol,
    0x81: lambda m: m._call("new"),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    0x88: lambda m: m._push(True),
    0x89: lambda m: m._push(False),
    0x8A: lambda m: m._long(m._number("<B")),
    0x8B: lambda m: m._long(m._number("<i")),
    ord("B"): lambda m: m._push(m._take(m._number("<I"))),
    ord("C"): lambda m: m._push(m._take(m._number("<B"))),
    0x8C: lambda m: m._push(m._text(m._number("<B"))),
    0x8D: lambda m: m._push(m._text(m._number("<Q"))),
    0x8E: lambda m: m._push(m._take(m._number("<Q"))),
    0x8F: lambda m: m._push(set()),
    0x90: lambda m: m._add(m._since_mark()),
    0x91: lambda m: m._push(frozenset(as_key(value) for value in m._since_mark())),
    0x93: lambda m: m._global(*[m._pop(), m._pop()][::-1]),
    0x94: lambda m: m._put(len(m._memo)),
    0x95: Machine._frame,
}

#: Opcodes that network files never have; the machine has no action for them.
REFUSED = {
    ord("o"): "OBJ",
    0x82: "EXT1 (a registered extension)",
    0x83: "EXT2 (a registered extension)",
    0x84: "EXT4 (a registered extension)",
    0x92: "NEWOBJ_EX",
    0x96: "BYTEARRAY8",
    0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER",
}
