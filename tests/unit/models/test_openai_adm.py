"""ADM in OpenAI's form: names, attention, the branches of both times, parameter counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_core.models.networks.embeddings import TimestepEmbedding
from ctm_core.models.networks.openai_adm import AttentionBlock, OpenAIADM, ResBlock
from ctm_core.runtime.errors import UserError

IMAGENET64: dict[str, Any] = {
    "resolution": 64,
    "channels": 3,
    "label_dim": 1000,
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
}
SIZES: dict[str, Any] = {
    "resolution": 8,
    "channels": 2,
    "label_dim": 3,
    "time_s": True,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_blocks": 2,
    "attn_resolutions": (4,),
    "num_head_channels": 16,
}


def small(**changes: Any) -> OpenAIADM:
    torch.manual_seed(0)
    network = OpenAIADM(**(SIZES | changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize(
    ("time_s", "parameters"),
    [(True, 324_100_611), (False, 295_899_267)],
    ids=["student", "teacher"],
)
def test_published_parameter_counts(time_s: bool, parameters: int) -> None:
    with torch.device("meta"):
        network = OpenAIADM(**IMAGENET64, time_s=time_s)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.output_weight is network.output_blocks[15][0].out_layers[3].weight
    assert network.output_weight.shape == (192, 192, 3, 3)
    assert network.label_emb.weight.shape == (1000, 768)


def layout(blocks: nn.ModuleList) -> list[str]:
    """One word a block: r residual, a attention, u up, d down, c convolution."""
    return [
        "".join(
            ("u" if layer.up else "d" if layer.down else "r")
            if isinstance(layer, ResBlock)
            else "a"
            if isinstance(layer, AttentionBlock)
            else "c"
            for layer in layers
        )
        for layers in blocks
    ]


def test_layout() -> None:
    network = small()
    assert layout(network.input_blocks) == ["c", "r", "r", "d", "ra", "ra"]
    assert "".join(layout(nn.ModuleList([network.middle_block]))) == "rar"
    assert layout(network.output_blocks) == ["ra", "ra", "rau", "r", "r", "r"]
    deeper = small(channel_mult=(1, 1, 2), num_blocks=1, attn_resolutions=(8, 2))
    assert layout(deeper.input_blocks) == ["c", "ra", "d", "r", "d", "ra"]
    assert layout(deeper.output_blocks) == ["ra", "rau", "r", "ru", "ra", "ra"]


def test_names_of_the_target_time() -> None:
    student, teacher = set(small().state_dict()), set(small(time_s=False).state_dict())
    added = student - teacher
    assert teacher < student
    assert all(name.startswith("time_embed_s.") or ".emb_layers_s.1." in name for name in added)
    twins = {name.replace("_s.", ".") for name in added}
    assert twins == {n for n in teacher if "time_embed." in n or ".emb_layers." in n}
    assert {"label_emb.weight", "out.0.weight", "out.2.bias", "time_embed.0.weight"} < teacher


@torch.no_grad()
def test_what_the_blocks_are_told() -> None:
    """The class goes to the branch of t alone; both times as 250 ln t."""
    network = small()
    heard: dict[str, Tensor] = {}
    block = network.middle_block[0]
    for name in ("emb_layers", "emb_layers_s"):
        getattr(block, name).register_forward_hook(
            lambda module, given, out, name=name: heard.update({name: given[0]})
        )
    t, s = torch.tensor([80.0, 2.0, 0.002]), torch.tensor([10.0, 2.0, 0.002])
    network(torch.randn(3, 2, 8, 8), t.log() / 4, s.log() / 4, torch.eye(3)[[2, 0, 1]])
    sinusoids = TimestepEmbedding(32)
    told = network.time_embed(sinusoids(250 * t.log())) + network.label_emb.weight[[2, 0, 1]]
    torch.testing.assert_close(heard["emb_layers"], told, rtol=1e-3, atol=1e-3)
    told_s = network.time_embed_s(sinusoids(250 * s.log()))
    torch.testing.assert_close(heard["emb_layers_s"], told_s, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "up", "down"])
def test_a_residual_block_written_out(kind: str) -> None:
    block = ResBlock(32, 64, 8, up=kind == "up", down=kind == "down", time_s=True)
    for parameter in block.parameters():
        parameter.normal_(std=0.3)
    x, emb, emb_s = torch.randn(2, 32, 4, 4), torch.randn(2, 8), torch.randn(2, 8)
    silu = functional.silu
    change = {
        "plain": lambda z: z,
        "up": lambda z: z.repeat_interleave(2, 2).repeat_interleave(2, 3),
        "down": lambda z: z.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5)),
    }[kind]
    h = block.in_layers[2](change(silu(block.in_layers[0](x))))
    told = block.emb_layers[1](silu(emb)) + block.emb_layers_s[1](silu(emb_s))
    scale, shift = told[:, :64, None, None], told[:, 64:, None, None]
    h = block.out_layers[3](silu(block.out_layers[0](h) * (1 + scale) + shift))
    expected = block.skip_connection(change(x)) + h
    torch.testing.assert_close(block(x, emb, emb_s), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_attention_reads_all_queries_then_keys_then_values() -> None:
    """Against a loop over heads and places."""
    block = AttentionBlock(32, heads=4).double()
    for parameter in block.parameters():
        parameter.normal_()
    x = torch.randn(2, 32, 2, 3, dtype=torch.float64)
    q, k, v = block.qkv(block.norm(x)).reshape(2, 3, 4, 8, 6).unbind(1)
    mixed = torch.zeros(2, 4, 8, 6, dtype=torch.float64)
    for b in range(2):
        for head in range(4):
            for place in range(6):
                scores = (q[b, head, :, place, None] * k[b, head]).sum(0) / 8**0.5
                mixed[b, head, :, place] = (torch.softmax(scores, 0) * v[b, head]).sum(1)
    expected = x + block.proj_out(mixed.reshape(2, 32, 2, 3))
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_heads_by_channels_or_by_number() -> None:
    def heads(**sizes: Any) -> set[int]:
        network = OpenAIADM(**(SIZES | {"attn_resolutions": (8, 4)} | sizes))
        return {m.heads for m in network.modules() if isinstance(m, AttentionBlock)}

    assert heads() == {2, 4}  # 32 and 64 channels, 16 a head
    assert heads(num_heads=8) == {8}
    assert heads(num_head_channels=64, model_channels=64) == {1, 2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_head_channels": 48}, "64 channels cannot be split into heads of 48"),
        ({"num_heads": 5}, "64 channels cannot be split into 5 equal"),
        ({"resolution": 6, "channel_mult": (1, 1, 1)}, "multiple of 4"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        small(**changes)


@torch.no_grad()
def test_the_target_time_enters_and_must_be_given() -> None:
    network = small()
    x, c = torch.randn(3, 2, 8, 8), torch.linspace(-1.5, 1, 3)
    assert (network(x, c, c - 0.1) - network(x, c, c)).abs().max() > 1e-3
    with pytest.raises(UserError, match="needs the target time"):
        network(x, c)
    with pytest.raises(UserError, match="without a target time"):
        small(time_s=False)(x, c, c)
    with pytest.raises(UserError, match="takes no augmentation labels"):
        network(x, c, c, augment_labels=torch.zeros(3, 9))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    network = OpenAIADM(**SIZES)
    for name, module in network.named_modules():
        if name.endswith(("out_layers.3", "proj_out", "out.2")):
            assert not any(p.any() for p in module.parameters()), name
        elif isinstance(module, nn.Conv2d | nn.Linear):  # those of s too
            bound = module.weight[0].numel() ** -0.5
            assert 0.7 * bound < float(module.weight.detach().abs().max()) <= bound, name
            assert module.bias.any(), name
    assert 0.8 < float(network.label_emb.weight.detach().std()) < 1.2
    with torch.no_grad():  # so it starts as the zero map
        c = torch.zeros(2)
        assert not network(torch.randn(2, 2, 8, 8), c, c).any()
