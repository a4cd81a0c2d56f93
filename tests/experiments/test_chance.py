"""No system finds anything where there is nothing: 210 balanced phantoms whose labels are shuffled."""

from pathlib import Path

import numpy as np
import pytest
from benchmark_child import benchmark_of
from scipy.stats import binom

from dcube.baselines.registry import REGISTRY
from dcube.data.store import Store
from dcube.training.budget import Budget
from phantoms import SIZE, image_data, phantoms
from tiny import tiny_experiment

PER_CLASS, CLASSES = 112, 3
FAST = {
    *("test_resnet", "test_vit", "dcube", "diffusion_classifier", "feature_probe", "step1_covariances"),
    *("statistics", "pixels", "knn", "cnn_probe", "cnn_covariances"),
}
SLOW = {  # of the registry the smallest of each family
    *("resnet18", "efficientnet_lite0", "shufflenet_v2", "vit_ti16", "t2t_vit_7", "mit_b0", "pvt_v2_b0", "pvt_tiny"),
    *("cpt_small", "diffmic_lite0", "guidance_lite0"),
}
ALPHA = 1e-4  # two-sided, per system: a sound harness fails one run in some hundreds


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return phantoms(tmp_path_factory.mktemp("shuffled") / "store", PER_CLASS, shuffled=True)


def test_there_is_something_to_find_where_labels_are_true(tmp_path: Path) -> None:
    """Else the test below could not fail: a planted difference is found, by a floor and by a network."""
    store = phantoms(tmp_path / "store", PER_CLASS, planted=60)
    for model in ("statistics", "test_resnet"):
        assert accuracy(store, tmp_path / model, model) > binom.ppf(1 - ALPHA, 84, 1 / CLASSES) / 84


@pytest.mark.parametrize(
    "model", [*sorted(FAST), *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(SLOW))]
)
def test_chance_where_training_labels_are_shuffled(shuffled: Store, tmp_path: Path, model: str) -> None:
    data = image_data(shuffled)
    count = len(data.indices("test"))
    assert len(data.indices("train")) >= 200
    assert np.bincount(data.labels[data.indices("test")]).tolist() == [count // 3] * 3
    low, high = binom.ppf([ALPHA / 2, 1 - ALPHA / 2], count, 1 / CLASSES) / count
    assert low <= accuracy(shuffled, tmp_path, model) <= high


def accuracy(store: Store, out: Path, model: str) -> float:
    """Of a system on the test split, after three epochs."""
    assert model in FAST or model in REGISTRY
    settings = tiny_experiment(
        diffusion={"image_size": SIZE, "align": {"weight": 1, "size": SIZE}},
        classifier={"optimizer": {"batch_size": 16}, "second_reader": 16},
    )
    held = benchmark_of(store.directory, out, (model,), (0,), settings=settings, budget=Budget(epochs=3), tries=1)
    held.train()
    held.open_test(again=False)
    [unit] = held.cells()
    data = unit.data()
    return float((unit.read("test").argmax(1) == data.labels[data.indices("test")]).mean())
