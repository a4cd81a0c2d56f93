"""What an image set is before any pixel is decoded: a table of records and a way to read one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Record:
    """One image. `group` holds what must stay in one split (a patient); without better knowledge, the path itself."""

    path: str  # posix, relative to the root of its set or absolute; unique in the set
    label: str
    group: str
    split: str | None = None  # "train", "val", "test"; None where the data bring none


@dataclass(frozen=True)
class ImageSet:
    """A table of images. `read(record)` returns raw pixels, [H, W] or [H, W, 3], uint8, uint16 or float32."""

    name: str
    root: Path | None  # None: made by the program, not read from files
    records: tuple[Record, ...]
    read: Callable[[Record], np.ndarray]
    ignored: int = 0  # files of the folder that are hidden or no images
    prepared: Path | None = None  # the set is a prepared store: its folder

    @property
    def classes(self) -> list[str]:
        """Sorted names of the labels."""
        return sorted({record.label for record in self.records})
