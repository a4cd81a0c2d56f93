"""Progress on stderr: a bar with the time left when a person watches, plain lines when not."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LINE_SECONDS = 30.0  # a plain line at least this often, and at every tenth of the way


class Advance(Protocol):
    """Report that `done` units of the total are done, with a short text such as the loss."""

    def __call__(self, done: int, info: str = "") -> None: ...


@contextmanager
def progress(title: str, total: int, start: int = 0) -> Iterator[Advance]:
    """Show how far a task of `total` units is, of which `start` were done before this process.

    `with progress("training", 800) as advance: ... advance(10, "loss 0.031")`. Silent on ranks other than 0.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda done, info="": None
    elif sys.stderr.isatty():
        with _bar(title, total, start) as advance:
            yield advance
    else:
        yield _Lines(title, total, start)


@contextmanager
def _bar(title: str, total: int, start: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=start, info="")

        def advance(done: int, info: str = "") -> None:
            bar.update(task, completed=done)
            if info:
                bar.update(task, info=info)

        yield advance


class _Lines:
    """Plain lines, few enough to keep in a log file."""

    def __init__(self, title: str, total: int, start: int) -> None:
        self.title, self.total, self.start = title, total, start
        self.began = self.printed = time.monotonic()
        self.tenth = 10 * start // max(total, 1)

    def __call__(self, done: int, info: str = "") -> None:
        now, tenth = time.monotonic(), 10 * done // max(self.total, 1)
        finished = done >= self.total
        due = now - self.printed >= LINE_SECONDS or (tenth > self.tenth and now - self.printed >= 1)
        if not (due or finished):
            return
        self.printed, self.tenth = now, tenth
        elapsed = now - self.began
        left = elapsed * (self.total - done) / max(done - self.start, 1)
        clock = f"{_clock(elapsed)} taken" if finished else f"{_clock(left)} left"
        line = ", ".join(part for part in (f"{done}/{self.total}", clock, info) if part)
        print(f"{self.title}: {line}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
