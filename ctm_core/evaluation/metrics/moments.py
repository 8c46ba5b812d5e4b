r"""Mean and covariance of a stream of features, in float64.

For rows :math:`x_1, …, x_n` the state is :math:`n`, :math:`\mu = \frac1n \sum x_i` and the scatter
:math:`S = \sum (x_i - \mu)(x_i - \mu)^\top`; the covariance is :math:`S / (n - 1)`. Two states
merge without loss (Chan, Golub & LeVeque, 1983): with :math:`\delta = \mu_b - \mu_a`,

.. math:: n = n_a + n_b, \quad \mu = \mu_a + \tfrac{n_b}{n} \delta, \quad
          S = S_a + S_b + \tfrac{n_a n_b}{n} \delta \delta^\top.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Moments(NamedTuple):
    """Count, mean and scatter of the rows seen so far."""

    n: int
    mean: torch.Tensor  #: float64 (D,)
    scatter: torch.Tensor  #: float64 (D, D), symmetric

    @classmethod
    def of(cls, features: torch.Tensor) -> Moments:
        """The state of one batch, features of shape (n, D)."""
        if features.ndim != 2:
            raise ValueError(f"expected features of shape (n, D), got {tuple(features.shape)}")
        rows = features.detach().to(device="cpu", dtype=torch.float64)
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("the features hold NaN or infinity")
        mean = rows.mean(dim=0) if len(rows) else rows.new_zeros(rows.shape[1])
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    @property
    def dim(self) -> int:
        return int(self.mean.shape[0])

    def merge(self, other: Moments) -> Moments:
        """The state of both sets of rows together."""
        if self.dim != other.dim:
            raise ValueError(f"moments of {self.dim} and {other.dim} dimensions do not merge")
        if self.n == 0 or other.n == 0:
            return other if self.n == 0 else self
        n = self.n + other.n
        delta = other.mean - self.mean
        return Moments(
            n,
            self.mean + delta * (other.n / n),
            self.scatter + other.scatter + torch.outer(delta, delta) * (self.n * other.n / n),
        )

    def without(self, part: Moments) -> Moments:
        """The inverse of :meth:`merge`: the state of all rows but those of ``part``."""
        n = self.n - part.n
        if self.dim != part.dim or n < 1:
            raise ValueError(
                f"{part.n} rows of {part.dim} dimensions are no part of {self.n} of {self.dim}"
            )
        mean = (self.mean * self.n - part.mean * part.n) / n
        delta = part.mean - mean
        outer = torch.outer(delta, delta) * (n * part.n / self.n)
        return Moments(n, mean, self.scatter - part.scatter - outer)

    def covariance(self) -> torch.Tensor:
        """The unbiased covariance S / (n - 1), float64 of shape (D, D)."""
        if self.n < 2:
            raise ValueError(f"a covariance needs two rows, there are {self.n}")
        return self.scatter / (self.n - 1)
