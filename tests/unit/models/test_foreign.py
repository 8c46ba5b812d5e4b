"""Files of other projects become weight files of this one, and say what they are."""

from __future__ import annotations

import copy
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import foreign as made_by_others
from fixtures import tiny
from fixtures.edm_pickle import edm_pickle
from fixtures.foreign import DDPMPP, OPENAI
from fixtures.tiny import Ended

import ctm_core
from ctm_core.data import assets
from ctm_core.data.assets import Asset
from ctm_core.data.dataset import Dataset
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.evaluation.evaluate import evaluate
from ctm_core.models import foreign, weight_file
from ctm_core.models.foreign import Hints, Refusal
from ctm_core.models.foreign.archives import opened
from ctm_core.models.foreign.edm import find_network
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, read_json, read_metadata, sha256_file
from ctm_core.training.jobs import train_student
from ctm_core.verification.golden import Folder

GOLDEN = Path(__file__).parents[2] / "golden" / "data"
Ctm = Callable[..., Ended]


def edm_kwargs(made: Trajectory, **changes: Any) -> dict[str, Any]:
    """Constructor arguments of the small DDPM++ networks."""
    own = {
        "img_resolution": 8,
        "img_channels": 3,
        "label_dim": made.label_dim,
        "model_type": "SongUNet",
        "embedding_type": "positional",
        "dropout": 0.13,
    }
    return own | DDPMPP | changes


@pytest.fixture(scope="session")
def edm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trajectory, Path]:
    """A class-conditional EDM pickle, its model, and the file that its source text would make."""
    folder = tmp_path_factory.mktemp("edm")
    made = made_by_others.model(DDPMPP | {"augment_dim": 9}, label_dim=10)
    path, canary = folder / "edm-tiny-cond-vp.pkl", folder / "canary"
    made_by_others.write_edm(path, made, edm_kwargs(made, augment_dim=9), canary)
    return path, made, canary


def saved(path: Path, state: Any, **options: Any) -> Path:
    torch.save(state, path, **options)
    return path


def equal(weights: Path, made: Trajectory) -> bool:
    tensors, _ = load_tensors(weights)
    own = made.state_dict()
    return tensors.keys() == own.keys() and all(torch.equal(tensors[k], own[k]) for k in own)


# -- from file to samples with two commands -----------------------------------------------------


def two_commands(ctm: Ctm, path: Path, folder: Path, *more: str) -> Ended:
    done = ctm("convert", path, "--output", folder / "made", *more)
    assert (done.code, done.stderr.count("\n") <= 1) == (0, True), done.stderr
    weights = folder / "made/weights.safetensors"
    sampled = ctm("sample", weights, "--output", folder / "s.npy", "-n2", "--batch-size", "2")
    assert sampled.code == 0, sampled.stderr
    assert (folder / "s.png").is_file()
    return done


