"""Batches of pairs: from the memory-mapped store, and by decoding large files until the class fits."""

from typing import Any

import numpy as np

from benchmarks.case import Case, Side
from benchmarks.images import write_files
from benchmarks.reference.loading import decoded_pairs
from benchmarks.sizes import Size
from benchmarks.world import World, difference
from dcube.data.dataset import ImageData
from dcube.data.sources import open_images
from dcube.data.store import Store, build_store
from dcube.diffusion.train import PairBatches

BATCHES = 4  # per timed call, for partners are drawn at random
RAREST = 0.05


def data_of(world: World) -> ImageData:
    """The store of the files, as `dcube prepare` makes it."""
    folder, directory = world.folder / "files", world.folder / "files-store"
    if not folder.exists():
        write_files(folder, world.size.files, world.size.file_size, RAREST)
    images = open_images(str(folder))
    if not directory.exists():
        build_store(images, world.experiment.data, directory)
    return ImageData(Store.open(directory), np.full(len(images.records), "train"))


def ours(world: World) -> Side:
    """The program's batches: pixels, partners, labels, noise, timesteps."""
    batches = PairBatches(data_of(world), world.experiment.diffusion, world.seed)
    return [(lambda: [batches(step)["x"] for step in range(BATCHES)], 1.0)]


def reference(world: World) -> Side:
    """The same first images, partners found by decoding."""
    data, config = data_of(world), world.experiment.diffusion
    order, paths = PairBatches(data, config, world.seed).order, [world.folder / "files" / p for p in data.store.paths]
    rng = np.random.default_rng(world.seed)

    def load() -> list[Any]:
        batches = [order.batch(step) for step in range(BATCHES)]
        return [decoded_pairs(paths, data.labels, first, config.image_size, rng) for first in batches]

    return [(load, 1.0)]


def deviation(ours: Any, others: Any, world: World) -> float:
    """Of the first images' pixels: the program reduces them twice, on the way into the store and out of it."""
    return max(difference(a[:, 0], b[:, 0]) for a, b in zip(ours, others, strict=True))


def cases(size: Size) -> list[Case]:
    """Pairs for step 1."""
    pairs = BATCHES * size.experiment().diffusion.optimizer.batch_size
    note = f"{pairs} pairs; {size.files} PNG files of {size.file_size} px, rarest class {RAREST:.0%}; deviation of the"
    return [Case("loading", ours, reference, deviation, f"{note} pixels, which are resized in other ways")]
