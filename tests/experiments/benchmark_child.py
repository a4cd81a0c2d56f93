"""A small benchmark, for the tests and for the processes that they kill."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcube.data.store import Store
from dcube.experiments.benchmark.run import Benchmark
from dcube.experiments.benchmark.terms import Terms
from dcube.training.budget import Budget
from tiny import tiny_experiment

SIZE = 32
MODELS = (
    "test_resnet", "dcube", "feature_probe", "diffusion_classifier", "majority", "knn", "test_resnet+knn",
    "step1_covariances", "cnn_covariances", "test_resnet+knn+cnn_covariances",
)  # fmt: skip


def terms_of(**changes: Any) -> Terms:
    """Two epochs each, at 32 px; `changes` of the terms."""
    settings = tiny_experiment(
        diffusion={"image_size": SIZE}, features={"top_k": 1}, classifier={"second_reader": 16},
        evaluation={"bootstrap": 100}, runtime={"checkpoint_seconds": 0},
    )  # fmt: skip
    given: dict[str, Any] = {"settings": settings, "budget": Budget(epochs=2), "weights": (("", "none"),)}
    return Terms(**(given | changes))


def benchmark_of(
    store: Path, out: Path, models: tuple[str, ...] = MODELS, seeds: tuple[int, ...] = (0, 1), **changes: Any
) -> Benchmark:
    """Of one data set."""
    return Benchmark({"tiny": Store.open(store)}, terms_of(**changes), out, models, seeds, jobs=1)


def work(store: str, out: str) -> None:
    """Everything, in a process of its own."""
    torch.set_num_threads(1)
    held = benchmark_of(Path(store), Path(out))
    held.train()
    held.open_test(again=False)


def predictions(held: Benchmark) -> dict[str, np.ndarray]:
    """Of every cell, by cell and split."""
    return {f"{unit} {split}": unit.read(split) for unit in held.cells() for split in ("val", "test")}
