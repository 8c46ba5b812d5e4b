"""The curves of a training: one JSON line per logged step, and the same for TensorBoard.

``training.jsonl`` is the record; TensorBoard's event files are a view of it for people. Both are
written at once, in this process: a full disk ends the training with a sentence rather than a
background thread without one.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ctm_core.runtime import extras
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import write_text
from ctm_core.runtime.untrusted import parse_json, read_bytes

log = logging.getLogger(__name__)

FILE = "training.jsonl"
#: Bytes of the longest one: ten million steps.
LARGEST_LOG = 2 * 2**30


def read_log(path: Path) -> list[str]:
    """The lines of a ``training.jsonl``; raises UserError if it is no file or far too large."""
    return read_bytes(path, LARGEST_LOG).decode("utf-8", errors="replace").splitlines()


def rewind(folder: Path, step: int) -> None:
    """Drop the lines of ``training.jsonl`` after ``step``: they will be written again."""
    file = folder / FILE
    if not file.exists():
        return
    kept = []
    for line in read_log(file):
        try:
            if parse_json(line, file)["step"] <= step:
                kept.append(line + "\n")
        except (UserError, KeyError, TypeError):
            break  # a line truncated by a kill
    write_text(file, "".join(kept))


class Scalars:
    """Appends to the curve in a run folder; a context manager.

    Parameters
    ----------
    folder
        The run folder.
    step
        Steps done so far; TensorBoard hides what an earlier process logged after it.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._file = open(folder / FILE, "a", encoding="utf-8")  # noqa: SIM115 - closed on exit
        self._board: Any = None
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import SessionLog
        except ImportError as error:
            log.info("no files for TensorBoard: %s", extras.sentence(error) or error)
            return
        board = folder / "tensorboard"
        board.mkdir(exist_ok=True)
        self._board = EventsWriter(str(board / "events"), filename_suffix=f".{step:08d}")
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float], **speed: float) -> None:
        """Log the values of a step; its speed, which no two runs share, in TensorBoard alone."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is None:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        shown = (
            Summary.Value(tag=name, simple_value=value)
            for name, value in (*values.items(), *speed.items())
        )
        self._event(step, summary=Summary(value=shown))

    def _event(self, step: int, **content: object) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._board.write_event(Event(wall_time=time.time(), step=step, **content))
        self._board.flush()

    def __enter__(self) -> Scalars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        finally:
            if self._board is not None:
                self._board.close()
