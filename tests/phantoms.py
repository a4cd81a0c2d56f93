"""Phantoms for trainings in tests: a few, or a balanced set whose training labels mean nothing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dcube.config import DataConfig
from dcube.data.dataset import ImageData
from dcube.data.phantom import SHARES
from dcube.data.records import ImageSet, Record
from dcube.data.sources import open_images
from dcube.data.store import Store, build_store

SIZE = 32
SPLITS = ("train",) * 5 + ("val", "test", "test")


def phantoms(directory: Path, per_class: int, shuffled: bool = False, planted: int = 0) -> Store:
    """`per_class` phantoms of every class, one per patient, 5 to 1 to 2 in train, val and test. shuffled: the labels
    of train and of val are dealt anew, so that only chance is left for the test split. planted: grey values by
    which the classes differ, beside what phantoms differ by anyway.
    """
    whole = open_images(f"phantom:patients={round(per_class / min(SHARES.values())) + 5},slices=1,size={SIZE}")
    chosen = [record for name in SHARES for record in _first(whole, name, per_class)]
    splits = [SPLITS[i % len(SPLITS)] for _ in SHARES for i in range(per_class)]
    labels = np.array([record.label for record in chosen])
    if shuffled:
        rng = np.random.default_rng(0)
        for split in ("train", "val"):
            learnt = np.array(splits) == split
            labels[learnt] = rng.permutation(labels[learnt])
    origin = {record.path: record for record in chosen}
    records = tuple(
        Record(record.path, str(label), record.group, split)
        for record, label, split in zip(chosen, labels, splits, strict=True)
    )
    levels = {name: planted * i for i, name in enumerate(SHARES)}

    def read(record: Record) -> np.ndarray:
        pixels = whole.read(origin[record.path]).astype(int) + levels[origin[record.path].label]
        return pixels.clip(0, 255).astype(np.uint8)

    images = ImageSet(f"{whole.name} {per_class} {shuffled} {planted}", None, records, read)
    return build_store(images, DataConfig(size=SIZE), directory)


def image_data(store: Store) -> ImageData:
    """With its own splits."""
    return ImageData(store, np.array(store.given_splits))


def _first(images: ImageSet, label: str, count: int) -> Iterator[Record]:
    return (record for _, record in zip(range(count), (r for r in images.records if r.label == label), strict=False))
