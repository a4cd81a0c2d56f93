"""Which sample and which random numbers belong to step k: functions of the position, never of history.

This is what makes resume exact: step k of a continued run draws what step k of an uninterrupted run draws.
"""

import hashlib

import numpy as np
import torch

LEAST = 50  # images of a class that a part of the training images holds at least, where there are as many


def key(seed: int, *parts: object) -> int:
    """A 63-bit number for (seed, purpose, position, ...): equal for equal arguments, else unrelated."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_rng(seed: int, *parts: object) -> torch.Generator:
    """A CPU generator that belongs to (seed, purpose, position, ...)."""
    return torch.Generator().manual_seed(key(seed, *parts))


def numpy_rng(seed: int, *parts: object) -> np.random.Generator:
    """A NumPy generator that belongs to (seed, purpose, position, ...)."""
    return np.random.default_rng(key(seed, *parts))


def some(rows: np.ndarray, most: int, seed: int, *parts: object) -> np.ndarray:
    """At most so many of the rows, drawn at random (tables are often sorted by class), in ascending order."""
    return np.sort(numpy_rng(seed, *parts).permutation(rows)[:most])


def drawn(rows: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows [n], whose order is random, in that order; labels: [n]. Where not all are taken,
    every class has its first LEAST all the same (or as many as all can have): a rare one must not be lost.
    """
    if most >= len(rows):
        return rows
    place = np.empty(len(rows), dtype=np.int64)  # within its class
    for members in (np.flatnonzero(labels == c) for c in np.unique(labels)):
        place[members] = np.arange(len(members))
    least = max(1, min(LEAST, most // len(np.unique(labels))))
    first = np.argsort(place >= least, kind="stable")
    return rows[np.sort(first[:most])]


class Order:
    """Batches of sample positions 0 .. n-1 for every step.

    Without balance each epoch is a fresh permutation of all samples. With balance each run of K
    positions holds one sample of every class, and each class walks through permutations of its own.

    labels: int64 [n]. Raises nothing; a class of one image is simply repeated.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int, balanced: bool = False) -> None:
        self.labels = np.asarray(labels)
        self.batch_size = batch_size
        self.seed = seed
        if balanced:
            self.members = [np.flatnonzero(self.labels == c) for c in np.unique(self.labels)]
        else:
            self.members = [np.arange(len(self.labels))]
        self._cache: dict[int, tuple[int, np.ndarray]] = {}

    def batch(self, step: int) -> np.ndarray:
        """Positions [batch_size] of a step, int64."""
        start = step * self.batch_size
        return np.array([self._at(p) for p in range(start, start + self.batch_size)], dtype=np.int64)

    def _at(self, position: int) -> int:
        round_, place = divmod(position, len(self.members))
        which = int(self._permutation(-1, round_, len(self.members))[place]) if len(self.members) > 1 else 0
        members = self.members[which]
        epoch, index = divmod(round_, len(members))
        return int(members[self._permutation(which, epoch, len(members))[index]])

    def _permutation(self, which: int, epoch: int, n: int) -> np.ndarray:
        held = self._cache.get(which)
        if held is None or held[0] != epoch:
            held = (epoch, numpy_rng(self.seed, "order", which, epoch).permutation(n))
            self._cache[which] = held
        return held[1]
