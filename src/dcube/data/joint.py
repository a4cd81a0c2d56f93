"""Several sets of images as one, for a training that needs no labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcube.data.dataset import ImageData
from dcube.data.seen import Seen, union
from dcube.data.store import Store
from dcube.errors import InputError

if TYPE_CHECKING:
    import torch


class JointData(ImageData):
    """The rows of several stores one after the other. Every image counts alike, so a large set counts for more.

    Each set keeps its own normalisation and its own split. `labels` say which set an image is of, and `classes` are
    the names of the sets.
    """

    def __init__(self, names: Sequence[str], parts: Sequence[ImageData]) -> None:
        """InputError where grey and colour sets come together."""
        kinds = {part.channels for part in parts}
        if len(kinds) > 1:
            raise InputError(
                "Some of these image sets are grey and others in colour; make them alike with --set data.channels=1"
                " or --set data.channels=3."
            )
        self.parts = list(parts)
        sizes = [len(part.labels) for part in parts]
        self._start = np.concatenate([[0], np.cumsum(sizes)])
        self.classes = list(names)
        self.labels = np.repeat(np.arange(len(parts)), sizes)
        self.splits = np.concatenate([part.splits for part in parts])
        named = list(zip(names, parts, strict=True))
        self.groups = [f"{name}/{group}" for name, part in named for group in part.groups]
        self.paths = [f"{name}/{path}" for name, part in named for path in part.paths]

    @property
    def channels(self) -> int:
        """Channels of an image, 1 or 3, the same in all sets."""
        return self.parts[0].channels

    @property
    def normalisation(self) -> dict[str, Any]:
        """That of every set by its name."""
        return {name: part.normalisation for name, part in zip(self.classes, self.parts, strict=True)}

    @property
    def seen(self) -> Seen:
        """The training images of all sets."""
        found: Seen = {}
        for part in self.parts:
            found = union(found, part.seen)
        return found

    def seen_by(self, other: Seen) -> int:
        """How many validation and test images a training that has seen `other` knows already."""
        return sum(part.seen_by(other) for part in self.parts)

    def images(self, indices: "np.ndarray | list[int]", size: int) -> "torch.Tensor":
        """float32 [n, C, size, size] in [0, 1], each image reduced from the size its own set is stored at."""
        import torch

        rows = np.asarray(indices, dtype=np.int64)
        out = torch.empty(len(rows), self.channels, size, size)
        for number in np.unique(self.labels[rows]):
            here = np.flatnonzero(self.labels[rows] == number)
            out[torch.from_numpy(here)] = self.parts[number].images(rows[here] - self._start[number], size)
        return out


def joined(stores: Mapping[str, Store], splits: Mapping[str, str]) -> JointData:
    """Stores by the names of their sets, and the split of every image by "set/path", as one."""
    parts = [
        ImageData(store, np.array([splits[f"{name}/{path}"] for path in store.paths])) for name, store in stores.items()
    ]
    return JointData(list(stores), parts)


def set_names(data: Sequence[str]) -> list[str]:
    """A short name per image set, each another: the last part of its path, numbered where two are alike."""
    short = [given if given.startswith("phantom:") else _last(given) for given in data]
    count, seen = Counter(short), Counter[str]()
    names = []
    for name in short:
        seen[name] += 1
        names.append(f"{name}-{seen[name]}" if count[name] > 1 else name)
    return names


def _last(given: str) -> str:
    path = Path(given).resolve()
    return path.parent.name if path.suffix == ".csv" else path.name
