"""GPUs that the installed torch cannot use; all of them are pretended."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.tiny import SetAt

from ctm_core.data.dataset import Dataset
from ctm_core.runtime import cuda
from ctm_core.runtime.errors import UserError
from ctm_core.training.batches import Batch
from ctm_core.training.denoising import DsmObjective

#: What the wheels of torch 2.14.1 and of 2.10.0 have kernels for.
NEW = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
VOLTA = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Wed May  1 12:00:00 UTC 2024\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with one V100 as its kernel shows it, and a torch that finds no GPU."""
    monkeypatch.setattr(cuda, "PROC", tmp_path / "proc")
    monkeypatch.setattr(cuda, "DEV", tmp_path / "dev")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    card = tmp_path / "proc/gpus/0000:00:04.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t Tesla V100-SXM2-16GB\nIRQ:   \t\t 35\n")
    (tmp_path / "proc/version").write_text(DRIVER.format("550.54.15"))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    return tmp_path


@pytest.fixture
def card(machine: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The same, with a torch of CUDA 12.8 that finds the V100 and has kernels for newer cards."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: NEW)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: None)
    return monkeypatch


def test_a_driver_that_is_too_old(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as raised:
        cuda.device()
    assert str(raised.value) == (
        f"Tesla V100-SXM2-16GB has driver 550.54.15, but torch {torch.__version__} (CUDA 13.0) "
        "needs 580 or newer: run `make setup TORCH=volta` (torch 2.10 with CUDA 12.8, for drivers "
        "from 525), update the driver, or set CUDA_VISIBLE_DEVICES= (empty) to compute on the "
        "processor"
    )
    assert cuda.main() == 2
    assert capsys.readouterr().err == f"{raised.value}\n"
    (machine / "proc/version").write_text(DRIVER.format("470.256.02"))
    with pytest.raises(UserError, match=r"or newer: update the driver, or set"):
        cuda.device()


@pytest.mark.parametrize("case", ["new driver", "no driver", "no card", "built without CUDA"])
def test_a_processor_without_a_fault(
    machine: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    match case:
        case "new driver":  # the job was given no GPU
            (machine / "proc/version").write_text(DRIVER.format("580.65.06"))
        case "no driver":
            (machine / "proc/version").unlink()
        case "no card":
            (machine / "dev/nvidia0").unlink()
        case _:
            monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda.device() == torch.device("cpu")


def test_a_card_without_kernels(card: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as raised:
        cuda.device()
    assert str(raised.value) == (
        "Tesla V100-SXM2-16GB (sm_70, driver 550.54.15) cannot run torch "
        f"{torch.__version__} (CUDA 12.8), which has kernels for {', '.join(NEW)}: run `make setup"
        " TORCH=volta` (torch 2.10 with CUDA 12.8, for drivers from 525), or set "
        "CUDA_VISIBLE_DEVICES= (empty) to compute on the processor"
    )
    for capability, words in (((6, 1), "use a newer card"), ((13, 0), "install a newer torch")):
        card.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        with pytest.raises(UserError, match=words):
            cuda.device()


def test_a_card_with_kernels(card: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    card.setattr(torch.cuda, "get_arch_list", lambda: VOLTA)
    assert cuda.device() == torch.device("cuda")
    assert cuda.device(3) == torch.device("cuda", 1)
    assert cuda.main() == 0
    said = capsys.readouterr().out
    assert said == f"torch {torch.__version__} computes on Tesla V100-SXM2-16GB\n"


@pytest.mark.parametrize(
    ("capability", "kernels", "expected"),
    [
        ((8, 9), ["sm_80", "sm_90"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "sm_90a"], False),
        ((12, 1), ["sm_90", "compute_90"], True),
        ((7, 0), ["compute_75"], False),
    ],
)
def test_kernels_serve_later_cards_of_their_generation(
    capability: tuple[int, int], kernels: list[str], expected: bool
) -> None:
    assert cuda.runs(capability, kernels) == expected


def test_a_busy_card(card: pytest.MonkeyPatch) -> None:
    def busy(*shape: int, device: torch.device) -> None:
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nmore")

    card.setattr(torch.cuda, "get_arch_list", lambda: VOLTA)
    card.setattr(torch, "zeros", busy)
    with pytest.raises(UserError, match=r"or unavailable\): another process may hold it, see `nv"):
        cuda.device()


def test_bf16_that_is_emulated(card: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    with pytest.raises(UserError) as raised:
        cuda.check_precision("bf16", gpu, "frozen_precision")
    assert str(raised.value) == (
        "frozen_precision: bf16, but Tesla V100-SXM2-16GB has no instructions for bf16 and only "
        "emulates it, slower than fp32: use fp32"
    )
    cuda.check_precision("fp32", gpu)
    cuda.check_precision("bf16", torch.device("cpu"))
    card.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    cuda.check_precision("bf16", gpu)


def test_the_room_on_a_card(card: pytest.MonkeyPatch) -> None:
    assert cuda.room(torch.device("cpu")) == "memory"
    card.setattr(torch.cuda, "memory_reserved", lambda device: 5_000_000_000)
    for free, words in ((10.4e9, ""), (1e9, ", of which other processes hold 10.0")):
        card.setattr(torch.cuda, "mem_get_info", lambda device, n=free: (int(n), 16_000_000_000))
        assert cuda.room(torch.device("cuda")) == f"the 16.0 GB of Tesla V100-SXM2-16GB{words}"


@dataclass(frozen=True)
class Fitting:
    """Lets the loss of no more than a number of samples find memory."""

    largest: int

    def __call__(self) -> None:
        original = DsmObjective.backward

        def backward(self_: DsmObjective, batch: Batch, *others: Any) -> Any:
            if len(batch.images) > self.largest:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return original(self_, batch, *others)

        DsmObjective.backward = backward


@pytest.mark.parametrize(("largest", "words"), [(3, "set `micro_batch: 2` in"), (0, "a larger")])
def test_the_micro_batch_that_fits(
    tmp_path: Path, digits: Dataset, largest: int, words: str
) -> None:
    config = tiny.write_experiment(tmp_path / "tiny.yaml")
    command = ["teacher", "--config", config, "--data", digits.path, "--output", "out"]
    ended = tiny.ctm(command, tmp_path, [Fitting(largest)])
    assert (ended.code, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "a micro-batch of 8 does not fit into memory; " in ended.stderr
    assert words in ended.stderr and not list(tmp_path.rglob("checkpoints/*"))
    micro = {"teacher.training.micro_batch": 2}
    tiny.write_experiment(config, micro)
    ended = tiny.ctm(command, tmp_path, [Fitting(largest)])
    assert ended.code == (0 if largest else 2), ended.stderr


def test_a_torch_that_is_too_old() -> None:
    for version in ("2.9.0", "2.9.0a0+50eac811a6.nv25.09", "2.14.1+cpu", "3.0.0"):
        cuda.check_version(version)
    with pytest.raises(UserError, match=r"torch 2\.8\.0\+cu126 is installed, but 2\.9 or newer"):
        cuda.check_version("2.8.0+cu126")


def test_an_experiment_that_asks_for_gpus(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cpu")
    with pytest.raises(
        UserError, match=r"for 1 GPU, but torch 2\.13\.0\+cpu uses none: run `make"
    ):
        cuda.check_present(1, "0")
    monkeypatch.setattr(metadata, "version", lambda name: "2.14.1")
    cuda.check_present(1, None)
    (machine / "dev/nvidia0").unlink()
    with pytest.raises(UserError, match=r"but this machine has none: .* `gpus: 0`"):
        cuda.check_present(4, None)
    for gpus, visible in ((0, None), (4, ""), (4, "0,1,2,3")):
        cuda.check_present(gpus, visible)


def test_a_training_that_asks_for_gpus(tmp_path: Path, digits: Dataset) -> None:
    config = tiny.write_experiment(
        tmp_path / "tiny.yaml", {"resources": {"training": {"gpus": 2}, "evaluation": {}}}
    )
    words = ["teacher", "--config", config, "--data", digits.path, "--output", "out"]
    empty = tmp_path / "dev"
    ended = tiny.ctm(words, tmp_path, [SetAt("ctm_core.runtime.cuda:DEV", empty)])
    assert (ended.code, ended.stderr.count("\n")) == (2, 1)
    assert "the experiment asks for 2 GPUs, but this machine has none" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
