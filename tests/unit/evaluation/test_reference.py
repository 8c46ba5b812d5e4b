"""Reference moments: what they hold, and where they are refused."""

import pytest
import torch

from ctm_core.config.dag import FEATURE_THREADS
from ctm_core.config.protocols import Protocol
from ctm_core.data import dataset
from ctm_core.evaluation.metrics.nearest import nearest_distances
from ctm_core.evaluation.metrics.reference import load_reference, write_reference
from ctm_core.models.features import build_features, weights_sha256
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, save_tensors
from ctm_core.runtime.threads import use_threads


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
def written(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "p.safetensors"
    use_threads(FEATURE_THREADS)  # their number decides the last bits
    write_reference(path, protocol(), digits)
    return path


@pytest.fixture
def changed(written, tmp_path):
    """A copy of the file with other metadata or tensors."""

    def change(metadata=None, tensors=None):
        path = tmp_path / "p.safetensors"
        held, said = load_tensors(written)
        save_tensors(path, held | (tensors or {}), said | (metadata or {}))
        return path

    return change


def test_it_holds_the_moments_of_every_image(digits, written):
    reference = load_reference(written)
    features = build_features(protocol())(digits.batch(range(len(digits)))[0]).double()
    torch.testing.assert_close(reference.moments.mean, features.mean(0))
    torch.testing.assert_close(reference.moments.covariance(), features.T.cov())
    assert reference.moments.n == 1797


def test_writing_again_gives_the_same_bytes(digits, written, tmp_path):
    use_threads(FEATURE_THREADS)
    write_reference(tmp_path / "again.safetensors", protocol(), digits)
    assert (tmp_path / "again.safetensors").read_bytes() == written.read_bytes()


def test_record_says_everything(digits, written):
    record = load_reference(written).record()
    assert record == {
        "features": "classifier_digits",
        "weights_sha256": weights_sha256("classifier_digits"),
        "input_size": 8,
        "resize": "none",
        "reference": {
            "dataset": "digits",
            "split": "train",
            "fingerprint": digits.fingerprint,
            "n": 1797,
        },
        "metrics": ["fd"],
        "samples": 8,
        "seeds": "separate",
        "rounding": "truncate",
        "labels": "uniform",
        "precision": "fp32",
        "neighbours": {"precision_recall": 3, "density_coverage": 5, "rows": 10000},
        "kid": {"subsets": 0, "size": 1000},
        "trajectory": {"noises": 24, "points": 48},
        "memorisation": {"held_out": "test", "images": 10000},
    }


def test_other_weights_are_refused(changed):
    with pytest.raises(UserError, match="made with other weights of classifier_digits"):
        load_reference(changed(metadata={"weights_sha256": "0" * 64}))


def test_damaged_files_are_refused(changed, tmp_path):
    with pytest.raises(UserError, match="is missing"):
        load_reference(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="is not a reference file"):
        load_reference(changed(tensors={"moments.scatter": torch.zeros(1, 2, 2)}))
    with pytest.raises(UserError, match="is not a reference file"):
        load_reference(changed(metadata={"protocol": "{"}))
    path = changed()
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="is corrupt"):
        load_reference(path)


def test_the_wrong_dataset_is_refused(digits, tmp_path):
    with pytest.raises(UserError, match=r"compares with fashion-mnist/test, but .* digits/train"):
        other = protocol(reference={"dataset": "fashion-mnist", "split": "test"})
        write_reference(tmp_path / "p", other, digits)


def test_features_of_single_images_are_kept_where_a_metric_needs_them(digits, written, tmp_path):
    path = tmp_path / "p.safetensors"
    wants = {"metrics": ["fd", "kid"]}
    few = protocol(**wants, neighbours={"rows": 100})
    write_reference(path, few, digits)
    reference = load_reference(path)
    everything = build_features(protocol())(digits.batch(range(len(digits)))[0])
    kept = reference.state["features"]
    places = [int((everything == row).all(dim=1).nonzero()[0]) for row in kept]
    # A random choice from the whole file, whose first images may be of one class elsewhere.
    assert len(set(places)) == 100 and max(places) > 1500 and min(places) < 300
    moments = load_reference(written).moments
    torch.testing.assert_close(reference.moments.scatter, moments.scatter)
    assert reference.record()["reference"]["features"] == 100
    write_reference(path, protocol(**wants), digits)
    assert torch.equal(load_reference(path).state["features"], everything)


def test_what_a_metric_needs_must_be_there(written, changed):
    for metric, part in (("kid", "features"), ("memorisation", "nearest")):
        path = changed(metadata={"protocol": protocol(metrics=[metric]).model_dump_json()})
        with pytest.raises(UserError, match=f"lacks {part}, which the metrics of p need"):
            load_reference(path)
    load_reference(changed(tensors={"nearest": torch.ones(3, dtype=torch.float64)}))
    with pytest.raises(UserError, match="lacks moments"):
        save_tensors(path, {"samples": torch.tensor([5])}, load_tensors(written)[1])
        load_reference(path)


def test_distances_of_held_out_images(digits, tmp_path):
    """Without a test split: of training images, each to the nearest other one."""
    path = tmp_path / "p.safetensors"
    own = {"metrics": ["memorisation"], "memorisation": {"held_out": "others", "images": 2000}}
    write_reference(path, protocol(**own), digits)
    found = load_reference(path).state["nearest"]
    assert len(found) == len(digits) and float(found.min()) > 0
    images = digits.batch(range(len(digits)))[0]
    for row in (0, 5, 1796):
        others = torch.cat([images[:row], images[row + 1 :]])
        expected = float(nearest_distances(images[row : row + 1], others))
        assert float((found - expected).abs().min()) < 1e-9
    few = protocol(**own | {"memorisation": {"held_out": "others", "images": 50}})
    write_reference(path, few, digits)
    assert torch.equal(load_reference(path).state["nearest"], found[:50])


def test_memorisation_needs_held_out_images(digits, tmp_path):
    path = tmp_path / "p.safetensors"
    for held_out in (None, digits):
        with pytest.raises(
            UserError, match=r"its folder as --held-out, or set memorisation\.held"
        ):
            write_reference(path, protocol(metrics=["memorisation"]), digits, held_out)
    assert not path.exists()


def test_where_the_reference_is_a_data_set_or_a_file(digits, tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(UserError, match="compares with digits/train; give its folder as --data"):
        write_reference(path, protocol())
    published = {"asset": "edm-reference-cifar10", "images": 5, "resolution": 8}
    with pytest.raises(UserError, match="with the file edm-reference-cifar10 and not with a data"):
        write_reference(path, protocol(reference=published), digits)
    assert not path.exists()
