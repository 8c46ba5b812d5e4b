r"""Denoiser D, anytime map g and jump G over a raw network F (CTM, section 3.1).

The process is variance exploding with :math:`\sigma(t) = t`. Around the raw network stands EDM's
preconditioning (Karras et al. 2022, table 1), a function of t alone:

.. math::
   c_\text{skip} = \frac{\sigma_d^2}{t^2 + \sigma_d^2},\quad
   c_\text{out} = \frac{t\,\sigma_d}{\sqrt{t^2 + \sigma_d^2}},\quad
   c_\text{in} = \frac{1}{\sqrt{t^2 + \sigma_d^2}},\quad
   c_\text{noise} = \tfrac14 \ln t

.. math::
   g(x, t, s) &= c_\text{skip}(t)\,x
      + c_\text{out}(t)\,F(c_\text{in}(t)\,x,\ c_\text{noise}(t),\ c_\text{noise}(s)) \\
   G(x, t, s) &= \frac{s}{t}\,x + \Bigl(1 - \frac{s}{t}\Bigr)\,g(x, t, s)

G jumps along the probability-flow ODE from t to s; :math:`G(x, t, t) = x` holds by construction.
:math:`D(x, t) = g(x, t, t)` is the denoiser, whose ODE is
:math:`\mathrm{d}x/\mathrm{d}t = (x - D(x, t))/t`. A network without s (a teacher) has D only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_core.diffusion.scalings import conditions, inner_coefficients, outer_coefficients
from ctm_core.runtime.errors import UserError


class Trajectory(nn.Module):
    """D, g and G over a network.

    Images are (B, C, H, W) floats in about [-1, 1]. Times are positive: numbers, scalar tensors or
    (B,) tensors of any float dtype; coefficients are computed in the wider dtype of image and time
    and results have the dtype of ``x``. Labels ``y`` are None (the zero one-hot in a conditional
    network), int64 (B,), or one-hot floats (B, label_dim).

    Parameters
    ----------
    model
        Raw network F with attributes ``time_s``, ``label_dim`` and ``output_weight``.
    sigma_data
        Standard deviation of the data, 0.5 for images.
    inner
        Parametrisation of g (:mod:`ctm_core.diffusion.scalings`): ``edm``; ``cm`` or ``ect`` for
        consistency models.
    sigma_min
        Of ``cm``: the time at which it is the identity.
    end
        The one time that the model jumps to; None: any, but sigma_min for ``cm``. Without s it is
        then a consistency model: its only jump is G(x, t, end) = g(x, t), and it is no denoiser.
    """

    def __init__(
        self,
        model: nn.Module,
        sigma_data: float = 0.5,
        *,
        inner: str = "edm",
        sigma_min: float = 0.002,
        end: float | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.sigma_data = sigma_data
        self.parametrisation = inner
        self.sigma_min = sigma_min
        self.end = sigma_min if end is None and inner == "cm" else end

    @property
    def time_s(self) -> bool:
        """Whether the network knows the target time s, so that g and G exist for every s."""
        return bool(self.model.time_s)

    @property
    def consistency(self) -> bool:
        """Whether this is a consistency model: without s, and with a jump to one time."""
        return self.end is not None and not self.time_s

    @property
    def has_jumps(self) -> bool:
        """Whether G exists: for every s, or for the end alone in a consistency model."""
        return self.time_s or self.consistency

    @property
    def label_dim(self) -> int:
        """Number of classes; 0 for an unconditional network."""
        return int(self.model.label_dim)  # type: ignore[arg-type]

    @property
    def output_weight(self) -> Tensor:
        """The weight near the output on which adaptive loss weights are measured."""
        weight: Tensor = self.model.output_weight  # type: ignore[assignment]
        return weight

    def raw(
        self,
        x: Tensor,
        t: Tensor | float,
        s: Tensor | float | None = None,
        y: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """F at the scaled input, ``F(c_in x, c_noise(t), c_noise(s))``, shaped like ``x``.

        Without ``s``, or with ``s`` the same object as ``t``, this is the denoiser's: every model
        has it.

        Raises
        ------
        UserError
            If another ``s`` is given to a network without s, or labels to an unconditional one.
        """
        out: Tensor = self.model(*self.inputs(x, t, s, y, augment_labels))
        return out.to(x.dtype)  # bf16 under autocast

    def inputs(
        self,
        x: Tensor,
        t: Tensor | float,
        s: Tensor | float | None = None,
        y: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The network's arguments: the scaled image, the conditions of t and s, and labels."""
        s = None if s is t else s
        at, known = times_like(t, x), self.time_s
        if s is not None and not known:
            raise UserError(
                "this model has no target time s: it is a denoiser (a teacher) and cannot jump; "
                "use a student, or a sampler that follows the ODE"
            )
        c_in, c_noise, c_noise_s = conditions(
            self.parametrisation, at, at if s is None else times_like(s, x), self.sigma_data
        )
        return (
            per_image(c_in, x),
            c_noise.expand(len(x)),
            c_noise_s.expand(len(x)) if known else None,
            self._one_hot(y, x),
            augment_labels,
        )

    def g(
        self,
        x: Tensor,
        t: Tensor | float,
        s: Tensor | float | None = None,
        y: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """The anytime map g(x, t, s); without ``s`` the denoiser."""
        return self.inner(self.raw(x, t, s, y, augment_labels), x, t)

    def G(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, y: Tensor | None = None
    ) -> Tensor:
        """The jump from t to s along the trajectory; in a consistency model to the end alone."""
        if self.consistency and bool((times_like(s, x) > (self.end or 0) * (1 + 1e-6)).any()):
            raise UserError(f"this is a consistency model: it jumps to time {self.end:g} alone")
        return self.carry(x, t, s, y)

    def carry(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, y: Tensor | None = None
    ) -> Tensor:
        """:meth:`G` by a caller that knows where it may jump: no time is read from the device."""
        return self.jump(self.raw(x, t, None if self.consistency else s, y), x, t, s)

    def inner(self, raw: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        """g from the raw output F of (x, t, s): c_skip x + c_out F."""
        c_skip, c_out = inner_coefficients(
            self.parametrisation,
            times_like(t, x),
            sigma_data=self.sigma_data,
            sigma_min=self.sigma_min,
            training=self.training,
        )
        return per_image(c_skip, x) + per_image(c_out, raw)

    def jump(self, raw: Tensor, x: Tensor, t: Tensor | float, s: Tensor | float) -> Tensor:
        """G from the raw output F of (x, t, s); of (x, t) in a consistency model."""
        if self.consistency:
            return self.inner(raw, x, t)
        outer = outer_coefficients("euler", times_like(t, x), times_like(s, x))
        return per_image(outer.c_skip, x) + per_image(outer.c_out, self.inner(raw, x, t))

    def denoise(
        self,
        x: Tensor,
        t: Tensor | float,
        y: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """The denoiser D(x, t) = E[x_0 | x_t = x], which is g(x, t, t) where s is known."""
        if self.consistency:
            raise UserError(
                "this is a consistency model, which has no denoiser: it jumps to time "
                f"{self.end:g} alone"
            )
        return self.g(x, t, None, y, augment_labels)

    def _one_hot(self, y: Tensor | None, x: Tensor) -> Tensor | None:
        if y is None:
            return None
        if not self.label_dim:
            raise UserError("labels were given to an unconditional model, which takes none")
        if y.is_floating_point():
            return y
        return functional.one_hot(y, self.label_dim).to(x.dtype)


def times_like(t: Tensor | float, x: Tensor) -> Tensor:
    """Times as a tensor () or (B,) on the device of x, at least as precise as x."""
    if not isinstance(t, Tensor):
        return torch.full((), t, dtype=x.dtype, device=x.device)
    dtype = torch.promote_types(t.dtype, x.dtype)
    return t.to(device=x.device, dtype=dtype, non_blocking=True)


def per_image(coefficient: Tensor, x: Tensor) -> Tensor:
    """Coefficient () or (B,) times images, in the dtype of the images."""
    coefficient = coefficient.to(x.dtype)
    return (coefficient if coefficient.ndim == 0 else coefficient[:, None, None, None]) * x
