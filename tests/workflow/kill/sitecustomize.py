"""Kills its own process with SIGKILL at a chosen rename, so that a test dies where it means to.

Python imports this module at start when its folder is on PYTHONPATH. ``CTM_KILL_AT`` is a
pattern of the renamed file's final path; ``CTM_KILL_SKIP`` matches are let through first;
``CTM_KILL_MARK`` is a file that records the kill, so that the same command started again runs
through.
"""

import fnmatch
import os
import signal
from pathlib import Path
from typing import Any

if "CTM_KILL_AT" in os.environ:
    left = int(os.environ.get("CTM_KILL_SKIP", "0"))
    mark = Path(os.environ["CTM_KILL_MARK"])

    def deadly(original: Any) -> Any:
        def rename(source: Any, target: Any, **options: Any) -> None:
            global left
            if fnmatch.fnmatch(os.path.abspath(target), os.environ["CTM_KILL_AT"]):
                if left == 0 and not mark.exists():
                    mark.write_text(str(target))
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            original(source, target, **options)

        return rename

    os.replace, os.rename = deadly(os.replace), deadly(os.rename)
