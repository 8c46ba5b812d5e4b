"""ctm_core.evaluation.likelihood on networks, weight files and through the command.

Values against closed forms stand in tests/ground_truth/test_exact_likelihood.py.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.tiny import Ctm, Trained
from torch import Tensor, nn

from ctm_core.data.dataset import Dataset
from ctm_core.diffusion import randomness
from ctm_core.evaluation.likelihood import LikelihoodProtocol, measure, published_protocol
from ctm_core.evaluation.likelihood.bits import (
    DEQUANTISATION_BITS,
    bits_per_dim,
    dequantise,
    prior_mismatch,
)
from ctm_core.evaluation.likelihood.ode import (
    denoise_and_trace,
    log_density,
    normal_log_density,
    signs,
)
from ctm_core.models import weight_file
from ctm_core.models.generation import Generator
from ctm_core.runtime.errors import UserError


@pytest.fixture
def generator(student: Trained) -> Generator:
    return Generator.from_file(student.weights)


# -- parts --------------------------------------------------------------------------------------


def test_dequantised_levels_lie_around_what_networks_see() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
    middle = dequantise(levels, torch.full((256, 1, 1, 1), 0.5))
    assert middle.dtype == torch.float64
    torch.testing.assert_close(middle, levels.double() / 127.5 - 1, rtol=0, atol=1e-15)
    low = dequantise(levels, torch.zeros(256, 1, 1, 1))
    torch.testing.assert_close(low[1:], low[:-1] + 1 / 127.5, rtol=0, atol=1e-15)
    assert float(low[0]) == pytest.approx(-1 - 1 / 255)


def test_bits() -> None:
    """A density of one over a level's width gives 0 bits, half of it one bit."""
    width = 1 / 127.5
    nats = 3 * torch.tensor([1 / width, 0.5 / width], dtype=torch.float64).log()
    torch.testing.assert_close(bits_per_dim(nats, 3), torch.tensor([0.0, 1.0]).double())
    assert pytest.approx(6.994353) == DEQUANTISATION_BITS
    assert bits_per_dim(torch.zeros(1), 3, 7.0).tolist() == [7.0]
    x = torch.ones(2, 1, 4, 4)
    assert prior_mismatch(x, 80.0) == pytest.approx(1 / (2 * 6400 * math.log(2)))


