"""Inception from its TorchScript file: two ways of resizing, what else it gives, its hash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.external import write_inception, write_list
from PIL import Image

from ctm_core.config.protocols import Protocol
from ctm_core.models.features import build_features, weights_sha256
from ctm_core.models.features.inception import enlarge
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


def protocol(resize: str, **changes: object) -> Protocol:
    base = {
        "name": "p",
        "features": "inception",
        "input_size": 299 if resize == "clean" else 32,
        "resize": resize,
        "reference": {"dataset": "cifar10"},
        "samples": 8,
    }
    return Protocol.model_validate(base | changes)


def images(n: int, channels: int = 3, side: int = 32) -> torch.Tensor:
    drawn = np.random.default_rng(0).integers(0, 256, (n, channels, side, side), dtype=np.uint8)
    return torch.from_numpy(drawn)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inception(tmp_path_factory.mktemp("assets"))


@pytest.fixture
def here(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose list of assets knows the stand-in."""
    write_list(tmp_path, {"inception": stand_in})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTM_ASSETS", str(stand_in.parent))
    return stand_in


def by_pil(image: torch.Tensor) -> torch.Tensor:
    """clean-fid's resizing by its definition: PIL's bicubic filter, each channel as floats."""
    channels = [
        np.asarray(Image.fromarray(c.astype(np.float32), mode="F").resize((299, 299), 3))
        for c in image.numpy()
    ]
    return torch.from_numpy(np.stack(channels).clip(0, 255))


def test_the_two_ways_of_resizing(here: Path) -> None:
    x = images(3)
    network = torch.jit.load(str(here))
    inside = build_features(protocol("inside"))(x)
    clean = build_features(protocol("clean"))(x)
    torch.testing.assert_close(inside, network(x, return_features=True))
    enlarged = torch.stack([by_pil(image) for image in x])
    torch.testing.assert_close(clean, network.layers((enlarged - 128) / 128))
    assert inside.shape == clean.shape == (3, 2048)
    assert (inside - clean).norm() > 0.01 * inside.norm()


def test_what_else_the_file_gives(here: Path) -> None:
    x = images(3)
    network = torch.jit.load(str(here))
    extractor = build_features(protocol("inside"))
    assert extractor.outputs == {"features": 2048, "probabilities": 12, "spatial": 2023}
    found = extractor.extract(x, ["spatial", "probabilities"])
    assert list(found) == ["spatial", "probabilities"]
    torch.testing.assert_close(found["probabilities"], network(x, no_output_bias=True))
    assert not torch.allclose(found["probabilities"], network(x))
    levels = (network.resized(x) - 128) / 128
    layers = network.layers
    spatial = layers.mixed_6.conv(layers.pool0(layers.conv(levels)))[:, :7].flatten(1)
    torch.testing.assert_close(found["spatial"], spatial)
    clean = build_features(protocol("clean")).extract(x, ["spatial"])["spatial"]
    assert not torch.allclose(clean, spatial, rtol=0.01)


@pytest.mark.parametrize("side", [32, 64, 299, 400])
def test_the_files_resizing_from_its_definition(here: Path, side: int) -> None:
    x = images(1, side=side).float()
    torch.testing.assert_close(
        enlarge(x), torch.jit.load(str(here)).resized(x), rtol=1e-5, atol=2e-2
    )


def test_grey_images_and_other_sizes(here: Path) -> None:
    grey = images(2, channels=1)
    for resize in ("inside", "clean"):
        extractor = build_features(protocol(resize))
        torch.testing.assert_close(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(UserError, match="feeds 32 pixels without resizing, but the images have 8"):
        build_features(protocol("inside"))(images(1, side=8))


def test_it_says_what_it_is(here: Path) -> None:
    assert weights_sha256("inception") == sha256_file(here)
    assert build_features(protocol("inside")).weights_sha256 == sha256_file(here)
    with pytest.raises(UserError, match="unknown features 'inception_v4'"):
        build_features(Protocol.model_construct(name="p", features="inception_v4", resize="clean"))


def test_only_the_known_file_is_loaded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(torch.jit, "load", lambda path, *_: loaded.append(path))
    whole = here.read_bytes()
    try:
        here.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=r"inception-2015-12-05\.pt is not InceptionV3"):
            build_features(protocol("inside"))
        here.unlink()
        with pytest.raises(UserError, match=r"InceptionV3 of 2015-12-05 .* is missing: run"):
            build_features(protocol("inside"))
    finally:
        here.write_bytes(whole)
    assert not loaded


def test_a_file_that_hides_its_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_list(tmp_path, {"inception": write_inception(tmp_path, hidden=True)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTM_ASSETS", str(tmp_path))
    extractor = build_features(protocol("inside"))
    assert extractor(images(1)).shape == (1, 2048)
    with pytest.raises(UserError, match=r"needs spatial of inception: the file .* mixed_6; leave"):
        extractor.extract(images(1), ["features", "spatial"])


def test_a_known_file_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inception-2015-12-05.pt"
    path.write_bytes(b"no TorchScript")
    write_list(tmp_path, {"inception": path})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTM_ASSETS", str(tmp_path))
    with pytest.raises(UserError, match="holds no InceptionV3 as TorchScript") as caught:
        build_features(protocol("inside"))
    assert "\n" not in str(caught.value)
