"""Feature extractors: interface, registry, and the pretrained network's provenance."""

import importlib.metadata
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from ctm_core.config.protocols import Protocol
from ctm_core.evaluation.metrics.frechet import frechet_distance
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.models import features, torchvision_shim
from ctm_core.models.features import FeatureExtractor, build_features, efficientnet_lite0
from ctm_core.models.features._extractor import clean_resize
from ctm_core.runtime.errors import UserError


def protocol(**changes):
    base = {
        "name": "p",
        "features": "efficientnet_lite0",
        "input_size": 64,
        "resize": "bilinear",
        "reference": {"dataset": "digits"},
        "samples": 8,
    }
    return Protocol.model_validate(base | changes)


def images(n, channels=1, side=8, seed=0):
    shape = (n, channels, side, side)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


class Recorder:
    """A network that keeps what it was fed and returns the mean of each channel."""

    def __init__(self):
        self.fed = []

    def __call__(self, levels):
        self.fed.append(levels)
        return levels.mean(dim=(2, 3))


def extractor(network, channels=1, batch_size=4, **changes):
    return FeatureExtractor(
        dim=channels,
        weights_sha256="0" * 64,
        network=network,
        protocol=protocol(**changes),
        channels=channels,
        batch_size=batch_size,
    )


def test_batches_have_one_size_and_rows_their_order():
    network = Recorder()
    x = images(10)
    result = extractor(network, resize="none", input_size=8)(x)
    assert [tuple(fed.shape) for fed in network.fed] == [(4, 1, 8, 8)] * 3
    torch.testing.assert_close(result, x.float().mean(dim=(2, 3)))
    assert result.dtype == torch.float32


def test_no_images_give_no_features():
    assert extractor(Recorder(), resize="none", input_size=8)(images(0)).shape == (0, 1)


def test_grey_is_repeated_only_for_networks_with_three_channels():
    one, three = Recorder(), Recorder()
    extractor(one, channels=1, resize="none", input_size=8)(images(4))
    extractor(three, channels=3, resize="none", input_size=8)(images(4))
    assert one.fed[0].shape[1] == 1 and three.fed[0].shape[1] == 3
    assert torch.equal(three.fed[0][:, 0], three.fed[0][:, 2])
    assert torch.equal(three.fed[0][:, :1], one.fed[0])


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 4])
def test_resizing_is_antialiased_and_stays_in_range(mode, size):
    network = Recorder()
    x = images(4) // 255 * 255  # black and white, where bicubic overshoots
    x[0] = 255
    extractor(network, resize=mode, input_size=size)(x)
    (fed,) = network.fed
    expected = F.interpolate(x.float(), (size, size), mode=mode, antialias=True)
    torch.testing.assert_close(fed, expected.clamp(0, 255))
    torch.testing.assert_close(fed[0], torch.full((1, size, size), 255.0))


def test_wrong_images_are_refused():
    fixed = extractor(Recorder(), resize="none", input_size=16)
    with pytest.raises(UserError, match="feeds 16 pixels without resizing, but the images have 8"):
        fixed(images(1))
    with pytest.raises(UserError, match="takes 1 channels, but the images have 3"):
        fixed(images(1, channels=3, side=16))
    with pytest.raises(ValueError, match="expected uint8"):
        fixed(images(1).float())


def test_registry():
    assert {"classifier", "efficientnet_lite0"} <= set(features.families())
    for name in ("resnet", "classifierx", "efficientnet_lite00"):
        with pytest.raises(UserError, match=f"unknown features '{name}'; known are classifier"):
            build_features(protocol(features=name))
    with pytest.raises(UserError, match="unknown features 'efficientnet_lite0_b'"):
        build_features(protocol(features="efficientnet_lite0_b"))


@pytest.fixture(scope="module")
def lite0():
    return build_features(protocol())


def test_lite0_says_what_it_is(lite0):
    assert (lite0.name, lite0.dim) == ("efficientnet_lite0", 1280)
    assert lite0.weights_sha256 == features.weights_sha256("efficientnet_lite0")
    assert lite0.weights_sha256.startswith("579344248a93e230")


def test_lite0_features_do_not_depend_on_what_else_is_scored(lite0):
    x = images(40)
    together = lite0(x)
    assert together.shape == (40, 1280) and together.dtype == torch.float32
    assert torch.equal(lite0(x[:3]), together[:3])
    assert together.std(0).mean() > 0.01


def test_large_inputs_are_fed_in_smaller_batches():
    sides = (8, 64, 128, 224, 299)
    assert [efficientnet_lite0.batch_size(side) for side in sides] == [32, 32, 8, 4, 4]
    assert build_features(protocol(input_size=299, resize="clean")).batch_size == 4


def test_lite0_features_are_those_of_the_network_without_its_head(lite0):
    x = images(5)
    headless = efficientnet_lite0.load_network(num_classes=0)
    whole = efficientnet_lite0.load_network(num_classes=1000)
    levels = F.interpolate(
        x.float(), size=64, mode="bilinear", align_corners=False, antialias=True
    )
    scaled = levels.clamp(0, 255).expand(-1, 3, -1, -1) / 127.5 - 1
    found = lite0.extract(x, ["probabilities", "features"])
    torch.testing.assert_close(found["features"], headless(scaled), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found["probabilities"], whole(scaled).softmax(1), rtol=1e-3, atol=1e-6
    )
    assert lite0.outputs == {"features": 1280, "probabilities": 1000}


