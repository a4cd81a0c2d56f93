"""The batch of a step of step 2: images, features, labels and the random numbers that belong to it."""

from pathlib import Path

import numpy as np
import torch

from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.features.frozen import FeatureCache, FrozenFeatures
from dcube.training.order import Order, numpy_rng, torch_rng


class ClassifierBatches:
    """Batches of the training split. Features come from a cache where the timesteps are a fixed set that fits, and
    the training is long enough for it to pay (`cached` decides otherwise).
    """

    def __init__(
        self, data: ImageData, experiment: Experiment, frozen: FrozenFeatures, directory: Path,
        cached: bool | None = None,
    ) -> None:  # fmt: skip
        self.data, self.experiment, self.frozen = data, experiment, frozen
        self.config, self.seed = experiment.classifier, experiment.seed
        self.indices = data.indices("train")
        self.labels = data.labels[self.indices]
        balanced = experiment.data.balance == "sampler"
        self.order = Order(self.labels, self.config.optimizer.batch_size, experiment.seed, balanced)
        self.timesteps = experiment.features.training_timesteps
        self.cache = None
        if cached is None:
            cached = cache_pays(self.config.optimizer.total_steps(len(self.indices)), experiment, len(self.indices))
        if cached:
            self.cache = make_cache(data, self.indices, frozen, experiment, self.timesteps, directory, mirror=True)

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """y, t, flipped: [B]; large: [B, C, S, S] at the size of f_sub, small: at the diffusion model's size, both in
        [0, 1] and mirrored where flipped; cycle_t, cycle_noise for eq. 7; with a cache map0, mirror0, ... in float16.
        """
        rng, generator = numpy_rng(self.seed, "step2", step), torch_rng(self.seed, "step2 noise", step)
        rows = self.order.batch(step)
        flipped = rng.random(len(rows)) < (0.5 if self.experiment.data.horizontal_flip else 0)
        diffusion = self.frozen.diffusion.config
        sizes = self.experiment.sub_size, diffusion.image_size
        mask = torch.from_numpy(flipped)[:, None, None, None]
        batch = {"y": torch.from_numpy(self.labels[rows]), "flipped": torch.from_numpy(flipped)}
        seen = {size: self.data.images(self.indices[rows], size) for size in set(sizes)}
        mirrored = {size: torch.where(mask, x.flip(-1), x) for size, x in seen.items()}
        batch |= {"large": mirrored[sizes[0]], "small": mirrored[sizes[1]]}
        if self.timesteps is None:
            batch["t"] = torch.randint(diffusion.timesteps, (len(rows),), generator=generator)
        else:
            at = rng.integers(len(self.timesteps), size=len(rows))
            batch["t"] = torch.tensor(self.timesteps)[torch.from_numpy(at)]
            if self.cache is not None:
                for prefix, mirror in (("map", flipped), ("mirror", ~flipped)):
                    maps = self.cache.maps(rows, mirror, at) if prefix == "map" or self._consistent else []
                    batch |= {f"{prefix}{i}": m for i, m in enumerate(maps)}
        batch["cycle_t"] = torch.randint(diffusion.timesteps, (len(rows),), generator=generator)
        batch["cycle_noise"] = torch.randn(batch["small"].shape, generator=generator)
        return batch

    @property
    def _consistent(self) -> bool:
        return self.config.lambda_consistency > 0


def cache_pays(steps: int, experiment: Experiment, images: int) -> bool:
    """Whether a training of `steps` takes more images through the frozen model, each at one timestep and for eq. 8 also
    mirrored, than the making of a cache of its fixed timesteps for `images` and their mirror images would.
    """
    config, timesteps = experiment.classifier, experiment.features.training_timesteps
    if timesteps is None:
        return False
    asked = steps * config.optimizer.batch_size * (2 if config.lambda_consistency else 1)
    return asked > images * len(timesteps) * (2 if experiment.data.horizontal_flip else 1)


def make_cache(
    data: ImageData, indices: np.ndarray, frozen: FrozenFeatures, experiment: Experiment,
    timesteps: tuple[int, ...] | None, directory: Path, mirror: bool,
) -> FeatureCache | None:  # fmt: skip
    """A feature cache, or None where timesteps are random or the cache would exceed `features.cache_gb`."""
    mirror = mirror and experiment.data.horizontal_flip
    if timesteps is None or not len(indices) or not frozen.blocks:
        return None
    size = FeatureCache.gigabytes(frozen, len(indices), len(timesteps), mirror)
    if size > experiment.features.cache_gb:
        if experiment.features.cache_gb:
            bound = experiment.features.cache_gb
            print(f"features: a cache would take {size:.1f} GB (features.cache_gb is {bound:g}): live")
        return None
    return FeatureCache(frozen, data, indices, timesteps, mirror, directory)
