"""ctm_core.models.networks: what holds for every architecture."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ctm_core.config import Network
from ctm_core.config.network import architectures, with_target_time
from ctm_core.models.networks import RawNetwork, build
from ctm_core.runtime.errors import UserError

#: What small networks of 8x8 images need beside the sizes below.
SECTIONS: dict[str, dict[str, Any]] = {"openai_adm": {"num_head_channels": 16}}

KINDS = [(name, False) for name in architectures()] + [(name, True) for name in with_target_time()]
every = pytest.mark.parametrize(("architecture", "time_s"), KINDS)


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(3, 1, 8, 8, generator=generator)
    return x, torch.linspace(-1.5, 1, 3), torch.linspace(-1.6, 0.5, 3)


def section_of(architecture: str, **changes: Any) -> Network:
    sizes = {
        "model_channels": 32,
        "channel_mult": (1, 2),
        "num_blocks": 1,
        "attn_resolutions": (4,),
    }
    own = SECTIONS.get(architecture, {})
    return Network(architecture=architecture, **(sizes | own | changes))


def stirred(architecture: str, time_s: bool, label_dim: int = 3, **changes: Any) -> RawNetwork:
    """A small network without zeros, so that every part has its say."""
    torch.manual_seed(0)
    network = build(
        section_of(architecture, **changes),
        resolution=8,
        channels=1,
        label_dim=label_dim,
        time_s=time_s,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


def arguments(time_s: bool, dtype: torch.dtype = torch.float32) -> list[torch.Tensor | None]:
    x, c, c_s = (value.to(dtype) for value in inputs())
    return [x, c, c_s if time_s else None, torch.eye(3, dtype=dtype)]


def test_architectures_are_the_modules_with_traits() -> None:
    variants = ["ddpmpp", "ddpmpp_imm", "ddpmpp_meanflow"]
    assert list(architectures()) == ["adm", *variants, "ncsnpp", "openai_adm"]
    keys = {key for traits in architectures().values() for key in traits.keys}
    assert keys < set(Network.model_fields)


@every
def test_every_parameter_gets_a_gradient(architecture: str, time_s: bool) -> None:
    network = stirred(architecture, time_s)
    out = network(*arguments(time_s))
    assert out.shape == (3, 1, 8, 8) and out.dtype == torch.float32
    out.square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    assert any(parameter is network.output_weight for parameter in network.parameters())


@every
def test_the_output_weight_needs_only_the_end_of_the_graph(
    architecture: str, time_s: bool
) -> None:
    """Adaptive weights pull a gradient from F back to it; the same as by a whole backward."""
    network = stirred(architecture, time_s)
    raw = network(*arguments(time_s))
    delta = torch.randn(raw.shape, generator=torch.Generator().manual_seed(3))
    (early,) = torch.autograd.grad(raw, network.output_weight, delta, retain_graph=True)
    raw.backward(delta)
    torch.testing.assert_close(early, network.output_weight.grad)


@every
@torch.no_grad()
def test_labels_matter_and_none_are_zeros(architecture: str, time_s: bool) -> None:
    network = stirred(architecture, time_s)
    x, c, c_s, labels = arguments(time_s)
    none = network(x, c, c_s)
    torch.testing.assert_close(none, network(x, c, c_s, torch.zeros(3, 3)))
    told, other = network(x, c, c_s, labels), network(x, c, c_s, labels.roll(1, 0))
    for row in range(3):
        assert (told - none)[row].abs().max() > 1e-4
        assert (told - other)[row].abs().max() > 1e-4


@every
@torch.no_grad()
def test_layouts_precisions_and_batches_agree(architecture: str, time_s: bool) -> None:
    network = stirred(architecture, time_s)
    told = arguments(time_s)
    exact = copy.deepcopy(network).double()(*arguments(time_s, torch.float64))
    single = network(*told)
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-4)
    for row in range(3):
        alone = network(*(None if v is None else v[row : row + 1] for v in told))
        torch.testing.assert_close(alone, single[row : row + 1], rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(*told).double()
    assert 0 < (rough - exact).norm() / exact.norm() < 0.1
    network = network.to(memory_format=torch.channels_last)
    told[0] = told[0].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(*told), single, rtol=1e-4, atol=1e-5)


@every
@torch.no_grad()
def test_dropout_is_active_in_train_mode_only(architecture: str, time_s: bool) -> None:
    network = stirred(architecture, time_s, dropout=0.5)
    told = arguments(time_s)
    torch.manual_seed(0)
    assert not torch.equal(network(*told), network(*told))
    network.eval()
    assert torch.equal(network(*told), network(*told))
    torch.testing.assert_close(network(*told), stirred(architecture, time_s)(*told))


@every
def test_a_network_on_the_meta_device_takes_the_tensors_of_a_file(
    architecture: str, time_s: bool
) -> None:
    network = stirred(architecture, time_s)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    with torch.device("meta"):
        empty = build(
            section_of(architecture), resolution=8, channels=1, label_dim=3, time_s=time_s
        )
    assert torch.equal(torch.get_rng_state(), state)
    empty.load_state_dict(network.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(empty(*arguments(time_s)), network(*arguments(time_s)))


@every
def test_weights_follow_the_global_generator(architecture: str, time_s: bool) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        network = build(
            section_of(architecture), resolution=8, channels=1, label_dim=3, time_s=time_s
        )
        return network.state_dict()

    first, second, other = state(1), state(1), state(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("architecture", ["ncsnpp", "adm"])
def test_only_two_architectures_know_the_target_time(architecture: str) -> None:
    with pytest.raises(UserError, match=f"{architecture} has no target time s"):
        build(section_of(architecture), resolution=8, channels=1, time_s=True)
    x, c, c_s = inputs()
    with pytest.raises(UserError, match="without a target time"):
        stirred(architecture, False)(x, c, c_s)


@pytest.mark.parametrize("architecture", architectures())
def test_impossible_sides_are_refused_by_all(architecture: str) -> None:
    with pytest.raises(UserError, match="9x9 cannot be halved for 2 levels"):
        build(section_of(architecture), resolution=9, channels=1, time_s=False)


@pytest.mark.parametrize("architecture", sorted({*with_target_time()} - {"ddpmpp_meanflow"}))
def test_layers_of_s_that_are_zero_leave_the_teacher(architecture: str) -> None:
    teacher, student = stirred(architecture, False), stirred(architecture, True)
    student.load_state_dict(teacher.state_dict(), strict=False)
    x, c, c_s, *labels = arguments(True)
    assert not torch.allclose(student(x, c, c_s, *labels), teacher(x, c, None, *labels))
    student.zero_target_time()
    assert torch.equal(student(x, c, c_s, *labels), teacher(x, c, None, *labels))
    # They still learn: what leads to them is not zero.
    student(x, c, c_s, *labels).square().sum().backward()
    zero = [p for p in student.parameters() if not p.any()]
    assert zero and all(p.grad is not None and bool(p.grad.any()) for p in zero)


@every
def test_sizes_change_the_network(architecture: str, time_s: bool) -> None:
    """Other widths, depths and sides of attention are built and run."""
    for changes in (
        {"num_blocks": 2},
        {"channel_mult": (2, 1, 1), "attn_resolutions": (8, 2)},
        {"channel_mult": (1,), "attn_resolutions": ()},
    ):
        network = stirred(architecture, time_s, **changes)
        assert network(*arguments(time_s)).shape == (3, 1, 8, 8)
