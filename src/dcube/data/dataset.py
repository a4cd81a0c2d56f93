"""A store with its splits, and batches of tensors from it."""

from typing import TYPE_CHECKING

import numpy as np

from dcube.data.records import SPLITS
from dcube.data.store import Store
from dcube.errors import InputError

if TYPE_CHECKING:
    import torch

CHUNK = 64  # images held at the stored size at once


class ImageData:
    """Images, labels, groups and splits of one experiment. Indices count the rows of the store."""

    def __init__(self, store: Store, splits: np.ndarray) -> None:
        """`splits`: [N] str, one of train, val, test per image of the store."""
        if len(splits) != len(store.labels):
            raise ValueError(f"{len(splits)} splits were given for {len(store.labels)} images")
        self.store = store
        self.splits = np.asarray(splits)
        self.classes: list[str] = store.classes
        self.labels: np.ndarray = store.labels
        self.groups: list[str] = store.groups

    def indices(self, split: str) -> np.ndarray:
        """Rows of one split in the store's order, int64 [n]. Raises InputError for a name that is no split."""
        if split not in SPLITS:
            raise InputError(f"'{split}' is not a split; use train, val or test.")
        return np.flatnonzero(self.splits == split)

    def images(self, indices: "np.ndarray | list[int]", size: int) -> "torch.Tensor":
        """float32 [n, C, size, size] in [0, 1], reduced from the stored size with a filter as wide as the step."""
        import torch

        rows = np.asarray(indices, dtype=np.int64)
        parts = [rows[start : start + CHUNK] for start in range(0, max(1, len(rows)), CHUNK)]
        return torch.cat([resize(torch.from_numpy(self.store.floats(part)), size) for part in parts])


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
