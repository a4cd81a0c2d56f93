"""Eq. 6 against SciPy, and the readings of figure 2 against plain averages."""

import numpy as np
import pytest
from scipy import stats

from dcube.features.gaussianity import block_sample, gaussianity, ks_statistic, ks_test, lilliefors_p, standardise

RNG = np.random.default_rng
DRAWS = {
    "normal": lambda n: RNG(n).standard_normal(n), "uniform": lambda n: RNG(n).uniform(-1, 1, n),
    "shifted": lambda n: RNG(n).standard_normal(n) + 3, "ties": lambda n: np.round(RNG(n).standard_normal(n)),
    "constant": np.zeros,
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("n", [2, 7, 64, 512])
def test_ks_is_that_of_scipy(name: str, n: int) -> None:
    values = DRAWS[name](n)
    D, p = ks_test(values)
    oracle = stats.kstest(values, "norm", method="exact")
    np.testing.assert_allclose([D, p], [oracle.statistic, oracle.pvalue], rtol=1e-9, atol=1e-14)


def test_ks_works_row_by_row() -> None:
    rows = RNG(0).standard_normal((3, 4, 50))
    expected = [[stats.kstest(row, "norm").statistic for row in part] for part in rows]
    np.testing.assert_allclose(ks_statistic(rows), expected, rtol=1e-12)


@pytest.mark.parametrize("bad", [[1.0], [1.0, np.nan], [1.0, np.inf], [[1.0, 2.0]]])
def test_ks_refuses_what_it_cannot_test(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 2 finite values"):
        ks_test(np.array(bad))


@pytest.mark.parametrize(("seed", "shape"), [(0, None), (1, None), (2, 3.0), (3, 6.0)])
def test_lilliefors_is_that_of_scipy_by_simulation(seed: int, shape: float | None) -> None:
    """p with mean and deviation estimated from the same values."""
    values = RNG(seed).standard_normal(48) if shape is None else RNG(seed).gamma(shape, size=48)
    oracle = stats.goodness_of_fit(stats.norm, values, statistic="ks", n_mc_samples=2000, rng=RNG(9))
    D, _ = ks_test(standardise(values))
    assert abs(lilliefors_p(D, 48) - oracle.pvalue) < 0.05


def test_lilliefors_is_uniform_for_gaussian_values_and_the_papers_p_is_not() -> None:
    rows = [ks_test(standardise(row)) for row in RNG(4).standard_normal((300, 32))]
    corrected = [lilliefors_p(D, 32) for D, _ in rows]
    assert stats.kstest(corrected, "uniform").pvalue > 0.01
    assert 0.75 < np.median([p for _, p in rows]) < 0.9  # hence the plateau of figure 2


def test_standardise() -> None:
    values = RNG(0).gamma(2, size=(3, 40))
    expected = (values - values.mean(1, keepdims=True)) / values.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(standardise(values), expected)
    assert not standardise(np.full(5, 3.0)).any()


def test_channel_mean_averages_over_batch_and_positions() -> None:
    feature = RNG(0).gamma(1, size=(3, 5, 2, 4)).astype(np.float32)
    plain = [np.mean([feature[b, c, i, j] for b in range(3) for i in range(2) for j in range(4)]) for c in range(5)]
    np.testing.assert_allclose(block_sample(feature, "channel_mean"), standardise(np.array(plain)), rtol=1e-4)
    found = gaussianity(feature)
    D, p = ks_test(standardise(feature.mean((0, 2, 3), dtype=np.float64)))
    assert found == {"n": 5, "D": D, "p": p, "p_lilliefors": lilliefors_p(D, 5)}


def test_token_mean_averages_over_batch_and_channels() -> None:
    feature = RNG(0).gamma(1, size=(3, 5, 2, 4))
    plain = [np.mean([feature[b, c, i, j] for b in range(3) for c in range(5)]) for i in range(2) for j in range(4)]
    np.testing.assert_allclose(block_sample(feature, "token_mean"), standardise(np.array(plain)))


def test_all_values_are_drawn_without_replacement() -> None:
    feature = RNG(0).permutation(2000).reshape(2, 10, 10, 10).astype(float)
    sample = block_sample(feature, "all_values")
    assert sample.shape == (512,) and len(np.unique(sample)) == 512
    assert block_sample(feature[:, :2, :2, :2], "all_values").shape == (16,)


def test_per_image_averages_over_the_images() -> None:
    feature = np.stack([RNG(0).standard_normal((4, 5, 5)), RNG(1).gamma(0.5, size=(4, 5, 5))])
    each = [ks_test(standardise(image.ravel())) for image in feature]
    found = gaussianity(feature, "per_image")
    assert found["n"] == 100
    np.testing.assert_allclose([found["D"], found["p"]], np.mean(each, axis=0), rtol=1e-9)
