"""Images decoded by threads, ahead of who takes them: a bounded number, and a bounded number of pixels at once."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from dcube.data.decode import MAX_PIXELS, header_of

AHEAD = 64  # images at the stored size that wait for the model: memory does not grow with their number
READERS = 8  # threads that decode, at most
Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """work(item) for every item, in order, by threads that run at most `AHEAD` items ahead of the caller. An exception
    of `work` is raised when its turn comes."""
    pool = ThreadPoolExecutor(min(READERS, os.cpu_count() or 1))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Room:
    """Where threads read side by side as long as their images have no more than `pixels` together: one colour image of
    100 Mpx takes 2 GB while it is decoded and made small. One that is larger is read alone.
    """

    def __init__(self, pixels: int = MAX_PIXELS) -> None:
        self._pixels, self._taken, self._changed = pixels, 0, threading.Condition()

    @contextmanager
    def of(self, image: Any) -> Iterator[None]:
        """Inside, there is room for the image of a file; anything but a path is in memory already."""
        need = self._need(os.fsdecode(image)) if isinstance(image, str | bytes | os.PathLike) else 0
        with self._changed:
            self._changed.wait_for(lambda: self._taken + need <= self._pixels)
            self._taken += need
        try:
            yield
        finally:
            with self._changed:
                self._taken -= need
                self._changed.notify_all()

    def _need(self, path: str) -> int:
        """Pixels of a file by its header, all there is room for where that does not say."""
        width = height = 0
        with suppress(Exception):  # what is wrong with the file is told when it is read
            width, height, _ = header_of(Path(path))
        return min(width * height, self._pixels) or self._pixels
