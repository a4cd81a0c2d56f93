"""A cheap probe while step 1 trains: how good the features of a few blocks are by now."""

import time
from typing import Any

import numpy as np

from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.train import Diffusion
from dcube.evaluation.intervals import evaluate_predictions
from dcube.evaluation.linear import linear_probe
from dcube.features.frozen import FrozenFeatures, flat_features
from dcube.training.order import numpy_rng
from dcube.training.runtime import fast_dtype

TIMED, TIMINGS = 8, 4  # images, and how often they are timed, to tell how many can be looked at
SECONDS = 20.0  # that a look may take
EXTRACTION = 8.0  # of them for the forwards; with MOST images, the fits of three blocks take less than the rest
MOST, LEAST = 600, 64  # images, training and validation together
GRID, COMPONENTS, BOOTSTRAP = 8, 128, 200


class LiveProbe:
    """Linear probes of some blocks at one timestep, on images chosen once: fitted on training images, measured on
    validation images.

    Blocks: `diffusion.probe_blocks`, or the first up level, the middle and the last but one. Timestep:
    `features.timestep`. The number of images is what fits into 20 s on this machine, but at least 64; it is kept in
    `extra`, and lowered after a look that took longer.
    """

    def __init__(self, data: ImageData, settings: Experiment) -> None:
        """ValueError where there is no validation split."""
        self.data, self.settings = data, settings
        if not len(data.indices("val")):
            raise ValueError("there is no validation split to probe on")

    def __call__(self, diffusion: Diffusion, extra: dict[str, Any]) -> dict[str, Any]:
        """A row of the log: event, timestep, train and n (images), blocks {name: macro_f1, accuracy with intervals},
        macro_f1 of the best of them, probe_seconds.
        """
        start = time.perf_counter()
        blocks = self.settings.diffusion.probe_blocks or default_blocks(diffusion.model)
        fast = fast_dtype(diffusion.device)
        frozen = FrozenFeatures(diffusion, list(blocks), self.settings.features.input, GRID, fast)
        if "probe_images" not in extra:
            extra["probe_images"] = self._affordable(frozen)
        count = extra["probe_images"]
        train, asked = self.rows(count)
        steps = [self.settings.features.timestep]
        features = flat_features(frozen, self.data, np.concatenate([train, asked]), steps)
        measured = {
            diffusion.model.blocks[block]: self._measure(values, train, asked)
            for block, values in zip(blocks, features, strict=True)
        }
        seconds = time.perf_counter() - start
        if seconds > SECONDS:
            extra["probe_images"] = max(LEAST, int(0.8 * SECONDS / seconds * count))
        return {
            "event": "probe", "timestep": self.settings.features.timestep, "train": len(train), "n": len(asked),
            "blocks": measured, "macro_f1": max(block["macro_f1"]["value"] for block in measured.values()),
            "probe_seconds": round(seconds, 3),
        }  # fmt: skip

    def rows(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """About `count` rows of the store, two thirds for training, one in three for validation where there are as
        many. Training images come class by class in turn, so that a few of them hold every class.
        """
        data, seed = self.data, self.settings.seed
        asked = numpy_rng(seed, "probe", "val").permutation(data.indices("val"))[: max(1, count // 3)]
        train = numpy_rng(seed, "probe", "train").permutation(data.indices("train"))
        turn = np.zeros(len(train), np.int64)  # an image's number within its class
        for label in np.unique(data.labels[train]):
            turn[data.labels[train] == label] = np.arange((data.labels[train] == label).sum())
        return train[np.argsort(turn, kind="stable")][: count - len(asked)], asked

    def _measure(self, features: np.ndarray, train: np.ndarray, asked: np.ndarray) -> dict[str, Any]:
        data, groups, seed = self.data, np.array(self.data.groups), self.settings.seed
        probabilities = linear_probe(
            features[: len(train)], data.labels[train], groups[train], features[len(train) :],
            classes=len(data.classes), components=COMPONENTS, seed=seed,
        )  # fmt: skip
        found = evaluate_predictions(
            probabilities, data.labels[asked], groups[asked], data.classes, bootstrap=BOOTSTRAP, seed=seed
        )
        return {name: found[name] for name in ("macro_f1", "accuracy")}

    def _affordable(self, frozen: FrozenFeatures) -> int:
        """How many images can be looked at, from the best of a few timings: a busy machine makes the others longer."""
        rows, seconds = self.data.indices("train")[:TIMED], []
        for _ in range(TIMINGS):
            start = time.perf_counter()
            flat_features(frozen, self.data, rows, [self.settings.features.timestep])
            seconds.append((time.perf_counter() - start) / len(rows))
        return int(np.clip(EXTRACTION / min(seconds), LEAST, MOST))


def default_blocks(model: Denoiser) -> tuple[int, ...]:
    """The first block after the middle, the middle and the last but one, in the order of the computation."""
    middle = model.blocks.index(model.middle)
    return tuple(sorted({middle, middle + 1, len(model.blocks) - 2}))
