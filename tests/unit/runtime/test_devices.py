"""Jobs of one machine take devices that nobody has; the devices are names, no GPU is needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctm_core.runtime import devices, launch
from ctm_core.runtime.errors import UserError

Job = Callable[..., "subprocess.Popen[str]"]
CODE = """
import logging, os, sys
from ctm_core.runtime import devices
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
devices.claim(int(sys.argv[1]))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """Starts jobs that take devices and keep them until their input ends."""
    started: list[subprocess.Popen[str]] = []

    def start(count: int, visible: str = "0,1,2,3", **more: str) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("SLURM_JOB_ID", launch.MARK)}
        given = {devices.LOCKS: str(tmp_path / "locks"), devices.VISIBLE: visible}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", CODE, str(count)],
                env=kept | given | more,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_jobs_at_once_get_devices_of_their_own(job: Job) -> None:
    running = [job(count) for count in (1, 2, 1)]
    found = [line(process).split(",") for process in running]
    assert [len(names) for names in found] == [1, 2, 1]
    assert sorted(name for names in found for name in names) == ["0", "1", "2", "3"]


def test_a_job_waits_for_what_another_has_and_a_killed_one_gives_back(job: Job) -> None:
    first = job(1, "GPU-a,GPU-b")
    assert line(first) == "GPU-a"
    second = job(2, "GPU-a,GPU-b")
    assert line(second) == "waiting for 2 free of 2 GPUs"
    third = job(1, "GPU-a,GPU-b")  # what waits holds nothing
    assert line(third) == "GPU-b"
    third.kill()
    first.send_signal(signal.SIGKILL)
    assert line(second) == "GPU-a,GPU-b"


def test_jobs_inside_an_allocation_share_its_devices_out(job: Job) -> None:
    """`salloc --gres=gpu:4`, then Snakemake in it: Slurm gave all four to each."""
    inside = {"SLURM_JOB_ID": "42", devices.WORKFLOW_JOB: "42"}
    assert sorted(line(job(1, **inside)) for _ in range(3)) == ["0", "1", "2"]


def test_a_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (devices.WORKFLOW_JOB, "SLURM_JOB_ID", launch.MARK):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(devices.VISIBLE, "0")
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "link").symlink_to(own)
    monkeypatch.setenv(devices.LOCKS, str(tmp_path / "link"))
    with pytest.raises(UserError, match=r"link \(CTM_DEVICE_LOCKS\) is not a folder of yours"):
        devices.claim(1)
    assert not list(own.iterdir())
    monkeypatch.setenv(devices.LOCKS, str(own))
    real = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: real + 1)
    with pytest.raises(UserError, match="set TMPDIR to a folder of your own"):
        devices.claim(1)
    monkeypatch.setattr(os, "getuid", lambda: real)
    own.chmod(0o777)
    (own / "0.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        devices.claim(1)
    assert own.stat().st_mode & 0o777 == 0o700 and not (tmp_path / "elsewhere").exists()


def test_more_than_there_are_is_all_of_them(job: Job) -> None:
    assert line(job(8, "0,1")) == "0,1"


@pytest.mark.parametrize(
    ("count", "variables"),
    [
        (1, {}),
        (0, {devices.LOCKS: "locks"}),
        (1, {devices.LOCKS: "locks", "SLURM_JOB_ID": "42"}),
        (1, {devices.LOCKS: "locks", "SLURM_JOB_ID": "42", devices.WORKFLOW_JOB: "41"}),
        (1, {devices.LOCKS: "locks", launch.MARK: "1"}),
        (1, {devices.LOCKS: "locks", devices.VISIBLE: ""}),
    ],
)
def test_nothing_is_taken_where_nobody_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, variables: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (devices.LOCKS, devices.WORKFLOW_JOB, "SLURM_JOB_ID", launch.MARK):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({devices.VISIBLE: "0,1"} | variables).items():
        monkeypatch.setenv(name, value)
    devices.claim(count)
    assert os.environ[devices.VISIBLE] == variables.get(devices.VISIBLE, "0,1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx512f avx512_bf16 amx_bf16 amx_tile", "amx_bf16"),
        ("avx512f avx512_bf16", "avx512_bf16"),
        ("avx512f avx_vnni", None),
        ("", None),
    ],
)
def test_bf16_instructions_are_read_from_the_flags_alone(flags: str, expected: str | None) -> None:
    text = f"processor\t: 0\nmodel name\t: amx_bf16\nflags\t\t: fpu {flags}\n\n"
    assert devices.bf16_flag(text * 2) == expected


def test_precision_auto_is_what_the_processor_can(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (("flags: avx amx_bf16", "bf16"), ("flags: avx", "fp32")):
        monkeypatch.setattr(Path, "read_text", lambda self, encoding, flags=flags: flags)
        assert devices.native_precision() == expected
