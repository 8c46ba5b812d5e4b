"""The pickle machine gives what pickle gives, for values that need no code."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctm_core.models.foreign.machine import Machine
from ctm_core.models.foreign.tensors import WORDS
from ctm_core.models.foreign.values import Budget, Refusal

KEYS = st.one_of(st.text(max_size=8), st.integers(-(2**60), 2**60), st.booleans(), st.none())
VALUES = st.recursive(
    st.one_of(
        KEYS,
        st.floats(allow_nan=False),
        st.integers(-(2**200), 2**200),
        st.sets(st.integers(-9, 9)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=20,
)


def run(data: bytes, **options: Any) -> Any:
    return Machine(memoryview(data), WORDS, Budget(**options)).run()


@settings(max_examples=60)
@given(value=VALUES, protocol=st.integers(0, 5))
def test_plain_values(value: Any, protocol: int) -> None:
    assert run(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_bytes_are_views_of_the_file(protocol: int) -> None:
    value = b"\0\xff\n'"
    assert bytes(run(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [np.float64(0.1), np.float32(0.1), np.int64(-3), np.bool_(True)])
def test_numpy_scalars(value: Any, protocol: int) -> None:
    assert run(pickle.dumps(value, protocol)) == value.item()


def test_big_endian_scalars() -> None:
    assert run(pickle.dumps(np.array([0.1], dtype=">f8")[0], 4)) == 0.1


def test_shared_and_recursive_values() -> None:
    """A value that stands in two places stays one value; a list may hold itself."""
    inner: list[Any] = [1]
    outer: list[Any] = [inner, inner]
    outer.append(outer)
    found = run(pickle.dumps(outer))
    assert found[0] is found[1] and found[2] is found


def test_budgets() -> None:
    data = pickle.dumps([1, 2, 3, "four"])
    with pytest.raises(Refusal, match="more pickle instructions"):
        run(data, opcodes=5)
    with pytest.raises(Refusal, match="more text"):
        run(data, text=3)
    assert run(data, opcodes=20, text=4) == [1, 2, 3, "four"]
