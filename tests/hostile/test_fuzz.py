"""Damaged files and random programs are refused or converted; nothing else ever happens."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hostile.fuzz import FOUND, attempt, bases
from hostile.mutation import KINDS, SNIPPETS, Edit, damaged, random_program
from hostile.watch import Watch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

#: The same examples every time; `fuzz.py` looks for new ones.
BOUNDED = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

EDITS = st.lists(
    st.builds(
        Edit,
        kind=st.sampled_from(KINDS),
        place=st.floats(0, 1, exclude_max=True),
        length=st.sampled_from([1, 2, 4, 8, 64, 1000]),
        payload=st.one_of(st.sampled_from(SNIPPETS), st.binary(min_size=1, max_size=8)),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("base", sorted(bases()))
@BOUNDED
@given(edits=EDITS)
def test_damage(base: str, edits: list[Edit], tmp_path: Path, watch: Watch) -> None:
    attempt(damaged(bases()[base], edits), tmp_path, watch)


@BOUNDED
@given(seed=st.integers(0, 2**32))
def test_programs(seed: int, tmp_path: Path, watch: Watch) -> None:
    attempt(random_program(random.Random(seed)), tmp_path, watch)


def test_found(tmp_path: Path, watch: Watch) -> None:
    """What the fuzzer once found stays harmless."""
    for path in sorted(FOUND.glob("*.bin")):
        attempt(path.read_bytes(), tmp_path, watch)
