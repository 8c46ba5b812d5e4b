"""Protocols: the committed ones, and mistakes in a file."""

from pathlib import Path

import pytest
import yaml

from ctm_core.config.protocols import Protocol, load_protocol
from ctm_core.runtime.errors import UserError

FOLDER = Path(__file__).parents[3] / "config" / "protocols"
GOOD = yaml.safe_load((FOLDER / "desk-digits.yaml").read_text())


def written(tmp_path, changes, name="desk-digits"):
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes))
    return path


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_committed_protocols(path):
    protocol = load_protocol(path)
    assert protocol.name == path.stem
    # Every choice stands in the file: a default that changes must not change a protocol.
    assert set(yaml.safe_load(path.read_text())) == set(Protocol.model_fields)


def test_the_desk_protocols_are_the_designs():
    desk = load_protocol(FOLDER / "desk-digits.yaml")
    assert (desk.features, desk.input_size, desk.samples, desk.seeds) == (
        "classifier_digits",
        8,
        1024,
        "separate",
    )
    lite0 = load_protocol(FOLDER / "desk-digits-lite0.yaml")
    assert lite0.seeds == "pooled"
    test = load_protocol(FOLDER / "desk-fashion-test.yaml")
    assert (test.reference.dataset, test.reference.split) == ("fashion-mnist", "test")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sample": 10}, r"desk-digits\.yaml: unknown key 'sample'; allowed here: .*samples"),
        ({"samples": "many"}, r"samples: .*'many'"),
        ({"samples": 1}, "samples: "),
        ({"resize": "nearest"}, "resize: .*'bilinear'"),
        ({"rounding": "up"}, "rounding: "),
        ({"reference": {"dataset": "digits", "part": "a"}}, "unknown key 'reference.part'"),
        ({"precision": "fp16"}, "precision: .*'bf16'"),
        ({"precision": "bf16"}, "classifiers run in fp32"),
        ({"name": "other"}, r"its file must be other\.yaml"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, changes, says):
    path = written(tmp_path, changes)
    with pytest.raises(UserError, match=says) as caught:
        load_protocol(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_or_key(tmp_path):
    with pytest.raises(UserError, match="missing"):
        load_protocol(tmp_path / "none.yaml")
    path = tmp_path / "desk-digits.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in GOOD.items() if k != "features"}))
    with pytest.raises(UserError, match="the key 'features' is missing"):
        load_protocol(path)


EDM = {"asset": "edm-reference-cifar10", "images": 50000, "resolution": 32}
INCEPTION = {"features": "inception", "resize": "inside", "input_size": 32, "reference": EDM}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            INCEPTION | {"resize": "none"},
            "inception sees 299 pixels: resize is inside .* clean",
        ),
        (INCEPTION | {"resize": "clean"}, "clean resizing for inception is to 299, not to 32"),
        (INCEPTION | {"input_size": 64}, r"input_size \(64\) is the images' side, but the refer"),
        (INCEPTION | {"precision": "bf16"}, "Inception runs in fp32"),
        ({"resize": "inside"}, "resize inside belongs to inception; classifier_digits has none"),
        ({"features": "dinov2_vitl14", "input_size": 200}, "patches of 14 pixels, and 200 is no"),
        ({"reference": {"asset": "x", "images": 5}}, "the key 'reference.*resolution' is missing"),
        ({"metrics": ["fd", "kid", "fd"]}, "duplicate metric: fd"),
        ({"metrics": ["lpips"]}, "metrics.*'lpips'"),
        ({"metrics": []}, "metrics"),
        (INCEPTION | {"samples": 50000, "metrics": ["fd", "fid"]}, "both fid and fd"),
        ({"metrics": ["fid"]}, "fid is of Inception .* ask for fd, which is named fd_classifier"),
        ({"metrics": ["sfid"]}, "sfid is of Inception's layer mixed_6"),
        (
            {"metrics": ["is"], "features": "dinov2_vitl14", "input_size": 224},
            "dinov2 has no classes",
        ),
        ({"metrics": ["trajectory"], "seeds": "pooled"}, "seeds: separate"),
        (INCEPTION | {"metrics": ["memorisation"]}, "memorisation compares with training images"),
        (
            {"metrics": ["precision_recall"], "samples": 4, "neighbours": {"precision_recall": 4}},
            "the 4-th neighbour needs more samples",
        ),
        ({"labels": "balanced"}, "labels: .*'training'"),
    ],
)
def test_impossible_combinations_are_one_sentence(tmp_path, changes, says):
    path = written(tmp_path, changes)
    with pytest.raises(UserError, match=says) as caught:
        load_protocol(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_may_be_called_fid(tmp_path):
    enough = load_protocol(written(tmp_path, INCEPTION | {"samples": 50000, "metrics": ["fid"]}))
    assert enough.too_little_for_fid(50000) is None
    few = enough.too_little_for_fid(49999)
    assert few is not None and "too few samples for fid: 49,999, and it takes 50,000" in few
    assert "fd_inception_49999" in few
    with pytest.raises(UserError, match="metrics: too few samples for fid: 6,400"):
        load_protocol(written(tmp_path, INCEPTION | {"samples": 6400, "metrics": ["fid"]}))
    others = [
        {"resize": "clean", "input_size": 299},
        {"reference": {"dataset": "cifar10", "split": "train"}},
        {"reference": EDM | {"asset": "statistics-of-mine"}},
    ]
    for other in others:
        protocol = load_protocol(written(tmp_path, INCEPTION | other))
        assert "fid is of Inception (resize: inside) against" in protocol.too_little_for_fid(99999)


def test_what_metrics_need(tmp_path):
    def needs(*metrics):
        p = load_protocol(written(tmp_path, INCEPTION | {"metrics": list(metrics)}))
        return p.outputs, p.keeps_features, p.needs_teacher, p.needs_training_images

    assert needs("fd") == (["features"], False, False, False)
    assert needs("is") == (["features", "probabilities"], False, False, False)
    assert needs("kid", "sfid") == (["features", "spatial"], True, False, False)
    assert needs("trajectory", "fd") == (["features"], False, True, False)
    for changes in ({"labels": "training"}, {"metrics": ["memorisation"]}):
        assert load_protocol(written(tmp_path, changes)).needs_training_images


def test_external_files_of_protocols(tmp_path):
    published = load_protocol(written(tmp_path, INCEPTION))
    assert published.assets == ("inception", "edm-reference-cifar10")
    assert published.feature_assets == ("inception",)
    assert published.named_assets() == {"reference.asset": "edm-reference-cifar10"}
    assert load_protocol(written(tmp_path, {})).assets == ()
    mixed = written(tmp_path, {"reference": EDM | {"split": "train"}})
    with pytest.raises(UserError, match=r"unknown key 'reference\.split'"):
        load_protocol(mixed)
