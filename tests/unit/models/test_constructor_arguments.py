"""Constructor arguments of the published networks, in our terms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ctm_core.config import Network
from ctm_core.config.network import architectures
from ctm_core.models import networks
from ctm_core.models.networks.constructor_arguments import from_arguments
from ctm_core.runtime.errors import UserError

#: EDM's CIFAR-10 teacher, as its pickle carries the arguments.
CIFAR = {
    "img_resolution": 32,
    "img_channels": 3,
    "label_dim": 10,
    "model_type": "SongUNet",
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "augment_dim": 9,
    "dropout": 0.13,
    "use_fp16": False,
}

#: OpenAI's ImageNet-64 network.
IMAGENET = {
    "image_size": 64,
    "in_channels": 3,
    "model_channels": 192,
    "out_channels": 3,
    "num_res_blocks": 3,
    "attention_resolutions": (2, 4, 8),
    "dropout": 0.0,
    "channel_mult": (1, 2, 3, 4),
    "num_classes": 1000,
    "num_heads": 4,
    "num_head_channels": 64,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}


def count(arguments: dict[str, Any], *, time_s: bool = False) -> int:
    network, resolution, channels, label_dim = from_arguments(arguments)
    with torch.device("meta"):
        net = networks.build(
            network, resolution=resolution, channels=channels, label_dim=label_dim, time_s=time_s
        )
    return sum(p.numel() for p in net.parameters())


def test_edm_cifar() -> None:
    section = Network(dropout=0.13, augment_dim=9)
    assert from_arguments(CIFAR) == (section, 32, 3, 10)
    assert count(CIFAR | {"label_dim": 0}) == 55_733_891
    assert count(CIFAR, time_s=True) == 60_396_675  # the student has no augmentation map


def test_edm_ncsnpp() -> None:
    changes = {
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
        "channel_mult_emb": 3,
    }
    network = from_arguments(CIFAR | changes).network
    assert (network.architecture, network.resample_filter) == ("ncsnpp", None)
    assert network.channel_mult_emb == 3
    other = from_arguments(CIFAR | changes | {"resample_filter": [1, 1]}).network
    assert other.resample_filter == (1, 1)


def test_edm_adm_takes_the_published_defaults() -> None:
    arguments = {"img_resolution": 64, "img_channels": 3, "label_dim": 1000}
    found = from_arguments(arguments | {"model_type": "DhariwalUNet"})
    assert found == from_arguments(arguments)
    assert found.network.architecture == "adm"
    assert found.network.attn_resolutions == (32, 16, 8)
    assert count(arguments) == 295_899_267


def test_openai_factors_become_sides() -> None:
    network, resolution, channels, label_dim = from_arguments(IMAGENET)
    assert network.attn_resolutions == (32, 16, 8)
    assert (resolution, channels, label_dim) == (64, 3, 1000)
    assert (network.num_heads, network.num_head_channels) == (None, None)  # 64 a head is ours too
    assert count(IMAGENET, time_s=True) == 324_100_611
    assert from_arguments(IMAGENET | {"num_classes": None}).label_dim == 0
    factors = from_arguments(IMAGENET | {"attention_resolutions": [1, 3, 64]}).network
    assert factors.attn_resolutions == (64, 1)  # 3 divides no side


def test_networks_of_released_imm_and_meanflow() -> None:
    imm = from_arguments(CIFAR | {"s_embed": True}).network
    assert (imm.architecture, imm.resample_filter) == ("ddpmpp_imm", None)
    own = {"in_channels": 3, "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]}
    meanflow = from_arguments(CIFAR | own).network
    assert (meanflow.architecture, meanflow.resample_filter) == ("ddpmpp_meanflow", None)


@pytest.mark.parametrize(
    ("per_head", "expected"), [(32, (None, 32)), (-1, (4, None)), (None, (4, None))]
)
def test_openai_heads(per_head: int | None, expected: tuple[int | None, int | None]) -> None:
    network = from_arguments(IMAGENET | {"num_head_channels": per_head}).network
    assert (network.num_heads, network.num_head_channels) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "neither EDM's img_resolution nor OpenAI's image_size"),
        (CIFAR | {"model_type": "VGG"}, "model_type 'VGG'"),
        (CIFAR | {"decoder_type": "skip"}, "decoder_type = 'skip'"),
        (CIFAR | {"encoder_type": "residual"}, "encoder_type = 'residual'"),
        (CIFAR | {"embedding_type": "learned"}, "embedding_type 'learned'"),
        (CIFAR | {"embedding_type": "fourier"}, "encoder_type = 'standard'"),
        (CIFAR | {"channel_mult_noise": 2}, "channel_mult_noise = 2"),
        (CIFAR | {"model_channels": 10}, "model_channels must be a multiple of 4"),
        (IMAGENET | {"resblock_updown": False}, "resblock_updown = False"),
        (IMAGENET | {"use_scale_shift_norm": False}, "use_scale_shift_norm = False"),
        (IMAGENET | {"out_channels": 6}, "out_channels differ"),
        (IMAGENET | {"num_head_channels": -1, "num_heads_upsample": 2}, "heads_upsample = 2"),
        (IMAGENET | {"model_channels": 48}, "multiple of 32 channels"),
        ({"image_size": 64, "use_scale_shift_norm": True, "resblock_updown": True}, "lack in_ch"),
    ],
)
def test_other_networks_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_arguments(arguments)


def test_the_published_sizes_in_the_docs() -> None:
    text = (Path(__file__).parents[3] / "docs" / "networks.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.S)
    cifar, imagenet = (Network(**yaml.safe_load(block)["network"]) for block in blocks)
    assert from_arguments(CIFAR).network == cifar
    assert from_arguments(IMAGENET).network == imagenet.model_copy(
        update={"num_head_channels": None}  # 64 is what null means
    )
    for name, traits in architectures().items():
        (row,) = re.findall(rf"^\| `{name}` .*\|$", text, flags=re.M)
        own = re.findall(r"`(\w+)`", row.rsplit("|", 2)[1])
        assert own == [*traits.keys]
        assert (row.split("|")[3].strip() == "yes") == traits.time_s
