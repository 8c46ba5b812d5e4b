"""The folder of one training run: its lock, its inputs, its environment and its failures.

Layout of ``runs/<experiment>/<model>/seed-<n>/<train_hash[:12]>/``::

    config.json     experiment, model, seed, the resolved configuration and its hash
    inputs.json     sha256 of everything the run reads (data set, teacher, perceptual network)
    run.json        threads, hardware, versions, whether every resume was exact
    lock            held by the one process that may write here; owner.json names it
    failed.json     the message of a failure that further attempts would only repeat
    checkpoints/    see :mod:`ctm_core.runtime.checkpoint`
    exports/        the requested weights, final and intermediate
    micro_batch.json  the size that `micro_batch: auto` has taken
    training.jsonl  loss terms by step     previews/  sample grids     tensorboard/  scalars
    set-aside-1/    state from before an input changed
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ctm_core.runtime.errors import CtmError, Diverged, UserError, plain_sentence
from ctm_core.runtime.files import read_record, write_json
from ctm_core.runtime.locks import Lock

log = logging.getLogger(__name__)

#: What a training makes of its inputs, apart from the records of its environment.
STATE = (
    "checkpoints",
    "exports",
    "training.jsonl",
    "previews",
    "tensorboard",
    "micro_batch.json",
)


def environment() -> dict[str, Any]:
    """What decides whether a resume can be exact: device, thread count, torch and numpy."""
    import numpy
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _started_before(file: Path) -> dict[str, Any]:
    """What ``run.json`` holds; raises UserError if it cannot have been written by a run."""
    stored = read_record(file)
    environment, starts = stored.get("environment"), stored.get("starts")
    threads = environment.get("threads") if isinstance(environment, dict) else None
    if not (isinstance(threads, int) and threads > 0 and isinstance(starts, int)):
        raise UserError(
            f"{file} is not a record of how this run began; remove its folder and train again"
        )
    return stored


class RunFolder:
    """Exclusive use of a run folder, as a context manager.

    Parameters
    ----------
    path
        The folder; made if absent.
    config
        The resolved configuration (JSON values) with its ``train_hash``.
    inputs
        SHA-256 of every input, by name.
    attempt
        The workflow's attempt number. From the second on, a failure recorded by an earlier one is
        raised again at once; the first clears it.

    Raises
    ------
    Interrupted
        If another living process holds the folder.
    UserError
        If the folder belongs to another experiment, model, seed or configuration.
    """

    def __init__(
        self,
        path: Path,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str | None],
        attempt: int = 1,
    ) -> None:
        self.path = path
        self.config = dict(config)
        self.inputs = dict(inputs)
        self.attempt = attempt
        self.exact = True
        self._lock = Lock(path)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def __enter__(self) -> RunFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            # First, and not recorded: another run's folder is left as it is.
            self._check_config()
            self._recall_failure()
            self._check_inputs()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, CtmError):
                self._record_failure(error.exit_code, str(error))
            elif isinstance(error, OSError) and (sentence := plain_sentence(error)):
                self._record_failure(UserError.exit_code, sentence)
        finally:
            self._lock.release()

    def confirm(self) -> None:
        """Before something is written that another owner would write too; see :class:`Lock`."""
        self._lock.confirm()

    # -- failures ----------------------------------------------------------------------------

    def _recall_failure(self) -> None:
        file = self.path / "failed.json"
        if self.attempt <= 1:
            file.unlink(missing_ok=True)
        elif file.exists():
            failure = read_record(file)
            kind = Diverged if failure.get("exit_code") == Diverged.exit_code else UserError
            raise kind(str(failure.get("message")))

    def _record_failure(self, exit_code: int, message: str) -> None:
        if exit_code not in (UserError.exit_code, Diverged.exit_code):
            return
        # On a full disk this fails too; the user sees the failure itself anyway.
        with contextlib.suppress(OSError):
            write_json(self.path / "failed.json", {"exit_code": exit_code, "message": message})

    # -- identity ----------------------------------------------------------------------------

    def _check_config(self) -> None:
        file = self.path / "config.json"
        if not file.exists():
            write_json(file, self.config)
            return
        stored = read_record(file)
        for key in ("experiment", "model", "seed", "train_hash"):
            there, here = stored.get(key), self.config.get(key)
            if there != here:
                raise UserError(
                    f"{self.path} belongs to another run: its {key} is {str(there)[:12]}, not "
                    f"{str(here)[:12]}; give another --run folder, or leave --run out"
                )

    def _check_inputs(self) -> None:
        file = self.path / "inputs.json"
        if file.exists():
            stored = read_record(file)
            changed = [k for k in {**stored, **self.inputs} if stored.get(k) != self.inputs.get(k)]
            if not changed:
                return
            aside = self._set_aside()
            log.warning(
                "%s: %s changed since this run began; its state is set aside in %s and training "
                "starts over",
                self.path,
                ", ".join(sorted(changed)),
                aside.name,
            )
        write_json(file, self.inputs)

    def _set_aside(self) -> Path:
        number = 1
        while (aside := self.path / f"set-aside-{number}").exists():
            number += 1
        aside.mkdir()
        # The inputs last: if this is killed, the next start sets the rest aside too.
        for name in (*STATE, "run.json", "inputs.json"):
            if (self.path / name).exists():
                os.rename(self.path / name, aside / name)
        return aside

    def restore_environment(
        self, threads: int, processes: int = 1, allow_processes: bool = False
    ) -> None:
        """Fix the thread count at the first start, restore it afterwards, and note differences.

        A resume on another device, thread count or library version goes on, warns once and marks
        the run ``exact: false``, since its weights may differ in the last bits.

        Parameters
        ----------
        threads
            CPU threads of a process.
        processes, allow_processes
            How many processes train, and whether that may change within a run.

        Raises
        ------
        UserError
            If it changed and may not.
        """
        import torch

        file = self.path / "run.json"
        stored = _started_before(file) if file.exists() else None
        torch.set_num_threads(stored["environment"]["threads"] if stored else threads)
        now = environment() | {"processes": processes}
        if stored is None:
            write_json(file, {"environment": now, "exact": True, "starts": 1})
            return
        began = stored["environment"].get("processes", 1)
        if began != processes and not allow_processes:
            raise UserError(
                f"{self.path} began with {began} processes, not {processes}: sums would round "
                f"differently; use --processes {began}, or --allow-world-size to go on inexactly"
            )
        self.exact = bool(stored.get("exact"))
        changed = [key for key in now if stored["environment"].get(key, 1) != now[key]]
        if changed:
            log.warning(
                "%s is resumed under another %s; its weights may differ in the last bits (exact: "
                "false)",
                self.path,
                ", ".join(changed),
            )
            self.exact = False
        write_json(
            file,
            {
                "environment": stored["environment"],
                "exact": self.exact,
                "starts": stored["starts"] + 1,
            },
        )
