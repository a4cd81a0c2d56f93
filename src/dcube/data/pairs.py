"""Partners for the contrastive loss: same or other class with equal chance."""

import numpy as np

from dcube.errors import InputError


class PairSampler:
    """Draws a partner for each image in constant time, whatever the imbalance (eq. 4 needs such pairs)."""

    def __init__(self, labels: np.ndarray) -> None:
        """`labels`: [n] int, at least two different ones; InputError otherwise."""
        labels = np.asarray(labels)
        present, self._class = np.unique(labels, return_inverse=True)
        if len(present) < 2:
            raise InputError("Pairs of different classes need images of at least two classes in train.")
        self._order = np.argsort(self._class, kind="stable")  # positions, class by class
        self._count = np.bincount(self._class)
        self._start = np.cumsum(self._count) - self._count
        self._rank = np.empty(len(labels), dtype=np.int64)  # place of an image within its class
        self._rank[self._order] = np.arange(len(labels)) - self._start[self._class[self._order]]

    def partners(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Partners of the images at positions `indices` [b]: (positions [b] int64, same class [b] bool).

        A fair coin says same or other. Same: uniform over the other images of the class, the image itself where it
        is the only one. Other: another class first, each with equal chance, then an image of it.
        """
        indices = np.asarray(indices, dtype=np.int64)
        coin, choice, within = rng.random((3, len(indices)))
        own, same = self._class[indices], coin < 0.5
        others = self._count[own] - 1
        place = np.minimum((within * others).astype(np.int64), np.maximum(others - 1, 0))
        place += (place >= self._rank[indices]) & (others > 0)
        classes = len(self._count)
        other = np.minimum((choice * (classes - 1)).astype(np.int64), classes - 2)
        other += other >= own
        far = np.minimum((within * self._count[other]).astype(np.int64), self._count[other] - 1)
        target = np.where(same, self._start[own] + place, self._start[other] + far)
        return self._order[target].astype(np.int64), same
