"""The small classifiers: committed weights, features, and their training."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from ctm_core.config.protocols import Protocol
from ctm_core.data import dataset
from ctm_core.evaluation.metrics.frechet import frechet_distance
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.models.features import build_features, classifier, weights_sha256
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_metadata

WEIGHTS = Path(str(files("ctm_core.models.features") / "weights"))

#: Every published row depends on these files: a new one is a new protocol, not a new file.
COMMITTED = {
    "classifier_digits": "f08a64ce268c69906cb595c6433f9c3307d38ca9cbe1345f0f1f70f5a77dbff9",
    "classifier_fashion-mnist": "dc8b276c9f2da3e6c82a3a78320fc40a672c5a8913523857ce7e6f372de5297a",
}


def protocol(**changes):
    base = {
        "name": "p",
        "features": "classifier_digits",
        "input_size": 8,
        "reference": {"dataset": "digits"},
        "samples": 8,
    }
    return Protocol.model_validate(base | changes)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return dataset.prepare("digits", "train", None, tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(scope="module")
def extractor():
    return build_features(protocol())


def order(digits):
    return torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(COMMITTED))
def test_committed_weights(name):
    path = WEIGHTS / f"{name}.safetensors"
    assert path.stat().st_size < 300_000
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == COMMITTED[name] == weights_sha256(name)
    record = read_metadata(path)
    assert name == f"classifier_{record['dataset']}"
    assert set(json.loads(record["training"])) == {"seed", "steps", "batch_size", "learning_rate"}
    least = {"classifier_digits": 0.98, "classifier_fashion-mnist": 0.85}[name]
    assert float(record["held_out_accuracy"]) > least


def test_the_recorded_accuracy_is_true(digits):
    network, record = classifier.load_classifier(WEIGHTS / "classifier_digits.safetensors")
    assert record["dataset_fingerprint"] == digits.fingerprint
    images, labels = digits.batch(torch.arange(len(digits)))
    with torch.no_grad():
        correct = (network(images.float()).argmax(1) == labels).float().mean()
    n, held_out = len(digits), int(record["held_out"])
    recorded = (
        float(record["train_accuracy"]) * (n - held_out)
        + float(record["held_out_accuracy"]) * held_out
    ) / n
    assert float(correct) == pytest.approx(recorded, abs=1.5 / n)


def test_features_are_the_penultimate_activations(digits, extractor):
    network, _ = classifier.load_classifier(WEIGHTS / "classifier_digits.safetensors")
    images, _ = digits.batch([0, 1, 2])
    result = extractor(images)
    assert result.shape == (3, extractor.dim) and extractor.dim <= 64
    logits = network.linear(result)
    torch.testing.assert_close(logits, network(images.float()), rtol=1e-4, atol=1e-4)
    assert torch.equal(extractor(digits.batch(range(300))[0])[:3], result)


def test_the_distance_tells_good_from_bad(digits, extractor):
    images = digits.batch(order(digits))[0]
    whole = extractor(images)
    half = len(images) // 2

    def distance(left, right):
        return frechet_distance(Moments.of(left), Moments.of(right))

    halves = distance(whole[:half], whole[half:])
    assert not halves.rank_deficient
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    values = [
        distance(
            whole, extractor((images + s * noise).round().clamp(0, 255).to(torch.uint8))
        ).value
        for s in (8, 32, 64, 128)
    ]
    assert values == sorted(values)
    blurred = (images[..., :-1].float() + images[..., 1:].float()) / 2
    blurred = torch.nn.functional.pad(blurred, (0, 1)).to(torch.uint8)
    random = torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(2))
    without_three = whole[digits.batch(order(digits))[1] != 3]
    assert halves.value < 0.5
    assert values[1] > 2 * halves.value
    as_many_left = whole[len(whole) - len(without_three) :]
    assert distance(whole, without_three).value > 20 * distance(whole, as_many_left).value
    assert distance(whole, extractor(blurred)).value > 20 * halves.value
    assert distance(whole, extractor(random.to(torch.uint8))).value > 50 * halves.value


def test_training_learns_is_repeatable_and_depends_on_the_seed(digits, tmp_path):
    recipe = classifier.Recipe(steps=40, batch_size=64)
    files_ = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, seed in zip(files_, (0, 0, 1), strict=True):
        record = classifier.train_classifier(digits, path, seed=seed, recipe=recipe)
    assert files_[0].read_bytes() == files_[1].read_bytes() != files_[2].read_bytes()
    assert record == read_metadata(files_[2])
    assert float(record["held_out_accuracy"]) > 0.5  # chance is 0.1
    assert record["held_out"] == str(len(digits) // 5)


def test_shifts_move_by_at_most_one_pixel():
    images = torch.arange(9 * 16.0).reshape(9, 1, 4, 4)
    moved = classifier._shifted(images, torch.arange(9))
    assert torch.equal(moved[4], images[4])
    assert torch.equal(moved[1][0, 1:], images[1][0, :-1])  # dy = -1: content moves down
    assert torch.equal(moved[1][0, 0], images[1][0, 0])
    assert torch.equal(moved[5][0, :, :-1], images[5][0, :, 1:])  # dx = +1: content moves left


def test_wishes_that_cannot_be_met(tmp_path):
    with pytest.raises(UserError, match=r"no weights for classifier_cifar10, only for .*digits"):
        build_features(protocol(features="classifier_cifar10"))
    with pytest.raises(
        UserError, match=r"feeds 16 pixels, but classifier_digits was trained on 8"
    ):
        build_features(protocol(input_size=16))
    path = tmp_path / "other.safetensors"
    content = (WEIGHTS / "classifier_digits.safetensors").read_bytes()
    path.write_bytes(content[:1000])
    with pytest.raises(UserError, match="corrupt"):
        classifier.load_classifier(path)
    path.write_bytes(content.replace(b"conv1.bias", b"conv9.bias"))
    with pytest.raises(UserError, match="holds no classifier"):
        classifier.load_classifier(path)
