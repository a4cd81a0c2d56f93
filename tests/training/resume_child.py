"""What the resume test runs in a process of its own, which it kills."""

import warnings
from pathlib import Path

import accelerate  # noqa: F401 - imported here once, not in each of the killed processes
import numpy as np
import timm  # noqa: F401
import torch

from dcube.classifier.train import train_classifier
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.data.store import Store
from dcube.diffusion.train import train_diffusion
from tiny import tiny_experiment

STEPS = 24


def experiment(dtype: str) -> Experiment:
    """fp32: random timesteps, live features, U-Net; bf16: fixed timesteps, the cache, U-ViT, the paper's head."""
    optimizer = {"dtype": dtype, "steps": STEPS, "ema_decay": 0.99}
    cached = dtype == "bf16"
    return tiny_experiment(
        diffusion={
            "backbone": "uvit" if cached else "unet", "unet": {"dropout": 0.1}, "augment": True,
            "uvit": {"patch": 2, "width": 16, "depth": 2, "heads": 2}, "optimizer": optimizer,
        },
        features={"timesteps": (2, 9) if cached else None, "dtype": dtype},
        classifier={"head": "paper" if cached else "late", "cycle_fraction": 0.5, "optimizer": optimizer},
        runtime={"checkpoint_seconds": 0.05},
    )  # fmt: skip


def fit(store: str, splits: list[str], run: str, dtype: str) -> None:
    """Both steps in the folder `run`, or what is left of them."""
    warnings.simplefilter("error", UserWarning)  # for example of a scheduler or checkpoint used wrongly
    torch.set_num_threads(1)
    data, settings = ImageData(Store.open(store), np.array(splits)), experiment(dtype)
    diffusion, _ = train_diffusion(data, settings, Path(run) / "diffusion")
    train_classifier(data, settings, diffusion, [0, 2], Path(run) / "classifier")