def test_normal_density() -> None:
    x = torch.randn(5, 1, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    law = torch.distributions.Normal(0.0, 80.0)
    torch.testing.assert_close(normal_log_density(x, 80.0), law.log_prob(x).flatten(1).sum(1))


def test_signs_belong_to_the_image() -> None:
    whole = signs(3, "probes", [4, 9, 2], 2, (1, 3, 3))
    assert whole.shape == (2, 3, 1, 3, 3)
    assert set(whole.flatten().tolist()) == {-1.0, 1.0}
    assert torch.equal(signs(3, "probes", [9], 2, (1, 3, 3)), whole[:, 1:2])
    assert torch.equal(signs(3, "probes", [4, 9, 2], 1, (1, 3, 3)), whole[:1])
    many = signs(0, "probes", list(range(2000)), 1, (1, 2, 2)).flatten()
    assert abs(float(many.mean())) < 4 / 8000**0.5


@pytest.fixture(scope="module")
def wavy() -> nn.Module:
    """A small nonlinear denoiser, the same in every run."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 2, 3, padding=1))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_trace_against_the_whole_jacobian(wavy: nn.Module, count: int) -> None:
    network = wavy.double()
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    probes = signs(0, "probes", list(range(4)), count, (2, 3, 3)) if count else None
    denoised, trace = denoise_and_trace(lambda z, t: network(z), x, torch.tensor(1.0), probes)
    assert torch.equal(denoised, network(x).detach()) and not trace.requires_grad
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda z: network(z[None])[0], x[i])
        matrix = jacobian.reshape(18, 18)
        if probes is None:
            expected = matrix.trace()
        else:
            vectors = probes[:, i].flatten(1)
            expected = torch.einsum("pi,ij,pj->p", vectors, matrix, vectors).mean()
        torch.testing.assert_close(trace[i], expected)
    assert all(p.grad is None for p in network.parameters())


def test_density_of_a_learned_map_against_the_determinant(wavy: nn.Module) -> None:
    """Against log |det| of the whole flow, solved and differentiated here."""
    network = wavy.double()

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return 0.25 * x / (0.25 + t**2) + 0.3 * t / (1 + t**2) * network(x / (1 + t))

    x = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(2)).double() / 2
    low, high, steps = 0.1, 5.0, 400

    def flow(start: Tensor) -> Tensor:
        """Classical Runge-Kutta over ln t."""
        z = start
        grid = torch.linspace(math.log(low), math.log(high), steps + 1, dtype=torch.float64)
        h = grid[1] - grid[0]

        def slope(z: Tensor, tau: Tensor) -> Tensor:
            return z - denoise(z, tau.exp())

        for tau in grid[:-1]:
            k1 = slope(z, tau)
            k2 = slope(z + h / 2 * k1, tau + h / 2)
            k3 = slope(z + h / 2 * k2, tau + h / 2)
            k4 = slope(z + h * k3, tau + h)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return z

    jacobian = torch.autograd.functional.jacobian(flow, x).reshape(8, 8)
    end = flow(x).detach()
    expected = normal_log_density(end, high) + torch.linalg.slogdet(jacobian).logabsdet
    made = log_density(denoise, x, sigma_min=low, sigma_max=high, tolerance=1e-9)
    torch.testing.assert_close(made.log_density, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(made.end, end, rtol=0, atol=1e-6)


def test_a_denoiser_that_breaks() -> None:
    x = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    with pytest.raises(UserError, match="NaN or infinite along the ODE"):
        log_density(lambda z, t: z * torch.nan, x)


# -- models and data ----------------------------------------------------------------------------


def test_students_and_teachers(generator: Generator, teacher: Trained, digits: Dataset) -> None:
    values = {}
    for name, model in (("ctm", generator), ("teacher", Generator.from_file(teacher.weights))):
        made = measure(model, digits, count=6)
        values[name] = made.bits
        assert made.bits.shape == (6,) and bool(torch.isfinite(made.bits).all())
        assert made.evaluations[0] > 20
        assert not model.model.training
    assert not torch.equal(values["ctm"], values["teacher"])
    order = torch.from_numpy(randomness.permutation(0, "likelihood images", 0, len(digits)))
    assert torch.equal(measure(generator, digits, count=3).indices, order[:3])


def test_probes_estimate_the_exact_trace(generator: Generator, digits: Dataset) -> None:
    exact, near, far = (
        measure(
            generator, digits, count=4, protocol=LikelihoodProtocol(probes=n, tolerance=1e-3)
        ).bits
        for n in (0, 24, 1)
    )
    near, far = near - exact, far - exact
    # Its deviation falls as 1/√24; half of that fall is asked of four images.
    assert float(near.abs().mean()) < 0.4 * float(far.abs().mean())
    assert float(near.abs().max()) < 0.02


def test_labels_are_the_images_own(
    generator: Generator, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor] = []
    denoise = generator.model.denoise

    def spy(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        given.append(y)
        return denoise(x, t, y)

    monkeypatch.setattr(generator.model, "denoise", spy)
    made = measure(generator, digits, count=5)
    assert all(torch.equal(y, digits.batch(made.indices)[1]) for y in given)


def test_published_protocol_runs_in_train_mode_and_leaves_no_trace(
    generator: Generator, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny student drops out; its mode and torch's generator are as before, also on errors."""
    protocol = LikelihoodProtocol(published=True)
    modes: list[bool] = []
    hook = generator.model.model.register_forward_pre_hook(
        lambda module, given: modes.append(module.training)
    )
    state = torch.get_rng_state()
    first = measure(generator, digits, count=3, protocol=protocol)
    hook.remove()
    assert modes and all(modes)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in generator.model.modules())
    torch.manual_seed(99)  # the masks are our own
    again = measure(generator, digits, count=3, protocol=protocol)
    assert torch.equal(first.bits, again.bits)

    def fail(*_: Any, **__: Any) -> None:
        raise UserError("no")

    monkeypatch.setattr(published_protocol, "log_density", fail)
    with pytest.raises(UserError, match="no"):
        measure(generator, digits, count=3, protocol=protocol)
    assert not any(module.training for module in generator.model.modules())
    assert len(generator.model.model._forward_pre_hooks) == 0


