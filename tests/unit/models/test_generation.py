"""Samples depend on their seed and index, and on nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures.tiny import Trained

from ctm_core.config import Cell
from ctm_core.diffusion import randomness, sampling
from ctm_core.models.generation import Generator
from ctm_core.models.weight_file import load_weights
from ctm_core.runtime.errors import UserError

JUMP: dict[str, Any] = {"sampler": "gamma", "nfe": 2, "gamma": 1.0, "seed": 3}


@pytest.fixture
def generator(student: Trained) -> Generator:
    return Generator.from_file(student.weights)


def test_more_samples_leave_the_first_as_they_are(generator: Generator) -> None:
    few = generator.images(5, batch_size=8, **JUMP)
    many = generator.images(21, batch_size=8, **JUMP)
    assert many.shape == (21, 1, 8, 8)
    assert many.dtype == torch.uint8
    assert torch.equal(few, many[:5])


def test_batch_size_moves_hardly_a_pixel(generator: Generator) -> None:
    whole, split = (generator.images(64, batch_size=size, **JUMP).int() for size in (64, 10))
    moved = (whole - split).abs()
    assert int(moved.max()) <= 1
    assert float((moved > 0).double().mean()) <= 0.001


@pytest.mark.parametrize("size", [1, 7, 64])
def test_what_the_network_is_fed_does_not_depend_on_the_batch_size(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Latents, labels and injected noises of the first samples, as they reach the sampler."""
    fed: list[tuple[torch.Tensor, ...]] = []

    def sample(model: object, **given: Any) -> torch.Tensor:
        fed.append((given["latents"], given["labels"], given["noise"](0), given["noise"](1)))
        return given["latents"]

    monkeypatch.setattr(sampling, "sample", sample)
    generator.images(20, batch_size=size, **JUMP)
    assert all(len(part) == size for parts in fed for part in parts)  # the last batch is padded
    latents, labels, first, second = (torch.cat(parts)[:20] for parts in zip(*fed, strict=True))
    shape = (1, 8, 8)
    assert torch.equal(latents, randomness.normal(3, "latents", 0, 0, 20, shape))
    assert torch.equal(labels, randomness.integers(3, "labels", 0, 0, 20, 10))
    assert torch.equal(first, randomness.normal(3, "inject", 0, 0, 20, shape))
    assert torch.equal(second, randomness.normal(3, "inject", 1, 0, 20, shape))


def test_bf16_samples_are_a_little_different(student: Trained, generator: Generator) -> None:
    rounded = Generator.from_file(student.weights, "bf16")
    usual, other = (g.images(16, batch_size=16, **JUMP).int() for g in (generator, rounded))
    assert 0 < float((usual - other).abs().double().mean()) < 1
    assert rounded.describe_samples()["sampling_precision"] == "bf16"
    assert "sampling_precision" not in generator.describe_samples()


def test_labels_and_noises_belong_to_the_sample(generator: Generator) -> None:
    whole = generator.labels(3, 0, 20)
    assert whole is not None
    assert torch.equal(whole[7:12], generator.labels(3, 7, 5))
    assert set(whole.tolist()) <= set(range(10))
    assert not torch.equal(whole, generator.labels(4, 0, 20))
    noise = randomness.normal(3, "latents", 0, 0, 20, (1, 8, 8))
    assert torch.equal(noise[7:12], randomness.normal(3, "latents", 0, 7, 5, (1, 8, 8)))


def test_seeds_and_injected_noise_differ(generator: Generator) -> None:
    base = generator.images(8, batch_size=8, **JUMP)
    assert not torch.equal(base, generator.images(8, batch_size=8, **(JUMP | {"seed": 4})))
    exact = JUMP | {"gamma": 0.0}
    assert not torch.equal(base, generator.images(8, batch_size=8, **exact))


def test_explicit_labels_fill_the_last_batch(generator: Generator) -> None:
    labels = torch.arange(10)
    made = generator.images(10, batch_size=4, labels=labels, **JUMP)
    single = generator.images(3, batch_size=4, label=0, **JUMP)
    assert torch.equal(made[0], single[0])
    assert len(made) == 10


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"labels": torch.arange(9)}, "expected int64 labels of shape (10,)"),
        ({"labels": torch.zeros(10)}, "expected int64 labels of shape (10,)"),
        ({"labels": torch.arange(10) + 1}, "there is no class 10; classes are 0 to 9"),
        ({"label": -1}, "there is no class -1"),
    ],
)
def test_labels_that_do_not_fit(
    generator: Generator, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as error:
        generator.images(10, batch_size=4, **options, **JUMP)
    assert expected in str(error.value)


def test_no_samples_are_none(generator: Generator) -> None:
    with pytest.raises(UserError, match="at least one sample"):
        generator.images(0, batch_size=4, **JUMP)


def test_class_by_name_or_number(generator: Generator) -> None:
    assert generator.class_index("7") == 7
    for wrong in ("10", "-1", "seven", ""):
        with pytest.raises(UserError, match="no class"):
            generator.class_index(wrong)


def test_a_model_without_classes_has_none(generator: Generator) -> None:
    generator.classes = 0
    assert generator.labels(0, 0, 4) is None
    with pytest.raises(UserError, match="unconditional"):
        generator.class_index("3")
    with pytest.raises(UserError, match="unconditional"):
        generator.images(4, batch_size=4, label=3, **JUMP)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_nan_is_refused(generator: Generator, value: str) -> None:
    """Infinity too, which clamping to [-1, 1] would turn into plain white."""
    bias = generator.model.get_parameter("model.dec.8x8_aux_conv.bias")
    with torch.no_grad():
        bias.fill_(float(value))
    with pytest.raises(UserError, match="gives NaN or infinity by gamma at nfe 1"):
        generator.images(4, batch_size=4, **(JUMP | {"nfe": 1}))


def test_a_teacher_cannot_jump(teacher: Trained) -> None:
    generator = Generator.from_file(teacher.weights)
    assert not generator.has_jumps
    with pytest.raises(UserError, match="use heun or euler"):
        generator.images(4, batch_size=4, **JUMP)


def test_times_in_words(generator: Generator) -> None:
    assert generator.describe("gamma", 1, None) == "80 → 0.002"
    assert generator.describe("gamma", 2, 0.0) == "80 → 2.515, 2.515 → 0.002"
    assert generator.describe("gamma", 2, 1.0) == "80 → 0.002 + noise 2.515, 2.515 → 0.002"
    assert generator.describe("heun", 3, None) == "80 → 0.002 → 0"


def test_the_layout_of_the_weights_changes_rounding_alone(
    student: Trained, generator: Generator
) -> None:
    """In fp32 all networks sample with channels last; in bf16 small ones do not."""
    last = torch.channels_last
    wide = [p for p in generator.model.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    assert wide
    assert all(p.is_contiguous(memory_format=last) for p in wide)
    narrow = Generator.from_file(student.weights, "bf16").model.parameters()
    assert all(p.is_contiguous() for p in narrow)
    plain = Generator(load_weights(student.weights)[0], generator.record)
    labels = generator.labels(3, 0, 16)
    drawn = [
        one.draw(0, 16, Cell("gamma", 2, 1.0), seed=3, labels=labels) for one in (generator, plain)
    ]
    torch.testing.assert_close(*drawn, rtol=1e-4, atol=1e-5)
