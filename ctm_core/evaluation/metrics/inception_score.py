r"""The inception score (Salimans et al., 2016), streamed.

For class probabilities :math:`p_i` of the samples of one split, with mean :math:`\bar p`,

.. math:: \mathrm{IS} = \exp\Bigl(\frac1n \sum_i \sum_k p_{ik} \ln p_{ik}
              - \sum_k \bar p_k \ln \bar p_k\Bigr),

and the score is the mean over splits, ten of them by sample index, as its authors print it. It
depends on the number of splits: a split of n samples and K classes cannot exceed min(n, K).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ctm_core.evaluation.metrics.blocks import pieces
from ctm_core.evaluation.metrics.subsampling import Estimate, of_independent

__all__ = ["InceptionSums", "inception_score"]


@dataclass(frozen=True)
class InceptionSums:
    """What the score needs of S splits.

    Attributes
    ----------
    n
        int64 (S,): samples.
    negative_entropy
        float64 (S,): sums of :math:`\\sum_k p_k \\ln p_k`.
    probabilities
        float64 (S, K): sums of p.
    """

    n: torch.Tensor
    negative_entropy: torch.Tensor
    probabilities: torch.Tensor

    @classmethod
    def empty(cls, classes: int, splits: int) -> InceptionSums:
        """The state before the first sample."""
        return cls(
            torch.zeros(splits, dtype=torch.int64),
            torch.zeros(splits, dtype=torch.float64),
            torch.zeros(splits, classes, dtype=torch.float64),
        )

    def update(self, probabilities: torch.Tensor, start: int, samples: int) -> InceptionSums:
        """The state after the probabilities (rows, K) of samples ``start …`` of ``samples``.

        Raises
        ------
        ValueError
            If rows are no distributions.
        """
        p = probabilities.detach().to(device="cpu", dtype=torch.float64)
        sums = p.sum(dim=1)
        if not bool(((sums - 1).abs() < 1e-3).all()) or bool((p < 0).any()):
            raise ValueError("class probabilities are not negative and sum to 1; these do not")
        p = p / sums[:, None]
        n, entropy, total = (
            self.n.clone(),
            self.negative_entropy.clone(),
            self.probabilities.clone(),
        )
        for split, rows in pieces(samples, len(n), start, len(p)):
            n[split] += rows.stop - rows.start
            entropy[split] += torch.xlogy(p[rows], p[rows]).sum()
            total[split] += p[rows].sum(dim=0)
        return InceptionSums(n, entropy, total)

    def merge(self, other: InceptionSums) -> InceptionSums:
        """The splits of both, side by side."""
        return InceptionSums(
            torch.cat([self.n, other.n]),
            torch.cat([self.negative_entropy, other.negative_entropy]),
            torch.cat([self.probabilities, other.probabilities]),
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state as named tensors."""
        return {
            "n": self.n,
            "negative_entropy": self.negative_entropy,
            "probabilities": self.probabilities,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> InceptionSums:
        """The inverse of :meth:`tensors`; ValueError if a tensor is missing or does not fit."""
        try:
            n, entropy, total = (
                tensors[name] for name in ("n", "negative_entropy", "probabilities")
            )
        except KeyError as error:
            raise ValueError(f"the tensor {error} is missing") from None
        if n.ndim != 1 or total.ndim != 2 or not len(n) == len(entropy) == len(total):
            raise ValueError("shapes do not belong to an inception score")
        return cls(n, entropy, total)


def inception_score(sums: InceptionSums) -> Estimate:
    """Mean over the splits, with its standard error over them.

    Raises
    ------
    ValueError
        If a split is empty.
    """
    if bool((sums.n == 0).any()):
        raise ValueError("a split of the inception score has no samples")
    mean = sums.probabilities / sums.n[:, None]
    exponent = sums.negative_entropy / sums.n - torch.xlogy(mean, mean).sum(dim=1)
    return of_independent(exponent.exp())
