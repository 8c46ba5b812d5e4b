"""Holds its process at a chosen rename until a signal arrives, so that a test need not be fast.

Python imports this module at start when its folder is on PYTHONPATH. ``CTM_HOLD_AT`` is a pattern
of the renamed file's final path; ``CTM_HOLD_MARK`` is a file that tells which process holds, and
afterwards by which signal it went on. A file that exists holds nobody: the same command started
again runs through.
"""

import fnmatch
import json
import os
import select
import signal
from pathlib import Path
from typing import Any

if "CTM_HOLD_AT" in os.environ:
    mark = Path(os.environ["CTM_HOLD_MARK"])

    def tell(received: "int | None") -> None:
        names = ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES")
        values = {name: os.environ.get(name) for name in names}
        mark.write_text(json.dumps({**values, "process": os.getpid(), "signal": received}))

    def hold() -> None:
        """Until a signal that this process handles."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        old = signal.set_wakeup_fd(writer)
        # Only now, so that a signal sent on seeing it is not missed.
        tell(None)
        if select.select([reader], [], [], 300)[0]:
            tell(os.read(reader, 1)[0])
        signal.set_wakeup_fd(old)

    def holding(original: Any) -> Any:
        def rename(source: Any, target: Any, **options: Any) -> None:
            original(source, target, **options)
            here = fnmatch.fnmatch(os.path.abspath(target), os.environ["CTM_HOLD_AT"])
            if here and not mark.exists():
                hold()

        return rename

    os.replace, os.rename = holding(os.replace), holding(os.rename)
