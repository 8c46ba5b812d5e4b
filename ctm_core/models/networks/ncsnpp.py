r"""NCSN++: the U-Net of the VE models of Song et al. (2021) in EDM's form.

It is DDPM++ but for three things: random Fourier features of twice the width embed the noise
level; up and down blocks filter with [1, 3, 3, 1]; and a residual encoder carries the shrunken
input to every lower level. After each down block, with :math:`a` the network's input at first,

.. math:: x = a = \bigl(x + \mathrm{down}(\mathrm{conv}(a))\bigr) / \sqrt 2,

which is also what the decoder gets in place of the down block's output.
"""

from __future__ import annotations

from typing import Any

from ctm_core.models.networks.ddpmpp import DDPMpp
from ctm_core.models.networks.embeddings import FourierEmbedding

#: Read by the configuration without importing this file.
TRAITS: dict[str, Any] = {
    "keys": {"channel_mult_emb": 4, "resample_filter": (1, 3, 3, 1), "augment_dim": 0}
}


class NCSNpp(DDPMpp):
    """Raw network F(x, c_noise(t), y); it has no target time s, so it can only be a teacher.

    Parameters are those of :class:`~ctm_core.models.networks.ddpmpp.DDPMpp` without ``time_s``.
    Each level but the first has a further layer ``enc.<side>x<side>_aux_residual``, and the buffer
    ``map_noise.freqs`` (model_channels,) holds the frequencies.
    """

    residual_encoder = True
    default_filter = TRAITS["keys"]["resample_filter"]

    def _embedding(self, model_channels: int) -> FourierEmbedding:
        return FourierEmbedding(2 * model_channels)


NETWORK = NCSNpp