def test_lite0_in_bf16_gives_nearly_the_same_distance(lite0):
    """Digits against noisy digits; were all layers rounded, the distance would be off by 1%."""
    digits = torch.from_numpy(load_digits().images[:300] * (255 / 16)).to(torch.uint8)[:, None]
    noise = 25 * torch.randn(digits.shape, generator=torch.Generator().manual_seed(0))
    noisy = (digits + noise).clamp(0, 255).to(torch.uint8)
    rounding = build_features(protocol(precision="bf16"))

    def distance(network):
        return frechet_distance(*(Moments.of(network(x)) for x in (digits, noisy))).value

    assert not torch.equal(rounding(digits[:32]), lite0(digits[:32]))
    assert distance(rounding) == pytest.approx(distance(lite0), rel=1e-3)


def test_an_output_that_a_network_lacks(lite0):
    with pytest.raises(UserError, match="the protocol p needs spatial of efficientnet_lite0"):
        lite0.extract(images(1), ["spatial"])


def test_clean_resizing_is_clean_fids():
    """Against PIL itself; grey stays grey."""
    from PIL import Image

    for channels in (1, 3):
        x = images(2, channels=channels, side=9)
        found = clean_resize(x, 20, channels)
        assert found.shape == (2, channels, 20, 20) and found.dtype == torch.float32
        for image, made in zip(x.numpy(), found, strict=True):
            for before, after in zip(image, made, strict=True):
                expected = Image.fromarray(before.astype(np.float32), mode="F")
                expected = np.asarray(expected.resize((20, 20), Image.Resampling.BICUBIC))
                # Within rounding of 255, and PIL's rounding of what lies between its two passes.
                np.testing.assert_allclose(after, expected.clip(0, 255), rtol=0, atol=2e-4)
    assert found.min() == 0 and found.max() == 255


@pytest.mark.parametrize(("side", "size"), [(32, 299), (64, 299), (64, 20)])
def test_clean_resizing_is_clean_fids_own_up_and_down(side, size):
    torchvision_shim.apply()
    from cleanfid.resize import make_resizer

    resize = make_resizer("PIL", False, "bicubic", (size, size))
    x = images(3, channels=3, side=side)
    expected = np.stack([resize(image) for image in x.permute(0, 2, 3, 1).numpy()])
    found = clean_resize(x, size).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_protocol_that_resizes_cleanly(channels):
    network = Recorder()
    x = images(3, side=9)
    extractor(network, channels=channels, resize="clean", input_size=20)(x)
    assert network.fed[0].shape == (4, channels, 20, 20)
    assert torch.equal(network.fed[0][:3], clean_resize(x, 20, channels))


def test_lite0_knows_photographs():
    """The weights are in the right places: two photographs are what they show."""
    from sklearn.datasets import load_sample_images

    network = efficientnet_lite0.load_network(num_classes=1000)
    china, flower = (
        torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        for image in load_sample_images().images
    )

    def top(image):
        side = min(image.shape[-2:])
        y, x = ((n - side) // 2 for n in image.shape[-2:])
        square = image[:, :, y : y + side, x : x + side]
        small = F.interpolate(square, (224, 224), mode="bicubic", antialias=True)
        with torch.no_grad():
            return network(small.clamp(0, 255) / 127.5 - 1).topk(5).indices[0].tolist()

    # ImageNet classes: 442 bell cote, 663 monastery, 698 palace; 985 daisy.
    assert {442, 663, 698} & set(top(china)[:3])
    assert 985 in top(flower)[:3]


def test_lite0_maps_every_tensor_once():
    state = torch.load(efficientnet_lite0.weights_file(), weights_only=True)
    network = efficientnet_lite0.load_network(num_classes=1000)
    names = [efficientnet_lite0.timm_name(name) for name in state]
    assert len(set(names)) == len(names) == 296
    assert set(names) == set(network.state_dict())
    with pytest.raises(ValueError, match="unknown tensor"):
        efficientnet_lite0.timm_name("_blocks.3.weight")


def test_the_package_that_carries_weights_is_never_imported():
    code = (
        "import sys; from ctm_core.models.features import efficientnet_lite0 as e;"
        "e.load_network(); assert 'timm' in sys.modules;"
        "assert not [m for m in sys.modules if m.startswith('efficientnet')], 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_missing_package_is_one_sentence(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(UserError, match="install the Python package efficientnet-lite0"):
        build_features(protocol())


def test_a_package_without_its_file_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(UserError, match="lacks its file"):
        build_features(protocol())


def test_changed_weights_are_refused(monkeypatch, tmp_path):
    content = bytearray(efficientnet_lite0.weights_file().read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "weights.pth"
    path.write_bytes(bytes(content))
    monkeypatch.setattr(efficientnet_lite0, "weights_file", lambda: path)
    with pytest.raises(UserError, match="expected 579344248a93e230"):
        build_features(protocol())


def test_shim_lets_a_cpu_only_torch_import_torchvision():
    """In a process of its own: torch claims to have no CUDA, and the operators appear."""
    code = (
        "import torch; torch.version.cuda = None\n"
        "from ctm_core.models import torchvision_shim\n"
        "torchvision_shim.apply(); torchvision_shim.apply()\n"
        "assert torch.ops.torchvision.nms.default and torch.ops.torchvision.qnms.default\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_shim_does_nothing_when_torchvision_is_there(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setitem(sys.modules, "torchvision", sys)
    monkeypatch.setattr(torchvision_shim, "_library", None)
    torchvision_shim.apply()
    assert torchvision_shim._library is None
