"""Keys of a network: which architectures have them, and what is recorded."""

from __future__ import annotations

from typing import Any

import pytest

from ctm_core import config
from ctm_core.runtime.errors import UserError


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"architecture": "adm", "resample_filter": [1, 1]}, "adm has no resample_filter"),
        ({"architecture": "openai_adm", "augment_dim": 9}, "openai_adm has no augment_dim"),
        ({"architecture": "openai_adm", "channel_mult_emb": 4}, "has no channel_mult_emb"),
        (
            {"architecture": "openai_adm", "num_heads": 4, "num_head_channels": 8},
            "give num_heads or num_head_channels, not both",
        ),
        (
            {"architecture": "openai_adm", "model_channels": 48, "channel_mult": [2, 1]},
            "not 48 (model_channels * channel_mult)",
        ),
    ],
)
def test_keys_of_other_architectures(section: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as error:
        config.validated(config.Network, section, "x.yaml")
    assert expected in str(error.value)


def test_a_network_records_only_what_was_given() -> None:
    # Keys that another architecture gains must not move the hashes of runs that do not use them.
    assert set(config.Network().model_dump(mode="json")) == {
        *("architecture", "model_channels", "channel_mult", "num_blocks"),
        *("attn_resolutions", "dropout"),
    }
    network = config.Network(architecture="openai_adm", num_heads=2)
    assert config.Network.model_validate(network.model_dump(mode="json")) == network
    assert network.model_dump()["num_heads"] == 2
