"""Floors: sane on data made so that one of them must win, and safe at the edges."""

import numpy as np
import pytest

from dcube.evaluation import point_metrics
from dcube.evaluation.floors import FLOORS, STATISTICS, fitted_floors, floors, shrink, simple_statistics


def images_of(labels: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """Noise [N, 1, 48, 48] whose class shows in the brightness, or in which corner holds a spot, or not at all."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0.4, 0.1, (len(labels), 1, 48, 48))
    if kind == "brightness":
        images += 0.1 * labels[:, None, None, None]
    if kind == "place":
        for image, label in zip(images, labels, strict=True):
            top, left = divmod(int(label), 2)
            image[0, 8 + 24 * top : 14 + 24 * top, 8 + 24 * left : 14 + 24 * left] += 0.3
    return np.clip(images, 0, 1).astype(np.float32)


def accuracies(kind: str) -> dict[str, float]:
    rng = np.random.default_rng(0)
    train, test = np.repeat([0, 0, 1, 2], 50), rng.integers(0, 3, 120)
    groups = [f"p{i // 2}" for i in range(len(train))]
    result = floors(images_of(train, kind, 1), train, groups, images_of(test, kind, 2), classes=3)
    assert tuple(result) == FLOORS
    for probabilities in result.values():
        assert probabilities.shape == (120, 3)
        assert probabilities.sum(1) == pytest.approx(1)
    assert result["majority"][0] == pytest.approx([0.5, 0.25, 0.25])
    return {name: point_metrics(p, test)["accuracy"] for name, p in result.items()}


def test_statistics_see_brightness() -> None:
    found = accuracies("brightness")
    assert found["statistics"] > 0.95 and found["majority"] < 0.5


def test_pixels_see_a_place_that_statistics_cannot() -> None:
    found = accuracies("place")
    assert found["pixels"] > 0.9 and found["statistics"] < 0.6


def test_nothing_is_learnt_from_noise() -> None:
    assert max(accuracies("nothing").values()) < 0.55


def test_floors_are_deterministic_and_take_colour_small_images_and_single_groups() -> None:
    rng = np.random.default_rng(3)
    train, labels = rng.random((30, 3, 20, 20), dtype=np.float32), np.repeat([0, 2], 15)
    groups = ["a"] * 15 + ["b"] * 15  # one group per class: nothing to tune on
    first, again = (floors(train, labels, groups, train[:4], classes=4) for _ in range(2))
    for name in FLOORS:
        assert (first[name] == again[name]).all()
        assert (first[name][:, [1, 3]] == 0).all()  # classes that training never saw


def test_one_training_class_gives_the_majority() -> None:
    images = np.random.default_rng(4).random((6, 1, 32, 32), dtype=np.float32)
    result = floors(images, np.ones(6, dtype=int), list("abcdef"), images, classes=2)
    assert all((result[name] == [0, 1]).all() for name in FLOORS)


def test_simple_statistics_of_a_known_image() -> None:
    image = np.zeros((1, 1, 32, 32), dtype=np.float32)
    image[..., 16:] = 1  # left half black, right half white
    values = dict(zip(STATISTICS, simple_statistics(image)[0], strict=True))
    assert len(values) == 14
    assert values["mean"] == values["mean of the centre"] == values["share of dark pixels"] == 0.5
    assert values["standard deviation"] == 0.5 and values["quantile 0.05"] == 0 and values["quantile 0.95"] == 1
    assert values["horizontal gradient"] == pytest.approx(1 / 31) and values["vertical gradient"] == 0
    assert values["sharpness"] > 0


@pytest.mark.parametrize("size", [64, 50, 20])
def test_shrink_keeps_the_mean_and_is_a_block_mean_where_sizes_divide(size: int) -> None:
    images = np.random.default_rng(5).random((2, 3, size, size), dtype=np.float32)
    small = shrink(images, 32)
    assert small.shape == (2, 3, 32, 32)
    assert small.mean((2, 3)) == pytest.approx(images.mean((2, 3)), abs=1e-5)
    if size == 64:
        assert small == pytest.approx(images.reshape(2, 3, 32, 2, 32, 2).mean((3, 5)), abs=1e-6)


def test_fitted_floors_answer_part_by_part() -> None:
    train, test = np.repeat([0, 1, 2], 20), np.tile([0, 1, 2], 10)
    images, groups = images_of(train, "brightness", 1), [f"p{i}" for i in range(len(train))]
    asked = images_of(test, "brightness", 2)
    whole = floors(images, train, groups, asked, classes=3)
    for name, floor in fitted_floors(images, train, groups, classes=3).items():
        parts = np.concatenate([floor(asked[:7]), floor(asked[7:])])
        assert parts == pytest.approx(whole[name], abs=1e-9)
