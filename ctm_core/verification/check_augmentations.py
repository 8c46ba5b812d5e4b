"""DiffAugment, the hinge losses, and EDM's augmentation pipeline."""

from __future__ import annotations

from collections.abc import Iterator

from ctm_core.training import augmentation
from ctm_core.training.adversary import hinge_discriminator, hinge_generator
from ctm_core.training.discriminator.diffaugment import DiffAugment, diffaugment
from ctm_core.verification import case
from ctm_core.verification.golden import DOUBLE, SINGLE, Check, Golden


@case("grids_and_draws", on_device=False)
def diffaugment_(golden: Golden) -> Iterator[Check]:
    """Seven parameters a sample to the augmented images."""
    parameters = DiffAugment(*(golden[f"diffaug/{n}"].flatten() for n in DiffAugment._fields))
    yield golden.check("diffaug/y", diffaugment(golden.tensor("diffaug/x"), parameters))


@case("grids_and_draws", (DOUBLE,), on_device=False)
def hinge(golden: Golden) -> Iterator[Check]:
    """Lists of logits of unequal sizes to both losses."""
    real = [golden[key] for key in golden.keys("hinge/logits_real_.*")]
    fake = [golden[key] for key in golden.keys("hinge/logits_fake_.*")]
    yield golden.check("hinge/d_loss", hinge_discriminator(real, fake))
    yield golden.check("hinge/g_loss_unweighted", hinge_generator(fake))


@case("edm_augment", (SINGLE,))
def edm_augment(golden: Golden) -> Iterator[Check]:
    """Raw draws to the augmented images and their labels."""
    settings = augmentation.Settings(p=float(golden.meta["p"]), **golden.meta["settings"])
    draws = augmentation.Draws(
        **{
            name: golden[f"draw/{name}"].reshape((2, -1) if name == "trans_w" else (-1,))
            for name in augmentation.Draws._fields
        }
    )
    parameters = augmentation.activate(draws, settings)
    images = golden.input("images")
    # The reference reflects only as far as its batch needs; ours, by default, all the way.
    size = (images.shape[2], images.shape[3])
    margins = augmentation.batch_margins(parameters, size, settings)
    images, labels = augmentation.augment(images, parameters, settings, margins)
    yield golden.check("images", images)
    yield golden.check("labels", labels)
