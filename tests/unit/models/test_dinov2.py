"""DINOv2 from a small file of the published form, against the transformer written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fixtures.external import dinov2_tensors, write_list

from ctm_core.config.protocols import Protocol
from ctm_core.models.features import build_features, weights_sha256
from ctm_core.models.features.dinov2 import positions
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file

SIDE = 56


def protocol(**changes: object) -> Protocol:
    base = {
        "name": "p",
        "features": "dinov2_vitl14",
        "input_size": SIDE,
        "resize": "bicubic",
        "reference": {"dataset": "cifar10"},
        "samples": 8,
    }
    return Protocol.model_validate(base | changes)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "dinov2_vitl14_pretrain.pth"
    torch.save(dinov2_tensors(), path)
    write_list(tmp_path, {"dinov2-vitl14": path})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTM_ASSETS", str(tmp_path))
    return path


def by_hand(levels: torch.Tensor, w: dict[str, torch.Tensor], heads: int) -> torch.Tensor:
    """The class token of a pre-norm transformer with layer scale."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (levels / 255 - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
    count, dim, side = len(x), x.shape[1], x.shape[-1]
    x = torch.cat([w["cls_token"].expand(count, -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + positions(w["pos_embed"], side)
    depth = sum(name.endswith("ls1.gamma") for name in w)
    for n in range(depth):
        b = {name.removeprefix(f"blocks.{n}."): value for name, value in w.items()}
        z = F.layer_norm(x, (dim,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        q, k, v = (
            part.reshape(count, -1, heads, dim // heads).transpose(1, 2)
            for part in F.linear(z, b["attn.qkv.weight"], b["attn.qkv.bias"]).chunk(3, dim=2)
        )
        weights = (q @ k.transpose(2, 3) / (dim // heads) ** 0.5).softmax(dim=3)
        z = (weights @ v).transpose(1, 2).flatten(2)
        x = x + b["ls1.gamma"] * F.linear(z, b["attn.proj.weight"], b["attn.proj.bias"])
        z = F.layer_norm(x, (dim,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        z = F.gelu(F.linear(z, b["mlp.fc1.weight"], b["mlp.fc1.bias"]))
        x = x + b["ls2.gamma"] * F.linear(z, b["mlp.fc2.weight"], b["mlp.fc2.bias"])
    return F.layer_norm(x, (dim,), w["norm.weight"], w["norm.bias"], 1e-6)[:, 0]


@pytest.mark.parametrize("dim", [64, 128])
def test_features_are_the_class_token(file: Path, dim: int) -> None:
    tensors = dinov2_tensors(dim)
    torch.save(tensors, file)
    write_list(file.parent, {"dinov2-vitl14": file})
    extractor = build_features(protocol())
    x = torch.randint(256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    found = extractor(x)
    assert extractor.dim == dim and found.shape == (3, dim)
    torch.testing.assert_close(found, by_hand(x.float(), tensors, dim // 64), rtol=1e-4, atol=1e-4)
    assert found.std(0).min() > 1e-4
    assert extractor.weights_sha256 == weights_sha256("dinov2_vitl14") == sha256_file(file)


def test_positions_of_another_side() -> None:
    """A plane stays a plane, at the places that a scale of (side + 0.1) / n says."""
    n, side = 37, 16
    rows = torch.arange(n, dtype=torch.float64).repeat_interleave(n)
    embedding = torch.cat([torch.full((1, 1, 1), -5.0).double(), rows.view(1, -1, 1)], dim=1)
    found = positions(embedding, side)
    assert found.shape == (1, 1 + side**2, 1) and float(found[0, 0, 0]) == -5.0
    expected = (torch.arange(side).double() + 0.5) * n / (side + 0.1) - 0.5
    middle = found[0, 1:, 0].reshape(side, side)[:, 5]
    # This bicubic filter bends a line by up to 0.05; the scale 37 / 16 is 0.2 off.
    torch.testing.assert_close(middle[1:], expected[1:], rtol=0, atol=0.06)
    assert positions(embedding, n) is embedding


def test_small_images_are_enlarged_and_grey_ones_repeated(file: Path) -> None:
    extractor = build_features(protocol())
    grey = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))


def test_another_or_a_damaged_file(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"dinov2_vitl14_pretrain\.pth is not DINOv2"):
        build_features(protocol())
    for content in ({"cls_token": torch.zeros(1)}, {"a": 1}, [1, 2]):
        torch.save(content, file)
        write_list(file.parent, {"dinov2-vitl14": file})
        with pytest.raises(UserError, match=r"pretrain\.pth holds no weights of DINOv2") as error:
            build_features(protocol())
        assert "\n" not in str(error.value)
    file.write_bytes(b"no archive")
    write_list(file.parent, {"dinov2-vitl14": file})
    with pytest.raises(UserError, match="holds no weights of DINOv2"):
        build_features(protocol())
    file.unlink()
    with pytest.raises(UserError, match=r"DINOv2 .* is missing: run"):
        build_features(protocol())


def test_other_variants_are_unknown() -> None:
    with pytest.raises(UserError, match="unknown features 'dinov2_vits14'; known are dinov2_vitl"):
        build_features(protocol(features="dinov2_vits14"))
