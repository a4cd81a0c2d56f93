"""Models on frozen features: against plain readings, and what must not matter."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dcube.baselines import probes
from dcube.data.dataset import ImageData
from dcube.features.frozen import FrozenFeatures, flat_features
from dcube.features.subnet import OFFLINE_MODEL, OFFLINE_PACKAGE, SubNetwork, cnn_features
from tiny import tiny_data, tiny_diffusion


def test_votes_by_hand() -> None:
    """Cosine distance, and each class's votes divided by its number of training images."""
    rng = np.random.default_rng(0)
    train, asked = rng.normal(size=(20, 5)).astype(np.float32), rng.normal(size=(6, 5)).astype(np.float32)
    labels = np.array([0] * 12 + [2] * 6 + [3] * 2)
    made = probes._votes(train, labels, asked, 5, 4)
    for row, x in zip(made, asked, strict=True):
        similarity = train @ x / np.linalg.norm(train, axis=1) / np.linalg.norm(x)
        nearest = labels[np.argsort(-similarity)[:5]]
        votes = np.array([(nearest == k).sum() / max((labels == k).sum(), 1) for k in range(4)])
        np.testing.assert_allclose(row, votes / votes.sum(), rtol=1e-6)


def test_neighbours_are_chosen_inside_training() -> None:
    """Two clean clusters: one neighbour is enough; clusters with a third of wrong labels: many are better."""
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 2
    centres = np.array([[1.0, 0.0], [0.0, 1.0]])
    features = (centres[labels] + 0.1 * rng.normal(size=(240, 2))).astype(np.float32)
    groups = np.array([f"g{i // 2}" for i in range(240)])
    assert probes._tuned_neighbours(features, labels, groups, 2, 0) == 1
    noisy = np.where(rng.random(240) < 0.33, 1 - labels, labels)
    assert probes._tuned_neighbours(features, noisy, groups, 2, 0) >= 9
    probabilities = probes.nearest_neighbours(features, noisy, groups, features, classes=3)
    assert (probabilities.argmax(1) == labels).mean() > 0.95 and (probabilities[:, 2] == 0).all()


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 0, 0, 1]])
def test_too_few_to_choose_from(labels: list[int]) -> None:
    features = np.eye(4, dtype=np.float32)
    made = probes.nearest_neighbours(features, np.array(labels), np.array(list("abcd")), features, classes=2)
    assert made.shape == (4, 2) and np.isfinite(made).all()


def test_selected_features_are_the_mean_over_the_timesteps(data: ImageData) -> None:
    frozen = FrozenFeatures(tiny_diffusion(), [0, 2], "clean", 4)
    rows = np.array([3, 1, 7])
    blocks = flat_features(frozen, data, rows, (2, 9))
    assert [block.shape for block in blocks] == [(3, int(np.prod(shape))) for shape in frozen.shapes]
    images = data.images(rows, 8)
    expected = sum(frozen(images, torch.full((3,), t))[1].flatten(1) for t in (2, 9)) / 2
    np.testing.assert_allclose(blocks[1], expected.numpy(), rtol=1e-5, atol=1e-6)


class Bright:
    """Frozen features of two blocks: what the classes of the tiny set differ by, and noise at a given scale."""

    def __init__(self, scale: float) -> None:
        self.diffusion, self.scale, self.shapes = tiny_diffusion(), scale, [(1, 2, 2), (1, 8, 8)]

    def __call__(self, images: torch.Tensor, t: torch.Tensor) -> list[torch.Tensor]:
        return [F.adaptive_avg_pool2d(images, 2), (1e4 * images).sin() * self.scale]


def test_blocks_count_alike_whatever_their_scale(tmp_path: Path) -> None:
    """Brightness is seen beside noise a thousand times as large."""
    data = tiny_data(tmp_path / "store", (40, 40, 40))
    rows = data.indices("val")
    made = [probes.feature_probe(Bright(scale), data, rows, (2,), 0) for scale in (1.0, 1000.0)]  # type: ignore[arg-type]
    np.testing.assert_allclose(made[0], made[1], atol=0.01)
    assert made[0].shape == (len(rows), 3) and (made[0].argmax(1) == data.labels[rows]).mean() > 0.9


def test_a_probe_of_wide_features_takes_some_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = tiny_data(tmp_path / "store", (40, 40, 40)), []
    flat = probes.flat_features

    def counted(frozen: Any, data: ImageData, rows: np.ndarray, timesteps: Any) -> list[np.ndarray]:
        asked.append(len(rows))
        return flat(frozen, data, rows, timesteps)

    monkeypatch.setattr(probes, "flat_features", counted)
    for values, expected in ((68 * 1000, len(data.indices("train"))), (68 * 30, 30)):
        monkeypatch.setattr(probes, "VALUES", values)
        probes.feature_probe(Bright(1.0), data, data.indices("val"), (2,), 0)  # type: ignore[arg-type]
        assert asked[-2] == expected


@pytest.mark.skipif(importlib.util.find_spec(OFFLINE_PACKAGE) is None, reason="the extra 'offline' is not installed")
def test_features_of_the_offline_network(data: ImageData) -> None:
    network = SubNetwork(OFFLINE_MODEL, "offline", 32)
    features = cnn_features(network, data, np.arange(5), 32)
    assert features.shape == (5, 1280) and np.isfinite(features).all()
    np.testing.assert_allclose(cnn_features(network, data, np.array([3]), 32)[0], features[3], rtol=1e-3, atol=1e-4)
