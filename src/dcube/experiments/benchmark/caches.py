"""The features that step 2 reads in its training and validations, made before its clock starts, and their cost."""

import time
from pathlib import Path

from dcube.classifier.batches import make_cache
from dcube.classifier.head import map_side
from dcube.classifier.model import predictor_dtype
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.diffusion.train import Diffusion
from dcube.features.frozen import FrozenFeatures, frozen_dtype
from dcube.files import read_json, write_json


def make_caches(
    data: ImageData, settings: Experiment, diffusion: Diffusion, blocks: list[int], directory: Path
) -> float:
    """The caches that `train_classifier` will look for in `directory`; returns the seconds that they took, over all
    sittings that came to their end (DIRECTORY/caches.json).
    """
    features, grid = settings.features, map_side(settings.classifier)
    dtypes = {
        "train": frozen_dtype(features.dtype, diffusion.device, directory),
        "val": predictor_dtype(features, diffusion.device),
    }
    timesteps = {"train": features.training_timesteps, "val": features.prediction_timesteps}
    file = directory / "caches.json"
    seconds: dict[str, float] = read_json(file) if file.is_file() else {}
    for split, dtype in dtypes.items():
        if split in seconds:
            continue
        begin = time.monotonic()
        frozen = FrozenFeatures(diffusion, blocks, features.input, grid, dtype)
        make_cache(data, data.indices(split), frozen, settings, timesteps[split], directory, mirror=split == "train")
        seconds[split] = time.monotonic() - begin
        write_json(file, seconds)
    return sum(seconds.values())
