"""Statistics that others publish: what is read of them, how they become a reference."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.external import write_list

from ctm_core.config.protocols import Protocol
from ctm_core.evaluation.metrics.published_statistics import read_published
from ctm_core.evaluation.metrics.reference import load_reference, write_reference
from ctm_core.models.features import build_features
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file

DIM = 64
DRAWN = np.random.default_rng(0)
FEATURES = DRAWN.normal(size=(200, DIM))
EDM = {"mu": FEATURES.mean(0), "sigma": np.cov(FEATURES.T)}
SPATIAL = {"mu_s": FEATURES[:, :3].mean(0), "sigma_s": np.cov(FEATURES[:, :3].T)}
IMAGES = DRAWN.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)


def written(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_statistics_as_edm_publishes_them(tmp_path: Path) -> None:
    found = read_published(written(tmp_path / "a.npz", **EDM), 200, images=True)
    assert found.moments.n == 200 and found.spatial is None and found.images is None
    torch.testing.assert_close(found.moments.covariance(), torch.from_numpy(EDM["sigma"]))
    assert torch.equal(found.moments.mean, torch.from_numpy(EDM["mu"]))


def test_statistics_as_adm_publishes_them(tmp_path: Path) -> None:
    """Single precision and images beside, the archive compressed."""
    path = tmp_path / "a.npz"
    single = {name: values.astype(np.float32) for name, values in (EDM | SPATIAL).items()}
    np.savez_compressed(path, arr_0=IMAGES, **single)
    found = read_published(path, 200, images=True)
    assert found.moments.mean.dtype == torch.float64
    assert found.spatial is not None and found.spatial.dim == 3
    torch.testing.assert_close(
        found.moments.covariance(), torch.from_numpy(EDM["sigma"]), rtol=1e-6, atol=1e-6
    )
    assert found.images is not None
    assert torch.equal(found.images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    assert read_published(path, 200).images is None


def bomb(path: Path) -> None:
    """A header of 2⁴⁰ numbers, of which the file has none."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**20)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mu.npy", header.getvalue())
        archive.writestr("sigma.npy", header.getvalue())


def objects(path: Path) -> None:
    np.savez(path, mu=np.array([{"a": 1}], dtype=object), sigma=EDM["sigma"])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: written(p, mu=EDM["mu"]), "the array 'sigma' is missing"),
        (lambda p: written(p, mu=EDM["mu"][:9], sigma=EDM["sigma"]), "a mean of 9 numbers has"),
        (lambda p: written(p, mu=EDM["mu"] * np.nan, sigma=EDM["sigma"]), "NaN or infinity"),
        (lambda p: written(p, **{n: v.astype(int) for n, v in EDM.items()}), "is int64 of shape"),
        (lambda p: written(p, **EDM, arr_0=IMAGES[0]), r"arr_0 is uint8 of shape \(8, 8, 3\)"),
        (lambda p: written(p, **EDM, arr_0=IMAGES[..., :1]), "its images are uint8 of shape"),
        (bomb, r"mu of .* is corrupt: its header announces float64 of shape"),
        (objects, "mu of .* holds Python objects"),
        (lambda p: p.write_bytes(b"PK\x03\x04 no archive"), "is not a zip file"),
        (lambda p: written(p, **EDM) and p.write_bytes(p.read_bytes()[:-9]), "not a zip file"),
    ],
)
def test_other_files_are_one_sentence(tmp_path: Path, make: Any, says: str) -> None:
    path = tmp_path / "a.npz"
    make(path)
    with pytest.raises(UserError, match=says) as caught:
        read_published(path, 200, images=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# -- as a protocol's reference ------------------------------------------------------------------


def protocol(**changes: Any) -> Protocol:
    base = {
        "name": "p",
        "features": "classifier_digits",
        "input_size": 8,
        "reference": {"asset": "edm-reference-cifar10", "images": 200, "resolution": 8},
        "samples": 8,
    }
    return Protocol.model_validate(base | changes)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = written(tmp_path / "cifar10-32x32.npz", **EDM)
    write_list(tmp_path, {"edm-reference-cifar10": path})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTM_ASSETS", str(tmp_path))
    return path


def test_a_published_file_as_reference(published: Path) -> None:
    made = published.parent / "p.safetensors"
    write_reference(made, protocol())
    reference = load_reference(made)
    assert reference.moments.n == 200 and reference.resolution == 8
    torch.testing.assert_close(reference.moments.covariance(), torch.from_numpy(EDM["sigma"]))
    assert reference.record()["reference"] == {
        "asset": "edm-reference-cifar10",
        "images": 200,
        "resolution": 8,
        "fingerprint": sha256_file(published),
        "n": 200,
    }


def test_what_the_file_must_hold(published: Path) -> None:
    made = published.parent / "p.safetensors"
    with pytest.raises(UserError, match=r"holds no images .* whose features kid"):
        write_reference(made, protocol(metrics=["fd", "kid"]))
    lite0 = {"features": "efficientnet_lite0", "input_size": 32, "resize": "bilinear"}
    with pytest.raises(UserError, match="statistics of 64 features, but efficientnet_lite0"):
        write_reference(made, protocol(**lite0))
    published.write_bytes(published.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"cifar10-32x32\.npz is not Inception statistics"):
        write_reference(made, protocol())
    published.unlink()
    with pytest.raises(UserError, match=r"EDM's protocol .* is missing: run"):
        write_reference(made, protocol())
    assert not made.exists()


def test_features_of_the_files_images(published: Path) -> None:
    lite0 = {"features": "efficientnet_lite0", "input_size": 32, "resize": "bilinear"}
    statistics = {"mu": np.zeros(1280), "sigma": np.eye(1280)}
    np.savez(published, arr_0=IMAGES, **statistics)
    write_list(published.parent, {"edm-reference-cifar10": published})
    wanted = protocol(**lite0, metrics=["kid"], neighbours={"rows": 12})
    made = published.parent / "p.safetensors"
    write_reference(made, wanted)
    expected = build_features(wanted)(torch.from_numpy(IMAGES[:12]).permute(0, 3, 1, 2))
    assert torch.equal(load_reference(made).state["features"], expected)
    wrong = {"reference": {"asset": "edm-reference-cifar10", "images": 200, "resolution": 32}}
    with pytest.raises(UserError, match="images of 8 pixels, but the protocol p says 32"):
        write_reference(made, protocol(**lite0, **wrong, metrics=["kid"]))
