"""Extraction of the selected blocks' features for the cache, and the Gaussianity test of every block (eq. 6)."""

from typing import Any

import numpy as np
import torch

from benchmarks.case import Case, Side
from benchmarks.cases.step2 import extraction
from benchmarks.reference.classifier import block_maps, gaussianity
from benchmarks.world import World, difference
from dcube.features.selection import select_blocks
from dcube.training.order import numpy_rng

EXTRACTED = 8  # images


def ours_extract(world: World) -> Side:
    """The program's cache, written to the disk."""
    return [(extraction(world, EXTRACTED), 1.0)]


def reference_extract(world: World) -> Side:
    """A forward to the end for every mirror image and timestep."""
    plain, grid = world.plain(), world.experiment.classifier.grid
    rows, size = world.data.indices("train")[:EXTRACTED], world.experiment.diffusion.image_size
    timesteps = world.experiment.features.timesteps or ()

    def extract() -> torch.Tensor:
        """[images, flips, timesteps, values]."""
        images, views = world.data.images(rows, size).to(world.device), []
        for view in (images, images.flip(-1)):
            steps = []
            for timestep in timesteps:
                t = torch.full((len(view),), timestep, device=world.device)
                maps = block_maps(plain, view, t, world.size.blocks, grid)
                steps.append(torch.cat([m.flatten(1) for m in maps], dim=1))
            views.append(torch.stack(steps, dim=1))
        return torch.stack(views, dim=1).cpu()

    return [(extract, 1.0)]


def deviation_extract(cache: Any, features: Any, world: World) -> float:
    """Of all features; the program's are kept in float16."""
    flips = np.array([False, True])
    steps = [
        torch.stack([torch.cat([m.flatten(1) for m in cache.maps(np.array([i, i]), flips, np.array([at, at]))], 1)
                     for at in range(features.shape[2])], dim=1)
        for i in range(len(features))
    ]  # fmt: skip
    return difference(torch.stack(steps), features)


def ours_select(world: World) -> Side:
    """`dcube select` but for its files."""
    features = world.experiment.features.model_copy(update={"batch_size": world.size.tested})
    return [(lambda: select_blocks(world.diffusion, world.data, features, world.seed), 1.0)]


def reference_select(world: World) -> Side:
    """One forward over all images, then SciPy's test block by block."""
    plain, size = world.plain(), world.experiment.diffusion.image_size
    train = world.data.indices("train")
    rows = np.sort(numpy_rng(world.seed, "gaussianity").permutation(train)[: world.size.tested])

    def select() -> list[tuple[float, float]]:
        images = world.data.images(rows, size).to(world.device)
        return gaussianity(plain, images, world.experiment.features.timestep)

    return [(select, 1.0)]


def deviation_select(selection: Any, tests: Any, world: World) -> float:
    """Of the p-values of all blocks."""
    return difference([block["p"] for block in selection["blocks"]], [p for _, p in tests])


CASES = [
    Case(
        "extract", ours_extract, reference_extract, deviation_extract,
        f"{EXTRACTED} images, both mirror images, 4 timesteps; the program's go to the disk in float16",
    ),
    Case(
        "select", ours_select, reference_select, deviation_select,
        "on fewer images than the paper's 256; the program also gives Lilliefors' p (its null is drawn once)",
    ),
]  # fmt: skip
