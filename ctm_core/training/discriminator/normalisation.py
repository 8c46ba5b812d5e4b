r"""Batch normalisation with the statistics of all processes.

The released code normalises each process's share of a batch by itself. Here mean and variance run
over the whole batch,

.. math::
    m = \frac{1}{n} \sum_r \sum_{i \in r} x_i, \qquad
    v = \frac{1}{n} \sum_r \sum_{i \in r} (x_i - m)^2,

r over the processes, whose shares may differ in size, and gradients pass through both sums. It
works with any backend; torch's own ``SyncBatchNorm`` needs a GPU.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce

from ctm_core.runtime import distributed
from ctm_core.training.distance import at_least_single


class _Sum(torch.autograd.Function):
    """Sum over processes, of values and, in the backward pass, of gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        all_reduce(total)
        return total


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the batches of all processes; in one process it is just that.

    Every process must call it the same number of times, forward and backward. Statistics are taken
    in float32 at least.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise images (B, C, H, W), B possibly different on each process."""
        if not self.training or distributed.count() == 1:
            return super().forward(input)
        x = at_least_single(input)
        count = x.new_full((1,), x.numel() / x.shape[1])
        sums: Tensor = cast(Any, _Sum).apply(torch.cat([x.sum((0, 2, 3)), count]))
        n = sums[-1].detach()
        mean = (sums[:-1] / n).view(1, -1, 1, 1)
        # The second sum is taken about the mean: a difference of large squares loses all digits.
        centred = x - mean
        variance: Tensor = cast(Any, _Sum).apply(centred.square().sum((0, 2, 3))) / n
        scale = (variance + self.eps).rsqrt() * self.weight
        result = centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        with torch.no_grad():
            running_mean, running_var = self.running_mean, self.running_var
            assert running_mean is not None and running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked += 1
            running_mean.lerp_(mean.flatten().to(running_mean), self.momentum)
            running_var.lerp_((variance * (n / (n - 1))).to(running_var), self.momentum)
        return result.to(input.dtype)
