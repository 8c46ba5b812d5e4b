"""What a long job shows: a bar on a terminal, elsewhere one line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

__all__ = ["Progress", "Transferred"]


class Progress:
    """Steps done, loss terms, images/s and time left.

    Parameters
    ----------
    title
        What is running.
    total, start
        Steps in all, and those done before this process began.
    interval
        Seconds between lines where the output is no terminal.
    """

    def __init__(self, title: str, total: int, start: int = 0, interval: float = 5.0) -> None:
        self.title, self.total, self.start, self.interval = title, total, start, interval
        self.began = self.printed = time.monotonic()
        self.done = start
        self.images = 0
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=start, desc=title, disable=not self._terminal, dynamic_ncols=True
        )

    @property
    def images_per_second(self) -> float:
        """Throughput of this process since it began."""
        return self.images / max(time.monotonic() - self.began, 1e-9)

    def advance(self, images: int, terms: Mapping[str, float] | None = None) -> None:
        """Count one step of ``images`` images with its loss terms."""
        self.done += 1
        self.images += images
        shown = " ".join(f"{name} {value:.4g}" for name, value in (terms or {}).items())
        rate = f"{self.images_per_second:.0f} images/s"
        if self._terminal:
            self._bar.set_postfix_str(f"{shown} {rate}", refresh=False)
            self._bar.update(1)
            return
        now = time.monotonic()
        if now - self.printed >= self.interval or self.done == self.total:
            self.printed = now
            left = (now - self.began) / (self.done - self.start) * (self.total - self.done)
            print(
                f"{self.title}: step {self.done}/{self.total}  {shown}  {rate}  {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """End the bar."""
        self._bar.close()


class Transferred:
    """Bytes of a download, in the form that ``pooch`` calls; shown as :class:`Progress` is.

    Parameters
    ----------
    title
        What is fetched.
    interval
        Seconds between lines where the output is no terminal.
    """

    def __init__(self, title: str, interval: float = 5.0) -> None:
        self.title, self.interval = title, interval
        self.total = 0  # of this answer; set by pooch
        self.done = 0
        self.whole: int | None = None
        self.printed = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None

    def begin(self, start: int, whole: int | None) -> None:
        """``start`` bytes are here; ``whole`` is the length of the file, if that is known."""
        self.done, self.whole = start, whole
        if self._terminal:
            self._bar = tqdm(
                total=whole, initial=start, desc=self.title, unit="B", unit_scale=True
            )

    def update(self, count: int) -> None:
        """Count ``count`` more bytes; pooch counts a short last chunk as a whole one."""
        limit = count if self.whole is None else self.whole - self.done
        count = min(count, limit)
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if not self._terminal and now - self.printed >= self.interval:
            self.printed = now
            whole = "" if self.whole is None else f" of {self.whole / 1e6:,.1f}"
            shown = f"{self.title}: {self.done / 1e6:,.1f}{whole} MB"
            print(shown, file=sys.stderr, flush=True)

    def reset(self) -> None:
        """Called by pooch before it counts everything once more, which is not shown."""
        self.whole = self.done

    def close(self) -> None:
        """Called by pooch where everything came."""
        self.end()

    def end(self) -> None:
        """End the bar, however the download ended."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
