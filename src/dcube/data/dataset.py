"""A store with its splits, and batches of tensors from it."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dcube.data.records import SPLITS
from dcube.data.seen import CONTENT, Seen, flags, marks_of, mask, written
from dcube.data.store import Store
from dcube.data.twins import joined_groups
from dcube.errors import InputError

if TYPE_CHECKING:
    import torch

CHUNK = 64  # images held at the stored size at once


class ImageData:
    """Images, labels, groups, splits and names (`paths`) of one experiment. Indices count the rows of the store."""

    def __init__(self, store: Store, splits: np.ndarray) -> None:
        """`splits`: [N] str, one of train, val, test per image of the store."""
        if len(splits) != len(store.labels):
            raise ValueError(f"{len(splits)} splits were given for {len(store.labels)} images")
        self.store = store
        self.splits = np.asarray(splits)
        self.classes: list[str] = store.classes
        self.labels: np.ndarray = store.labels
        # copies that lie in one split here count as one, wherever the data had put them
        self.groups: list[str] = joined_groups(store.groups, store.twins or [], self.splits.tolist())
        self.paths: list[str] = store.paths

    @property
    def channels(self) -> int:
        """Channels of an image, 1 or 3."""
        return self.store.normalisation.channels

    @property
    def normalisation(self) -> dict[str, Any]:
        """What the weights' metadata say about how files became pixels."""
        return self.store.normalisation.to_dict()

    @property
    def seen(self) -> Seen:
        """The images that a training on this data sees, by their rows and, but in stores of older versions, by what was
        read: table and settings may change.
        """
        rows, marks = self.splits == "train", self.store.marks
        seen = {self.store.key: mask(rows)}
        return seen if marks is None else seen | {CONTENT: written(np.setdiff1d(marks[rows], np.uint64(0)))}

    def seen_by(self, other: Seen) -> int:
        """How many validation and test images a training that has seen `other` knows already; but for copies of this
        data's own training images, which it knows whatever it begins with.
        """
        asked, known = np.isin(self.splits, ["val", "test"]), np.zeros(len(self.splits), bool)
        if self.store.key in other:
            known |= flags(other[self.store.key], len(known))
        if (marks := self.store.marks) is not None:
            seen = np.setdiff1d(marks_of(other.get(CONTENT, "")), marks[self.splits == "train"])
            known |= np.isin(marks, seen)
        return int((known & asked).sum())

    def indices(self, split: str) -> np.ndarray:
        """Rows of one split in the store's order, int64 [n]. Raises InputError for a name that is no split."""
        if split not in SPLITS:
            raise InputError(f"'{split}' is not a split; use train, val or test.")
        return np.flatnonzero(self.splits == split)

    def images(self, indices: "np.ndarray | list[int]", size: int) -> "torch.Tensor":
        """float32 [n, C, size, size] in [0, 1], reduced from the stored size with a filter as wide as the step; the
        caller may change them in place.
        """
        import torch

        rows = np.asarray(indices, dtype=np.int64)
        parts = [rows[start : start + CHUNK] for start in range(0, max(1, len(rows)), CHUNK)]
        stored = self.store.normalisation.size
        if stored > size and stored % size == 0:
            made = [torch.from_numpy(cell_means(self.store.pixels[part], stored // size)) for part in parts]
        else:
            made = [resize(torch.from_numpy(self.store.floats(part)), size) for part in parts]
        return made[0] if len(made) == 1 else torch.cat(made)


def cell_means(stored: np.ndarray, cell: int) -> np.ndarray:
    """What `resize` makes of stored pixels [n, C, S, S], uint8 or uint16: float32 [n, C, S / cell, S / cell] in [0, 1].

    Summed in whole numbers, rows first: several times faster than in floating point, and exact.
    """
    size, top = stored.shape[-1] // cell, np.iinfo(stored.dtype).max
    wide = np.uint16 if top * cell**2 <= np.iinfo(np.uint16).max else np.uint32
    rows = stored.reshape(*stored.shape[:2], size, cell, size * cell)
    total: np.ndarray = rows[:, :, :, 0].astype(wide)
    for i in range(1, cell):
        np.add(total, rows[:, :, :, i], out=total)
    columns = total.reshape(*total.shape[:-1], size, cell)
    total = columns[..., 0].copy()
    for i in range(1, cell):
        np.add(total, columns[..., i], out=total)
    return total.astype(np.float32) * np.float32(1 / (top * cell**2))


def resize(images: "torch.Tensor", size: int) -> "torch.Tensor":
    """[n, C, S, S] in [0, 1] -> [n, C, size, size]: identity where equal, the mean of each cell where S is a multiple
    of `size`, antialiased bilinear otherwise."""
    from torch.nn import functional

    stored = images.shape[-1]
    if stored == size:
        return images
    if stored % size == 0:
        return functional.avg_pool2d(images, stored // size)
    resized = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp(0, 1)
