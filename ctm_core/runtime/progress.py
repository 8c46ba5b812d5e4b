"""What a long job shows: a bar on a terminal, elsewhere one line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


class _Display:
    def __init__(
        self, title: str, total: int | None, done: int, interval: float, **style: Any
    ) -> None:
        self.title, self.total, self.done, self.interval = title, total, done, interval
        self.began = self.printed = time.monotonic()
        self._bar = tqdm(
            total=total, initial=done, desc=title, disable=not sys.stderr.isatty(), **style
        )

    def _print(self, text: str, last: bool = False) -> None:
        """Print a line, unless there is a bar or the previous line is recent."""
        now = time.monotonic()
        if self._bar.disable and (last or now - self.printed >= self.interval):
            self.printed = now
            print(f"{self.title}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()


class Progress(_Display):
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
        super().__init__(title, total, start, interval, dynamic_ncols=True)
        self.start, self.steps, self.images = start, total, 0

    @property
    def images_per_second(self) -> float:
        """Throughput of this process since it began."""
        return self.images / max(time.monotonic() - self.began, 1e-9)

    def advance(self, images: int, terms: Mapping[str, float] | None = None) -> None:
        """Count one step of ``images`` images with its loss terms."""
        self.done += 1
        self.images += images
        values = " ".join(f"{name} {value:.4g}" for name, value in (terms or {}).items())
        rate = f"{self.images_per_second:.0f} images/s"
        self._bar.set_postfix_str(f"{values} {rate}", refresh=False)
        self._bar.update(1)
        elapsed = time.monotonic() - self.began
        left = elapsed / (self.done - self.start) * (self.steps - self.done)
        text = f"step {self.done}/{self.steps}  {values}  {rate}  {left:.0f} s left"
        self._print(text, last=self.done == self.steps)


class Transferred(_Display):
    """Bytes of a download.

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
        super().__init__(title, total, done, interval, unit="B", unit_scale=True)

    def update(self, count: int) -> None:
        """Count ``count`` more bytes."""
        self.done += count
        self._bar.update(count)
        total = "" if self.total is None else f" of {self.total / 1e6:,.1f}"
        self._print(f"{self.done / 1e6:,.1f}{total} MB")
