"""Fewer training images, to see what a method makes of them; validation and test stay as they are."""

import numpy as np

from dcube.data.split import keep_share
from dcube.data.store import Store

LEFT_OUT = ""  # the split of an image that nothing uses


def scarce(
    store: Store, splits: np.ndarray, seed: int, share: float | None = None, rarest: float | None = None
) -> np.ndarray:
    """Splits [N] in which training images are left out, by a draw of `seed`.

    share: of the training images that stays, whole groups of every class in proportion; rarest: of the images of the
    class with the fewest training images (of what `share` leaves) that stays. Every class keeps a group at least.
    """
    splits = splits.copy()
    names, groups = np.array(store.classes)[store.labels], np.array(store.groups)

    def cut(rows: np.ndarray, part: float) -> None:
        splits[rows[~keep_share(names[rows].tolist(), groups[rows].tolist(), part, seed)]] = LEFT_OUT

    if share is not None:
        cut(np.flatnonzero(splits == "train"), share)
    if rarest is not None:
        train = np.flatnonzero(splits == "train")
        classes, counts = np.unique(store.labels[train], return_counts=True)
        cut(train[store.labels[train] == classes[counts.argmin()]], rarest)
    return splits
