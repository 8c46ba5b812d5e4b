"""Where converted weights come from: what their provenance file and model card say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.foreign import edm_kwargs

from ctm_core.data import assets
from ctm_core.data.assets import Asset
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import foreign, weight_file
from ctm_core.runtime.files import read_json, read_metadata, sha256_file


def test_provenance(edm: tuple[Path, Trajectory, Path], tmp_path: Path) -> None:
    path, made, _ = edm
    document = foreign.convert(path, tmp_path, url="https://example.org/x", licence="mine")
    assert document == read_json(tmp_path / "provenance.json")
    weights = tmp_path / "weights.safetensors"
    assert document["source"] | {"bytes": path.stat().st_size} == document["source"]
    assert document["source"]["sha256"] == sha256_file(path)
    assert document["weights"]["sha256"] == sha256_file(weights)
    assert document["source"]["url"] == "https://example.org/x"
    assert document["source"]["licence"] == "mine"
    assert document["constructor"]["class"] == "EDMPrecond"
    assert document["constructor"]["arguments"] == edm_kwargs(made, augment_dim=9)
    assert document["parameters"] == sum(p.numel() for p in made.parameters())
    assert {"converter", "date", "torch", "kind", "format"} <= document.keys()
    card = read_metadata(weights)["card"]
    for fact in (path.name, sha256_file(path), "mine", "https://example.org/x", "10 classes"):
        assert fact in card
    assert "https://example.org/x" in json.dumps(weight_file.read_record(weights)["imported"])


def known(path: Path, **facts: Any) -> dict[str, Asset]:
    asset = {
        "name": "known",
        "title": "A known file",
        "kind": "file",
        "file": path.name,
        "urls": ["https://example.org/known"],
        "format": "pickle",
        "licence": "of the list",
    }
    return {"known": Asset.model_validate(asset | facts)}


def test_known_files(
    edm: tuple[Path, Trajectory, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = edm[0]
    digest = sha256_file(path)

    def source(**facts: Any) -> tuple[Any, ...]:
        monkeypatch.setattr(assets, "load", lambda: known(path, **facts))
        found = foreign.convert(path, tmp_path)["source"]
        return tuple(found[key] for key in ("url", "url_from", "licence_from", "known_hash"))

    url = "https://example.org/known"
    published = {"hash_from": "a test"}
    of_hash = {"file": "other.pkl", "hash": f"sha256:{digest[:16]}"} | published
    assert source(**of_hash) == (url, "hash", "hash", True)
    assert source() == (url, "file name", "file name", None)
    assert not caplog.records
    assert source(hash=f"sha256:{'0' * 64}", **published) == (url, "file name", "file name", False)
    assert "has the name of a known file (A known file) but not its SHA-256" in caplog.text
    assert source(file="other.pkl") == (None, None, "kind", None)
