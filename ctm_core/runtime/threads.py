"""How many CPU threads the sums of a job are split over, which decides their last bits."""

from __future__ import annotations


def use_threads(count: int) -> None:
    """Let this process compute with ``count`` threads, in torch and in NumPy's and SciPy's BLAS.

    The count that a job's configuration names, not what the machine or a scheduler has to spare:
    Snakemake lowers ``OMP_NUM_THREADS`` and its kin where it has fewer cores to give.
    """
    import scipy.linalg  # noqa: F401 - only libraries that are loaded can be told
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(count)
    threadpool_limits(count, user_api="blas")
