"""Pairs for eq. 4 from files: draw an image, decode it, and again until its class fits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def decode(path: Path, size: int) -> torch.Tensor:
    """A grey file as [1, size, size] in [-1, 1]."""
    picture = Image.open(path).convert("L").resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 127.5 - 1)[None]


def decoded_pairs(
    paths: Sequence[Path], labels: np.ndarray, first: np.ndarray, size: int, rng: np.random.Generator
) -> torch.Tensor:
    """Pairs [B, 2, 1, size, size] for the images at positions `first` [B]: same or other class with equal chance.

    The class is known once the candidate is loaded, as a data set's `[i]` gives image and label together.
    """
    pairs = []
    for position in first:
        image, same = decode(paths[position], size), rng.random() < 0.5
        while True:
            candidate = int(rng.integers(len(paths)))
            partner = decode(paths[candidate], size)
            if (labels[candidate] == labels[position]) == same:
                break
        pairs.append(torch.stack([image, partner]))
    return torch.stack(pairs)
