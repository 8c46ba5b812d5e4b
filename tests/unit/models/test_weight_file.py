"""A weight file rebuilds its model, and says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.tiny import Trained
from safetensors.torch import save_file

from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import weight_file
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, save_tensors


def test_round_trip(student: Trained, tmp_path: Path) -> None:
    model, record = weight_file.load_weights(student.weights)
    assert isinstance(model, Trajectory)
    assert model.time_s and not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert record["model"] == "ctm" and record["step"] == 12
    assert record["class_names"] == [str(n) for n in range(10)]
    assert record == weight_file.read_record(student.weights)
    weight_file.export(tmp_path / "again.safetensors", model, record)
    assert (tmp_path / "again.safetensors").read_bytes() == student.weights.read_bytes()


def test_names_are_those_of_the_network(student: Trained) -> None:
    tensors, _ = load_tensors(student.weights)
    assert all(name.startswith("model.") for name in tensors)


def rewritten(source: Path, path: Path, changes: dict[str, Any]) -> Path:
    """A copy of a weight file with another record or other tensors."""
    tensors, metadata = load_tensors(source)
    record = json.loads(metadata["record"]) | changes.get("record", {})
    for key in changes.get("without", ()):
        del record[key]
    text = changes.get("text", json.dumps(record))
    metadata = {"format": changes.get("format", metadata["format"]), "record": text}
    tensors |= changes.get("tensors", {})
    for name in changes.get("drop", ()):
        del tensors[name]
    save_tensors(path, tensors, metadata)
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": "other"}, "is not a weight file of this project"),
        ({"text": "{"}, "its record is not readable"),
        ({"text": "[]"}, "its record is not readable"),
        ({"without": ["network", "seed"]}, "its record lacks network, seed"),
        ({"record": {"network": {"architecture": "vgg"}}}, "architecture: there is no such"),
        ({"record": {"network": {"depth": 3}}}, "unknown key 'network.depth'"),
        (
            {"record": {"label_dim": 1, "class_names": ["a"]}},
            "does not fit its network: it holds model.map_label",
        ),
        ({"record": {"time_s": False}}, "does not fit its network: it holds the unknown"),
        ({"tensors": {"extra": torch.zeros(1)}}, "it holds the unknown extra"),
        ({"tensors": {"a\nb\x1b[2J": torch.zeros(1)}}, r"it holds the unknown a\nb\x1b[2J"),
        ({"drop": ["model.dec.8x8_aux_conv.weight"]}, "it lacks model.dec.8x8_aux_conv.weight"),
    ],
)
def test_files_that_do_not_fit(
    student: Trained, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    path = rewritten(student.weights, tmp_path / "w.safetensors", changes)
    with pytest.raises(UserError, match=r"w\.safetensors") as error:
        weight_file.load_weights(path)
    assert expected in str(error.value)


def test_a_flipped_bit_is_refused_wherever_the_file_is(student: Trained, tmp_path: Path) -> None:
    """The file carries its hash, so a copy alone is checked too, and an intact one loads."""
    path = tmp_path / "copy.safetensors"
    path.write_bytes(student.weights.read_bytes())
    weight_file.load_weights(path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    for read in (weight_file.read_record, weight_file.load_weights):
        with pytest.raises(UserError, match=r"copy\.safetensors is corrupt: it does not match"):
            read(path)


def test_weights_without_a_hash(student: Trained, tmp_path: Path) -> None:
    """Those of earlier versions load; a tensor of another type is refused all the same."""
    tensors, metadata = load_tensors(student.weights)
    path = tmp_path / "old.safetensors"
    save_file(tensors, path, metadata=metadata)
    assert weight_file.load_weights(path)[1] == weight_file.read_record(student.weights)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name].to(torch.int32)}, path, metadata=metadata)
    with pytest.raises(UserError, match=rf"expected {name} of type torch.float32, but got"):
        weight_file.load_weights(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channels", -1),
        ("channels", "three"),
        ("channels", 10**18),
        ("resolution", "8"),
        ("resolution", [8]),
        ("resolution", None),
        ("resolution", 8.5),
        ("resolution", 10**6),
        ("label_dim", -1),
        ("label_dim", "ten"),
        ("label_dim", 10**18),
        ("time_s", 1),
        ("class_names", 10),
        ("class_names", ["a"]),
        ("class_names", [0] * 10),
        ("step", None),
        ("seed", {}),
        ("inner", 3),
        ("final_only", "no"),
        ("network", []),
        ("network.num_blocks", 10**6),
        ("network.channel_mult", [1] * 20_000),
        ("network.channel_mult", ["a\x1b[2J"]),
        ("network.model_channels", 4 * 10**8),
        ("network.resample_filter", [1] * 10**4),
        ("diffusion", None),
        ("diffusion.rho", 1e-300),
        ("diffusion.sigma_min", 0),
        ("diffusion.sigma_max", 1e300),
    ],
)
def test_a_record_that_cannot_be(key: str, value: Any, student: Trained, tmp_path: Path) -> None:
    section, _, name = key.partition(".")
    if name:
        value = weight_file.read_record(student.weights)[section] | {name: value}
    path = rewritten(student.weights, tmp_path / "w.safetensors", {"record": {section: value}})
    for read in (weight_file.read_record, weight_file.load_weights):
        with pytest.raises(UserError, match=r"w\.safetensors") as error:
            read(path)
        assert key in str(error.value) and "is damaged, make it again" in str(error.value)
        assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_truncated_missing_and_foreign_files(student: Trained, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match=r"w\.safetensors is missing"):
        weight_file.load_weights(path)
    data = student.weights.read_bytes()
    for size in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"w\.safetensors is corrupt"):
            weight_file.load_weights(path)
    path.write_bytes(b"\x80\x04}q\x00.")  # a pickle is not even tried
    with pytest.raises(UserError, match=r"w\.safetensors is corrupt"):
        weight_file.load_weights(path)
