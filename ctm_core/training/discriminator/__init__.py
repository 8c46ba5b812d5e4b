r"""The projected discriminator of the adversarial term (CTM section 3.3, as released).

StyleGAN-XL's design (Sauer et al. 2021, 2022) without class conditioning. An image passes through
pretrained networks that never train, random projections that never train either, and small heads
that do::

    images in [-1, 1] ─ DiffAugment ─ (x + 1)/2 ─ mean, std of the network ─ bilinear to 224
      └─ feature network: maps at strides 4, 8, 16, 32              backbones.py
           └─ cross-channel and cross-scale mixing, random, fixed   projection.py
                └─ four heads: spectral norm, batch norm, logits    heads.py

At 224 each head gives 4 x 4 logits: 64 per feature network, 128 per image for the paper's two.
The projections are drawn from the run's seed and belong to the state, unlike in the released code,
where every process drew its own and no checkpoint kept them.
"""

from ctm_core.training.discriminator.projected import Branch, Discriminator

__all__ = ["Branch", "Discriminator"]
