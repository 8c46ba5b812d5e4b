"""Adversarial losses against their closed forms, and the player that brings them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctm_core import config
from ctm_core.training.adversary import (
    Adversary,
    hinge_discriminator,
    hinge_generator,
    log_discriminator,
    log_generator,
)
from ctm_core.training.batches import Batch
from ctm_core.training.discriminator import Discriminator
from ctm_core.training.discriminator.diffaugment import DiffAugment
from ctm_core.training.discriminator.projected_layers import SpectralConv2d
from ctm_core.training.optimizers import FusedRAdam


def test_values_at_zero() -> None:
    zero = torch.zeros(4, 16)
    assert hinge_discriminator(zero, zero) == 2
    assert hinge_generator(zero) == 0


def test_saturation_and_sign() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    # relu(1 - 2), relu(1 - 0.5) and relu(1 - 3), relu(1 + 1)
    assert hinge_discriminator(real, fake) == pytest.approx(0.25 + 1.0)
    assert hinge_generator(fake) == pytest.approx(1.0)


def test_lists_are_averaged_by_entry() -> None:
    pair = [torch.full((2, 3), 1.0), torch.full((2, 100), 2.0)]
    assert hinge_generator(pair) == pytest.approx(-1.5)
    assert hinge_discriminator(pair, pair) == pytest.approx(0 + 2.5)
    assert hinge_generator(torch.cat([p.flatten() for p in pair])) != pytest.approx(-1.5)


def test_half_precision_is_averaged_in_single() -> None:
    logits = torch.full((1000,), 0.1, dtype=torch.bfloat16)
    assert hinge_generator(logits).dtype == torch.float32
    assert hinge_generator(logits.double()).dtype == torch.float64


def test_gradient_stops_where_the_hinge_is_satisfied() -> None:
    real = torch.tensor([2.0, 0.0], requires_grad=True)
    fake = torch.tensor([-2.0, 0.0], requires_grad=True)
    hinge_discriminator(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert real.grad.tolist() == [0, -0.5]
    assert fake.grad.tolist() == [0, 0.5]


def test_the_printed_losses() -> None:
    logits = torch.tensor([0.3, -1.2, 2.0])
    p = torch.sigmoid(logits)
    assert log_generator(logits) == pytest.approx(float((1 - p).log().mean()))
    assert log_discriminator(logits, -logits) == pytest.approx(
        float(-p.log().mean() - (1 - torch.sigmoid(-logits)).log().mean())
    )


# -- the player --------------------------------------------------------------------------------


SECTION = config.Adversarial.model_validate(
    {"discriminator": {"backbones": ["tiny"], "resolution": 64, "width": 8}}
)


def adversary(**changes: Any) -> Adversary:
    section = config.Adversarial.model_validate(SECTION.model_dump() | changes)
    return Adversary(Discriminator(section.discriminator, seed=3), section)


def batch(start: int = 0, stop: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(6, 1, 8, 8, generator=generator) * 2 - 1
    return Batch(images[start:stop], None, seed=4, step=7, start=start)


def test_gradient_passes_to_the_images_and_not_to_the_heads() -> None:
    made, given = adversary(), batch()
    fake = (0.5 * given.images).requires_grad_()
    made.generator_loss(fake, given).backward()
    assert fake.grad is not None and float(fake.grad.norm()) > 0
    assert all(p.grad is None and p.requires_grad for p in made.discriminator.trained())


def test_the_fused_kernel_divides_each_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given, divided, gradients = batch(), [], []
    normalised = SpectralConv2d.normalised_weight

    def counted(layer: SpectralConv2d) -> torch.Tensor:
        divided.append(layer)
        return normalised(layer)

    monkeypatch.setattr(SpectralConv2d, "normalised_weight", counted)
    for kernel, passes in (("foreach", 2), ("fused", 1)):
        made = Adversary(Discriminator(SECTION.discriminator, seed=3), SECTION, kernel=kernel)
        assert isinstance(made.optimizer, FusedRAdam) == (kernel == "fused")
        spectral = [m for m in made.discriminator.modules() if isinstance(m, SpectralConv2d)]
        divided.clear()
        made.discriminator_loss(given.images, -given.images, given)[0].backward()
        assert len(divided) == passes * len(spectral)
        assert all(layer.shared is None for layer in spectral)
        gradients.append([layer.weight_orig.grad for layer in spectral])
    for twice, once in zip(*gradients, strict=True):
        assert float((twice - once).norm()) < 1e-5 * float(twice.norm())


def test_the_discriminator_learns_and_the_frozen_parts_stay() -> None:
    made, given = adversary(), batch()
    before = {name: value.clone() for name, value in made.discriminator.state_dict().items()}
    losses = []
    for _ in range(20):
        made.optimizer.zero_grad()
        loss, terms = made.discriminator_loss(given.images, -given.images, given)
        loss.backward()
        made.optimizer.step()
        made.advance()
        losses.append(terms["d_loss"])
    assert losses[-1] < losses[0] - 0.2
    after = made.discriminator.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".mini_discs." in name for name in changed)
    assert any(".projection." in name for name in before)  # frozen, and saved


def test_forward_passes_do_not_move_the_spectral_norms() -> None:
    """So the number of micro-batches and processes does not enter."""
    made, given = adversary(), batch()

    def vectors() -> dict[str, torch.Tensor]:
        state = made.discriminator.state_dict()
        return {k: v.clone() for k, v in state.items() if k.endswith(("_u", "_v"))}

    before = vectors()
    assert before
    made.discriminator_loss(given.images, -given.images, given)
    assert all(torch.equal(before[k], v) for k, v in vectors().items())
    made.advance()
    assert any(not torch.equal(before[k], v) for k, v in vectors().items())


def test_statistics_of_an_abandoned_step_are_put_back() -> None:
    made, given = adversary(), batch()
    state = made.discriminator.state_dict()  # the tensors themselves
    kept, before = made.statistics(), {k: v.clone() for k, v in state.items()}
    made.discriminator_loss(given.images, -given.images, given)
    assert any(not torch.equal(before[k], v) for k, v in state.items())
    made.restore_statistics(kept)
    assert all(torch.equal(before[k], v) for k, v in state.items())


@pytest.mark.parametrize("shared", [False, True])
def test_augmentation_is_drawn_by_sample(shared: bool) -> None:
    made = adversary(share_augmentation=shared)
    seen: list[dict[str, DiffAugment]] = []
    original = made.discriminator.draw

    def draw(uniform: Any, size: tuple[int, int], stream: str) -> dict[str, DiffAugment]:
        seen.append(original(uniform, size, stream))
        return seen[-1]

    made.discriminator.draw = draw  # type: ignore[method-assign]
    whole, half = batch(), batch(3, 6)
    made.discriminator_loss(whole.images, -whole.images, whole)
    made.discriminator_loss(half.images, -half.images, half)
    real, fake, real_half, _ = (entry["tiny"].brightness for entry in seen)
    assert torch.equal(real[3:], real_half)
    assert torch.equal(real, fake) == shared


def test_state_comes_back() -> None:
    made, given = adversary(), batch()
    loss, _ = made.discriminator_loss(given.images, -given.images, given)
    loss.backward()
    made.optimizer.step()
    made.advance()
    other = Adversary(Discriminator(SECTION.discriminator, seed=99), SECTION)
    other.discriminator.load_state_dict(made.discriminator.state_dict())
    for name, value in made.discriminator.state_dict().items():
        assert torch.equal(value, other.discriminator.state_dict()[name]), name
    assert float(made.generator_loss(given.images, given)) == float(
        other.generator_loss(given.images, given)
    )
