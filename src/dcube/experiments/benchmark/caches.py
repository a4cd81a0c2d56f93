"""The features that step 2 reads in its training and its validations, made before its clock starts, and their cost."""

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


def make_cache_of(
    split: str, data: ImageData, settings: Experiment, diffusion: Diffusion, blocks: list[int], directory: Path
) -> float | None:
    """The cache of a split ("train" or "val") that `train_classifier` will look for in `directory`; returns the seconds
    that it took, over all sittings that came to their end (DIRECTORY/caches.json), None where there is none, as where
    it would exceed `features.cache_gb`.
    """
    features, file = settings.features, directory / "caches.json"
    seconds: dict[str, float | None] = read_json(file) if file.is_file() else {}
    if split not in seconds:
        begin = time.monotonic()
        if split == "train":
            dtype, timesteps = frozen_dtype(features.dtype, diffusion.device, directory), features.training_timesteps
        else:
            dtype, timesteps = predictor_dtype(features, diffusion.device), features.prediction_timesteps
        frozen = FrozenFeatures(diffusion, blocks, features.input, map_side(settings.classifier), dtype)
        made = make_cache(data, data.indices(split), frozen, settings, timesteps, directory, mirror=split == "train")
        seconds[split] = None if made is None else time.monotonic() - begin
        write_json(file, seconds)
    return seconds[split]
