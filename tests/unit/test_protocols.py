"""Protocols: the committed ones, and mistakes in a file."""

from pathlib import Path

import pytest
import yaml

from ctm_core.errors import UserError
from ctm_core.protocols import Protocol, load_protocol

FOLDER = Path(__file__).parents[2] / "config" / "protocols"
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
    assert desk.metric(1024) == "fd_classifier_digits_1024"
    lite0 = load_protocol(FOLDER / "desk-digits-lite0.yaml")
    assert lite0.seeds == "pooled"
    assert lite0.metric(3 * lite0.samples) == "fd_efficientnet_lite0_3072"
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


def test_external_files_of_protocols(tmp_path):
    changes = {"features": "inception", "reference": {"asset": "edm-reference-cifar10"}}
    published = load_protocol(written(tmp_path, changes))
    assert published.assets == ("inception", "edm-reference-cifar10")
    assert published.feature_assets == ("inception",)
    assert published.named_assets() == {"reference.asset": "edm-reference-cifar10"}
    assert load_protocol(written(tmp_path, {})).assets == ()
    mixed = written(tmp_path, {"reference": {"asset": "x", "split": "train"}})
    with pytest.raises(UserError, match=r"unknown key 'reference\.split'"):
        load_protocol(mixed)
