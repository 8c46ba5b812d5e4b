"""Configurations of whole experiments that a benchmark can afford."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from scoring import photographs

from ctm_core.config import read_yaml
from ctm_core.config.project import ROOT, protocol_file

__all__ = ["drawn", "hour", "smoke"]

EXPERIMENTS = ROOT / "config/experiments"


def smoke(folder: Path, *, tiny: bool) -> Path:
    """The smoke experiment, with ``tiny`` cut down to two trainings of four steps."""
    described = read_yaml(EXPERIMENTS / "smoke.yaml")
    if tiny:
        short = {"steps": 4, "checkpoint_every": 2, "snapshots": [], "preview_every": 0}
        short["log_every"] = 1
        described["models"] = {"ctm": described["models"]["ctm"]}
        for section in (described["teacher"], described["models"]["ctm"]):
            section["training"] |= short
        described["evaluation"] |= {
            "sample_seeds": [0],
            "samplers": {
                "teacher": [{"sampler": "heun", "nfe": [3]}],
                "ctm": [{"sampler": "gamma", "nfe": [1], "gamma": [0]}],
            },
            "protocols": {"desk-smoke": "all"},
            "likelihood": None,
        }
    file = folder / "smoke.yaml"
    file.write_text(yaml.safe_dump(described), encoding="utf-8")
    return file


def hour(folder: Path, *, scale: float, samples: int, tiny: bool) -> Path:
    """The photographs of cifar10-hour at a scale, scored with so many samples by Lite0.

    With ``tiny`` the pictures are drawn, and every number is small.
    """
    described: dict[str, Any] = read_yaml(EXPERIMENTS / "cifar10-hour.yaml") | {"scale": scale}
    name = f"photographs-lite0-{samples}"
    protocol = read_yaml(protocol_file("photographs-lite0")) | {"name": name, "samples": samples}
    del described["resources"], described["evaluation"]["optional"]
    described["evaluation"]["protocols"] = {name: "all"}
    if tiny:
        _shrink(described)
        described["dataset"]["source"] = str(drawn(folder / "photographs"))
        protocol["input_size"] = 32
    place = folder / "hour/config/protocols"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.yaml").write_text(yaml.safe_dump(protocol), encoding="utf-8")
    file = folder / "hour.yaml"
    file.write_text(yaml.safe_dump(described), encoding="utf-8")
    return file


def _shrink(described: dict[str, Any]) -> None:
    """A network, batches and cells for a rehearsal."""
    small = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    described["network"] |= small
    discriminator = {"backbones": ["tiny"], "resolution": 64, "width": 4}
    described["models"]["ctm_gan"]["adversarial"]["discriminator"] = discriminator
    short = {"batch_size": 4, "precision": "fp32", "channels_last": False}
    short |= {"preview_every": 0, "checkpoint_every": 10**6}
    for section in (described["teacher"], *described["models"].values()):
        section["training"] |= short
    one = {name: [grids[0] | {"nfe": grids[0]["nfe"][:1]}]
           for name, grids in described["evaluation"]["samplers"].items()}  # fmt: skip
    described["evaluation"] |= {"sample_seeds": [0], "batch_size": 8, "samplers": one}
    described["threads"] = 1


def drawn(folder: Path) -> Path:
    """A dozen pictures of each of two classes."""
    for i, picture in enumerate(photographs(24, "hour").permute(0, 2, 3, 1).numpy()):
        file = folder / str(i % 2) / f"{i:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    return folder
