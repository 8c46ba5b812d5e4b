"""How processes of one machine find each other."""

from __future__ import annotations

import pytest

from ctm_core.runtime import distributed


@pytest.mark.parametrize(
    ("processes", "gpus", "cuda", "expected"),
    [
        (2, 0, False, "gloo"),
        (2, 2, True, "cpu:gloo,cuda:nccl"),
        (2, 4, True, "cpu:gloo,cuda:nccl"),
        (2, 1, True, "gloo"),  # nccl refuses two processes on one GPU
    ],
)
def test_the_backend_is_one_that_takes_so_many_processes(
    processes: int, gpus: int, cuda: bool, expected: str
) -> None:
    assert distributed._backend(processes, gpus, cuda) == expected
