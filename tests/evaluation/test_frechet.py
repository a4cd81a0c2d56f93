"""The Frechet distance against SciPy's matrix root and against closed forms."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from dcube.evaluation.frechet import frechet_distance


def by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    ca, cb = np.cov(a.T), np.cov(b.T)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb))))


def drawn(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 12), (40, 60, 1 + 4), (900, 700, 40)])
def test_it_is_that_of_a_general_matrix_root(n: int, m: int, d: int) -> None:
    a, b = drawn(n, d, 0), drawn(m, d, 1)
    assert np.isclose(frechet_distance(a, b), by_sqrtm(a, b), rtol=1e-9)


def test_diagonal_covariances_have_a_closed_form() -> None:
    """|m|^2 + sum (s_a - s_b)^2 for independent values."""
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T  # uncorrelated, variance 8 / 7
    sa, sb, shift = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.5]), np.array([0.3, 0.0, -1.0])
    expected = np.square(shift).sum() + 8 / 7 * np.square(sa - sb).sum()
    assert np.isclose(frechet_distance(signs * sa, signs * sb + shift), expected, rtol=1e-12)


def test_fewer_images_than_features() -> None:
    """Of rank n - 1: by the singular values of the centred products, which need no root of a covariance."""
    a, b = drawn(20, 64, 2), drawn(30, 64, 3)
    ca, cb = (f - f.mean(0) for f in (a, b))
    ca, cb = ca / np.sqrt(len(a) - 1), cb / np.sqrt(len(b) - 1)
    nuclear = np.linalg.svd(ca @ cb.T, compute_uv=False).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.square(ca).sum() + np.square(cb).sum() - 2 * nuclear
    assert np.isclose(frechet_distance(a, b), expected, rtol=1e-5)


def test_properties() -> None:
    a, b = drawn(50, 8, 4), drawn(50, 8, 5)
    assert frechet_distance(a, a) < 1e-6 * np.trace(np.cov(a.T))
    assert np.isclose(frechet_distance(a, b), frechet_distance(b, a))
    assert np.isclose(frechet_distance(a, a + 2.0), 4.0 * 8, rtol=1e-5)
    assert np.isclose(frechet_distance(a[:, :1], b[:, :1]), frechet_distance(-a[:, :1], -b[:, :1]))


@pytest.mark.parametrize("shapes", [((5, 3), (5, 4)), ((1, 3), (5, 3)), ((5,), (5,))])
def test_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="features must be"):
        frechet_distance(np.zeros(shapes[0]), np.zeros(shapes[1]))
