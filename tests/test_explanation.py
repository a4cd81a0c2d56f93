"""Occlusion finds what an answer hangs on, where that is known, and says when it has found nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcube import explanation
from dcube.explanation import FULL, Explanation, blurred, explain, overlay

SIZE, GRID = 56, 14
RNG = np.random.default_rng(0)


def image_with(top: int, left: int, side: int = 8) -> np.ndarray:
    """[1, 56, 56]: noise of low contrast, and a bright square."""
    pixels = 0.3 + 0.1 * RNG.random((1, SIZE, SIZE)).astype(np.float32)
    pixels[:, top : top + side, left : left + side] = 1
    return pixels


def looks_at(top: int, left: int, side: int = 8) -> Callable[[np.ndarray], np.ndarray]:
    """A model of two classes whose second is the brightness of one square."""

    def ask(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 1
        p = images[:, :, top : top + side, left : left + side].mean((1, 2, 3)).astype(np.float64)
        return np.stack([1 - p, p], axis=1)

    return ask


@pytest.mark.parametrize(("top", "left"), [(0, 0), (20, 36), (48, 48)])
def test_the_square_that_a_model_looks_at_is_found(top: int, left: int) -> None:
    found = explain(looks_at(top, left), image_with(top, left), grid=GRID)
    assert found.label == 1 and found.drop.shape == (GRID, GRID)
    row, column = np.unravel_index(found.drop.argmax(), found.drop.shape)
    assert top // 4 <= row <= top // 4 + 1 and left // 4 <= column <= left // 4 + 1
    far = np.ones((GRID, GRID), bool)
    far[max(0, top // 4 - 1) : top // 4 + 3, max(0, left // 4 - 1) : left // 4 + 3] = False
    assert np.abs(found.drop[far]).max() < 1e-9, "nothing hangs on the rest"
    assert found.without_best < found.without_random < found.probabilities[1]


def test_the_other_class_has_the_opposite_map() -> None:
    ask, image = looks_at(20, 36), image_with(20, 36)
    one, other = explain(ask, image, 1, GRID), explain(ask, image, 0, GRID)
    np.testing.assert_allclose(one.drop, -other.drop, atol=1e-9)
    assert other.label == 0 and other.drop.max() < 1e-9


def test_a_model_that_looks_at_nothing_has_an_empty_map() -> None:
    found = explain(lambda images: np.tile([0.2, 0.8], (len(images), 1)), image_with(8, 8), grid=GRID)
    assert not found.drop.any() and found.without_best == found.without_random == pytest.approx(0.8)
    shown = overlay(image_with(8, 8), found.drop)
    assert np.array_equal(shown[:, :SIZE], shown[:, SIZE:]), "nothing is coloured"


@pytest.mark.parametrize("grid", [3, 5, 13, 28])
def test_grids_that_do_not_divide_the_image(grid: int) -> None:
    found = explain(looks_at(0, 0, SIZE), image_with(24, 24), grid=grid)
    assert found.drop.shape == (grid, grid) and np.isfinite(found.drop).all()


def test_the_same_seed_gives_the_same_check() -> None:
    ramp = np.tile(np.linspace(0, 1, SIZE, dtype=np.float32) ** 2, (1, SIZE, 1))

    def once(seed: int) -> Explanation:
        return explain(looks_at(0, 0, SIZE), ramp, seed=seed)

    assert once(0).without_random == once(0).without_random != once(1).without_random


def test_what_is_hidden_is_blurred_and_keeps_its_mean() -> None:
    image = np.random.default_rng(1).random((3, SIZE, SIZE)).astype(np.float32)
    hidden = blurred(image)
    assert hidden.shape == image.shape and hidden.std() < 0.2 * image.std()
    np.testing.assert_allclose(hidden.mean((1, 2)), image.mean((1, 2)), atol=0.01)


def test_red_where_hiding_lowers_and_blue_where_it_raises() -> None:
    drop = np.zeros((GRID, GRID))
    drop[2, 2], drop[11, 11] = 0.5, -0.5
    grey = np.full((1, SIZE, SIZE), 0.5, np.float32)
    shown = overlay(grey, drop)[:, SIZE:].astype(int)
    red, blue = shown[10, 10], shown[46, 46]
    assert red[0] > red[2] + 30 and blue[2] > blue[0] + 30 and (shown[28, 28] == shown[28, 28, 0]).all()
    faint = overlay(grey, drop * 0.02)[:, SIZE:].astype(int)  # a hundredth of a probability, far below FULL
    assert FULL > 0.5 * 0.02 and np.abs(faint - overlay(grey, 0 * drop)[:, SIZE:]).max() < 20


def test_the_record_is_written_ever_more_seldom_and_whole_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(explanation, "write_json", lambda file, rows: sizes.append(len(rows)))
    rows: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt), explanation._record(tmp_path / "record.json", rows) as written:
        for number in range(1000):
            written()
            rows.append({"number": number})
        raise KeyboardInterrupt
    assert sizes[0] == 0 and sizes[-1] == 1000 and len(sizes) < 70
