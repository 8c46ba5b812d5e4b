"""What the keys of `adversarial` and its `discriminator` change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fixtures.one_step import Lab, Run
from fixtures.sections import shows
from torch import Tensor, nn

from ctm_core import config
from ctm_core.training import balance
from ctm_core.training.adversary import Adversary, build
from ctm_core.training.batches import Batch
from ctm_core.training.discriminator import Discriminator
from ctm_core.training.discriminator.normalisation import GlobalBatchNorm2d

TINY = {"backbones": ["tiny"], "resolution": 64, "width": 8}
TRAINING = {"steps": 1, "batch_size": 2}


def section(**keys: Any) -> config.Student:
    adversarial = {"discriminator": TINY} | keys
    return config.Student.model_validate({"adversarial": adversarial, "training": TRAINING})


def adversary(**keys: Any) -> Adversary:
    made = build(section(**keys), 0, torch.device("cpu"))
    assert made is not None
    return made


def discriminator(**keys: Any) -> Discriminator:
    return adversary(discriminator=TINY | keys).discriminator


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(2, 1, 8, 8, generator=generator) * 2 - 1, None, seed=0, step=0)


def trained(lab: Lab, steps: int = 2, **keys: Any) -> Run:
    changes = {
        "models.ctm.adversarial": {"discriminator": TINY} | keys,
        "models.ctm.training.steps": steps,
        "models.ctm.training.batch_size": 4,
    }
    return lab.train("ctm", changes)


@shows("Student.adversarial", "Adversarial.discriminator", "Adversarial.period")
@pytest.mark.parametrize("period", [2, 3])
def test_period(lab: Lab, period: int) -> None:
    made = trained(lab, 4, period=period)
    generator = [number for number in range(4) if number % period == 0]
    assert ["gan" in line for line in made.curve] == [n in generator for n in range(4)]
    assert ["d_loss" in line for line in made.curve] == [n not in generator for n in range(4)]
    assert len(made.gradients) == len(generator)


def test_without_an_adversary_there_are_no_such_terms(lab: Lab) -> None:
    assert not {"gan", "d_loss"} & lab.train("ctm").curve[0].keys()


@shows("Adversarial.loss")
@pytest.mark.parametrize(
    ("keys", "of_two"),
    [
        ({"loss": "hinge"}, lambda d: -d.mean()),
        ({"loss": "log"}, lambda d: torch.log(1 - torch.sigmoid(d)).mean()),
        ({}, lambda d: -d.mean()),
    ],
)
def test_loss(keys: dict[str, str], of_two: Callable[[Tensor], Tensor]) -> None:
    made, images = adversary(**keys), batch()
    logits = torch.tensor([[-0.5, 2.0]])
    made._logits = lambda *_: logits  # type: ignore[method-assign]
    torch.testing.assert_close(made.generator_loss(images.images, images), of_two(logits))


@shows("Adversarial.discriminator_weight")
def test_discriminator_weight(lab: Lab) -> None:
    gradients = {"gan": torch.full((2,), 2.0)}
    for weight in (0.5, 3.0):
        rule = adversary(discriminator_weight=weight).rule
        made = balance.weigh({"gan": rule}, gradients, torch.full((2,), 4.0))["gan"]
        assert float(made) == pytest.approx(2 * weight, rel=1e-3)
    one, three = (
        trained(lab, 1, discriminator_weight=w).curve[0]["lambda_gan"] for w in (1.0, 3.0)
    )
    assert three == pytest.approx(3 * one, rel=1e-4)


@shows("Adversarial.learning_rate", "Adversarial.betas")
@pytest.mark.parametrize(
    "keys", [{}, {"learning_rate": 1e-3}, {"betas": [0.5, 0.99]}, {"betas": [0.2, 0.9]}]
)
def test_optimiser_of_the_discriminator(lab: Lab, keys: dict[str, Any]) -> None:
    made = trained(lab, **keys).trainer.adversary
    assert made is not None
    rate, (first, second) = keys.get("learning_rate", 2e-3), keys.get("betas", [0.5, 0.9])
    (group,) = made.optimizer.param_groups
    assert group["lr"] == rate
    for state in made.optimizer.state.values():
        # After one step: (1 - beta) of the gradient, and of its square.
        gradient = state["exp_avg"] / (1 - first)
        torch.testing.assert_close(
            state["exp_avg_sq"], (1 - second) * gradient**2, rtol=1e-4, atol=1e-12
        )


def test_first_step_of_the_discriminator(lab: Lab) -> None:
    """RAdam's first step is the gradient itself, times the rate."""
    before = adversary().discriminator.state_dict()
    trainer = trained(lab).trainer
    assert trainer.adversary is not None
    own = trainer.adversary.discriminator
    for name, value in own.named_parameters():
        if value.grad is not None:
            moved = value.detach() - before[name]
            torch.testing.assert_close(moved, -2e-3 * value.grad, rtol=1e-3, atol=1e-7)


@shows("Adversarial.share_augmentation")
@pytest.mark.parametrize("shared", [True, False])
def test_share_augmentation(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made, images = adversary(share_augmentation=shared), batch()
    draws = []
    forward = Discriminator.forward

    def watched(self: Discriminator, x: Tensor, augmentations: Any) -> Tensor:
        draws.append(augmentations["tiny"])
        return forward(self, x, augmentations)

    monkeypatch.setattr(Discriminator, "forward", watched)
    made.discriminator_loss(images.images, images.images, images)
    real, fake = draws
    assert all(torch.equal(a, b) for a, b in zip(real, fake, strict=True)) == shared


# -- the discriminator ----------------------------------------------------------------------------


@shows("Discriminator.backbones")
def test_backbones() -> None:
    assert list(discriminator().branches()) == ["tiny"]
    names = ("tf_efficientnet_lite0", "tiny")
    wanted = config.Discriminator.model_validate(TINY | {"backbones": names})
    made = Discriminator(wanted, 0, pretrained=False)
    assert tuple(made.branches()) == names
    assert tuple(branch.backbone.name for branch in made.branches().values()) == names


@shows("Discriminator.resolution")
@pytest.mark.parametrize("side", [64, 128])
def test_resolution(side: int) -> None:
    (branch,) = discriminator(resolution=side).branches().values()
    images = torch.zeros(1, 1, 8, 8)
    sides = [features.shape[-1] for features in branch.pyramid(images)]
    assert sides == [side // 2, side // 4, side // 8, side // 16]


@shows("Discriminator.width")
@pytest.mark.parametrize("width", [8, 16])
def test_width(width: int) -> None:
    (branch,) = discriminator(width=width).branches().values()
    assert branch.pyramid(torch.zeros(1, 1, 8, 8))[0].shape[1] == width


@shows("Discriminator.batch_norm")
@pytest.mark.parametrize(
    ("key", "kind"), [("local", nn.BatchNorm2d), ("global", GlobalBatchNorm2d)]
)
def test_batch_norm(key: str, kind: type[nn.Module]) -> None:
    norms = [m for m in discriminator(batch_norm=key).modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and {type(norm) for norm in norms} == {kind}
