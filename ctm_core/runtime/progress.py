"""What a long job shows: a bar on a terminal, elsewhere one line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

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
        Seconds between lines where the output is not a terminal.
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
    """Bytes of a download, shown as :class:`Progress` shows steps.

    Parameters
    ----------
    title
        What is fetched.
    done, total
        Bytes that are here, and the length of the file if that is known.
    interval
        Seconds between lines where the output is not a terminal.
    """

    def __init__(self, title: str, done: int, total: int | None, interval: float = 5.0) -> None:
        self.title, self.done, self.total, self.interval = title, done, total, interval
        self.printed = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            unit="B",
            unit_scale=True,
            disable=not self._terminal,
        )

    def update(self, count: int) -> None:
        """Count ``count`` more bytes."""
        self.done += count
        self._bar.update(count)
        now = time.monotonic()
        if not self._terminal and now - self.printed >= self.interval:
            self.printed = now
            total = "" if self.total is None else f" of {self.total / 1e6:,.1f}"
            text = f"{self.title}: {self.done / 1e6:,.1f}{total} MB"
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar, however the download ended."""
        self._bar.close()