def test_edm_pickle(edm: tuple[Path, Trajectory, Path], ctm: Ctm, tmp_path: Path) -> None:
    path, made, canary = edm
    done = two_commands(ctm, path, tmp_path)
    assert "EDM teacher (DDPM++)" in done.stdout
    assert equal(tmp_path / "made/weights.safetensors", made)
    assert not canary.exists()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 20.0])
    y = torch.tensor([3, 7])
    loaded = ctm_core.load(tmp_path / "made/weights.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded.denoise(x, t, y), made.denoise(x, t, y))
    assert loaded.record["network"]["dropout"] == 0.13
    assert loaded.record["network"]["augment_dim"] == 9
    assert loaded.record["class_names"] == [str(n) for n in range(10)]


def test_the_canary_is_alive(edm: tuple[Path, Trajectory, Path]) -> None:
    """The pickle holds source text that would create the file, were it run."""
    path, _, canary = edm
    assert f"open({str(canary)!r}, 'w')".encode() in path.read_bytes()


def test_student_of_ctm_cifar10(ctm: Ctm, tmp_path: Path) -> None:
    made = made_by_others.model(DDPMPP, label_dim=10, time_s=True)
    path = saved(tmp_path / "ema_0.999_043000.pt", made.state_dict())
    done = two_commands(ctm, path, tmp_path)
    assert "CTM student (DDPM++)" in done.stdout
    assert equal(tmp_path / "made/weights.safetensors", made)
    record = weight_file.read_record(tmp_path / "made/weights.safetensors")
    assert (record["model"], record["step"], record["label_dim"]) == ("ctm", 43000, 10)
    assert record["network"]["dropout"] == 0.13  # active in training, whatever its flags say


def thirds(value: torch.Tensor) -> torch.Tensor:
    """Attention's channels (channel, {q, k, v}) as all q, all k, all v."""
    return torch.cat([value[kind::3] for kind in range(3)])


def test_model_of_meanflow(ctm: Ctm, tmp_path: Path) -> None:
    made = made_by_others.model(DDPMPP | {"architecture": "ddpmpp_meanflow"}, time_s=True)
    state = {
        name.removeprefix("model."): thirds(value) if ".qkv." in name else value
        for name, value in made.state_dict().items()
    }
    state["map_augment.weight"] = torch.randn(32, 6)
    average = {f"net_ema.{name}": value for name, value in state.items()}
    whole = average | {f"net.{name}": value + 1 for name, value in state.items()}
    path = saved(tmp_path / "checkpoint.pth", {"model": whole, "epoch": 15999})
    done = ctm("convert", path, "--output", tmp_path / "made")
    assert (done.code, "choose one with --entry" in done.stderr) == (2, True)
    done = two_commands(ctm, path, tmp_path, "--entry", "net_ema")
    assert "MeanFlow model (DDPM++)" in done.stdout
    assert equal(tmp_path / "made/weights.safetensors", made)
    document = read_json(tmp_path / "made/provenance.json")
    assert (document["assumed"]["dropout"]["value"], "entry" in document["assumed"]) == (
        0.2,
        False,
    )
    assert "CC BY-NC-SA" in document["source"]["licence"]


@pytest.mark.parametrize("pickled", [True, False])
def test_model_of_imm(pickled: bool, ctm: Ctm, tmp_path: Path) -> None:
    made = made_by_others.model(DDPMPP | {"architecture": "ddpmpp_imm"}, time_s=True)
    theirs = copy.deepcopy(made)  # whose output has the other sign
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            value.mul_(-1 if "_aux_conv." in name else 1)
    path = tmp_path / f"cifar10.{'pkl' if pickled else 'pt'}"
    if pickled:
        kwargs = edm_kwargs(made, dropout=0.2, wrapper="IMMPrecond", s_embed=True)
        made_by_others.write_edm(path, theirs, kwargs, tmp_path / "canary")
    else:
        saved(path, {"ema": theirs.state_dict()})
    done = two_commands(ctm, path, tmp_path)
    assert "IMM model (DDPM++)" in done.stdout
    assert equal(tmp_path / "made/weights.safetensors", made)
    record = weight_file.read_record(tmp_path / "made/weights.safetensors")
    assert record["diffusion"]["sigma_min"] == pytest.approx(0.0030181, rel=1e-4)
    assert record["diffusion"]["sigma_max"] == pytest.approx(82.8333, rel=1e-4)
    # Nobody here has seen a published file.
    assert ("published files were not at hand" in done.stdout) is not pickled


def test_imms_preconditioning_around_another_network_is_refused(ctm: Ctm, tmp_path: Path) -> None:
    made = made_by_others.model(DDPMPP)
    path = tmp_path / "cifar10.pkl"
    kwargs = edm_kwargs(made, wrapper="IMMPrecond")
    made_by_others.write_edm(path, made, kwargs, tmp_path / "canary")
    done = ctm("convert", path, "--output", tmp_path / "made")
    assert (done.code, "holds a IMMPrecond network" in done.stderr) == (2, True)


def test_student_of_sony(ctm: Ctm, tmp_path: Path) -> None:
    made = made_by_others.model(OPENAI, resolution=64, label_dim=7, time_s=True)
    path = saved(tmp_path / "model000500.pt", made_by_others.openai_names(made))
    done = two_commands(ctm, path, tmp_path)
    assert "CTM student (OpenAI's ADM)" in done.stdout
    assert equal(tmp_path / "made/weights.safetensors", made)
    record = weight_file.read_record(tmp_path / "made/weights.safetensors")
    assert (record["resolution"], record["label_dim"], record["step"]) == (64, 7, 500)


def test_teacher_of_openai(ctm: Ctm, tmp_path: Path) -> None:
    made = made_by_others.model(OPENAI, resolution=16, label_dim=7)
    path = saved(tmp_path / "edm_imagenet64_ema.pt", made_by_others.openai_names(made))
    done = two_commands(ctm, path, tmp_path, "--resolution", "16")
    assert "EDM teacher (OpenAI's ADM)" in done.stdout
    assert "only its origin can tell" in done.stdout  # the tensors do not
    assert equal(tmp_path / "made/weights.safetensors", made)
    source = read_json(tmp_path / "made/provenance.json")["source"]
    assert source["url"].endswith("/consistency/edm_imagenet64_ema.pt")
    assert (source["url_from"], source["licence"]) == ("file name", "MIT")


# -- sizes from shapes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["edm_ddpmpp", "edm_ncsnpp", "edm_adm", "ctm_student_cifar"])
def test_edm_forms(name: str, tmp_path: Path) -> None:
    """Every architecture of the golden set, through the form of file that it comes in."""
    golden = Folder(GOLDEN).load(name)
    state, kwargs = golden.weights("net"), golden.meta["kwargs"]
    student = name == "ctm_student_cifar"
    if student:
        path = saved(tmp_path / "file", state)
    else:
        path = tmp_path / "file"
        path.write_bytes(edm_pickle(state, kwargs))
    made = foreign.convert(path, tmp_path / "made")
    assert load_tensors(tmp_path / "made/weights.safetensors")[0].keys() == state.keys()
    network = made["network"]
    for key in ("model_channels", "channel_mult", "num_blocks"):
        assert network[key] == kwargs[key]
    record = weight_file.read_record(tmp_path / "made/weights.safetensors")
    assert record["resolution"] == kwargs["img_resolution"]
    assert record["label_dim"] == kwargs["label_dim"]
    assert record["time_s"] is student


@pytest.mark.parametrize("student", [True, False])
def test_openai_form(student: bool, tmp_path: Path) -> None:
    golden = Folder(GOLDEN).load("ctm_student_sony")
    kwargs = golden.meta["kwargs"]
    state = golden.weights("net")
    if not student:
        state = {k: v for k, v in state.items() if "_s." not in k}
    path = saved(tmp_path / "file", state)
    hints = Hints(resolution=kwargs["image_size"], num_head_channels=kwargs["num_head_channels"])
    network = foreign.convert(path, tmp_path / "made", hints=hints)["network"]
    factors = [kwargs["image_size"] // side for side in network["attn_resolutions"]]
    assert sorted(factors) == sorted(kwargs["attention_resolutions"])
    assert network["channel_mult"] == kwargs["channel_mult"]
    assert network["num_blocks"] == kwargs["num_res_blocks"]
    with pytest.raises(UserError, match=r"heads of 64 do not divide; give the width .* --head-ch"):
        foreign.convert(path, tmp_path / "other", hints=Hints(resolution=16))


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("mults", [[1], [1, 1, 1], [2, 1, 2]])
def test_openai_levels(blocks: int, mults: list[int], tmp_path: Path) -> None:
    """Levels and blocks are told apart even where every width is the same."""
    sizes = OPENAI | {"channel_mult": mults, "num_blocks": blocks, "attn_resolutions": []}
    made = made_by_others.model(sizes | {"num_head_channels": 32}, resolution=16, time_s=True)
    path = saved(tmp_path / "file.pt", made_by_others.openai_names(made))
    hints = Hints(resolution=16, num_head_channels=32)
    network = foreign.convert(path, tmp_path / "made", hints=hints)["network"]
    assert (network["channel_mult"], network["num_blocks"]) == (mults, blocks)


def test_forms_of_torch_files(tmp_path: Path) -> None:
    """The old format, half precision and a wrapper's prefix change nothing but the bytes."""
    made = made_by_others.model(DDPMPP, time_s=True).half().float()
    state = made.state_dict()
    half = {name: value.half() for name, value in state.items()}
    wrapped = {f"module.{name}": value for name, value in state.items()}
    plain = saved(tmp_path / "a", state)
    for path in (
        plain,
        saved(tmp_path / "b", state, _use_new_zipfile_serialization=False),
        saved(tmp_path / "c", half),
        saved(tmp_path / "d", wrapped),
    ):
        foreign.convert(path, tmp_path / "made")
        assert equal(tmp_path / "made/weights.safetensors", made), path.name


def test_strided_tensors(tmp_path: Path) -> None:
    """A transposed view of a larger storage is read as what it shows."""
    made = made_by_others.model(DDPMPP)
    state = dict(made.state_dict())
    name = "model.map_layer1.weight"
    larger = torch.zeros(70, 40)
    view = larger.t()[4:36, 5:37]
    view.copy_(state[name])
    for number, options in enumerate(({}, {"_use_new_zipfile_serialization": False})):
        path = saved(tmp_path / str(number), state | {name: view}, **options)
        foreign.convert(path, tmp_path / "made")
        assert equal(tmp_path / "made/weights.safetensors", made)


def test_shared_storages(tmp_path: Path) -> None:
    """Tensors of one storage, which a weight file cannot share, are copied."""
    made = made_by_others.model(DDPMPP)
    state = dict(made.state_dict())
    flat = torch.randn(64)
    names = ["model.map_layer0.bias", "model.map_layer1.bias"]
    state |= {names[0]: flat[:32], names[1]: flat[16:48]}
    made.load_state_dict(state)
    for number, options in enumerate(({}, {"_use_new_zipfile_serialization": False})):
        path = saved(tmp_path / str(number), state, **options)
        foreign.convert(path, tmp_path / "made")
        assert equal(tmp_path / "made/weights.safetensors", made)


@pytest.mark.parametrize("form", ["archive", "legacy", "pickle"])
def test_what_is_hashed_is_what_is_read(form: str, tmp_path: Path) -> None:
    """A file that another one replaces meanwhile stays open; one that is written to is refused."""
    path = tmp_path / "file"
    made = made_by_others.model(DDPMPP)
    if form == "pickle":
        path.write_bytes(edm_pickle(made.state_dict(), edm_kwargs(made)))
    else:
        saved(path, made.state_dict(), _use_new_zipfile_serialization=form == "archive")
    os.utime(path, (1e9, 1e9))
    digest = sha256_file(path)
    other = saved(tmp_path / "other", made_by_others.model(DDPMPP, seed=1).state_dict())
    with opened(path) as file:
        state = find_network(file.value).tensors if form == "pickle" else file.value
        os.replace(other, path)
        tensors = file.tensors(state)
        assert file.sha256 == digest
        assert all(torch.equal(tensors[k], value) for k, value in made.state_dict().items())
    with opened(path) as file:
        with path.open("r+b") as written:
            written.write(b"P")
        with pytest.raises(Refusal, match="was changed while it was read"):
            file.tensors(file.value)


# -- what it is taken for -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["cifar", "openai"])
def test_a_consistency_model_is_no_student(form: str, ctm: Ctm, tmp_path: Path) -> None:
    if form == "cifar":
        state: Any = made_by_others.model(DDPMPP).state_dict()
    else:
        state = made_by_others.openai_names(made_by_others.model(OPENAI, resolution=64))
    sentence = "it is a consistency model or a teacher, not a CTM student"
    for name, more in (("ct_imagenet64.pt", ("--kind", "ctm")), ("ema_0.999_000100.pt", ())):
        path = saved(tmp_path / name, state)
        done = ctm("convert", path, "--output", tmp_path / "made", *more)
        assert (done.code, sentence in done.stderr) == (2, True), done.stderr
        assert done.stderr.count("\n") == 1
    path = saved(tmp_path / "cd_imagenet64_lpips.pt", state)
    done = ctm("convert", path, "--output", tmp_path / "made")
    assert done.code == 2 and "is a consistency model by its name" in done.stderr
    assert not (tmp_path / "made").exists()
    assert ctm("convert", path, "--output", tmp_path / "made", "--kind", "teacher").code == 0


def test_a_student_is_no_teacher(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.pt", made_by_others.model(DDPMPP, time_s=True).state_dict())
    with pytest.raises(UserError, match=r"is a CTM student .*, not a teacher"):
        foreign.convert(path, tmp_path / "made", hints=Hints(role="teacher"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("model.map_layer1_s.weight"), r"it lacks model\.map_layer1_s\.weight$"),
        (lambda s: s.pop("model.enc.8x8_conv.weight"), r"lacks the tensor model\.enc\.8x8_conv\."),
        (
            # All of them would leave the tensors of IMM's network.
            lambda s: [s.pop(k) for k in list(s) if "_block0.affine_s" in k],
            r"it lacks model\.enc\.8x8_block0\.affine_s\.weight \(and \d+ more\)",
        ),
        (lambda s: s.update(extra=torch.ones(1)), r"holds the unknown extra"),
        (
            lambda s: s.update({"model.map_layer1.bias": torch.ones(5)}),
            r"holds model\.map_layer1\.bias of shape \(5,\), not \(32,\)",
        ),
        (
            lambda s: s.update(
                {"model.enc.4x4_down.conv0.resample_filter": torch.ones(1, 1, 2, 2)}
            ),
            "resamples by another filter",
        ),
        (
            lambda s: s.update({"model.map_layer1.bias": torch.ones(32, dtype=torch.float64)}),
            "as float64; networks hold float32",
        ),
    ],
)
def test_strict_keys(change: Callable[[Any], Any], reason: str, tmp_path: Path) -> None:
    state = dict(made_by_others.model(DDPMPP, time_s=True).state_dict())
    change(state)
    with pytest.raises(UserError, match=reason):
        foreign.convert(saved(tmp_path / "file.pt", state), tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"label_dim": 10}, "label_dim = 10 in its constructor arguments, but its tensors .* 0$"),
        ({"channel_mult": [1, 2, 2]}, "channel_mult"),
        ({"embedding_type": "fourier"}, "embedding_type"),
        ({"encoder_type": "residual"}, "encoder_type"),
        ({"resample_filter": [1, 3, 3, 1]}, "resample_filter"),
        ({"attn_resolutions": [8]}, r"attn_resolutions = \[8\] .* attend at \[4\]"),
        ({"dropout": "much"}, "dropout = much"),
    ],
)
def test_arguments_must_agree(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    made = made_by_others.model(DDPMPP)
    path = tmp_path / "file.pkl"
    path.write_bytes(edm_pickle(made.state_dict(), edm_kwargs(made, **changes)))
    with pytest.raises(UserError, match=reason):
        foreign.convert(path, tmp_path / "made")


# -- where it comes from ------------------------------------------------------------------------


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


def test_the_same_file_gives_the_same_bytes(
    edm: tuple[Path, Trajectory, Path], tmp_path: Path
) -> None:
    made = [foreign.convert(edm[0], tmp_path / name)["weights"] for name in "ab"]
    assert made[0] == made[1]


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


# -- in an experiment ---------------------------------------------------------------------------

NETWORK = {
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}


def imported(folder: Path, *, time_s: bool = False, **changes: Any) -> Path:
    """The converted file of a network that fits the tiny experiment, but for the changes."""
    sizes = {"channels": 1, "label_dim": 10} | changes.pop("sizes", {})
    made = made_by_others.model(NETWORK | changes, time_s=time_s, **sizes)
    folder.mkdir(exist_ok=True)
    state = made.state_dict()
    foreign.convert(saved(folder / "file.pt", state), folder / "made")
    return folder / "made/weights.safetensors"


def trained(digits: Dataset, teacher: Path, folder: Path, changes: tiny.Changes) -> Path:
    steps = {"models.ctm.training.steps": 1, "models.ctm.training.snapshots": []}
    return train_student(
        tiny.experiment(steps | dict(changes)),
        "ctm",
        digits,
        teacher,
        output=folder / "out",
        seed=0,
        runs=folder / "runs",
    )


def test_an_imported_teacher_teaches(digits: Dataset, tmp_path: Path) -> None:
    """Its augmentation map is left behind; the rest is where the student starts."""
    teacher = imported(tmp_path / "teacher", augment_dim=9)
    barely = {"models.ctm.training.learning_rate": 1e-12, "models.ctm.training.ema": [0.0]}
    weights = trained(digits, teacher, tmp_path, barely)
    given, _ = load_tensors(teacher)
    made, _ = load_tensors(weights)
    assert "model.map_augment.weight" in given and "model.map_augment.weight" not in made
    for name in given.keys() & made.keys():
        assert torch.allclose(made[name], given[name], atol=1e-9)
    assert weight_file.read_record(weights)["dataset_fingerprint"] == digits.fingerprint


@pytest.mark.parametrize(
    ("changes", "experiment", "reason"),
    [
        ({"model_channels": 12}, {}, r"its network\.model_channels is 12, not 8"),
        ({"sizes": {"resolution": 16}}, {}, "has another resolution than tiny"),
        ({"sizes": {"channels": 3}}, {}, "has another channels than tiny"),
        ({"sizes": {"label_dim": 5}}, {}, "has another label_dim than tiny"),
        ({"sizes": {"label_dim": 0}}, {}, "its conditional is False, not True"),
        ({}, {"diffusion": {"sigma_data": 0.4}}, r"its diffusion\.sigma_data is 0\.5, not 0\.4"),
    ],
)
def test_an_imported_teacher_that_does_not_fit(
    changes: dict[str, Any],
    experiment: tiny.Changes,
    reason: str,
    digits: Dataset,
    tmp_path: Path,
) -> None:
    teacher = imported(tmp_path / "teacher", **changes)
    with pytest.raises(UserError, match=reason):
        trained(digits, teacher, tmp_path, experiment)


def test_imported_weights_are_evaluated(
    references: list[Path], digits: Dataset, tmp_path: Path
) -> None:
    weights = imported(tmp_path / "student", time_s=True)
    result = evaluate(
        tiny.experiment(),
        "ctm",
        weights,
        references,
        seed=0,
        output=tmp_path / "out",
        runs=tmp_path / "runs",
    )
    assert (result["dataset"], result["dataset_fingerprint"]) == ("digits", None)
    assert (result["step"], result["train_hash"]) == (0, sha256_file(tmp_path / "student/file.pt"))
    assert result["rows"]
    with pytest.raises(UserError, match="from a CTM student, so it cannot be the teacher of tiny"):
        evaluate(
            tiny.experiment(), "teacher", weights, references, seed=0, output=tmp_path / "other"
        )
    levels = {"diffusion": {"sigma_max": 40.0}}
    with pytest.raises(UserError, match="is sampled between the noise levels that its authors"):
        evaluate(
            tiny.experiment(levels), "ctm", weights, references, seed=0, output=tmp_path / "other"
        )


@pytest.mark.parametrize(("name", "step"), [("file.pt", 700), ("model000600.pt", 600)])
def test_a_released_model_has_the_step_of_its_name_or_of_the_config(
    name: str, step: int, references: list[Path], tmp_path: Path
) -> None:
    changes = {
        "models.ctm": {"weights": "ctm-cifar10-cond", "step": 700},
        "evaluation.samplers.ctm": [{"sampler": "gamma", "nfe": [1], "gamma": [0]}],
        "evaluation.protocols": {"tiny": "all"},
    }
    made = made_by_others.model(NETWORK, channels=1, label_dim=10, time_s=True)
    foreign.convert(saved(tmp_path / name, made.state_dict()), tmp_path / "made")
    result = evaluate(
        tiny.experiment(changes),
        "ctm",
        tmp_path / "made/weights.safetensors",
        references[:1],
        seed=0,
        output=tmp_path / "out",
        runs=tmp_path / "runs",
    )
    assert result["step"] == step


# -- files that are none ------------------------------------------------------------------------


def test_no_regular_file(tmp_path: Path, ctm: Ctm) -> None:
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    for path, reason in (
        (tmp_path / "pipe", "is a named pipe, not a file"),
        (tmp_path / "socket", "is a socket, not a file"),
        (Path("/dev/zero"), "is a device, not a file"),
        (tmp_path / "none", "is missing"),
        (tmp_path, "is a directory"),
    ):
        done = ctm("convert", path, "--output", tmp_path / "made")
        assert (done.code, reason in done.stderr) == (2, True), done.stderr
    server.close()


def test_nothing_earlier_is_lost(tmp_path: Path) -> None:
    """A refused file leaves what an earlier conversion wrote."""
    good = saved(tmp_path / "good.pt", made_by_others.model(DDPMPP).state_dict())
    foreign.convert(good, tmp_path / "made")
    before = tiny.tree(tmp_path / "made")
    (tmp_path / "bad.pt").write_bytes(good.read_bytes()[:-100])
    with pytest.raises(UserError):
        foreign.convert(tmp_path / "bad.pt", tmp_path / "made")
    assert tiny.tree(tmp_path / "made") == before