def test_dropout_moves_the_published_number(generator: Generator, digits: Dataset) -> None:
    """The same network without dropout gives another value under the published protocol."""
    protocol = LikelihoodProtocol(published=True)
    with_dropout = measure(generator, digits, count=4, protocol=protocol)
    for module in generator.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    without = measure(generator, digits, count=4, protocol=protocol)
    assert not torch.equal(with_dropout.bits, without.bits)
    # And ours never saw any.
    ours = measure(generator, digits, count=4)
    fresh = measure(generator, digits, count=4)
    assert torch.equal(ours.bits, fresh.bits)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"residual": "some"}, "unknown residual 'some'; allowed: none, reconstruction"),
        ({"published": True, "reading": "mine"}, "unknown reading 'mine'; allowed: own_noise"),
        ({"probes": -1}, "must not be negative"),
        ({"tolerance": 0.0}, "must be positive"),
        ({"published": True, "probes": 4}, "fixes probes, residual and tolerance"),
        ({"published": True, "residual": "reconstruction"}, "fixes probes"),
        ({"reading": "consistent"}, "belongs to the published protocol"),
    ],
)
def test_choices_that_are_none(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        LikelihoodProtocol(**options)


def test_what_does_not_fit(generator: Generator, digits: Dataset, tmp_path: Path) -> None:
    for count in (0, len(digits) + 1):
        with pytest.raises(UserError, match=f"holds 1797 images, not {count}"):
            measure(generator, digits, count=count)
    other = Dataset(tmp_path, digits.images, digits.labels, digits.manifest | {"name": "fashion"})
    with pytest.raises(UserError, match=r"knows the classes of digits, and .* holds fashion"):
        measure(generator, other, count=1)
    cut = Dataset(tmp_path, digits.images[:, :, :7, :7], digits.labels, digits.manifest)
    with pytest.raises(UserError, match=r"shape \(1, 7, 7\).* shape \(1, 8, 8\)"):
        measure(generator, cut, count=1)


def test_a_model_without_a_denoiser(generator: Generator, digits: Dataset) -> None:
    final_only = Generator(copy.copy(generator.model), generator.record)
    final_only.model.end = 0.002
    with pytest.raises(UserError, match="no denoiser and no likelihood; take a teacher"):
        measure(final_only, digits, count=1)


# -- the command --------------------------------------------------------------------------------


def test_likelihood_through_the_command(
    ctm: Ctm, student: Trained, digits: Dataset, tmp_path: Path
) -> None:
    output = tmp_path / "a" / "likelihood.json"
    words = ["likelihood", student.weights, "--data", digits.path, "-n", "5"]
    ended = ctm(*words, "--output", output)
    assert ended.code == 0, ended
    record = json.loads(output.read_text())
    value, error = record["bits_per_dim"], record["standard_error"]
    assert ended.stdout == f"{output}: {value:.4f} ± {error:.4f} bits/dim\n"
    assert record["protocol"]["name"] == "dequantised" and record["protocol"]["residual"] == "none"
    assert record["protocol"]["mode"] == "eval"
    assert record["n"] == 5 and len(record["images"]) == 5
    singles = torch.tensor(
        [image["bits_per_dim"] for image in record["images"]], dtype=torch.float64
    )
    assert value == pytest.approx(float(singles.mean()))
    assert error == pytest.approx(float(singles.std()) / 5**0.5)
    assert record["dataset"]["split"] == "train" and record["model"]["model"] == "ctm"
    assert 0 < record["prior_mismatch_at_most"] < 1.2e-4
    assert ctm(*words, "--output", tmp_path / "again.json").code == 0
    assert json.loads((tmp_path / "again.json").read_text()) == record


def test_published_protocol_through_the_command(
    ctm: Ctm, teacher: Trained, digits: Dataset, tmp_path: Path
) -> None:
    output = tmp_path / "published.json"
    words = ["likelihood", teacher.weights, "--data", digits.path, "-n", "1", "--output", output]
    ended = ctm(*words, "--published-protocol")
    assert ended.code == 0, ended
    record = json.loads(output.read_text())
    assert record["protocol"]["name"] == "published"
    assert record["protocol"]["reading_of_residual"] == "own_noise"
    assert "train" in record["protocol"]["mode"]
    assert record["standard_error"] is None
    assert "±" not in ended.stdout
    sentence = ctm(*words, "--published-protocol", "--probes", "3").stderr
    assert sentence == (
        "ctm: the published protocol fixes probes, residual and tolerance; leave them out\n"
    )


def test_another_split_is_named(
    ctm: Ctm, teacher: Trained, digits: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The published script reads the training images; others are measured with a word about it."""
    data = tmp_path / "test"
    data.mkdir()
    for name in ("images.npy", "labels.npy"):
        (data / name).symlink_to(digits.path / name)
    (data / "manifest.json").write_text(json.dumps(digits.manifest | {"split": "test"}))
    words = ["likelihood", teacher.weights, "--data", data, "-n", "1"]
    ended = ctm(*words, "--published-protocol", "--output", tmp_path / "x.json")
    assert ended.code == 0
    assert "these are of the split test" in caplog.text


def test_mistakes_through_the_command(
    ctm: Ctm, student: Trained, digits: Dataset, tmp_path: Path
) -> None:
    output = ["--output", tmp_path / "x.json"]
    absent = tmp_path / "absent.safetensors"
    ended = ctm("likelihood", absent, "--data", digits.path, *output)
    assert ended.code == 2 and ended.stderr.startswith(f"ctm: {absent} is missing")
    ended = ctm("likelihood", student.weights, "--data", tmp_path, *output)
    assert ended.code == 2 and "holds no prepared dataset" in ended.stderr
    model, record = weight_file.load_weights(student.weights)
    with torch.no_grad():
        model.output_weight.fill_(torch.nan)
    weight_file.export(absent, model, record)
    ended = ctm("likelihood", absent, "--data", digits.path, "-n", "2", *output)
    assert ended.code == 2 and "NaN or infinite along the ODE" in ended.stderr
    assert not (tmp_path / "x.json").exists()
