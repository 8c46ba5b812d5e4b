r"""The Fréchet distance between two Gaussians.

.. math:: d = \lVert \mu_1 - \mu_2 \rVert^2
              + \operatorname{tr} \Sigma_1 + \operatorname{tr} \Sigma_2
              - 2 \operatorname{tr} (\Sigma_1 \Sigma_2)^{1/2}

(Dowson & Landau, 1982; Heusel et al., 2017). With any factors :math:`\Sigma_i = L_i L_i^\top`,

.. math:: \operatorname{tr} (\Sigma_1 \Sigma_2)^{1/2} = \lVert P \rVert_*, \qquad
          P = L_1^\top L_2,

the sum of singular values: no square root of a non-symmetric matrix, nothing complex. They are the
roots of the eigenvalues of the symmetric :math:`P P^\top = L_1^\top \Sigma_2 L_1`, a sixth of the
work; of triangular factors, LAPACK's ``dsygst`` makes it in a quarter of the operations of two
products. Such an eigenvalue is known to about :math:`\varepsilon \lambda_{\max}`, its root only to
:math:`\varepsilon \lambda_{\max} / 2 \sqrt\lambda`; where these errors might sum to more than
:math:`10^{-9}` of the traces, the singular values themselves are computed.

At full rank the factors are Cholesky's, and so they are when features are constant, on the others.
Otherwise they come from the symmetric eigenvalues, :math:`L = V_+ \Lambda_+^{1/2}`, keeping only
those above rounding, :math:`\lambda > D \varepsilon \lambda_{\max}`, and at most n - 1 of them:
rounding noise of size :math:`\varepsilon` would enter as :math:`\sqrt\varepsilon`. This equals the
nuclear norm of :math:`X_1^c X_2^{c\top} / \sqrt{(n_1 - 1)(n_2 - 1)}` for centred features
:math:`X_i^c`.
"""

from typing import NamedTuple

import torch
from scipy import linalg
from scipy.linalg import lapack

from ctm_core.evaluation.metrics.moments import Moments

#: Error of a symmetric eigenvalue, in rounding errors of the largest.
EIGENVALUE_ERROR = 10.0
#: Tolerated error of the fast sum of singular values, as a fraction of the traces.
TOLERANCE = 1e-9


class FrechetDistance(NamedTuple):
    """The distance, and whether a covariance lacks full rank.

    Then there are too few rows, n <= D, and a far upward bias, or dependent features on one side.
    """

    value: float
    rank_deficient: bool


class _Factor(NamedTuple):
    """L of shape (D, r) with covariance = L Lᵀ, r its numerical rank."""

    matrix: torch.Tensor
    #: Whether it is Cholesky's: D by D, lower triangular.
    triangular: bool


def _factor(covariance: torch.Tensor, rank_at_most: int) -> _Factor:
    dim = len(covariance)
    rounding = dim * torch.finfo(covariance.dtype).eps
    variances = covariance.diagonal()
    varying = variances > rounding * variances.max()
    if bool(varying.all()):
        return _factor_of_varying(covariance, rank_at_most, rounding)
    columns = _factor_of_varying(covariance[varying][:, varying], rank_at_most, rounding).matrix
    factor = covariance.new_zeros(dim, columns.shape[1])
    factor[varying] = columns
    return _Factor(factor, triangular=False)


def _factor_of_varying(part: torch.Tensor, rank_at_most: int, rounding: float) -> _Factor:
    count = len(part)
    if count == 0:
        return _Factor(part, triangular=False)
    if count <= rank_at_most:
        # LAPACK counts columns first, so its upper triangle, transposed, is the lower one.
        upper, failed = lapack.dpotrf(part.numpy().T, lower=0)
        triangle = torch.from_numpy(upper.T)
        pivots: torch.Tensor = triangle.diagonal().square()
        # A wide margin: whatever comes near singular is left to the eigenvalues below.
        if not failed and pivots.min() > 1e3 * rounding * part.diagonal().max():
            return _Factor(triangle, triangular=True)
    # SciPy's LAPACK: torch's (MKL) does not converge on some matrices of low rank.
    values, vectors = map(torch.from_numpy, linalg.eigh(part.numpy(), driver="evr"))
    floor = rounding * float(values[-1].clamp(min=0.0))
    first = max(int((values <= floor).sum()), count - rank_at_most)
    return _Factor(vectors[:, first:] * values[first:].sqrt(), triangular=False)


def _nuclear_norm(a: _Factor, b: _Factor, covariance_b: torch.Tensor) -> float:
    """The sum of the singular values of aᵀ b, for factors of two covariances."""
    left, right = a.matrix, b.matrix
    if not left.numel() or not right.numel():
        return 0.0
    if left.shape[1] > right.shape[1]:
        left, right = right, left
    if a.triangular and b.triangular:
        upper, _ = lapack.dsygst(covariance_b.numpy().T, left.numpy().T, itype=2, lower=0)
        symmetric = torch.from_numpy(upper.T)  # its lower triangle, which is the one read below
    else:
        product = left.T @ right
        symmetric = product @ product.T
    traces = float(left.square().sum() + right.square().sum())
    try:
        squares = torch.linalg.eigvalsh(symmetric).clamp_(min=0.0)
    except RuntimeError:  # MKL does not converge
        squares = torch.tensor([torch.nan])
    roots = squares.sqrt()
    error = EIGENVALUE_ERROR * torch.finfo(squares.dtype).eps * float(squares[-1])
    if float((error / (2 * roots.clamp(min=error**0.5))).sum()) <= TOLERANCE * traces:
        return float(roots.sum())
    return float(linalg.svdvals((left.T @ right).numpy()).sum())


def frechet_distance(a: Moments, b: Moments) -> FrechetDistance:
    """The Fréchet distance between the Gaussians with the moments of two sets of features.

    Symmetric in its arguments up to rounding; never negative.

    Raises
    ------
    ValueError
        If dimensions differ or a set has fewer than two rows.
    """
    if a.dim != b.dim:
        raise ValueError(f"features of {a.dim} and {b.dim} dimensions have no distance")
    covariance_a, covariance_b = a.covariance(), b.covariance()
    # n rows span n - 1 directions about their mean, whatever rounding adds.
    factor_a = _factor(covariance_a, min(a.n - 1, a.dim))
    factor_b = _factor(covariance_b, min(b.n - 1, b.dim))
    traces = float(covariance_a.trace()) + float(covariance_b.trace())
    shift = float((a.mean - b.mean).square().sum())
    value = shift + traces - 2.0 * _nuclear_norm(factor_a, factor_b, covariance_b)
    rank = min(factor.matrix.shape[1] for factor in (factor_a, factor_b))
    return FrechetDistance(max(value, 0.0), rank < a.dim)
