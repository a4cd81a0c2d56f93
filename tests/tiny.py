"""Images, models and settings small enough for milliseconds; shared by the tests and by their child processes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dcube.classifier.model import DCubeClassifier, Predictor
from dcube.config import DataConfig, DiffusionConfig, Experiment
from dcube.data.dataset import ImageData
from dcube.data.decode import Normalisation
from dcube.data.records import ImageSet, Record
from dcube.data.store import build_store
from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.build import build_denoiser
from dcube.diffusion.schedule import Schedule
from dcube.diffusion.train import Diffusion
from dcube.features.frozen import FrozenFeatures

CLASSES = ("benign", "malignant", "normal")


def tiny_data(
    directory: Path, counts: tuple[int, ...] = (14, 8, 5), channels: int = 1, given: bool = False, seed: int = 0,
    size: int = 32,
) -> ImageData:  # fmt: skip
    """Noise whose brightness follows the class; every fourth image of a class is for validation, one for test; `given`:
    the store knows that too.
    """
    records, pixels, splits = [], {}, []
    rng = np.random.default_rng(seed)
    for label, count in zip(CLASSES, counts, strict=False):
        for i in range(count):
            splits.append("test" if i == 2 else "val" if i % 4 == 1 else "train")
            records.append(Record(f"{label}/{i}", label, f"{label}/{i}", splits[-1] if given else None))
            noise = rng.integers(0, 128, (32, 32, channels)) + 40 * CLASSES.index(label)
            pixels[records[-1].path] = noise.astype(np.uint8).squeeze()
    images = ImageSet(f"tiny {counts} {channels}", None, tuple(records), lambda record: pixels[record.path])
    return ImageData(build_store(images, DataConfig(size=size, channels=channels), directory), np.array(splits))


def tiny_experiment(**changes: Any) -> Experiment:
    """Both steps in a second or two; `changes` are sections that replace or complete the tree, as dicts."""
    optimizer = {"batch_size": 6, "lr": 1e-3, "warmup_steps": 2, "ema_decay": 0.9, "dtype": "fp32"}
    tree: dict[str, Any] = {
        "diffusion": {
            "image_size": 8, "timesteps": 20, "sample_every": 1.0, "sample_steps": 2,
            "unet": {"widths": (8, 16), "groups": 4}, "optimizer": {**optimizer, "steps": 12},
        },
        "features": {"timestep": 10, "timesteps": (2, 9), "eval_timesteps": (1, 5), "dtype": "fp32"},
        "classifier": {
            "cnn": "test_efficientnet", "cnn_weights": "none", "cnn_size": 32, "head": "late", "grid": 4, "width": 8,
            "optimizer": {**optimizer, "steps": 12},
        },
        "runtime": {"device": "cpu", "threads": 1, "checkpoint_seconds": 60},
    }  # fmt: skip
    return Experiment.model_validate(_merged(tree, changes))


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    out = dict(tree)
    for name, value in changes.items():
        out[name] = _merged(out.get(name, {}), value) if isinstance(value, dict) else value
    return out


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.2) -> None:
    """Every parameter drawn anew: initialisations at zero would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def tiny_denoiser(seed: int = 0, channels: int = 1, **changes: Any) -> Denoiser:
    """A U-Net with random weights, float64."""
    config = tiny_experiment(diffusion=changes).diffusion if changes else tiny_experiment().diffusion
    model = build_denoiser(config, channels, len(CLASSES)).double()
    randomise(model, seed)
    return model


def tiny_diffusion(seed: int = 0, config: DiffusionConfig | None = None, channels: int = 1) -> Diffusion:
    """A frozen step 1 with random weights, float32."""
    config = config or tiny_experiment().diffusion
    model = build_denoiser(config, channels, len(CLASSES))
    randomise(model, seed)
    model.eval().requires_grad_(False)
    schedule = Schedule.of(config)
    return Diffusion(model, schedule, config, channels, list(CLASSES))


def tiny_predictor() -> Predictor:
    """A classifier with random weights of 8-bit grey images, 32 px, and the classes a, b and c."""
    experiment = tiny_experiment()
    frozen = FrozenFeatures(tiny_diffusion(), [1, 3], "clean", 4)
    model = DCubeClassifier(experiment.classifier, 3, [shape[0] for shape in frozen.shapes])
    randomise(model.head)
    model.eval().requires_grad_(False)
    metadata = {"normalisation": Normalisation(32, 1, "pad", 8, 0, 255).to_dict(), "look": {"brightness": [0.2, 0.8]}}
    return Predictor(model, frozen, experiment.classifier, experiment.features, ["a", "b", "c"], metadata)
